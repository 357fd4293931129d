//! Leaves so many orphans that exit at once, and exits when no zombie is left of them: what a build
//! does to the first process of its container. `orphans COUNT`.

use anyhow::{Context, ensure};
use nix::sys::wait::waitpid;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{Fixture, fork};
use pipewarden_tests::kernel;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let count: u32 = fixture.arguments().first().context("how many orphans?")?.parse()?;
    for _ in 0..count {
        let parent = fork(|| fork(|| Ok(())).map(drop))?;
        waitpid(parent, None)?;
    }
    let zombies =
        || kernel::everybody().into_iter().filter(|pid| kernel::stat(*pid, 3).as_deref() == Some("Z")).count();
    ensure!(Deadline::patient().until(|| zombies() == 0), "{} zombies are left", zombies());
    fixture.end()
}
