//! Leaves a child whose first thread has ended while a second one goes on, as with `pthread_exit`
//! in main: `/proc/PID/fd` is empty, `/proc/PID/task/TID/fd` is not.

use anyhow::Result;
use nix::unistd::{getpid, setsid};
use pipewarden_tests::fixture::{Fixture, exit_after, fork, stay};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        std::thread::scope(|scope| {
            scope.spawn(|| exit_after(|| hold_when_alone(&fixture)));
            // SAFETY: exit(2) ends this thread only. Its stack, which the other one borrows from,
            // stays: nothing frees the stack of a process's first thread.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        Ok(())
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}

/// Stays, once the first thread is a zombie.
fn hold_when_alone(fixture: &Fixture) -> Result<()> {
    let stat = format!("/proc/self/task/{}/stat", getpid());
    while !std::fs::read_to_string(&stat)?.contains(") Z ") {
        std::thread::yield_now();
    }
    fixture.announce(fixture.role())?;
    stay()
}
