//! A command that ignores SIGTERM and SIGINT and announces `ready` once it does.

use nix::sys::signal::Signal;
use pipewarden_tests::fixture::{Fixture, ignore, stay};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    ignore(Signal::SIGTERM)?;
    ignore(Signal::SIGINT)?;
    fixture.announce("ready")?;
    stay()
}
