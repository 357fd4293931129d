//! Waits for a child that stops itself, as `system("...")` waits for what somebody sent SIGSTOP. The child
//! announces `stopped`; continued, it exits, and so does its parent.

use anyhow::Result;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use pipewarden_tests::fixture::{Fixture, fork};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let child = fork(|| {
        fixture.announce("stopped")?;
        raise(Signal::SIGSTOP)?;
        Ok(())
    })?;
    waitpid(child, None)?;
    fixture.leave_the_scene()
}
