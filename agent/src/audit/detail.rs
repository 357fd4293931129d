//! What the events say that concern the run as a whole, a stream, a FIFO or the tracker.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipe::{End, EndedFor, ExitStatus, Outcome, Stream};
use crate::process::redact;

/// `run.started`: what is run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Our version.
    pub version: String,
    /// Our own pid.
    pub pid: i32,
    /// Our effective user.
    pub uid: u32,
    /// The command line, redacted.
    pub command: String,
    /// The working directory, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The options in force, by their long names without the dashes, as text, redacted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl Started {
    /// Takes the command and the options as the user wrote them, and redacts both.
    #[must_use]
    pub fn new(command: &[String], options: impl IntoIterator<Item = (String, String)>) -> Started {
        Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: nix::unistd::getpid().as_raw(),
            uid: nix::unistd::geteuid().as_raw(),
            command: redact::command_line(command),
            cwd: std::env::current_dir().ok().map(|path| path.to_string_lossy().into_owned()),
            options: options.into_iter().map(|(name, value)| (name, redact::text(&value))).collect(),
        }
    }
}

/// `run.output_idle`: how long the command was silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Idle {
    /// The try, from 1.
    pub attempt: u32,
    /// Time without output, in microseconds, not counting time in which a tool call ran.
    pub quiet_us: u64,
    /// The limit that this reached, in microseconds.
    pub limit_us: u64,
}

/// `run.retried`: the command is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retried {
    /// The try that begins, from 1: the first retry is try 2.
    pub attempt: u32,
    /// What the try before was ended for.
    pub ended_for: EndedFor,
    /// The pause before it, in microseconds.
    pub backoff_us: u64,
    /// How it begins.
    pub start: Restart,
    /// The command line of this try, redacted.
    pub command: String,
}

/// How a retry begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Where the session was left, by `--resume-command`.
    Resumed,
    /// With the original input: nothing had been done yet that must not be done twice.
    Afresh,
}

/// `run.exited`: how the command exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exited {
    /// The try, from 1.
    pub attempt: u32,
    /// Its exit status.
    pub exit_status: ExitStatus,
    /// Whether it was ended, and for what.
    pub ended_for: EndedFor,
    /// Time since it was started, in microseconds.
    pub elapsed_us: u64,
}

/// `run.finished`: how the run went, and what its log could not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// How the ending went; absent when the command could not be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The exit code that we give to our caller.
    pub exit_code: u8,
    /// Time since the run began, in microseconds.
    pub elapsed_us: u64,
    /// From the command's exit to EOF on every stream, in microseconds; absent if it never came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_to_eof_us: Option<u64>,
    /// Bytes that downstream did not take.
    #[serde(default)]
    pub undelivered_bytes: u64,
    /// How often the command was started.
    pub attempts: u32,
    /// Holders that were ended.
    pub holders_ended: u32,
    /// Holders that live on.
    pub holders_spared: u32,
    /// The source in use at the end (`proc+connector`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What the log itself holds and lacks. Filled in when the record is written.
    #[serde(default)]
    pub log: Account,
}

impl Finished {
    /// A run that ended with this code after this time, with nothing else to tell yet.
    #[must_use]
    pub fn new(outcome: Option<Outcome>, exit_code: u8, elapsed_us: u64) -> Finished {
        Finished {
            outcome,
            exit_code,
            elapsed_us,
            exit_to_eof_us: None,
            undelivered_bytes: 0,
            attempts: 1,
            holders_ended: 0,
            holders_spared: 0,
            source: None,
            log: Account::default(),
        }
    }
}

/// What a run's log holds and lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// Records in the chain, `run.finished` included.
    pub records: u64,
    /// Records that found the queue full and were never tried.
    pub dropped: u64,
    /// Records that the target did not take, or not whole (a full disk).
    pub lost: u64,
    /// Acts that did not wait for their record any longer.
    pub late: u64,
}

/// `pipe.escape`: how a process left the home group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Escape {
    /// The home group.
    pub home_pgid: i32,
    /// The group that it is in now.
    pub pgid: i32,
    /// The session that it is in now.
    pub sid: i32,
    /// From the escape to the record, in microseconds, where the source tells when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed_after_us: Option<u64>,
}

/// `pipe.withheld`: a pipe without EOF after the command's exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Withheld {
    /// Time since the command's exit, in microseconds.
    pub since_exit_us: u64,
    /// Holders of the write end in the lineage.
    pub lineage: u32,
    /// Holders of the write end outside it.
    pub foreign: u32,
    /// Processes of the lineage whose tables we may not read.
    pub opaque: u32,
    /// Processes of the lineage with descriptors in flight.
    pub suspect: u32,
}

/// `pipe.eof`: what preceded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Eof {
    /// The command's stream.
    pub stream: Stream,
    /// Bytes that came through it.
    pub bytes: u64,
    /// Time since the command's exit, in microseconds; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_exit_us: Option<u64>,
    /// False when we let go of the pipe instead: then this is the EOF that downstream got.
    pub by_itself: bool,
}

/// `fifo.opened`, `fifo.closed`: what happened to a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FifoUse {
    /// The path that it was named by.
    pub path: String,
    /// The end that was opened or closed.
    pub end: End,
    /// Writers that are left, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers: Option<u32>,
    /// Why, where it was our doing (`command exited`, `fifo close`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How long before the command had been started, in microseconds; absent before its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_start_us: Option<u64>,
    /// How long before the command had last written anything, in microseconds; absent where it had not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_us: Option<u64>,
}

/// `tracker.attached`: the source in use from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// `bpf`, `proc` or `node`.
    pub backend: String,
    /// How it is attached (`bpf-fentry`, `connector`).
    pub rung: String,
    /// How long attaching took, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
}

/// `tracker.degraded`: a source was given up for a lesser one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Degraded {
    /// The rung that was lost, or was wanted.
    pub from: String,
    /// The rung in use instead.
    pub to: String,
    /// Why.
    pub why: String,
}

/// `tracker.reseeded`: what the source knew was read anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reseeded {
    /// The rung.
    pub rung: String,
    /// Why (`ring buffer full`, `sequence gap`).
    pub why: String,
    /// Events that are known to be missing since the last time.
    pub missed: u64,
}
