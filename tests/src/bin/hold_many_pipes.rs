//! Makes many pipes of its own, keeps them, and leaves a child in a session of its own that has all of
//! them and its stdout: `hold_many_pipes COUNT`.

use anyhow::Context;
use nix::unistd::{pipe, setsid};
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let count: u32 = fixture.arguments().first().context("how many?")?.parse()?;
    let _pipes = (0..count).map(|_| pipe()).collect::<Result<Vec<_>, _>>()?;
    fixture.leave(|| Ok(setsid().map(drop)?))?;
    fixture.end()
}
