//! Leaves a child that also has a file of a dead file system open, as on an NFS server that went
//! away: a stat(2) through `/proc/PID/fd/N` would never return. `hold_dead_mount PATH`.

use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, put};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        let path = fixture.arguments().first().context("which mount?")?;
        // As descriptor 0, so that a look at its table meets it before it meets the pipe.
        let dead = open(path.as_str(), OFlag::O_PATH, Mode::empty())?;
        put(dead.as_raw_fd(), 0)?;
        Ok(())
    })?;
    fixture.end()
}
