//! What makes a decision checkable afterwards: what was decided and why, and what was seen and
//! verified just before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::act::Refusal;
use crate::pipe::{Action, End, EndedFor, Pipe, PipeKind, Relation, Stream};
use crate::process::table::{Hold, Via};

/// A pipe, and by which descriptors the record's process was seen to hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PipeSeen {
    /// `st_dev` as fstat(2) gives it to user space.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Anonymous or with a name.
    pub kind: PipeKind,
    /// The end that is held; absent where the record is about the pipe and no one's hold of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// The descriptors, in the process's own numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<i32>,
    /// The command's stream behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
}

impl PipeSeen {
    /// A pipe that the record is about as such.
    #[must_use]
    pub fn new(pipe: Pipe, stream: Option<Stream>) -> PipeSeen {
        PipeSeen { dev: pipe.id.dev, ino: pipe.id.ino, kind: pipe.kind, end: None, fds: Vec::new(), stream }
    }

    /// A pipe as a process holds it.
    #[must_use]
    pub fn held(pipe: Pipe, stream: Option<Stream>, hold: &Hold) -> PipeSeen {
        PipeSeen { end: Some(hold.end), fds: hold.fds.clone(), ..PipeSeen::new(pipe, stream) }
    }
}

/// What was decided about a process, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// What is done; `refused` when it was to be signalled and is not.
    pub action: Action,
    /// The signal by name (`TERM`), where one is sent; where it is refused, the one that was not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Whom the action reaches.
    #[serde(default)]
    pub scope: Scope,
    /// Why.
    pub reason: Reason,
    /// The option or policy that says so, as the user wrote it (`--keep ssh-agent`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// One sentence for people, where the reason alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Decision {
    /// A decision about one process.
    #[must_use]
    pub fn new(action: Action, reason: Reason) -> Decision {
        Decision { action, signal: None, scope: Scope::Process, reason, option: None, note: None }
    }
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Exactly the record's process, through a pidfd.
    #[default]
    Process,
    /// The home group; the record's process is its leader.
    HomeGroup,
}

/// Why something was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// To act: the command has exited and the holder was quiet for `--holder-grace`.
    Stale,
    /// To act: it outlived the first signal by `--kill-after`, or was found after that.
    Escalated,
    /// To act: `--max-drain` is about to be reached.
    MaxDrain,
    /// To act: `--timeout` was reached.
    Timeout,
    /// To act: no output for `--idle-timeout`.
    Idle,
    /// To act: the completion marker was seen.
    Done,
    /// To act: we were sent a terminating signal.
    Signal,
    /// To act: the whole lineage is ended (`--reap`).
    Reap,
    /// To act: a pipe may be in flight in one of its sockets, and every visible holder is gone.
    Suspect,
    /// Either way: a policy for such holders says so (`--on-holder`, `--on-foreign`, `--on-opaque`,
    /// or the node's).
    Policy,
    /// It ended: a signal of ours or of somebody else's, or its own exit.
    Exited,
    /// It ended as a holder: it lives, and has let go of the pipe.
    LetGo,
    /// Not to act: it matches `--keep`.
    Keep,
    /// Not to act: its descriptor tables may not be read, so that it holds is only possible.
    Opaque,
    /// Not to act: it holds the read end, which keeps EOF from nobody.
    Reader,
    /// Not to act: it is not in the run's lineage.
    Foreign,
    /// Not to act: it is ourselves, an ancestor of ours, pid 1 or a kernel thread.
    Protected,
    /// Refused by the verification: no such process any more.
    Gone,
    /// Refused by the verification: the pid belongs to a process with another start time.
    PidReused,
    /// Refused by the verification: it holds no write end any more.
    HoldGone,
    /// Refused by the verification: what had to be read could not be (see `evidence.error`).
    Unverifiable,
    /// Refused by the kernel: we may not signal it (see `evidence.error`).
    NotPermitted,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Reason {
        match refusal {
            Refusal::Ancestor | Refusal::KernelThread => Reason::Protected,
            Refusal::Reused => Reason::PidReused,
            Refusal::Kept => Reason::Keep,
            Refusal::NoHold => Reason::HoldGone,
            Refusal::NotLineage | Refusal::NoPolicy => Reason::Foreign,
            Refusal::Unreadable => Reason::Unverifiable,
            Refusal::NotPermitted => Reason::NotPermitted,
        }
    }
}

/// What is known about a process, and what was verified just before the act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// How it relates to the run.
    pub relation: Relation,
    /// Whether it has left the home group.
    pub escaped: bool,
    /// What named it: a source (`bpf`, `proc`, `node`), with its rung (`proc+connector`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How it was seen to hold, thread by thread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<HoldSeen>,
    /// Descriptors in flight in the receive queues of its unix sockets: what makes a suspect.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub in_flight: u32,
    /// What was verified; absent where nothing is signalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// What the run saw until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSeen>,
    /// What the kernel said when it said no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Evidence {
    /// What is known at least: how the process relates to the run.
    #[must_use]
    pub fn new(relation: Relation, escaped: bool) -> Evidence {
        Evidence {
            relation,
            escaped,
            source: None,
            holds: Vec::new(),
            in_flight: 0,
            verified: None,
            run: None,
            error: None,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One hold, as it was seen in a descriptor table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldSeen {
    /// The thread in whose table the descriptors are.
    pub tid: i32,
    /// The end.
    pub end: End,
    /// The descriptors; with `via: io_uring` those of the rings.
    pub fds: Vec<i32>,
    /// How it holds.
    pub via: Way,
}

impl From<&Hold> for HoldSeen {
    fn from(hold: &Hold) -> HoldSeen {
        let via = match hold.via {
            Via::Descriptor => Way::Descriptor,
            Via::IoUring => Way::IoUring,
        };
        HoldSeen { tid: hold.tid, end: hold.end, fds: hold.fds.clone(), via }
    }
}

/// By which way a process holds a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A descriptor in a thread's table.
    Descriptor,
    /// A file registered with an io_uring.
    IoUring,
}

/// What was read again between the decision and the signal, with a pidfd already open: from there
/// on the pid cannot come to mean another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// The start time that was read, in clock ticks since boot; absent if the process was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ticks: Option<u64>,
    /// Whether that is the start time of the process that was decided about.
    pub same_process: bool,
    /// Whether it still held a write end; absent where a hold is not the ground.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<bool>,
    /// Whether its descent from the command was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_lineage: Option<bool>,
    /// Whether the signal goes through a pidfd.
    pub pidfd: bool,
}

/// What the run had seen when it decided. All times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunSeen {
    /// Since the command's exit; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_exit_us: Option<u64>,
    /// Since the last byte arrived from the pipe, not counting time in which downstream took nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_us: Option<u64>,
    /// Since the ending's first signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_signal_us: Option<u64>,
    /// Bytes that came through the pipe so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What the ending was begun for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_for: Option<EndedFor>,
}
