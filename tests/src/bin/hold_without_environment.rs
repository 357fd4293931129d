//! Leaves a child that became another program with an empty environment: `env -i server`. Tags in
//! the environment do not find it.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, fork};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        fixture.become_without_environment("stay")
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}
