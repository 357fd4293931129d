//! Leaves a child in a session of its own: `setsid server &`, and every tool that starts its
//! helper with Python's `start_new_session=True` or Node's `detached: true`.

use nix::unistd::setsid;
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| Ok(setsid().map(drop)?))?;
    fixture.end()
}
