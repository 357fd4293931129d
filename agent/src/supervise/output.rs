//! What commands put out, line by line, and what we have to say ourselves: to our own stdout and
//! stderr, without ever waiting for them.
//!
//! A stream that comes through us is read only while there is room on its way out. So a reader of ours
//! that takes nothing holds up the commands' output, as it would without us, and nothing else.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::PollFlags;
use regex::bytes::Regex;

use super::config::Color;
use crate::run::downstream::Downstream;
use crate::run::stdio::{self, Kind, Plan, Treatment};

/// The most that waits on one way out before the streams that go there are read no further, in bytes.
const ROOM: usize = 256 * 1024;

/// A line longer than this is put out in pieces, in bytes.
const LONGEST_LINE: usize = 64 * 1024;

/// Lines of our own that wait beyond this are dropped and counted, in bytes: a log that nobody reads
/// must not become all of our memory.
const LOG_ROOM: usize = 1024 * 1024;

/// One of our own standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Where a stream goes that comes through us.
pub struct Route {
    /// To which place.
    pub target: Target,
    /// What is put before each line; nothing: the bytes go on as they come.
    pub prefix: Vec<u8>,
    /// The line that says that the command is ready.
    pub watch: Option<Regex>,
}

/// The place where a stream that comes through us ends.
pub enum Target {
    /// Our own stream of the same name.
    Ours,
    /// A regular file.
    File(File),
}

/// A stream that comes through us.
pub struct Line {
    fd: OwnedFd,
    route: Route,
    way: Way,
    carry: Vec<u8>,
}

/// What one look at a stream showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// EOF.
    pub eof: bool,
    /// The line that was watched for.
    pub matched: bool,
}

impl Line {
    /// A stream from this read end to our descriptor of that number.
    #[must_use]
    pub fn new(fd: OwnedFd, route: Route, ours: RawFd) -> Line {
        Line { fd, route, way: if ours == 1 { Way::Stdout } else { Way::Stderr }, carry: Vec::new() }
    }

    /// Which way it goes.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// What to poll.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes what has come, as far as there is room for it.
    pub fn turn(&mut self, outputs: &mut Outputs) -> Seen {
        let mut seen = Seen::default();
        let mut buffer = [0; 16 * 1024];
        while outputs.has_room(self.way) {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) => {
                    seen.eof = true;
                    seen.matched |= self.end(outputs);
                    break;
                }
                Ok(read) => seen.matched |= self.take(&buffer[..read], outputs),
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break, // EAGAIN: a pipe of ours knows no other error
            }
        }
        seen
    }

    /// How many bytes wait in the pipe.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD on a pipe writes one integer.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        usize::try_from(bytes).unwrap_or(0)
    }

    fn take(&mut self, bytes: &[u8], outputs: &mut Outputs) -> bool {
        if self.route.prefix.is_empty() {
            self.put(bytes, outputs);
            if self.route.watch.is_none() {
                return false;
            }
        }
        let mut matched = false;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.carry.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.carry.len() >= LONGEST_LINE {
                matched |= self.line(outputs);
            }
        }
        matched
    }

    /// Puts out a last line that has no newline; whether it is the one that was watched for.
    pub fn end(&mut self, outputs: &mut Outputs) -> bool {
        !self.carry.is_empty() && self.line(outputs)
    }

    /// Puts out the line in hand; whether it is the one that was watched for.
    fn line(&mut self, outputs: &mut Outputs) -> bool {
        let carry = std::mem::take(&mut self.carry);
        let line = carry.strip_suffix(b"\n").unwrap_or(&carry);
        if !self.route.prefix.is_empty() {
            let whole = [&self.route.prefix, line, b"\n"].concat();
            self.put(&whole, outputs);
        }
        let matched = self.route.watch.as_ref().is_some_and(|watch| watch.is_match(line));
        if matched {
            self.route.watch = None;
        }
        matched
    }

    fn put(&mut self, bytes: &[u8], outputs: &mut Outputs) {
        match &mut self.route.target {
            Target::Ours => outputs.put(self.way, bytes),
            Target::File(file) => {
                if let Err(error) = file.write_all(bytes) {
                    outputs.failed("a command's output file", &error);
                }
            }
        }
    }
}

/// Our own stdout and stderr; one way where they are one description, so that what is put out stays
/// in its order.
pub struct Outputs {
    stdout: Sink,
    stderr: Option<Sink>,
    dropped: u64,
    failures: u64,
}

struct Sink {
    fd: RawFd,
    downstream: Option<Downstream>,
    queue: Vec<u8>,
}

impl Outputs {
    /// Looks at our standard streams.
    ///
    /// # Errors
    ///
    /// When they cannot be looked at, or there is no thread that one of them needs.
    pub fn new() -> io::Result<Outputs> {
        let plan = Plan::new(crate::run::options::Stdio::Pump, false, [true; 2])?;
        let shared = plan.stderr == Treatment::SharedWithStdout;
        let stderr = if shared { None } else { Some(Sink::new(2)?) };
        Ok(Outputs { stdout: Sink::new(1)?, stderr, dropped: 0, failures: 0 })
    }

