//! The command's standard input through a pipe of ours, where we must be able to end it, to give it
//! once more, or to take it from a FIFO with writers that come and go.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fifo::Fifo;
use super::stdio::standard;

/// The most that we hold between the source and the command, in bytes: a pipe's default capacity.
const CHUNK: usize = 64 * 1024;

/// The most that is kept to be given to another try, in bytes.
const KEEP_LIMIT: usize = 16 << 20;

/// How often a feed goes round before the others and the clocks have their turn.
const ROUNDS: usize = 16;

/// Where input comes from.
enum Source {
    /// Our own descriptor 0: a pipe or a socket.
    Ours,
    /// A FIFO that we own.
    Fifo(Box<Fifo>),
}

/// Why input ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The completion marker was seen.
    Done,
    /// `pipewarden fifo close`.
    Asked,
    /// The run is over.
    RunOver,
    /// The command does not read it any more.
    NoReader,
}

impl Closing {
    /// As the audit log and the control socket say it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Closing::Done => "completion marker",
            Closing::Asked => "fifo close",
            Closing::RunOver => "command exited",
            Closing::NoReader => "the command closed its stdin",
        }
    }
}

/// A feed: reads from its source, writes to the command, waits for neither.
pub struct Feed {
    source: Source,
    /// Whether nothing more comes from the source.
    ended: bool,
    /// Our end of the command's stdin.
    sink: Option<OwnedFd>,
    pending: Vec<u8>,
    written: usize,
    kept: Kept,
}

/// What was read, for another try.
enum Kept {
    /// There will be none that starts from the beginning.
    Nothing,
    /// All of it.
    All(Vec<u8>),
    /// It was too much.
    TooMuch,
}

impl Feed {
    /// A feed from our own stdin.
    #[must_use]
    pub fn from_stdin(keep: bool) -> Feed {
        Feed::new(Source::Ours, keep)
    }

    /// A feed from a FIFO of ours.
    #[must_use]
    pub fn from_fifo(fifo: Fifo, keep: bool) -> Feed {
        Feed::new(Source::Fifo(Box::new(fifo)), keep)
    }

    fn new(source: Source, keep: bool) -> Feed {
        let kept = if keep { Kept::All(Vec::new()) } else { Kept::Nothing };
        Feed { source, ended: false, sink: None, pending: Vec::new(), written: 0, kept }
    }

