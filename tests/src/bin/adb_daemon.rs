//! `adb devices` where no server runs yet: the client forks the server, which detaches, forks a
//! `worker`, and like it keeps stdout and stderr.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, fork, stay};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fixture.leave(|| {
        setsid()?;
        fork(|| {
            fixture.announce("worker")?;
            stay()
        })?;
        fixture.after("worker")
    })?;
    fixture.end()
}
