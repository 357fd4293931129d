//! One stream of the command on its way downstream.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use super::downstream::Downstream;
use super::matchers::{Eye, Sighting};
use crate::pipe::{Pipe, Stream};

/// The most that is read at once, in bytes: a pipe's default capacity (pipe(7)).
const CHUNK: usize = 64 * 1024;

/// How often a pump goes round before the others and the clocks have their turn.
const ROUNDS: usize = 16;

/// A pump: reads from the command's pipe, writes downstream, waits for neither.
pub struct Pump {
    /// The streams that go through it: one, or both where they are one description of ours.
    pub streams: Vec<Stream>,
    /// The pipe that the command and its descendants write to.
    pub pipe: Pipe,
    /// When bytes last came out of the pipe.
    pub last_bytes: Option<Instant>,
    /// How many bytes came out of the pipe so far.
    pub bytes: u64,
    source: Option<OwnedFd>,
    end: Option<StreamEnd>,
    downstream: Option<Downstream>,
    buffer: Vec<u8>,
    pending: std::ops::Range<usize>,
    eye: Option<Eye>,
}

/// How a stream ended on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// `read() == 0`: nobody holds the write end any more.
    Eof,
    /// We let go of it while somebody held on.
    LetGo,
    /// Downstream went away, and so we closed our read end.
    DownstreamGone,
}

/// What writing downstream failed with, other than its reader being gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {stream}: {error}")]
pub struct DownstreamFailed {
    stream: &'static str,
    error: io::Error,
}

impl Pump {
    /// A pump from our end of the command's pipe to a standard descriptor of ours.
    #[must_use]
    pub fn new(streams: Vec<Stream>, pipe: Pipe, source: OwnedFd, downstream: Downstream) -> Pump {
        Pump {
            streams,
            pipe,
            last_bytes: None,
            bytes: 0,
            source: Some(source),
            end: None,
            downstream: Some(downstream),
            buffer: vec![0; CHUNK],
            pending: 0..0,
            eye: None,
        }
    }

    /// Lets somebody look at what passes from here on.
    pub fn watch_with(&mut self, eye: Eye) {
        self.eye = Some(eye);
    }

    /// What was seen since the last time.
    pub fn sightings(&mut self) -> Vec<Sighting> {
        self.eye.as_mut().map(Eye::take).unwrap_or_default()
    }

    /// Lines that were too long to be looked at.
    #[must_use]
    pub fn unseen(&self) -> u64 {
        self.eye.as_ref().map_or(0, Eye::unseen)
    }

    /// Goes on with another pipe on the way to the same place. What is pending stays first.
    pub fn begin_again(&mut self, pipe: Pipe, source: OwnedFd) {
        self.pipe = pipe;
        self.last_bytes = None;
        self.bytes = 0;
        if let Some(eye) = &mut self.eye {
            eye.begin_again();
        }
        // Nobody reads what comes from there: its writers are to know.
        self.source = self.downstream.is_some().then_some(source);
        self.end = self.downstream.is_none().then_some(StreamEnd::DownstreamGone);
    }

    /// How the stream ended, once it has.
    #[must_use]
    pub fn end(&self) -> Option<StreamEnd> {
        self.end
    }

