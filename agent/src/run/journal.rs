//! Who was seen and what was done: for the report.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::report::{HolderReport, Roll};
use crate::act::{self, Refusal, Warrant};
use crate::ownership::Holder;
use crate::pipe::{Action, EndedFor, ExitStatus, Pipe, Stream};

/// The run's book-keeper.
#[derive(Debug, Default)]
pub struct Journal {
    roll: Roll,
    exit: Option<Instant>,
}

impl Journal {
    /// The command exited.
    pub fn exited(&mut self, _status: ExitStatus, at: Instant) {
        self.exit = Some(at);
    }

    /// An ending was asked for.
    pub fn asked(&mut self, _what_for: EndedFor) {}

    /// EOF came.
    pub fn eof(&mut self, _pipe: Pipe) {}

    /// A holder was seen after the grace.
    pub fn saw(&mut self, holder: &Holder, streams: &[Stream]) {
        self.roll.saw(holder, streams);
    }

    /// The streams were let go.
    pub fn let_go(&mut self, how: Action) {
        let after = self.since_exit();
        self.roll.let_go(how, after);
    }

    /// The source cannot answer any more.
    pub fn source_failed(&mut self, _error: &io::Error) {}

    /// Everybody who was seen.
    #[must_use]
    pub fn holders(&self) -> Vec<HolderReport> {
        self.roll.entries().to_vec()
    }

    fn since_exit(&self) -> Duration {
        self.exit.map_or(Duration::ZERO, |exit| exit.elapsed())
    }
}

impl act::Journal for Journal {
    fn signalling(&mut self, warrant: &Warrant<'_>) {
        let action = if warrant.signal == Signal::SIGKILL { Action::Kill } else { Action::Term };
        let after = self.since_exit();
        self.roll.acted(warrant.id, action, after);
    }

    fn refused(&mut self, warrant: &Warrant<'_>, refusal: Refusal) {
        self.roll.refused(warrant.id, &refusal.to_string());
    }
}
