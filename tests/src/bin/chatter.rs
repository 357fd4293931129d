//! Leaves a child in a session of its own that prints a numbered line every 50 ms: a dev server
//! with a progress display. It is never quiet for as long as a grace.

use std::time::{Duration, Instant};

use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, end_of_life, fork, say};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    fork(|| {
        setsid()?;
        fixture.announce(fixture.role())?;
        let end = end_of_life();
        for line in 0.. {
            say(format!("{line}\n").as_bytes())?;
            std::thread::sleep(Duration::from_millis(50)); // its pace, not a wait
            if Instant::now() > end {
                break;
            }
        }
        Ok(())
    })?;
    fixture.after(fixture.role())?;
    fixture.leave_the_scene()
}
