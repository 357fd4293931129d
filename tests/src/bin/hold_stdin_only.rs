//! Leaves a child that holds only stdin: a helper that still reads a shared terminal or script.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        to_null(&[1, 2])
    })?;
    fixture.end()
}
