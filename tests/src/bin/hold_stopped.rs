//! Leaves a child that is stopped: a job after ctrl-Z, or one under a debugger. SIGTERM alone
//! would wait for SIGCONT.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::setsid;
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let child = fixture.leave(|| Ok(setsid().map(drop)?))?;
    kill(child, Signal::SIGSTOP)?;
    waitpid(child, Some(WaitPidFlag::WUNTRACED))?;
    fixture.end()
}
