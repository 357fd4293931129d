//! What tells a run to look now.
//!
//! Events are never the truth: what they say was so when they were sent. They make the run ask its
//! [`Source`] sooner, and they date what it finds. A run that gets none finds the same, later.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::keep::Keep;
use super::{Lineage, Source};
use crate::pipe::{Pipe, PipeId};
use crate::process::stat::Stat;
use crate::process::table::Hold;

/// Something happened in the run's lineage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineageEvent {
    /// A process was born.
    Forked {
        /// Whose child it is: not always who called (`CLONE_PARENT`).
        parent: i32,
        /// The new process.
        child: i32,
    },
    /// A process runs another program.
    Exec(i32),
    /// A process left the home group.
    Escaped(Escaped),
    /// A process ended, with all its threads.
    Exited(i32),
    /// Nobody writes to a pipe any more.
    LastWriterGone(PipeId),
    /// Others hold a pipe now than before.
    Changed(PipeId),
    /// Events are missing: what was known from events must be read anew.
    Lost {
        /// How they got lost.
        why: &'static str,
        /// How many are known to be missing since the last time; 0 where that is not counted.
        missed: u64,
    },
    /// It goes on, and not as well as it should: one line that says how.
    Trouble(String),
}

/// A process of the lineage left the home group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escaped {
    /// Who.
    pub pid: i32,
    /// When, by `CLOCK_MONOTONIC`.
    pub happened: Duration,
    /// The pipes that went along, where the source knows: then nobody has to look.
    pub holds: Option<Vec<Hold>>,
}

/// How a source is attached, as reports and the audit log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// What answers "who holds this pipe": `proc`, `bpf` or `node`.
    pub backend: &'static str,
    /// The rung.
    pub rung: &'static str,
}

impl Names {
    /// No events, and `/proc` is walked.
    pub const PROC: Names = Names { backend: "proc", rung: "proc" };
    /// `/proc` is walked when the connector says so.
    pub const CONNECTOR: Names = Names { backend: "proc", rung: "connector" };
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.backend, self.rung) {
            (backend, rung) if backend == rung => f.write_str(rung),
            (backend, rung) => write!(f, "{backend}+{rung}"),
        }
    }
}

/// A source of events about the lineage of one run.
pub trait Events: Send {
    /// What it is called.
    fn names(&self) -> Names;

    /// What becomes readable when there may be an event.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The next event. `None` when there is none, or when enough were looked at for one turn: then the
    /// descriptor is still readable. Never waits.
    ///
    /// # Errors
    ///
    /// When there will be no more events: whatever happened up to now must be found without them.
    fn next(&mut self) -> io::Result<Option<LineageEvent>>;

    /// A command is about to be started, by this thread and with these pipes. `helpers` are children of the supervisor
    /// that are no lineage. [`born`](Self::born) follows.
    fn expect(&mut self, _pipes: &[Pipe], _helpers: &HashSet<i32>) {}

    /// The command that was [expected](Self::expect) was started, or could not be.
    fn born(&mut self, _command: Option<i32>) {}

    /// A try begins, with this lineage and these pipes. It is called before its command's first event is
    /// asked for.
    fn follow(&mut self, lineage: &Lineage, pipes: &[Pipe]);

    /// A child of the supervisor is a helper of its own, and no lineage.
    fn disown(&mut self, helper: i32);

    /// Whether it waits for the lineage to be walked, because it was attached late or lost events. A
    /// walk that began before this was true does not count.
    fn wants_walk(&self) -> bool {
        false
    }

    /// The lineage was walked, and these are its live members.
    fn walked(&mut self, _members: &[Stat]) {}

    /// The source that answers better than `/proc` does, where it brings one. Asked once a try.
    fn source(&self, _lineage: &Lineage, _keep: &Keep) -> Option<Box<dyn Source>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_is_named_with_its_backend_unless_it_is_the_backend() {
        assert_eq!(Names::PROC.to_string(), "proc");
        assert_eq!(Names::CONNECTOR.to_string(), "proc+connector");
    }
}
