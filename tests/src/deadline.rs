//! How long a test waits for an event before it says that the event does not come.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Generous, because it is met only by what is broken: no test gets slower or less strict by it. On a
/// machine with twenty that want each core, a process that has much to do may well need a minute.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A point in time that what a test waits for must not miss.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// [`PATIENCE`] from now.
    #[must_use]
    pub fn patient() -> Deadline {
        Deadline(Instant::now() + PATIENCE)
    }

    /// This long from now.
    #[must_use]
    pub fn after(duration: Duration) -> Deadline {
        Deadline(Instant::now() + duration)
    }

    /// What is left of it.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Waits until a descriptor has one of these events (or an error, or a hangup).
    /// False when the deadline came first.
    #[must_use]
    pub fn wait(self, fd: BorrowedFd<'_>, events: PollFlags) -> bool {
        loop {
            let timeout = PollTimeout::try_from(self.left()).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(fd, events)], timeout) {
                Ok(0) if self.left().is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    /// Waits until a condition holds that the kernel has no event for.
    /// False when the deadline came first.
    #[must_use]
    pub fn until(self, mut holds: impl FnMut() -> bool) -> bool {
        loop {
            if holds() {
                return true;
            }
            if self.left().is_zero() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1)); // between two looks, so as not to take the core
        }
    }
}
