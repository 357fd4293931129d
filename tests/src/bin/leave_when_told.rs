//! Leaves a child that escapes only when the test says so, as role `leaver`: whoever watches is
//! watching by then. The words say how it is born and how it leaves:
//!
//! - `setpgid`: into a group of its own; else into a session of its own;
//! - `clone_parent`: born as a child of whoever started the command;
//! - `second_thread`: born of a process whose first thread has ended;
//! - `storm N`: born after N processes that exited at once, all of them when the test lets go of
//!   `ready`.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, setpgid, setsid};
use pipewarden_tests::fixture::{Fixture, exit_after, fork, stay};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    if let Some(at) = fixture.arguments().iter().position(|word| word == "storm") {
        fixture.announce("ready")?;
        let count: u32 = fixture.arguments().get(at + 1).context("how many?")?.parse()?;
        for _ in 0..count {
            waitpid(fork(|| Ok(()))?, None)?;
        }
    }
    if fixture.says("clone_parent") {
        let flags = libc::CLONE_PARENT | libc::SIGCHLD;
        // SAFETY: without CLONE_VM and a stack this is fork(2); there is one thread.
        if Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? == 0 {
            exit_after(|| leave(&fixture));
        }
    } else if fixture.says("second_thread") {
        fork(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| exit_after(|| leave_without_the_first_thread(&fixture)));
                // SAFETY: exit(2) ends this thread only. Its stack, which the other one borrows from,
                // stays: nothing frees the stack of a process's first thread.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            });
            Ok(())
        })?;
    } else {
        fork(|| leave(&fixture))?;
    }
    fixture.after(fixture.role())?;
    fixture.end()
}

fn leave(fixture: &Fixture) -> Result<()> {
    fixture.announce("leaver")?;
    if fixture.says("setpgid") {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    } else {
        setsid()?;
    }
    fixture.announce(fixture.role())?;
    stay()
}

/// Once the first thread is a zombie.
fn leave_without_the_first_thread(fixture: &Fixture) -> Result<()> {
    let stat = format!("/proc/self/task/{}/stat", getpid());
    while !std::fs::read_to_string(&stat)?.contains(") Z ") {
        std::thread::yield_now();
    }
    fixture.announce("without a first thread")?;
    // The only thread that is left may do all that its process could.
    fork(|| leave(fixture))?;
    stay()
}
