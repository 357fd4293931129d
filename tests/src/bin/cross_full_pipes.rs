//! Two processes that write to each other before they read, more than a pipe takes: the classic of
//! `subprocess` without `communicate`. They announce `left` and `right`; their parent waits for both.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;

use anyhow::Result;
use nix::sys::wait::wait;
use pipewarden_tests::fixture::{Fixture, fork, live_no_longer, to_null};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let (to_left, from_right) = std::io::pipe()?;
    let (to_right, from_left) = std::io::pipe()?;
    fork(|| {
        to_null(&[to_right.as_raw_fd(), from_right.as_raw_fd()])?;
        talk(&fixture, "left", &to_left, &from_left)
    })?;
    fork(|| {
        to_null(&[to_left.as_raw_fd(), from_left.as_raw_fd()])?;
        talk(&fixture, "right", &to_right, &from_right)
    })?;
    drop((to_left, from_right, to_right, from_left));
    while wait().is_ok() {}
    fixture.leave_the_scene()
}

fn talk(fixture: &Fixture, role: &str, mut read: &PipeReader, mut write: &PipeWriter) -> Result<()> {
    live_no_longer()?;
    fixture.announce(role)?;
    write.write_all(&vec![0; 1 << 20])?;
    read.read_to_end(&mut Vec::new())?;
    Ok(())
}
