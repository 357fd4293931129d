//! Leaves a child that became a program with an empty environment: `env -i server`. Tags in the
//! environment do not find it.

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, fork, stay};

fn main() -> anyhow::Result<()> {
    let arguments = Fixture::begin_silently()?;
    if arguments.says("server") {
        arguments.announce(arguments.role())?;
        return stay();
    }
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        fixture.become_anew_without_environment("server")
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}
