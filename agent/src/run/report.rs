//! What a run reports: who held what, what was done, how it ended.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::options::{Leak, Options};
use crate::audit::detail::Restart;
use crate::ownership::Holder;
use crate::pipe::{Action, EndedFor, ExitStatus, Outcome, ProcessId, Relation, Stream};

/// Lines of text about single holders; then only their number is told.
const LINES: usize = 8;

/// A holder in the report.
#[derive(Clone, Debug, Serialize)]
pub struct HolderReport {
    /// Its process id.
    pub pid: i32,
    /// When it started, RFC 3339.
    pub start_time: String,
    /// The same in clock ticks since boot: with the pid, its identity.
    pub start_ticks: u64,
    /// Its program's name.
    pub comm: String,
    /// Its command line, redacted.
    pub cmdline: Option<String>,
    /// What it is to the run.
    pub relation: Relation,
    /// Whether it left the home group.
    pub escaped: bool,
    /// The streams whose write end it held.
    pub streams: Vec<Stream>,
    /// What was done about it.
    pub action: Action,
    /// Why it was not signalled, where it was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    #[serde(skip)]
    id: Option<ProcessId>,
    /// How long after the command's exit it was acted upon.
    #[serde(skip)]
    after: Duration,
}

/// One execution of the command.
#[derive(Clone, Debug, Serialize)]
pub struct Try {
    /// How it exited.
    pub exit_status: ExitStatus,
    /// What made us end it.
    pub ended_for: EndedFor,
    /// How it began, where it was not the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Restart>,
    /// The session that it told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// The status of a command that said it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// What the marker captured.
    pub status: Option<String>,
    /// Whether that is a success.
    pub success: bool,
}

impl Completion {
    /// What a captured status means; that nothing is captured means success.
    #[must_use]
    pub fn new(status: Option<String>) -> Completion {
        let success = status.as_deref().is_none_or(|status| matches!(status, "success" | "true" | "0"));
        Completion { status, success }
    }
}

/// The report of a run. A field that is added changes nothing for who reads the others.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the ending went.
    pub outcome: Outcome,
    /// How the command exited.
    pub exit_status: ExitStatus,
    /// What made us end the command, if we did.
    pub ended_for: EndedFor,
    /// From the command's exit to `read() == 0` on the last stream, in microseconds; absent where a
    /// stream was let go or none was pumped.
    pub exit_to_eof_us: Option<u64>,
    /// What answered "who holds this pipe".
    pub backend: &'static str,
    /// How that was attached.
    pub rung: &'static str,
    /// Bytes that were read from the command and that downstream did not take.
    pub undelivered_bytes: u64,
    /// Everybody who held a watched pipe after the command's exit.
    pub holders: Vec<HolderReport>,
    /// Every execution of the command.
    pub tries: Vec<Try>,
    /// What the completion marker said, if it was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<Completion>,
    /// Why it was not tried again, where retries were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<String>,
    /// The signal that ended a pause between two tries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted_by: Option<i32>,
    /// Lines that were too long for the matchers.
    #[serde(skip_serializing_if = "is_zero")]
    pub unseen_lines: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Everybody who was seen to hold a watched pipe, and what was done about them.
#[derive(Debug, Default)]
pub struct Roll {
    entries: Vec<HolderReport>,
}

impl Roll {
    /// A holder was seen; whether it was new.
    pub fn saw(&mut self, holder: &Holder, streams: &[Stream]) -> bool {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == Some(holder.id)) {
            for stream in streams.iter().filter(|stream| !entry.streams.contains(stream)).collect::<Vec<_>>() {
                entry.streams.push(*stream);
            }
            return false;
        }
        let who = &holder.description;
        self.entries.push(HolderReport {
            pid: who.pid,
            start_time: who.start_time.clone(),
            start_ticks: who.start_ticks,
            comm: who.comm.clone(),
            cmdline: who.cmdline.clone(),
            relation: holder.relation,
            escaped: holder.escaped,
            streams: streams.to_vec(),
            action: if holder.kept { Action::Kept } else { Action::None },
            refused: None,
            id: Some(holder.id),
            after: Duration::ZERO,
        });
        true
    }

    /// Something was done about a holder, so long after the command's exit.
    pub fn acted(&mut self, id: ProcessId, action: Action, after: Duration) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == Some(id)) {
            if matches!(entry.action, Action::None | Action::Refused) {
                entry.after = after;
            }
            entry.action = action;
        }
    }

    /// A holder was to be signalled, and was not.
    pub fn refused(&mut self, id: ProcessId, why: &str) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == Some(id)) {
            entry.action = Action::Refused;
            entry.refused = Some(why.to_owned());
        }
    }

    /// The streams were let go: what that means for those about whom nothing else was done.
    pub fn let_go(&mut self, action: Action, after: Duration) {
        for entry in self.entries.iter_mut().filter(|entry| entry.action == Action::None) {
            entry.action = action;
            entry.after = after;
        }
    }

    /// Those about whom nothing was done yet.
    pub fn undecided(&self) -> impl Iterator<Item = &HolderReport> {
        self.entries.iter().filter(|entry| entry.action == Action::None)
    }

    /// The holders, in the order in which they were seen.
    #[must_use]
    pub fn entries(&self) -> &[HolderReport] {
        &self.entries
    }
}

