//! Leaves a child in its own process group: `server &` in a script without job control.

use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| Ok(()))?;
    fixture.end()
}
