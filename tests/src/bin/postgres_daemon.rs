//! `pg_ctl start` without `-l`: the server gets a session of its own and /dev/null as stdin, and
//! keeps stdout and stderr for its log.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        to_null(&[0])
    })?;
    fixture.end()
}
