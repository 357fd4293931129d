//! `eval $(ssh-agent)`: the agent gets a session of its own, lets nobody look into it, and holds
//! nothing of its starter's: /dev/null in the place of all three streams.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        nix::sys::prctl::set_dumpable(false)?;
        setsid()?;
        nix::unistd::chdir("/")?;
        to_null(&[0, 1, 2])
    })?;
    fixture.end()
}