    /// Whether our stdout and stderr are one description.
    #[must_use]
    pub fn are_one(&self) -> bool {
        self.stderr.is_none()
    }

    fn sink(&mut self, way: Way) -> &mut Sink {
        match (way, &mut self.stderr) {
            (Way::Stderr, Some(stderr)) => stderr,
            _ => &mut self.stdout,
        }
    }

    /// Whether more may be put on this way.
    #[must_use]
    pub fn has_room(&self, way: Way) -> bool {
        let sink = match (way, &self.stderr) {
            (Way::Stderr, Some(stderr)) => stderr,
            _ => &self.stdout,
        };
        sink.downstream.is_none() || sink.queue.len() < ROOM
    }

    fn put(&mut self, way: Way, bytes: &[u8]) {
        self.sink(way).put(bytes);
    }

    /// A line of ours, on stderr.
    pub fn log(&mut self, text: &str) {
        let dropped = self.dropped;
        let sink = self.sink(Way::Stderr);
        if sink.queue.len() > LOG_ROOM {
            self.dropped += 1;
            return;
        }
        if dropped > 0 {
            sink.put(format!("pipewarden: {dropped} lines of this log were dropped: nobody read it\n").as_bytes());
        }
        sink.put(format!("pipewarden: {}\n", text.replace('\n', " ")).as_bytes());
        self.dropped = 0;
    }

    /// Output is lost; said at the first time, and then each time that the number doubles.
    fn failed(&mut self, what: &str, error: &io::Error) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            self.log(&format!("cannot write to {what}: {error}; its output is lost ({} times)", self.failures));
        }
    }

    /// Writes what can be written now.
    pub fn turn(&mut self) {
        for way in [Way::Stdout, Way::Stderr] {
            if let Err(error) = self.sink(way).turn() {
                self.failed(if way == Way::Stdout { "stdout" } else { "stderr" }, &error);
            }
        }
    }

    /// What to poll for, with the way that it concerns.
    pub fn interests(&self) -> impl Iterator<Item = (Way, BorrowedFd<'_>, PollFlags)> {
        let ways = [(Way::Stdout, Some(&self.stdout)), (Way::Stderr, self.stderr.as_ref())];
        ways.into_iter().filter_map(|(way, sink)| {
            let sink = sink?;
            let (fd, flags) = sink.downstream.as_ref()?.interest(sink.is_waiting())?;
            Some((way, fd, flags))
        })
    }

    /// Takes what poll(2) said of a way.
    pub fn said(&mut self, way: Way, flags: PollFlags) {
        let sink = self.sink(way);
        if sink.downstream.as_ref().is_some_and(|downstream| downstream.is_gone(flags)) {
            sink.give_up();
        }
    }

    /// Whether everything has arrived.
    #[must_use]
    pub fn are_empty(&self) -> bool {
        !self.stdout.is_waiting() && !self.stderr.as_ref().is_some_and(Sink::is_waiting)
    }
}

impl Sink {
    fn new(fd: RawFd) -> io::Result<Sink> {
        let kind = stdio::kind(fd)?;
        let downstream = if kind == Kind::Closed { None } else { Some(Downstream::new(fd, kind)?) };
        Ok(Sink { fd, downstream, queue: Vec::new() })
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.downstream.is_some() {
            self.queue.extend_from_slice(bytes);
        }
    }

    fn is_waiting(&self) -> bool {
        !self.queue.is_empty() || self.downstream.as_ref().is_some_and(Downstream::is_settling)
    }

    fn turn(&mut self) -> io::Result<()> {
        let Some(downstream) = &mut self.downstream else { return Ok(()) };
        let mut result = downstream.settle();
        let mut written = 0;
        while result.is_ok() && written < self.queue.len() {
            match downstream.write(&self.queue[written..]) {
                Ok(count) => written += count,
                Err(error) => result = Err(error),
            }
        }
        self.queue.drain(..written);
        if self.queue.is_empty() && self.queue.capacity() > ROOM {
            self.queue = Vec::new();
        }
        match result {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            // Nobody reads any more. The commands live on all the same, and what they write is discarded.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.give_up();
                Ok(())
            }
            other => other,
        }
    }

    fn give_up(&mut self) {
        self.downstream = None;
        self.queue = Vec::new();
    }

    fn is_terminal(&self) -> bool {
        self.downstream.is_some() && stdio::standard(self.fd).is_terminal()
    }
}

/// Colours that can be read on dark and on light ground.
const COLORS: [u8; 6] = [36, 33, 32, 35, 34, 31];

impl Outputs {
    /// What is put before a command's lines: its name, as wide as the widest.
    #[must_use]
    pub fn prefix(&self, way: Way, name: &str, index: usize, width: usize, color: Color) -> Vec<u8> {
        let sink = match (way, &self.stderr) {
            (Way::Stderr, Some(stderr)) => stderr,
            _ => &self.stdout,
        };
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => sink.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        let text = format!("{name:width$} | ");
        if colored { format!("\x1b[{}m{text}\x1b[0m", COLORS[index % COLORS.len()]) } else { text }.into_bytes()
    }
}
