//! Waits for a child that stops itself, as `system("...")` waits for what somebody sent SIGSTOP. The child
//! announces `stopped`; continued, it exits, and so does its parent.

use anyhow::Result;
use nix::sys::prctl;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use pipewarden_tests::fixture::{Fixture, fork, live_no_longer};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let child = fork(|| {
        // A stopped process has no alarm; but it goes with its parent, which has one.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        fixture.announce("stopped")?;
        raise(Signal::SIGSTOP)?;
        Ok(())
    })?;
    live_no_longer()?;
    waitpid(child, None)?;
    fixture.leave_the_scene()
}