    /// Whether bytes wait for downstream to take them. It changes by [`turn`](Pump::turn) alone: what is
    /// true when somebody decides to wait is still true when [`interests`](Pump::interests) says for what.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        !self.pending.is_empty() || self.downstream.as_ref().is_some_and(Downstream::is_settling)
    }

    /// Bytes that were read and have not arrived downstream.
    #[must_use]
    pub fn undelivered(&self) -> usize {
        self.pending.len() + self.downstream.as_ref().map_or(0, Downstream::in_hand)
    }

    /// What to poll for: our end of the pipe, and the way downstream.
    #[must_use]
    pub fn interests(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        let waiting = self.is_blocked();
        let source = self.source.as_ref().filter(|_| self.pending.is_empty());
        [
            source.map(|source| (source.as_fd(), PollFlags::POLLIN)),
            self.downstream.as_ref().and_then(|downstream| downstream.interest(waiting)),
        ]
    }

    /// Takes what poll(2) said of the way downstream.
    pub fn downstream_said(&mut self, said: PollFlags) {
        if self.downstream.as_ref().is_some_and(|downstream| downstream.is_gone(said)) {
            self.give_up(StreamEnd::DownstreamGone);
        }
    }

    /// Moves what can be moved without waiting.
    ///
    /// # Errors
    ///
    /// When downstream takes nothing any more, for another reason than that its reader is gone.
    pub fn turn(&mut self, now: Instant) -> Result<(), DownstreamFailed> {
        for _ in 0..ROUNDS {
            if !self.deliver()? || !self.fill(now) {
                break;
            }
        }
        Ok(())
    }

    /// Writes what is pending; whether all of it was taken.
    fn deliver(&mut self) -> Result<bool, DownstreamFailed> {
        let Some(downstream) = &mut self.downstream else { return Ok(true) };
        if let Err(error) = downstream.settle() {
            return self.refused(error);
        }
        while !self.pending.is_empty() {
            match downstream.write(&self.buffer[self.pending.clone()]) {
                Ok(written) => self.pending.start += written,
                Err(error) => return self.refused(error),
            }
        }
        Ok(true)
    }

    fn refused(&mut self, error: io::Error) -> Result<bool, DownstreamFailed> {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                self.give_up(StreamEnd::DownstreamGone);
                Ok(false)
            }
            _ => {
                let stream = self.streams.first().map_or("downstream", |stream| stream.name());
                self.give_up(StreamEnd::DownstreamGone);
                Err(DownstreamFailed { stream, error })
            }
        }
    }

    /// Reads a chunk into the empty buffer; whether there was one.
    fn fill(&mut self, now: Instant) -> bool {
        let Some(source) = &self.source else { return false };
        match nix::unistd::read(source, &mut self.buffer) {
            Ok(0) => {
                self.source = None;
                self.end = Some(StreamEnd::Eof);
                if let Some(eye) = &mut self.eye {
                    eye.finish();
                }
                false
            }
            Ok(read) => {
                if let Some(eye) = &mut self.eye {
                    eye.look(&self.buffer[..read]);
                }
                self.pending = 0..read;
                self.bytes += read as u64;
                self.last_bytes = Some(now);
                true
            }
            // EAGAIN and EINTR; a pipe of ours knows no other error.
            Err(_) => false,
        }
    }

    /// Closes our read end, with what it means: writers get SIGPIPE, and nobody waits for EOF.
    fn give_up(&mut self, end: StreamEnd) {
        self.source = None;
        self.downstream = None;
        self.pending = 0..0;
        self.end = Some(end);
    }

    /// Lets go of the pipe while others hold it, and gives its read end to whoever will drain it.
    /// What is in the pipe at this moment is taken along, and still delivered.
    pub fn let_go(&mut self) -> Option<OwnedFd> {
        let source = self.source.take()?;
        self.end = Some(StreamEnd::LetGo);
        // A writer that goes on while we read could keep us here: no more than the pipe can hold.
        let capacity = nix::fcntl::fcntl(&source, nix::fcntl::F_GETPIPE_SZ).ok();
        let mut left = capacity.and_then(|size| usize::try_from(size).ok()).unwrap_or(CHUNK);
        let mut rest = self.buffer[self.pending.clone()].to_vec();
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let Ok(read @ 1..) = nix::unistd::read(&source, &mut chunk) else { break };
            rest.extend_from_slice(&chunk[..read]);
            if let Some(eye) = &mut self.eye {
                eye.look(&chunk[..read]);
            }
            self.bytes += read as u64;
            left = left.saturating_sub(read);
        }
        if let Some(eye) = &mut self.eye {
            eye.finish();
        }
        self.pending = 0..rest.len();
        self.buffer = rest;
        self.buffer.resize(self.pending.end.max(CHUNK), 0);
        Some(source)
    }

    /// Forgets downstream once everything has arrived; the descriptors that may now be released.
    pub fn finish(&mut self) -> Option<i32> {
        if self.end.is_none() || self.is_blocked() {
            return None;
        }
        self.downstream.take().map(|downstream| downstream.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, Write};
    use std::time::Duration;

    use nix::poll::{PollFd, PollTimeout, poll};

    use crate::pipe::{PipeId, PipeKind};
    use crate::run::stdio::{Kind, stream_pipe};

    /// A pump, its writer, and its reader's pipe, in which there is no room.
    fn blocked_pump() -> (Pump, std::fs::File, PipeReader, usize) {
        let (source, write) = stream_pipe().unwrap();
        let (reader, out) = std::io::pipe().unwrap();
        let mut downstream = Downstream::to_pipe(out.as_raw_fd());
        let mut filled = 0;
        while let Ok(written) = downstream.write(&[b'.'; 4096]) {
            filled += written;
        }
        let pipe = Pipe { id: PipeId { dev: 0, ino: 0 }, kind: PipeKind::Pipe };
        std::mem::forget(out); // the pump's, as our standard descriptors are
        (Pump::new(vec![Stream::Stdout], pipe, source, downstream), write.into(), reader, filled)
    }

    #[test]
    fn what_is_in_the_pipe_when_it_is_let_go_is_still_delivered() {
        let (mut pump, mut writer, mut reader, filled) = blocked_pump();
        let now = Instant::now();
        writer.write_all(b"in hand, ").unwrap();
        pump.turn(now).unwrap();
        // Downstream takes nothing, and so nothing more is read.
        writer.write_all(b"in the pipe").unwrap();
        pump.turn(now).unwrap();
        assert_eq!(pump.bytes, 9);
        let source = pump.let_go().unwrap();
        assert_eq!((pump.end(), pump.bytes, pump.undelivered()), (Some(StreamEnd::LetGo), 20, 20));
        writer.write_all(b"for the sink").unwrap();
        reader.read_exact(&mut vec![0; filled]).unwrap();
        pump.turn(now).unwrap();
        let mut arrived = [0; 20];
        reader.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"in hand, in the pipe");
        assert!(!pump.is_blocked() && pump.finish().is_some());
        let mut left = [0; 64];
        assert_eq!(nix::unistd::read(&source, &mut left).unwrap(), 12, "what came later is not ours");
    }

    /// What a thread wrote meanwhile is not noticed half: who saw that something waits and then asks for
    /// what to wait finds it, however fast the thread was in between.
    #[test]
    fn bytes_that_arrive_while_somebody_decides_to_wait_still_wake_him() {
        let (source, write) = stream_pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        let downstream = Downstream::new(file.as_raw_fd(), Kind::Other).unwrap();
        let pipe = Pipe { id: PipeId { dev: 0, ino: 0 }, kind: PipeKind::Pipe };
        let mut pump = Pump::new(vec![Stream::Stdout], pipe, source, downstream);
        std::fs::File::from(write).write_all(b"all there is").unwrap();
        pump.turn(Instant::now()).unwrap();
        assert_eq!(pump.end(), Some(StreamEnd::Eof));
        assert!(pump.is_blocked());
        let deadline = Instant::now() + Duration::from_secs(60);
        while pump.undelivered() > 0 {
            assert!(Instant::now() < deadline, "the thread writes nothing");
            std::thread::yield_now();
        }
        assert!(pump.is_blocked(), "the thread has not said so yet, or nobody has listened");
        let [source, downstream] = pump.interests();
        assert!(source.is_none());
        let (fd, flags) = downstream.expect("something that wakes us");
        assert_eq!(poll(&mut [PollFd::new(fd, flags)], PollTimeout::from(60_000_u16)), Ok(1));
        pump.turn(Instant::now()).unwrap();
        assert!(!pump.is_blocked());
    }
}
