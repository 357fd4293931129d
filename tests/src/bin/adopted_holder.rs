//! Opens a pipe by its path and leaves a process that holds it, as an orphan of who is not in the
//! lineage: a `docker exec` into the run's container does that. `adopted_holder PATH`.

use std::fs::OpenOptions;

use anyhow::Context;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin_silently()?;
    let path = fixture.arguments().first().context("which pipe?")?.clone();
    let _pipe = OpenOptions::new().append(true).open(path)?;
    fixture.leave(|| {
        setsid()?;
        to_null(&[0, 1, 2])
    })?;
    Ok(())
}
