//! Leaves a child that registered stdout with an io_uring and closed the descriptor, as servers on
//! io_uring do with their sockets. No descriptor table shows it; the ring's fdinfo does.

use anyhow::Context;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        let ring = io_uring::IoUring::new(2).context("this kernel gives us no io_uring")?;
        ring.submitter().register_files(&[1])?;
        std::mem::forget(ring);
        to_null(&[0, 1, 2])
    })?;
    fixture.end()
}
