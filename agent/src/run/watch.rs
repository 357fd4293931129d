//! What a running try is watched for: silence, and that it says it is done. No I/O.
//!
//! The idle clock stands still while downstream takes nothing (nobody could see output then) and while
//! a tool call is known to run; bytes on either stream set it back. After the completion marker it has
//! no business any more, and the grace runs instead.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::matchers::{Sighting, is_session_id};

/// What the watch may know of the streams.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// When bytes last came out of a pipe.
    pub last_bytes: Option<Instant>,
    /// Whether bytes wait for downstream.
    pub blocked: bool,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this moment, unless something happens; or nothing at all.
    Nothing(Option<Instant>),
    /// It was silent for this long.
    Idle(Duration),
    /// It said that it was done, and had the time to exit.
    Done,
}

/// The watch over one try.
#[derive(Debug)]
pub struct Watch {
    idle: Option<Duration>,
    grace: Duration,
    clock: Clock,
    seen_bytes: Option<Instant>,
    tools: Tools,
    done: Option<Option<String>>,
    session: Option<String>,
    side_effects: bool,
}

impl Watch {
    /// Begins with the try.
    #[must_use]
    pub fn new(idle: Option<Duration>, grace: Duration, now: Instant) -> Watch {
        Watch {
            idle,
            grace,
            clock: Clock::start(now),
            seen_bytes: None,
            tools: Tools::default(),
            done: None,
            session: None,
            side_effects: false,
        }
    }

    /// Takes what was seen in the output; whether it was the completion marker, for the first time.
    pub fn saw(&mut self, sighting: Sighting, now: Instant) -> bool {
        match sighting {
            Sighting::Session(id) if is_session_id(&id) => self.session = Some(id),
            Sighting::Session(_) => {}
            Sighting::SideEffect => self.side_effects = true,
            Sighting::ToolStarted(id) => self.tools.started(id),
            Sighting::ToolEnded(id) => self.tools.ended(id.as_deref()),
            Sighting::Done(status) => {
                let first = self.done.is_none();
                if first {
                    self.clock = Clock::start(now);
                }
                // The last word counts.
                self.done = Some(status);
                return first;
            }
        }
        false
    }

    /// What is due now.
    pub fn step(&mut self, now: Instant, flow: Flow) -> Due {
        let fresh = flow.last_bytes != self.seen_bytes;
        self.seen_bytes = flow.last_bytes;
        let (limit, runs, due) = match (&self.done, self.idle) {
            (Some(_), _) => (self.grace, !flow.blocked, Due::Done),
            (None, Some(limit)) => {
                if fresh {
                    self.clock = Clock::start(now);
                }
                (limit, !flow.blocked && !self.tools.are_running(), Due::Idle(self.clock.read(now)))
            }
            (None, None) => return Due::Nothing(None),
        };
        self.clock.advance(now, runs);
        match limit.checked_sub(self.clock.total) {
            None | Some(Duration::ZERO) => due,
            Some(left) => Due::Nothing(runs.then(|| now + left)),
        }
    }

    /// The status that the completion marker told, once it was seen.
    #[must_use]
    pub fn done(&self) -> Option<&Option<String>> {
        self.done.as_ref()
    }

    /// The session's id.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Whether something was done that must not be done twice.
    #[must_use]
    pub fn side_effects(&self) -> bool {
        self.side_effects
    }
}

/// Time, as long as it counts.
#[derive(Debug)]
struct Clock {
    total: Duration,
    last: Instant,
    runs: bool,
}

impl Clock {
    fn start(now: Instant) -> Clock {
        Clock { total: Duration::ZERO, last: now, runs: true }
    }

    /// Counts the time until now if it counted, and notes whether it counts from now on.
    fn advance(&mut self, now: Instant, runs: bool) {
        self.total = self.read(now);
        self.last = self.last.max(now);
        self.runs = runs;
    }

    fn read(&self, now: Instant) -> Duration {
        self.total + if self.runs { now.saturating_duration_since(self.last) } else { Duration::ZERO }
    }
}

/// The tool calls that run.
#[derive(Debug, Default)]
struct Tools {
    named: HashSet<String>,
    nameless: usize,
}

impl Tools {
    fn started(&mut self, id: Option<String>) {
        match id {
            Some(id) => {
                self.named.insert(id);
            }
            None => self.nameless += 1,
        }
    }

    /// An end without a name ends one call that has none, or else every call: which one it means
    /// cannot be known, and a clock that stands still for ever is the worse mistake.
    fn ended(&mut self, id: Option<&str>) {
        match id {
            Some(id) => {
                if !self.named.remove(id) && self.named.is_empty() {
                    self.nameless = self.nameless.saturating_sub(1);
                }
            }
            None if self.nameless > 0 => self.nameless -= 1,
            None => self.named.clear(),
        }
    }

    fn are_running(&self) -> bool {
        self.nameless > 0 || !self.named.is_empty()
    }
}

#[cfg(test)]
mod tests;
