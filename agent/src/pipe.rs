//! The vocabulary: pipes, ends, holders and what a run does about them, as types without I/O.
//!
//! Every name here is the word for that thing in the report, the audit log and the documentation.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The identity of a pipe or FIFO: its device and inode number.
///
/// An inode number alone is no identity: a FIFO on a tmpfs can have the number of a pipe. Both
/// together identify a pipe only while somebody has it open, because numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PipeId {
    /// `st_dev` as fstat(2) gives it to user space.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl fmt::Display for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pipe:[{}]", self.ino)
    }
}

/// What a pipe is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PipeKind {
    /// An anonymous pipe, from pipe(2).
    Pipe,
    /// A FIFO, opened by a path.
    Fifo,
}

/// A pipe and what kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipe {
    /// Its identity.
    pub id: PipeId,
    /// Anonymous or with a name.
    pub kind: PipeKind,
}

/// The end of a pipe that a descriptor is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Reads only: never what keeps EOF away.
    Read,
    /// Writes only.
    Write,
    /// A FIFO (or `/proc/PID/fd/N`) opened `O_RDWR`.
    Both,
}

impl End {
    /// Whether a descriptor on this end keeps EOF from the pipe's readers.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, End::Write | End::Both)
    }

    /// The end that holds both what `self` and what `other` holds.
    #[must_use]
    pub fn and(self, other: End) -> End {
        if self == other { self } else { End::Both }
    }
}

/// A process for as long as it lives: a pid alone comes round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// The thread group's id in our pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks between boot and the process's start.
    pub start_ticks: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pid)
    }
}

/// One of the command's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// The stream's name as the report writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// How a holder relates to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Descends from the command by fork.
    Lineage,
    /// Was passed the descriptor, or opened the FIFO.
    Foreign,
    /// Became a child of ours as pid 1 without a known chain to the command: treated as foreign.
    Adopted,
    /// In the lineage, with tables that we may not read.
    Opaque,
    /// In the lineage, with descriptors in flight in the receive queue of one of its sockets.
    Suspect,
}

/// What was done about a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: it was reported.
    None,
    /// It was sent the ending's first signal (`--signal`).
    Term,
    /// It was sent SIGKILL.
    Kill,
    /// A sink now reads what it writes.
    Drained,
    /// Our read end was closed under it.
    Closed,
    /// It matched `--keep`.
    Kept,
    /// It was to be signalled, and the verification said no.
    Refused,
}

/// How a run's ending went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// EOF came by itself.
    Natural,
    /// EOF came because holders were ended.
    HoldersEnded,
    /// Holders live on, and a stream was let go because of it.
    HoldersSpared,
    /// `--max-drain` was reached and a stream was let go.
    Closed,
    /// Downstream did not take everything.
    Undelivered,
}

/// What made the run end its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedFor {
    /// Nothing: the command exited by itself.
    Exit,
    /// `--timeout` was reached.
    Timeout,
    /// No output for `--idle-timeout`.
    Idle,
    /// The completion marker was seen.
    Done,
    /// We were sent a terminating signal.
    Signal,
}

impl EndedFor {
    /// Whether the ending was asked for, rather than begun by the command's own exit.
    #[must_use]
    pub fn asked(self) -> bool {
        self != EndedFor::Exit
    }
}

/// How a process exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By exit(2), with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl ExitStatus {
    /// As shells tell it: the code, or 128 and the signal's number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        let code = match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }
}
