//! Leaves a child in a session of its own that is quiet for a long time and then logs a line: a
//! daemon that somebody wants to live, and that must not die of SIGPIPE when it logs. It writes
//! when the test tells it to; with `ignore-sigpipe`, it would survive the signal.

use nix::sys::signal::Signal;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, fork, ignore, stay, write_when_told};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        if fixture.says("ignore-sigpipe") {
            ignore(Signal::SIGPIPE)?;
        }
        fixture.announce(fixture.role())?;
        write_when_told(&fixture, &std::io::stdout())?;
        stay()
    })?;
    fixture.after(fixture.role())?;
    fixture.end()
}
