//! Leaves a child with one thread that unshared its descriptor table; the other threads closed
//! everything. Sandboxes and some language runtimes do this. `/proc/PID/fd` is empty.

use std::sync::Barrier;

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, close_all_but, fork, stay};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| -> Result<()> {
                unshare(CloneFlags::CLONE_FILES)?;
                barrier.wait(); // now the table is the thread's own
                barrier.wait(); // now the other table is empty
                fixture.announce(fixture.role())?;
                stay()
            });
            barrier.wait();
            close_all_but(None)?;
            barrier.wait();
            holder.join().unwrap_or(Ok(()))
        })
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}