impl Report {
    /// The exit status of `run`.
    #[must_use]
    pub fn exit_code(&self, options: &Options) -> u8 {
        if let Some(signal) = self.interrupted_by {
            return ExitStatus::Signal(signal).shell_code();
        }
        let own = self.own_code();
        let timed_out = matches!(self.ended_for, EndedFor::Timeout | EndedFor::Idle);
        let leaked = self.holders.iter().any(|holder| matches!(holder.action, Action::Term | Action::Kill));
        if timed_out && !options.preserve_status {
            124
        } else if own == 0 && leaked && options.leak == Leak::Fail {
            123
        } else {
            own
        }
    }

    /// The command's exit code, with what its completion marker makes of it.
    fn own_code(&self) -> u8 {
        let own = self.exit_status.shell_code();
        match (&self.completion, self.ended_for) {
            // How it took our signal says nothing about its work.
            (Some(completion), EndedFor::Done) if completion.success => 0,
            (Some(_), EndedFor::Done) => match self.exit_status {
                ExitStatus::Code(code @ 1..128) => u8::try_from(code).unwrap_or(1),
                _ => 1,
            },
            (Some(completion), EndedFor::Exit) if own == 0 => u8::from(!completion.success),
            _ => own,
        }
    }

    /// The report for people: nothing where nothing had to be done.
    #[must_use]
    pub fn text(&self, options: &Options) -> String {
        let mut text = String::new();
        match self.ended_for {
            EndedFor::Timeout => {
                let bound = options.timeout.unwrap_or_default();
                let _ = writeln!(text, "pipewarden: the command reached --timeout {}", duration(bound));
            }
            EndedFor::Idle => {
                let bound = options.idle_timeout.unwrap_or_default();
                let _ = writeln!(text, "pipewarden: the command wrote nothing for --idle-timeout {}", duration(bound));
            }
            EndedFor::Done => {
                let grace = duration(options.lifecycle.done_grace);
                let _ = writeln!(text, "pipewarden: the command said it was done and stayed for --done-grace {grace}");
            }
            EndedFor::Exit | EndedFor::Signal => {}
        }
        if let Some(why) = &self.gave_up {
            let _ = writeln!(text, "pipewarden: it is not tried again: {why}");
        }
        for holder in self.holders.iter().take(LINES) {
            let _ = writeln!(text, "pipewarden: {}", holder.line());
        }
        if let Some(more @ 1..) = self.holders.len().checked_sub(LINES) {
            let _ = writeln!(text, "pipewarden: and {more} more holders (--report json names them all)");
        }
        if self.outcome == Outcome::Closed {
            let bound = duration(options.max_drain);
            let _ = writeln!(
                text,
                "pipewarden: let go of the streams after --max-drain {bound}; what was written later is lost"
            );
        }
        if self.unseen_lines > 0 {
            let _ = writeln!(text, "pipewarden: {} lines were over 16 MiB, and no matcher saw them", self.unseen_lines);
        }
        if self.undelivered_bytes > 0 {
            let _ = writeln!(text, "pipewarden: downstream did not take the last {} bytes", self.undelivered_bytes);
        }
        text
    }
}

impl HolderReport {
    /// One line that says who, what was done, and how to have it otherwise.
    fn line(&self) -> String {
        let who = format!("{} ({})", self.comm, self.pid);
        let streams = self.streams.iter().map(|stream| stream.name()).collect::<Vec<_>>().join(" and ");
        let after = duration(self.after);
        let held = if streams.is_empty() { "may have held a stream".to_owned() } else { format!("held {streams}") };
        let let_live = format!("to let such a process live: --keep {}", quoted(&self.comm));
        match self.action {
            Action::Term | Action::Kill => {
                let how = if self.action == Action::Kill { "killed" } else { "ended" };
                format!("{how} {who}, which {held} {after} after the command's exit; {let_live}")
            }
            Action::Drained => format!("left {who} alive, which {held}; what it writes from now on is discarded"),
            Action::Kept => format!("kept {who}, which {held}; what it writes from now on is discarded"),
            Action::Closed => format!("let go of {who}, which {held} {after} after the command's exit"),
            Action::Refused => {
                format!("did not end {who}, which {held}: {}", self.refused.as_deref().unwrap_or("it was refused"))
            }
            Action::None => format!("{who} {held} after the command's exit"),
        }
    }
}

/// A name that a shell takes as one word and pipewarden as no glob.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:+".contains(c));
    if plain { name.to_owned() } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

/// A duration as a person says it: `2.1 s`, `200 ms`.
pub fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
