//! Leaves a child that opened its stdout once more, for reading and writing, and closed the rest:
//! `exec 3<>/dev/stdout` in a script. It holds a write end that nobody passed on to it.

use std::os::fd::AsRawFd;

use nix::fcntl::OFlag;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, close_all_but, reopen_stdout};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        let both = reopen_stdout(OFlag::O_RDWR)?;
        close_all_but(Some(both.as_raw_fd()))?;
        std::mem::forget(both);
        Ok(())
    })?;
    fixture.end()
}
