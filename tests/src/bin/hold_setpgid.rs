//! Leaves a child in a process group of its own but in the same session: what an interactive shell
//! does with every job.

use nix::unistd::{Pid, setpgid};
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| Ok(setpgid(Pid::from_raw(0), Pid::from_raw(0))?))?;
    fixture.end()
}
