//! A connection to a node: what was asked, and what was said. It waits only where it is told to.
//!
//! Whatever a node says is bounded here, and what makes no sense ends the connection: it may be another
//! version's, broken, or no node at all.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::time::TimeSpec;

use super::frame::Lines;
use super::protocol::{Ask, Code, Held, Holders, Message, Request, Tell};
use super::read_end;
use crate::pipe::Pipe;

/// How many bytes are taken at once.
const CHUNK: usize = 16 * 1024;

/// How often in one turn: what a node says faster than that waits.
const ROUNDS: usize = 16;

/// How many events wait to be heard. Beyond this they are lost, which is one too.
const MOST_EVENTS: usize = 4096;

/// How many holders of one pipe are taken. A machine has fewer processes (`PID_MAX_LIMIT` is 4 Mi, but each has
/// to be looked at).
const MOST_NAMED: usize = 1 << 16;

/// What was said of a watched pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nobody writes to it any more.
    Eof(Pipe),
    /// A holder left its group.
    Escape {
        /// Which pipe it holds.
        pipe: Pipe,
        /// Who.
        pid: i32,
        /// Its start; 0 where that is not known.
        start_ticks: u64,
        /// When, on `CLOCK_MONOTONIC`.
        happened: Duration,
        /// By which descriptors it holds the pipe, if that is known.
        holds: Option<Vec<Held>>,
    },
    /// Its holders changed.
    Changed(Pipe),
    /// All pipes are watched: what happened before is still to be found.
    Watching,
    /// Events are missing.
    Lost(u64),
}

/// Somebody who let us in, for a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The rung of its live map.
    pub rung: String,
    /// The boot of the kernel that it sees.
    pub boot: String,
}

/// A pipe that is to be watched.
#[derive(Debug)]
struct Watch {
    pipe: Pipe,
    state: State,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// It was asked for, by this request.
    Asked(u64),
    /// It is, by this number.
    Is(u64),
    /// It cannot be, or is not any more.
    Not,
}

/// Who holds a pipe, as far as that was told.
type Answer = Result<Holders, String>;

/// What a question waits for.
#[derive(Debug)]
pub struct Questions(Vec<(Pipe, u64)>);

/// The connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    lines: Lines<()>,
    last_id: u64,
    /// The hello's, until it is answered.
    hello: Option<u64>,
    greeting: Option<Greeting>,
    watches: Vec<Watch>,
    /// Questions that were not answered yet, with the parts of the answer so far.
    open: HashMap<u64, (Pipe, Option<Holders>)>,
    answers: HashMap<u64, Answer>,
    told: VecDeque<Told>,
}

impl Wire {
    /// Takes a connection, which nobody has said anything on.
    ///
    /// # Errors
    ///
    /// When it cannot be made one that never waits.
    pub fn new(stream: UnixStream) -> io::Result<Wire> {
        stream.set_nonblocking(true)?;
        Ok(Wire {
            stream,
            lines: Lines::default(),
            last_id: 0,
            hello: None,
            greeting: None,
            watches: Vec::new(),
            open: HashMap::new(),
            answers: HashMap::new(),
            told: VecDeque::new(),
        })
    }

