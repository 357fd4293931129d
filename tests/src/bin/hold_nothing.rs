//! Leaves a daemon that does everything right: a session of its own, and no descriptor open.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, close_all_but};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        Ok(close_all_but(None)?)
    })?;
    fixture.end()
}
