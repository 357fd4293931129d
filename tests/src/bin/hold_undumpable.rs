//! Leaves a child whose descriptors only root may list: gpg-agent and everything else that keeps
//! secrets asks for that with `PR_SET_DUMPABLE`.

use nix::unistd::setsid;
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        Ok(nix::sys::prctl::set_dumpable(false)?)
    })?;
    fixture.end()
}
