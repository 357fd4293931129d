//! The reader at the end of a stream: it reads until EOF, or says that none came.

use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;

use crate::deadline::Deadline;

/// What came out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// All bytes, in order.
    pub bytes: Vec<u8>,
    /// Whether EOF came.
    pub eof: bool,
}

impl Read {
    /// The bytes as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A reader's own manners.
#[derive(Clone, Copy, Debug, Default)]
pub enum Pace {
    /// Takes what comes.
    #[default]
    Eager,
    /// Takes at most so many bytes, then does something else for so long.
    Slow {
        /// How much it takes at once.
        bytes: usize,
        /// How long it then does not read.
        pause: Duration,
    },
}

/// Reads a stream to its end, in a thread of its own.
#[must_use]
pub fn read_to_end(stream: PipeReader, pace: Pace, deadline: Deadline) -> JoinHandle<Read> {
    std::thread::spawn(move || read(&stream.into(), pace, deadline))
}

fn read(stream: &OwnedFd, pace: Pace, deadline: Deadline) -> Read {
    let mut buffer = vec![0; if let Pace::Slow { bytes, .. } = pace { bytes } else { 1 << 16 }];
    let mut all = Vec::new();
    loop {
        if !deadline.wait(stream.as_fd(), PollFlags::POLLIN) {
            return Read { bytes: all, eof: false };
        }
        match nix::unistd::read(stream, &mut buffer) {
            Ok(0) => return Read { bytes: all, eof: true },
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(error) => panic!("reading the stream: {error}"),
        }
        if let Pace::Slow { pause, .. } = pace {
            std::thread::sleep(pause); // this reader's way of reading, not a wait
        }
    }
}

/// Reads what is there and does not wait. No EOF then means: a writer holds on.
#[must_use]
pub fn read_now(stream: &PipeReader) -> Read {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while Deadline::after(Duration::ZERO).wait(stream.as_fd(), PollFlags::POLLIN) {
        match nix::unistd::read(stream, &mut buffer) {
            Ok(0) => return Read { bytes, eof: true },
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::EINTR) => {}
            Err(error) => panic!("reading the stream: {error}"),
        }
    }
    Read { bytes, eof: false }
}
