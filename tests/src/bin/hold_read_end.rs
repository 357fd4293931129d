//! Leaves a child that holds only the *read* end of the command's stdout: a log viewer. It keeps
//! EOF from nobody.

use std::os::fd::AsRawFd;

use nix::fcntl::OFlag;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, close_all_but, reopen_stdout};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        let reader = reopen_stdout(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        close_all_but(Some(reader.as_raw_fd()))?;
        std::mem::forget(reader);
        Ok(())
    })?;
    fixture.end()
}
