//! Every generation forks the next and exits: what a supervisor meets in a crash-looping service,
//! and what a scan of the process table runs after. `refork MICROSECONDS [setsid]`: the pause of a
//! generation before it forks, and whether each starts a session of its own.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pipewarden_tests::fixture::{Fixture, end_of_life, fork};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let pause = Duration::from_micros(fixture.arguments().first().context("how many microseconds?")?.parse()?);
    let new_session = fixture.says("setsid");
    fork(|| generations(fixture.lifeline(fixture.role())?.as_ref(), pause, new_session))?;
    fixture.after(fixture.role())?;
    fixture.end()
}

fn generations(life: Option<&UnixStream>, pause: Duration, new_session: bool) -> Result<()> {
    let end = end_of_life();
    fork(|| {
        loop {
            if new_session {
                nix::unistd::setsid()?;
            }
            if is_over(life, end)? {
                return Ok(());
            }
            // The pause is what this program does, not a wait for something.
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            // SAFETY: no generation has a second thread, so the child may do all that it could.
            if unsafe { nix::unistd::fork() }?.is_parent() {
                return Ok(());
            }
        }
    })
    .map(drop)
}

/// Whether the test closed the lifeline, or nobody stopped us for far too long.
fn is_over(life: Option<&UnixStream>, end: Instant) -> Result<bool> {
    let Some(life) = life else { return Ok(Instant::now() > end) };
    let mut watched = [PollFd::new(life.as_fd(), PollFlags::POLLIN)];
    Ok(Instant::now() > end || poll(&mut watched, PollTimeout::ZERO)? > 0)
}