    /// Makes the pipe of a try; the command's end of it. A try that begins from the start gets
    /// everything once more.
    ///
    /// # Errors
    ///
    /// `EMFILE` and `ENFILE`.
    pub fn begin(&mut self, from_the_start: bool) -> io::Result<OwnedFd> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::fcntl::fcntl(&write, nix::fcntl::F_SETFL(OFlag::O_NONBLOCK))?;
        if from_the_start && let Kept::All(kept) = &self.kept {
            self.pending.clone_from(kept);
            self.written = 0;
        }
        self.sink = Some(write);
        Ok(read)
    }

    /// Whether everything that was read so far can be given once more.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        match &self.kept {
            Kept::Nothing => false,
            Kept::All(_) => true,
            Kept::TooMuch => false,
        }
    }

    /// The FIFO, where that is the source.
    pub fn fifo(&mut self) -> Option<&mut Fifo> {
        match &mut self.source {
            Source::Fifo(fifo) => Some(fifo),
            Source::Ours => None,
        }
    }

    /// Bytes that were read and that the command has not read.
    #[must_use]
    pub fn in_hand(&self) -> u64 {
        let piped = self.sink.as_ref().map_or(0, |sink| readable(sink.as_fd()));
        piped + (self.pending.len() - self.written) as u64
    }

    /// What to poll for.
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interests = Vec::new();
        let waiting = self.written < self.pending.len();
        if let Some(sink) = &self.sink {
            // Without a flag it still tells when the last reader is gone.
            interests.push((sink.as_fd(), if waiting { PollFlags::POLLOUT } else { PollFlags::empty() }));
            if let Some(source) = self.open_source().filter(|_| !waiting) {
                interests.push((source, PollFlags::POLLIN));
            }
        }
        if let Source::Fifo(fifo) = &self.source {
            interests.extend(fifo.interests());
        }
        interests
    }

    fn open_source(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            _ if self.ended => None,
            Source::Ours => Some(standard(0)),
            Source::Fifo(fifo) => fifo.reading(),
        }
    }

    /// Moves what can be moved without waiting; whether the command has just stopped reading.
    pub fn turn(&mut self) -> bool {
        for _ in 0..ROUNDS {
            let Some(sink) = &self.sink else { return false };
            if self.written < self.pending.len() {
                match nix::unistd::write(sink, &self.pending[self.written..]) {
                    Ok(count) => self.written += count,
                    Err(nix::errno::Errno::EPIPE) => return self.lose_reader(),
                    Err(_) => return false, // EAGAIN, EINTR
                }
                continue;
            }
            if self.ended {
                self.sink = None; // this is the command's EOF
                return false;
            }
            if has_no_reader(sink.as_fd()) {
                return self.lose_reader();
            }
            if !self.fill() {
                return false;
            }
        }
        false
    }

    fn lose_reader(&mut self) -> bool {
        self.sink = None;
        self.pending.clear();
        self.written = 0;
        true
    }

    /// Reads a chunk into the empty buffer; whether anything changed.
    fn fill(&mut self) -> bool {
        if self.open_source().is_none() {
            return false;
        }
        let mut chunk = std::mem::take(&mut self.pending);
        chunk.resize(CHUNK, 0);
        let Some(source) = self.open_source() else { return false };
        let read = match &self.source {
            Source::Ours => read_now(source, &mut chunk),
            Source::Fifo(_) => nix::unistd::read(source, &mut chunk).map_err(io::Error::from),
        };
        let count = read.as_ref().copied().unwrap_or(0);
        chunk.truncate(count);
        self.keep(&chunk);
        (self.pending, self.written) = (chunk, 0);
        if let Source::Fifo(fifo) = &mut self.source {
            fifo.taken += count as u64;
        }
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            // Nobody can read from it, so nobody waits for more: as if it had ended.
            Err(_) => self.ended = true,
        }
        true
    }

    fn keep(&mut self, chunk: &[u8]) {
        if let Kept::All(kept) = &mut self.kept {
            if kept.len() + chunk.len() > KEEP_LIMIT {
                self.kept = Kept::TooMuch;
            } else {
                kept.extend_from_slice(chunk);
            }
        }
    }

    /// Ends the input. What writers wrote before they were told is still given to the command, unless
    /// it has said that it is done.
    pub fn close(&mut self, why: Closing) {
        if why == Closing::Asked {
            self.take_the_rest();
        } else {
            self.pending.clear();
            self.written = 0;
            self.sink = None;
        }
        self.ended = true;
        if let Source::Fifo(fifo) = &mut self.source {
            fifo.close(why);
        }
    }

    /// What is in the FIFO now: no more than it can hold, because a writer could go on for ever.
    fn take_the_rest(&mut self) {
        let Some(source) = self.open_source() else { return };
        let capacity = nix::fcntl::fcntl(source, nix::fcntl::F_GETPIPE_SZ).ok();
        let mut left = capacity.and_then(|size| usize::try_from(size).ok()).unwrap_or(CHUNK);
        let mut rest = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let Ok(count @ 1..) = nix::unistd::read(source, &mut chunk) else { break };
            rest.extend_from_slice(&chunk[..count]);
            left = left.saturating_sub(count);
        }
        if let Source::Fifo(fifo) = &mut self.source {
            fifo.taken += rest.len() as u64;
        }
        self.keep(&rest);
        self.pending.extend_from_slice(&rest);
    }

    /// The try is over: its pipe goes, and what it did not read with it.
    pub fn end_of_try(&mut self) {
        self.sink = None;
        self.pending.clear();
        self.written = 0;
    }
}

/// Bytes that wait in a pipe or FIFO, by either end of it.
#[must_use]
pub fn readable(fd: BorrowedFd<'_>) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one integer, which lives for the call.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if asked == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
}

fn has_no_reader(sink: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(sink, PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
}

/// Reads from our stdin without waiting and without making the shared description non-blocking.
fn read_now(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: one iovec over `buffer`, which the kernel may write. Offset -1 is "the current one".
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    if let Ok(count) = usize::try_from(read) {
        return Ok(count);
    }
    let error = io::Error::last_os_error();
    if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)) {
        return Err(error);
    }
    // Sockets, and pipes before Linux 5.x: after poll(2) only another reader could make this wait.
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::read(fd, buffer)?)
}
