//! Leaves a grandchild whose parent is gone: the textbook daemon (fork, setsid, fork), without the
//! part that closes its descriptors.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, fork, stay};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        let child = nix::unistd::getpid();
        fork(|| {
            while nix::unistd::getppid() == child {
                std::thread::yield_now();
            }
            fixture.announce(fixture.role())?;
            stay()
        })?;
        Ok(())
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}
