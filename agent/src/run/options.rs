//! What a run is asked to do. The command line's meaning of each is in `cli/run.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::matchers::{Matchers, Role};
use super::template::Template;
use crate::audit::Target;
use crate::ownership::keep::Keep;
use crate::ownership::ladder::Backend;

/// What to do about lineage or foreign holders once they have proved stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHolder {
    /// Signal them.
    End,
    /// Name them, and read on until `max_drain`: `wait` under the name of what it is for.
    Report,
    /// Close the read end at once: their next write gets SIGPIPE.
    Close,
    /// Wait for them until `max_drain`.
    Wait,
    /// Hand the read end to a sink at once: downstream gets EOF and they live.
    Drain,
}

/// What to do about foreign holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnForeign {
    /// Drain; close where every one of them ignores SIGPIPE.
    Auto,
    /// As asked, by the meaning for lineage holders.
    As(OnHolder),
}

/// What to do about opaque processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOpaque {
    /// Name them; let go of the stream without harm to them.
    Report,
    /// Signal them.
    End,
}

/// Whom an ending ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reap {
    /// All after an asked ending, else the holders.
    Auto,
    /// Holders of the watched pipes only.
    Holders,
    /// The whole lineage.
    All,
}

/// What a holder that had to be ended means for the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leak {
    /// Nothing.
    Pass,
    /// A command that succeeded exits 123.
    Fail,
}

/// How the command's streams reach downstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// Pump pipes, FIFOs and sockets; inherit the rest.
    Auto,
    /// Pump everything that is open.
    Pump,
    /// Inherit everything.
    Inherit,
}

/// Where the command's standard input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// Ours.
    Inherit,
    /// `/dev/null`.
    Null,
    /// A FIFO that the run owns.
    Fifo(PathBuf),
}

/// When a command is tried again.
#[derive(Clone, Debug, Default)]
pub struct Retries {
    /// How often one that went silent is.
    pub after_silence: u32,
    /// How often one that failed by itself is.
    pub after_failure: u32,
    /// The pauses before the first, second, … retry; the last one repeats.
    pub backoff: Vec<Duration>,
    /// The command that resumes a session.
    pub resume: Option<Template>,
}

impl Retries {
    /// Whether any try may be followed by another one.
    #[must_use]
    pub fn are_asked_for(&self) -> bool {
        self.after_silence > 0 || self.after_failure > 0
    }
}

/// What an agent's own output decides.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// When it is tried again.
    pub retries: Retries,
    /// From the completion marker to the end that we make of it.
    pub done_grace: Duration,
    /// What is looked for in the output.
    pub matchers: Arc<Matchers>,
}

/// How the report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportStyle {
    /// A line for what was ended, spared, closed or undelivered; else nothing.
    Text,
    /// One JSON object.
    Json,
    /// Nothing.
    None,
}

/// Whom the command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// Everything that a run is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// First signal of an ending.
    pub signal: Signal,
    /// From the first signal to SIGKILL.
    pub kill_after: Duration,
    /// Bound on the whole run.
    pub timeout: Option<Duration>,
    /// Bound on silence of both streams.
    pub idle_timeout: Option<Duration>,
    /// What its own output decides.
    pub lifecycle: Lifecycle,
    /// Quiet time after the command's exit before holders are ended.
    pub holder_grace: Duration,
    /// Bound on waiting for holders.
    pub max_drain: Duration,
    /// Bound on waiting for downstream.
    pub max_deliver: Option<Duration>,
    /// Lineage holders.
    pub on_holder: OnHolder,
    /// Foreign holders.
    pub on_foreign: OnForeign,
    /// Opaque processes.
    pub on_opaque: OnOpaque,
    /// Whom an ending ends.
    pub reap: Reap,
    /// Whom no ending ends.
    pub keep: Keep,
    /// What an ended holder means for the exit status.
    pub leak: Leak,
    /// How streams reach downstream.
    pub stdio: Stdio,
    /// Two pipes even where our 1 and 2 are one description.
    pub split: bool,
    /// Where standard input comes from.
    pub stdin: Stdin,
    /// What answers "who holds this pipe".
    pub backend: Backend,
    /// How the report looks.
    pub report: ReportStyle,
    /// After a timeout, exit with the command's own status.
    pub preserve_status: bool,
    /// Leave the command in our process group.
    pub foreground: bool,
    /// Signals to forward as others.
    pub rewrite: Vec<(i32, i32)>,
    /// The signal that the command gets when we die.
    pub pdeathsig: Option<Signal>,
    /// Where the audit log goes.
    pub audit: Option<Target>,
    /// The options as the user wrote them, for the audit log.
    pub described: Vec<(String, String)>,
    /// The name by which a supervisor of several knows this command, for the audit log.
    pub name: Option<String>,
    /// The command's environment, where it is not ours.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// The command's working directory, where it is not ours.
    pub directory: Option<PathBuf>,
    /// Whom the command runs as, where it is not us.
    pub user: Option<User>,
}

impl Options {
    /// What is asked of a run that is told nothing but its command.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Options {
        Options {
            command,
            signal: Signal::SIGTERM,
            kill_after: Duration::from_secs(1),
            timeout: None,
            idle_timeout: None,
            lifecycle: Lifecycle::default(),
            holder_grace: Duration::from_millis(200),
            max_drain: Duration::from_secs(5),
            max_deliver: None,
            on_holder: OnHolder::End,
            on_foreign: OnForeign::Auto,
            on_opaque: OnOpaque::Report,
            reap: Reap::Auto,
            keep: Keep::default(),
            leak: Leak::Pass,
            stdio: Stdio::Auto,
            split: false,
            stdin: Stdin::Inherit,
            backend: Backend::Auto,
            report: ReportStyle::Text,
            preserve_status: false,
            foreground: false,
            rewrite: Vec::new(),
            pdeathsig: None,
            audit: None,
            described: Vec::new(),
            name: None,
            environment: None,
            directory: None,
            user: None,
        }
    }
}

impl Options {
    /// Whether something must see what passes through stdout, and through stderr.
    #[must_use]
    pub fn sees(&self) -> [bool; 2] {
        let matchers = &self.lifecycle.matchers;
        let (idle, looks) = (self.idle_timeout.is_some(), !matchers.is_empty());
        [idle || looks, idle || (looks && matchers.look_at_stderr())]
    }

    /// Whether the command's stdin must be ours to end, or to give once more.
    #[must_use]
    pub fn feeds(&self) -> bool {
        self.lifecycle.retries.are_asked_for() || self.lifecycle.matchers.has(Role::DoneWhen)
    }
}
