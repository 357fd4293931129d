//! Leaves a sibling: a child made with `CLONE_PARENT`, as container runtimes do for the
//! container's first process. It is born as a child of whoever started the command.

use anyhow::Result;
use nix::errno::Errno;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, exit_after, stay};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is fork(2); there is one thread.
    if Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? == 0 {
        exit_after(|| {
            setsid()?;
            fixture.announce(fixture.role())?;
            stay()
        });
    }
    fixture.after(fixture.role())?;
    fixture.end()
}
