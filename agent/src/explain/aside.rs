//! A look from a process of its own, so that nothing it gets stuck on is ours to wait for.
//!
//! Some readings take a lock of the process that is looked at: FIONREAD that of the pipe, which a writer
//! holds while its own memory is being fetched; an epoll's fdinfo that of the epoll; a command line that
//! of the memory map. Whoever waits for such a lock can not even be killed. So a child looks, tells what
//! it knows in instalments (the safe readings first), and we wait for it as long as we said, no longer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// What came of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The last answer, if there was one.
    pub answer: Option<String>,
    /// Why the look could not be had at all, in one line.
    pub error: Option<String>,
    /// Whether the deadline came before the look's end.
    pub late: bool,
}

/// Where a look tells what it knows.
#[derive(Debug)]
pub struct Teller {
    to: File,
    /// When nobody waits any more.
    deadline: Instant,
}

const ANSWER: u8 = b'A';
const ERROR: u8 = b'E';

impl Teller {
    /// Until when to look around: half of the time that is left, so that what was seen is told in time.
    #[must_use]
    pub fn half_time(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }

    /// Tells an answer, which replaces those told before.
    pub fn answer(&mut self, text: &str) {
        self.tell(ANSWER, text);
    }

    fn tell(&mut self, kind: u8, text: &str) {
        let mut frame = vec![kind];
        frame.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
        frame.extend_from_slice(text.as_bytes());
        // If nobody listens any more, there is nobody to be told so.
        let _ = self.to.write_all(&frame);
    }
}

/// Has a child look, and gives the last answer that it told before the deadline.
///
/// Must be called while the process has one thread. The child keeps none of our descriptors: where it
/// gets stuck, it holds nobody's pipe.
///
/// # Errors
///
/// When there is no process or pipe to be had.
pub fn look(within: Duration, look: impl FnOnce(&mut Teller) -> Result<(), String>) -> io::Result<Told> {
    let deadline = Instant::now() + within;
    let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
    let us = nix::unistd::getpid();
    // SAFETY: there is one thread, so the child may do all that we could.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let mut teller = Teller { to: alone(to, us), deadline };
            if let Err(error) = look(&mut teller) {
                teller.tell(ERROR, &error);
            }
            // SAFETY: _exit(2) ends the process and touches no memory; nothing of the parent's is flushed.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(to);
            let told = listen(&from, deadline)?;
            // Our own child, not yet waited for: the number can mean nobody else.
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, if told.late { Some(WaitPidFlag::WNOHANG) } else { None });
            Ok(told)
        }
    }
}

/// Leaves the child with nothing but the way to its parent, and no longer than its parent.
fn alone(to: OwnedFd, parent: Pid) -> File {
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if nix::unistd::getppid() != parent {
        // SAFETY: as above.
        unsafe { libc::_exit(0) }
    }
    let keep = u32::try_from(to.as_raw_fd()).unwrap_or(0);
    for (first, last) in [(0, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last && first != keep && last != keep {
            // SAFETY: close_range takes three integers. Nothing of what it closes is used any more.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    File::from(to)
}

fn listen(from: &OwnedFd, deadline: Instant) -> io::Result<Told> {
    let mut told = Told { answer: None, error: None, late: false };
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut from = File::from(from.try_clone()?);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) if Instant::now() < deadline => continue,
            Ok(0) | Err(Errno::EINTR) => {
                told.late = true;
                return Ok(told);
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(told);
        }
        bytes.extend_from_slice(&buffer[..count]);
        take_frames(&mut bytes, &mut told);
    }
}

/// Takes the complete frames off the front: a letter, a length, the text.
fn take_frames(bytes: &mut Vec<u8>, told: &mut Told) {
    while let [kind, a, b, c, d, rest @ ..] = &bytes[..] {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some(text) = rest.get(..length) else { return };
        let text = String::from_utf8_lossy(text).into_owned();
        if *kind == ERROR {
            told.error = Some(text);
        } else {
            told.answer = Some(text);
        }
        bytes.drain(..5 + length);
    }
}
