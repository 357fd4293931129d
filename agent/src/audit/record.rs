//! The schema of an audit record: one envelope, and what each event must say inside it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chain::Hash;
use super::detail::{
    Attached, Degraded, Eof, Escape, Exited, FifoUse, Finished, Idle, Reseeded, Retried, Started, Withheld,
};
use super::evidence::{Decision, Evidence, PipeSeen};
use crate::process::describe::Description;

/// How every record begins, up to the schema's major version: what `verify` knows a record by.
pub(super) const PREFIX: &[u8] = b"{\"schema\":\"pipewarden.audit/";

/// The version of the schema. A field that is added leaves it as it is: readers skip what they do
/// not know, and take an unknown `reason` or `event` for one that came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schema {
    /// The first.
    #[serde(rename = "pipewarden.audit/1")]
    V1,
}

/// One line of an audit log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Everything that the hash is over.
    #[serde(flatten)]
    pub body: Body,
    /// SHA-256 of this line without this field: the bytes of the line with `,"hash":"…"` taken out.
    /// Always the last field.
    pub hash: Hash,
}

/// A record without its hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Body {
    /// The version of this schema. Always the first field.
    pub schema: Schema,
    /// The run that the record belongs to.
    pub run: RunId,
    /// The number of the record in its run, from 0 and without gaps.
    pub seq: u64,
    /// When it happened, or was decided; not when the line was written.
    pub time: Time,
    /// The host's name, as uname(2) tells it.
    pub host: String,
    /// The command's name, where `pipewarden supervise` runs it under one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Present and true when the act did not wait for this record any longer: it was written after
    /// the act, because the log's target was too slow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// The hash of this run's previous record; null in the first.
    pub prev: Option<Hash>,
}

/// What happened. The variant decides which of `process`, `pipe`, `decision`, `evidence` and
/// `detail` a record has, so none can be written without what its reader needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event")]
pub enum Event {
    /// The run begins: its first record, from before the command is started.
    #[serde(rename = "run.started")]
    RunStarted {
        /// What is run, and how.
        detail: Box<Started>,
    },
    /// There was no output for `--idle-timeout`: the command is ended.
    #[serde(rename = "run.output_idle")]
    RunOutputIdle {
        /// What is done about it.
        decision: Box<Decision>,
        /// How long it was silent.
        detail: Idle,
    },
    /// The command is started again.
    #[serde(rename = "run.retried")]
    RunRetried {
        /// Which try this is, and why.
        detail: Box<Retried>,
    },
    /// The command exited; its pipes may still be held.
    #[serde(rename = "run.exited")]
    RunExited {
        /// The command's own process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Box<Description>>,
        /// How it exited.
        detail: Exited,
    },
    /// The run is over: its last record, which closes the chain.
    #[serde(rename = "run.finished")]
    RunFinished {
        /// How the run went, and what its log could not hold.
        detail: Box<Finished>,
    },
    /// A process of the lineage left the home group.
    #[serde(rename = "pipe.escape")]
    PipeEscape {
        /// Who.
        process: Box<Description>,
        /// The watched pipe that it holds, if it was seen to hold one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pipe: Option<PipeSeen>,
        /// How it was noticed.
        evidence: Box<Evidence>,
        /// Where it went.
        detail: Escape,
    },
    /// The command has exited and this pipe has no EOF.
    #[serde(rename = "pipe.withheld")]
    PipeWithheld {
        /// Which pipe.
        pipe: PipeSeen,
        /// By how many, for how long.
        detail: Withheld,
    },
    /// EOF arrived on this pipe.
    #[serde(rename = "pipe.eof")]
    PipeEof {
        /// Which pipe.
        pipe: PipeSeen,
        /// After what.
        detail: Eof,
    },
    /// A process is about to be signalled: written before the signal, unless the record is late.
    #[serde(rename = "holder.signalled")]
    HolderSignalled(Box<Act>),
    /// A process that was signalled is gone, or no longer holds.
    #[serde(rename = "holder.ended")]
    HolderEnded(Box<Act>),
    /// A process was let live: by an option, by a policy, or because the verification said no.
    #[serde(rename = "holder.spared")]
    HolderSpared(Box<Act>),
    /// Somebody opened a FIFO that the run owns or watches.
    #[serde(rename = "fifo.opened")]
    FifoOpened(Box<OnFifo>),
    /// Somebody closed a FIFO that the run owns or watches, or we did.
    #[serde(rename = "fifo.closed")]
    FifoClosed(Box<OnFifo>),
    /// A source of knowledge about holders is in use from here on.
    #[serde(rename = "tracker.attached")]
    TrackerAttached {
        /// Which one.
        detail: Attached,
    },
    /// A source was given up for a lesser one.
    #[serde(rename = "tracker.degraded")]
    TrackerDegraded {
        /// Which, for which, and why.
        detail: Degraded,
    },
    /// What the source knew was read anew, because events may have been missed.
    #[serde(rename = "tracker.reseeded")]
    TrackerReseeded {
        /// Why, and how much was missed.
        detail: Reseeded,
    },
}

/// What was done to a process, or was not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Act {
    /// Who.
    pub process: Description,
    /// The pipe that is the ground for it; absent where the ground is no hold (`--reap all`, the
    /// home group of an asked ending).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipe: Option<PipeSeen>,
    /// What, and why.
    pub decision: Decision,
    /// What was checked and seen.
    pub evidence: Evidence,
}

/// What happened to a FIFO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OnFifo {
    /// Who did it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Description>,
    /// The FIFO.
    pub pipe: PipeSeen,
    /// Under which path, and what it changed.
    pub detail: FifoUse,
}

/// The name of a run: a UUID of version 7, so that runs sort by when they began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("format" = "uuid"))]
pub struct RunId(uuid::Uuid);

impl RunId {
    /// A new one.
    #[must_use]
    pub fn new() -> RunId {
        RunId(uuid::Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> RunId {
        RunId::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<RunId, uuid::Error> {
        uuid::Uuid::try_parse(text).map(RunId)
    }
}

impl TryFrom<String> for RunId {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<RunId, uuid::Error> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> String {
        run.to_string()
    }
}

/// A point in time: RFC 3339 in UTC, always with nine decimals, so that lines sort as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("format" = "date-time"))]
pub struct Time(pub jiff::Timestamp);

impl Time {
    /// The wall clock's time.
    #[must_use]
    pub fn now() -> Time {
        Time(jiff::Timestamp::now())
    }
}

impl TryFrom<String> for Time {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Time, jiff::Error> {
        text.parse().map(Time)
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        format!("{:.9}", time.0)
    }
}

/// For people, to the millisecond.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// The JSON Schema of a record, made from these types: of a record as it is written, in which nothing
/// is left out that has no reason to be.
#[must_use]
pub fn schema() -> schemars::Schema {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<Record>()
}
