//! Who holds which pipe, whatever the source of that knowledge.
//!
//! A [`Source`] names candidates. It is never the last word: the pipe itself is (`read() == 0`), and
//! before anybody is signalled [`crate::act`] looks again. [`events`] say when to look, and the
//! [`ladder`] which of them a run gets.

pub mod bpf;
pub mod connector;
pub mod events;
pub mod keep;
pub mod ladder;
pub mod node;
pub mod proc;
pub mod worker;

use std::collections::HashSet;
use std::io;
use std::time::Instant;

use crate::pipe::{Pipe, ProcessId, Relation};
use crate::process::describe::Description;
use crate::process::stat::Stat;
use crate::process::table::Hold;

/// How far a question reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The run's lineage: flat in the number of other processes.
    Lineage,
    /// The lineage, with the fdinfo of its sockets and io_urings.
    Hidden,
    /// Every process that we may look at.
    Machine,
}

/// "Who holds a write end of these pipes?"
#[derive(Clone, Debug)]
pub struct Question {
    /// The pipes.
    pub pipes: Vec<Pipe>,
    /// How far to look.
    pub scope: Scope,
    /// Children of the supervisor that are its own helpers, and no lineage.
    pub except: HashSet<i32>,
    /// When to stop looking and answer with what was found.
    pub deadline: Instant,
}

/// A process that holds a write end, or may.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Pid and start time.
    pub id: ProcessId,
    /// How it relates to the run.
    pub relation: Relation,
    /// Whether it is lineage that left the home group.
    pub escaped: bool,
    /// Whether it matches `--keep`.
    pub kept: bool,
    /// Whether it ignores SIGPIPE: to close the read end does it no harm.
    pub ignores_sigpipe: bool,
    /// Its holds of write ends. Empty for what is only opaque or suspect.
    pub holds: Vec<Hold>,
    /// Who it is, for people.
    pub description: Description,
}

/// The answer to a [`Question`], as of a moment that is already over.
#[derive(Clone, Debug)]
pub struct Census {
    /// How far the question reached.
    pub scope: Scope,
    /// Holders, opaque processes and suspects, by [`Holder::relation`].
    pub holders: Vec<Holder>,
    /// Every live process of the lineage.
    pub members: Vec<Stat>,
    /// Processes outside the lineage that we may not look at.
    pub unseen: usize,
    /// Whether the whole scope was looked at before the deadline.
    pub complete: bool,
}

/// What answers "who holds this pipe".
pub trait Source: Send {
    /// Names the holders of the write ends of the pipes.
    ///
    /// # Errors
    ///
    /// When the source cannot answer at all, and another one has to be asked.
    fn holders(&mut self, question: &Question) -> io::Result<Census>;
}

/// What a source must know of the run to tell lineage from others.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// The supervisor: subreaper, and so an ancestor of everything that descends from the command.
    pub root: i32,
    /// The home group, or our own group where the command shares it.
    pub home: i32,
    /// The process in front of the supervisor, which adopts orphans that are not lineage.
    pub adopter: Option<i32>,
}
