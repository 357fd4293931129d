//! Leaves a child in a session of its own that ignores SIGTERM: `nohup`-minded servers, and shells
//! under `trap '' TERM`.

use nix::sys::signal::Signal;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, ignore};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        Ok(ignore(Signal::SIGTERM)?)
    })?;
    fixture.end()
}