    /// Says who we are.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub fn greet(&mut self, program: &str) -> io::Result<()> {
        self.hello = Some(self.ask(Ask::Hello { program: program.into() }, None)?);
        Ok(())
    }

    /// What was answered to that.
    #[must_use]
    pub fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    /// Watches these pipes from here on, and no others.
    ///
    /// # Errors
    ///
    /// When nobody listens any more. A pipe that cannot be watched is none.
    pub fn watch(&mut self, pipes: &[Pipe]) -> io::Result<()> {
        let (stay, go) = std::mem::take(&mut self.watches).into_iter().partition(|watch| pipes.contains(&watch.pipe));
        self.watches = stay;
        for watch in go {
            let Watch { state: State::Is(number), .. } = watch else { continue };
            self.ask(Ask::Unwatch { watch: number }, None)?;
        }
        for pipe in pipes {
            if self.watches.iter().any(|watch| watch.pipe == *pipe) {
                continue;
            }
            let state = match read_end::of(*pipe) {
                Ok(end) => State::Asked(self.ask(Ask::Watch, Some(end.as_fd()))?),
                Err(_) => State::Not,
            };
            self.watches.push(Watch { pipe: *pipe, state, since: Instant::now() });
        }
        Ok(())
    }

    /// Since when it is not known whether all these are watched.
    #[must_use]
    pub fn settles_since(&self) -> Option<Instant> {
        let asked = self.watches.iter().filter(|watch| matches!(watch.state, State::Asked(_)));
        asked.map(|watch| watch.since).min()
    }

    /// Asks who holds watched pipes. None if one of them is not watched.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub fn resolve(&mut self, pipes: &[Pipe]) -> io::Result<Option<Questions>> {
        self.answers.clear(); // of who did not wait for them
        let number = |pipe: &Pipe| {
            self.watches.iter().find_map(|watch| match watch.state {
                State::Is(number) if watch.pipe == *pipe => Some((*pipe, number)),
                _ => None,
            })
        };
        let Some(numbers) = pipes.iter().map(number).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let mut questions = Vec::new();
        for (pipe, watch) in numbers {
            let id = self.ask(Ask::Resolve { watch: Some(watch) }, None)?;
            self.open.insert(id, (pipe, None));
            questions.push((pipe, id));
        }
        Ok(Some(Questions(questions)))
    }

    /// The answers, once all are there. An error is what a node said that could not say it.
    pub fn answers(&mut self, questions: &Questions) -> Option<Result<Vec<(Pipe, Holders)>, String>> {
        if !questions.0.iter().all(|(_, id)| self.answers.contains_key(id)) {
            return None;
        }
        let answers = questions.0.iter().map(|(pipe, id)| {
            let answer = self.answers.remove(id).unwrap_or_else(|| Err("no answer".to_owned()));
            answer.map(|holders| (*pipe, holders))
        });
        Some(answers.collect())
    }

    /// Whether everything that was asked was answered.
    #[must_use]
    pub fn owes_nothing(&self) -> bool {
        self.open.is_empty() && self.settles_since().is_none()
    }

    /// The next thing that was told.
    pub fn next_told(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    /// Takes what there is, and does not wait for more.
    ///
    /// # Errors
    ///
    /// When there will be nothing more: the node is gone, says so, or makes no sense.
    pub fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0_u8; CHUNK];
        for _ in 0..ROUNDS {
            // A plain read: the pidfds that come along are closed by the kernel. Whoever is signalled is looked
            // at and opened anew just before, and so nobody can fill our table of descriptors.
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(gone()),
                Ok(count) => {
                    self.lines.push(&chunk[..count], []);
                    while let Some(line) = self.lines.next_line().map_err(io::Error::other)? {
                        let message = Message::parse(&line.bytes)
                            .map_err(|error| senseless(&format!("what is no message: {error}")))?;
                        self.take(message)?;
                    }
                    if count < CHUNK {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has not read everything that we said.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(gone()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, at most so long; whether there is.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(at_most)), None) {
            Ok(count) => Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        let id = message.id;
        match message.tell {
            Tell::Hello { rung, boot, .. } if self.hello == Some(id) => {
                self.hello = None;
                self.greeting = Some(Greeting { rung, boot });
            }
            Tell::Watching { watch, pipe } => {
                let asked = self.watches.iter_mut().find(|watch| watch.state == State::Asked(id));
                let Some(asked) = asked else { return Ok(()) }; // it is not wanted any more
                if (asked.pipe.id.dev, asked.pipe.id.ino) != (pipe.dev, pipe.ino) {
                    return Err(senseless("of a pipe that nobody asked about"));
                }
                asked.state = State::Is(watch);
                self.settle();
            }
            Tell::Holders(part) => self.take_holders(id, part)?,
            Tell::Eof { watch } => self.tell_of(watch, Told::Eof),
            Tell::Changed { watch } => self.tell_of(watch, Told::Changed),
            Tell::Escape { watch, pid, start_ticks, happened_ns, holds, .. } => {
                let happened = Duration::from_nanos(happened_ns);
                self.tell_of(watch, |pipe| Told::Escape { pipe, pid, start_ticks, happened, holds });
            }
            // Until everything is watched nothing is known that could be lost.
            Tell::Lost { missed, .. } if self.settles_since().is_none() => self.tell(Told::Lost(missed)),
            Tell::Ended { watch } => {
                let is = self.watches.iter_mut().find(|asked| asked.state == State::Is(watch));
                if let Some(asked) = is {
                    asked.state = State::Not;
                }
            }
            Tell::Error { code, message } => self.take_error(id, code, &message)?,
            Tell::Hello { .. } | Tell::Lost { .. } | Tell::Unwatched { .. } | Tell::Why { .. } => {}
        }
        Ok(())
    }

    fn take_holders(&mut self, id: u64, part: Holders) -> io::Result<()> {
        let Some((pipe, before)) = self.open.remove(&id) else { return Ok(()) };
        if (pipe.id.dev, pipe.id.ino) != (part.pipe.dev, part.pipe.ino) {
            return Err(senseless("of a pipe that nobody asked about"));
        }
        let whole = match before {
            None => part,
            Some(mut before) => {
                before.holders.extend(part.holders);
                before.more = part.more;
                before
            }
        };
        if whole.holders.len() > MOST_NAMED {
            return Err(senseless("of more holders than there are processes"));
        }
        if whole.more {
            self.open.insert(id, (pipe, Some(whole)));
        } else {
            self.answers.insert(id, Ok(whole));
        }
        Ok(())
    }

    fn take_error(&mut self, id: u64, code: Code, message: &str) -> io::Result<()> {
        let message = message.lines().next().unwrap_or_default();
        if id == 0 || code.is_final() || self.hello == Some(id) {
            return Err(io::Error::other(format!("the node says: {message}")));
        }
        if let Some(asked) = self.watches.iter_mut().find(|watch| watch.state == State::Asked(id)) {
            asked.state = State::Not;
            self.settle();
        }
        if self.open.remove(&id).is_some() {
            self.answers.insert(id, Err(message.to_owned()));
        }
        Ok(())
    }

    fn settle(&mut self) {
        if self.settles_since().is_none() {
            self.tell(Told::Watching);
        }
    }

    fn tell_of(&mut self, number: u64, told: impl FnOnce(Pipe) -> Told) {
        let watch = self.watches.iter().find(|watch| watch.state == State::Is(number));
        if let Some(pipe) = watch.map(|watch| watch.pipe) {
            self.tell(told(pipe));
        }
    }

    fn tell(&mut self, told: Told) {
        if self.told.len() >= MOST_EVENTS {
            let missed = self.told.len() as u64;
            self.told.clear();
            self.told.push_back(Told::Lost(missed));
        }
        self.told.push_back(told);
    }

    /// Sends a request, with a descriptor or without. What does not fit in is not sent later: a node that does
    /// not read for so long is no help.
    fn ask(&mut self, ask: Ask, passed: Option<BorrowedFd<'_>>) -> io::Result<u64> {
        self.last_id += 1;
        let line = Request::new(self.last_id, ask).line();
        let fds = passed.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&line)], rights.as_slice(), flags, None);
        match sent {
            Ok(count) if count == line.len() => Ok(self.last_id),
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => Err(io::Error::other("the node does not read what it is asked")),
            Err(nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET) => Err(gone()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the node is gone")
}

fn senseless(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the node speaks {what}"))
}

#[cfg(test)]
mod tests;
