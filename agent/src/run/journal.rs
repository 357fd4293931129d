//! Who was seen and what was done: for the report, and for the audit log.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fifo;
use super::options::Options;
use super::report::{HolderReport, Report, Roll};
use crate::act::{self, Ground, Refusal, Warrant};
use crate::audit::detail::{
    self, Attached, Degraded, Escape, Exited, Finished, Idle, Reseeded, Restart, Retried, Started,
};
use crate::audit::evidence::{Decision, Evidence, PipeSeen, Reason, RunSeen, Scope, Verified};
use crate::audit::record::{Act, Event};
use crate::audit::{ACT_WAIT, Log};
use crate::ownership::events::Names;
use crate::ownership::{Holder, Lineage};
use crate::pipe::{Action, EndedFor, ExitStatus, Pipe, ProcessId, Relation, Stream};
use crate::process::describe::{Description, describe};
use crate::process::redact;
use crate::process::stat::Stat;

/// How long a run waits for the end of its log. It takes microseconds; on a machine with dozens of
/// processes to a core more than 100 ms was measured, and only a target that hangs takes longer.
const FINISH_WAIT: Duration = Duration::from_secs(1);

/// The run's book-keeper.
pub struct Journal {
    log: Log,
    roll: Roll,
    lines: Vec<(Pipe, Stream)>,
    home: i32,
    command: Option<Description>,
    started: Instant,
    /// When the try was started.
    began: Instant,
    exit: Option<Instant>,
    first_signal: Option<Instant>,
    ended_for: EndedFor,
    /// The try, from 1; 0 before the first.
    attempt: u32,
    withheld: Vec<Pipe>,
    signalled: Vec<Signalled>,
    /// Whose escapes are on record.
    escapes: HashSet<ProcessId>,
    /// What answers.
    source: Names,
}

/// A holder that was signalled, until it is known what became of it.
struct Signalled {
    id: ProcessId,
    act: Act,
}

impl Journal {
    /// Opens the books, before anything is started.
    #[must_use]
    pub fn open(log: Log, options: &Options) -> Journal {
        let journal = Journal {
            log,
            roll: Roll::default(),
            lines: Vec::new(),
            home: 0,
            command: None,
            started: Instant::now(),
            began: Instant::now(),
            exit: None,
            first_signal: None,
            ended_for: EndedFor::Exit,
            attempt: 0,
            withheld: Vec::new(),
            signalled: Vec::new(),
            escapes: HashSet::new(),
            source: Names::PROC,
        };
        if journal.log.is_on() {
            let command: Vec<String> =
                options.command.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
            let detail = Box::new(Started::new(&command, options.described.iter().cloned()));
            journal.note(Event::RunStarted { detail });
        }
        journal
    }

    /// The command was started: these pipes are watched, and this is its home.
    pub fn begin(&mut self, command: i32, lines: Vec<(Pipe, Stream)>, lineage: &Lineage) {
        self.lines = lines;
        self.home = lineage.home;
        self.attempt += 1;
        self.began = Instant::now();
        (self.exit, self.first_signal, self.ended_for) = (None, None, EndedFor::Exit);
        self.withheld.clear();
        if self.log.is_on() {
            self.command = describe(command).ok(); // while it has a program: a zombie has none
        }
    }

    /// Whether anybody reads what is noted here.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.log.is_on()
    }

    /// This source answers from here on; attaching it took so long.
    pub fn source_attached(&mut self, names: Names, took: Option<Duration>) {
        self.source = names;
        let (backend, rung) = (names.backend.into(), names.rung.into());
        self.note(Event::TrackerAttached { detail: Attached { backend, rung, took_us: took.map(micros) } });
    }

    /// This source answers from here on, because another one was given up.
    pub fn source_is(&mut self, names: Names) {
        self.source = names;
    }

    /// A rung was lost, or wanted and is not to be had.
    pub fn source_degraded(&mut self, from: &str, to: &str, why: &str) {
        let detail = Degraded { from: from.into(), to: to.into(), why: why.into() };
        self.note(Event::TrackerDegraded { detail });
    }

    /// What was known from events was read anew, because some were lost.
    pub fn source_reseeded(&mut self, rung: &str, why: &str, missed: u64) {
        let detail = Reseeded { rung: rung.into(), why: why.into(), missed };
        self.note(Event::TrackerReseeded { detail });
    }

    /// A process of the lineage was found to have left with a watched pipe while the command runs.
    /// `happened` is when it left, by `CLOCK_MONOTONIC`.
    pub fn escaped(&mut self, holder: &Holder, happened: Option<Duration>) {
        if !self.log.is_on() || holder.holds.is_empty() || !self.escapes.insert(holder.id) {
            return;
        }
        let who = &holder.description;
        let noticed_after_us = happened.map(|happened| micros(monotonic().saturating_sub(happened)));
        self.note(Event::PipeEscape {
            process: Box::new(who.clone()),
            pipe: self.pipe_seen(holder),
            evidence: Box::new(self.evidence(holder)),
            detail: Escape { home_pgid: self.home, pgid: who.pgid, sid: who.sid, noticed_after_us },
        });
    }

    /// The command is about to be signalled with its home group, because an ending was asked for.
    pub fn ending_asked(&mut self, what_for: EndedFor, signal: i32, with_group: bool) {
        self.ended_for = what_for;
        self.first_signal.get_or_insert_with(Instant::now);
        if !self.log.is_on() {
            return;
        }
        let Some(process) = self.command.clone() else { return };
        let reason = match what_for {
            EndedFor::Timeout => Reason::Timeout,
            EndedFor::Idle => Reason::Idle,
            EndedFor::Done => Reason::Done,
            EndedFor::Signal | EndedFor::Exit => Reason::Signal,
        };
        let mut decision = Decision::new(action_of(signal), reason);
        decision.signal = signal_name(signal);
        decision.scope = if with_group { Scope::HomeGroup } else { Scope::Process };
        let evidence = Evidence { run: Some(self.seen()), ..Evidence::new(Relation::Lineage, false) };
        let act = Act { process, pipe: None, decision, evidence };
        self.note_before_act(Event::HolderSignalled(Box::new(act)));
    }

    /// There was no output for so long: the command is about to be ended.
    pub fn output_idle(&mut self, quiet: Duration, limit: Duration) {
        let decision = Box::new(Decision::new(Action::Term, Reason::Idle));
        let detail = Idle { attempt: self.attempt, quiet_us: micros(quiet), limit_us: micros(limit) };
        self.note(Event::RunOutputIdle { decision, detail });
    }

    /// Another try is about to begin.
    pub fn retried(&mut self, ended_for: EndedFor, pause: Duration, start: Restart, command: &[OsString]) {
        if !self.log.is_on() {
            return;
        }
        let words: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let detail = Box::new(Retried {
            attempt: self.attempt + 1,
            ended_for,
            backoff_us: micros(pause),
            start,
            command: redact::command_line(&words),
        });
        self.note(Event::RunRetried { detail });
    }

    /// Something happened to the FIFO that the run owns, this long after the command last wrote.
    pub fn fifo(&mut self, path: &Path, pipe: Pipe, event: fifo::Event, quiet: Option<Duration>) {
        if self.log.is_on() {
            let moment = (self.attempt > 0).then(|| fifo::Moment { since_start: self.began.elapsed(), quiet });
            self.note(event.recorded(path, pipe, moment));
        }
    }

    /// The command exited.
    pub fn exited(&mut self, status: ExitStatus, at: Instant) {
        self.exit = Some(at);
        if !self.log.is_on() {
            return;
        }
        let elapsed_us = micros(at.saturating_duration_since(self.began));
        let detail = Exited { attempt: self.attempt, exit_status: status, ended_for: self.ended_for, elapsed_us };
        self.note(Event::RunExited { process: self.command.clone().map(Box::new), detail });
    }

    /// EOF came, after so many bytes.
    pub fn eof(&mut self, pipe: Pipe, bytes: u64) {
        self.end_of(pipe, bytes, true);
    }

    fn end_of(&mut self, pipe: Pipe, bytes: u64, by_itself: bool) {
        let since_exit_us = self.exit.map(|exit| micros(exit.elapsed()));
        for (_, stream) in self.lines.iter().filter(|(line, _)| *line == pipe) {
            let detail = detail::Eof { stream: *stream, bytes, since_exit_us, by_itself };
            self.note(Event::PipeEof { pipe: PipeSeen::new(pipe, Some(*stream)), detail });
        }
    }

    /// Somebody was seen to hold, or may hold, a watched pipe after the grace.
    pub fn saw(&mut self, holder: &Holder) {
        let streams = self.streams_of(holder);
        let new = self.roll.saw(holder, &streams);
        if !new || !self.log.is_on() {
            return;
        }
        if holder.escaped {
            self.escaped(holder, None);
        }
        if holder.kept || matches!(holder.relation, Relation::Opaque) {
            let reason = if holder.kept { Reason::Keep } else { Reason::Opaque };
            let action = if holder.kept { Action::Kept } else { Action::None };
            self.spared(holder, Decision::new(action, reason));
        }
    }

    /// All holders of a moment were seen: which pipes they keep from their EOF.
    pub fn withheld(&mut self, holders: &[Holder], open: &[Pipe]) {
        for pipe in open {
            let count = |relation| {
                let of = |holder: &&Holder| {
                    holder.relation == relation
                        && (holder.holds.is_empty() || holder.holds.iter().any(|hold| hold.pipe == pipe.id))
                };
                u32::try_from(holders.iter().filter(of).count()).unwrap_or(u32::MAX)
            };
            let detail = detail::Withheld {
                since_exit_us: self.exit.map_or(0, |exit| micros(exit.elapsed())),
                lineage: count(Relation::Lineage),
                foreign: count(Relation::Foreign) + count(Relation::Adopted),
                opaque: count(Relation::Opaque),
                suspect: count(Relation::Suspect),
            };
            let anybody = detail.lineage + detail.foreign + detail.opaque + detail.suspect > 0;
            if anybody && !self.withheld.contains(pipe) {
                self.withheld.push(*pipe);
                let stream = self.stream_of(*pipe);
                self.note(Event::PipeWithheld { pipe: PipeSeen::new(*pipe, stream), detail });
            }
        }
    }

    /// The stream of a pipe is let go: what that means for those who still hold it.
    pub fn let_go(&mut self, pipe: Pipe, bytes: u64, how: Action, bound_reached: bool) {
        let after = self.since_exit();
        let reason = if bound_reached { Reason::MaxDrain } else { Reason::Policy };
        if self.log.is_on() {
            for entry in self.roll.undecided() {
                let Ok(process) = describe(entry.pid) else { continue };
                let evidence = Evidence { run: Some(self.seen()), ..Evidence::new(entry.relation, entry.escaped) };
                let pipe = Some(PipeSeen::new(pipe, self.stream_of(pipe)));
                let act = Act { process, pipe, decision: Decision::new(how, reason), evidence };
                self.note(Event::HolderSpared(Box::new(act)));
            }
        }
        self.roll.let_go(how, after);
        self.end_of(pipe, bytes, false);
    }

    /// Everybody who was seen.
    #[must_use]
    pub fn holders(&self) -> Vec<HolderReport> {
        self.roll.entries().to_vec()
    }

    /// Closes the books, with what the caller gets as our exit status.
    pub fn close(mut self, report: Option<&Report>, exit_code: u8) {
        if !self.log.is_on() {
            return;
        }
        for signalled in std::mem::take(&mut self.signalled) {
            self.record_end_of(signalled);
        }
        let mut finished =
            Finished::new(report.map(|report| report.outcome), exit_code, micros(self.started.elapsed()));
        if let Some(report) = report {
            let count = |test: fn(Action) -> bool| {
                u32::try_from(report.holders.iter().filter(|holder| test(holder.action)).count()).unwrap_or(u32::MAX)
            };
            finished.attempts = self.attempt;
            finished.exit_to_eof_us = report.exit_to_eof_us;
            finished.undelivered_bytes = report.undelivered_bytes;
            finished.holders_ended = count(|action| matches!(action, Action::Term | Action::Kill));
            finished.holders_spared = count(|action| !matches!(action, Action::Term | Action::Kill));
            finished.source = Some(self.source.to_string());
        }
        // That it did not fit in is in nobody's power any more: the chain stays open, as `verify` tells.
        let _ = self.log.finish(finished, FINISH_WAIT);
    }

    /// What became of a holder that was signalled.
    fn record_end_of(&self, signalled: Signalled) {
        let alive = Stat::read(signalled.id.pid).is_ok_and(|stat| stat.id == signalled.id && !stat.is_dead());
        let mut act = signalled.act;
        act.decision.reason = if alive { Reason::LetGo } else { Reason::Exited };
        act.evidence.verified = None;
        act.evidence.run = Some(self.seen());
        self.note(Event::HolderEnded(Box::new(act)));
    }

    /// Puts a record on its way.
    fn note(&self, event: Event) {
        let _ = self.log.record(event);
    }

    /// Puts a record on its way and waits until it is written, but not for long: an act follows.
    fn note_before_act(&self, event: Event) {
        let _ = self.log.record(event).wait(ACT_WAIT);
    }

    fn spared(&self, holder: &Holder, decision: Decision) {
        let act = Act {
            process: holder.description.clone(),
            pipe: self.pipe_seen(holder),
            decision,
            evidence: self.evidence(holder),
        };
        self.note(Event::HolderSpared(Box::new(act)));
    }

    fn evidence(&self, holder: &Holder) -> Evidence {
        Evidence {
            source: Some(self.source.to_string()),
            holds: holder.holds.iter().map(Into::into).collect(),
            run: Some(self.seen()),
            ..Evidence::new(holder.relation, holder.escaped)
        }
    }

    fn pipe_seen(&self, holder: &Holder) -> Option<PipeSeen> {
        let hold = holder.holds.first()?;
        let (pipe, stream) = self.lines.iter().find(|(pipe, _)| pipe.id == hold.pipe)?;
        Some(PipeSeen::held(*pipe, Some(*stream), hold))
    }

    fn stream_of(&self, pipe: Pipe) -> Option<Stream> {
        self.lines.iter().find(|(line, _)| *line == pipe).map(|(_, stream)| *stream)
    }

    /// The streams whose pipes a process holds.
    fn streams_of(&self, holder: &Holder) -> Vec<Stream> {
        let held = |pipe: &Pipe| holder.holds.iter().any(|hold| hold.pipe == pipe.id);
        let mut streams: Vec<Stream> =
            self.lines.iter().filter(|(pipe, _)| held(pipe)).map(|(_, stream)| *stream).collect();
        streams.sort_unstable();
        streams.dedup();
        streams
    }

    fn seen(&self) -> RunSeen {
        RunSeen {
            since_exit_us: self.exit.map(|exit| micros(exit.elapsed())),
            since_signal_us: self.first_signal.map(|first| micros(first.elapsed())),
            ended_for: Some(self.ended_for),
            ..RunSeen::default()
        }
    }

    fn since_exit(&self) -> Duration {
        self.exit.map_or(Duration::ZERO, |exit| exit.elapsed())
    }

    /// The record of an act or a refusal.
    fn act(&self, warrant: &Warrant<'_>, decision: Decision, verified: Option<Verified>) -> Act {
        let (pipe, holds) = match &warrant.ground {
            Ground::Holds { pipe, seen } | Ground::Policy { pipe, seen, .. } => {
                (Some(PipeSeen::held(*pipe, self.stream_of(*pipe), seen)), vec![seen.into()])
            }
            Ground::Suspect | Ground::Opaque | Ground::Reap => (None, Vec::new()),
        };
        let escaped = warrant.relation != Relation::Foreign && warrant.description.pgid != self.home;
        let evidence = Evidence {
            source: Some(self.source.to_string()),
            holds,
            verified,
            run: Some(self.seen()),
            ..Evidence::new(warrant.relation, escaped)
        };
        Act { process: warrant.description.clone(), pipe, decision, evidence }
    }

    fn reason(&self, warrant: &Warrant<'_>) -> Reason {
        match warrant.ground {
            _ if warrant.signal == Signal::SIGKILL && self.first_signal.is_some() => Reason::Escalated,
            Ground::Holds { .. } => Reason::Stale,
            Ground::Suspect => Reason::Suspect,
            Ground::Opaque | Ground::Policy { .. } => Reason::Policy,
            Ground::Reap => Reason::Reap,
        }
    }
}

impl act::Journal for Journal {
    fn signalling(&mut self, warrant: &Warrant<'_>) {
        let action = action_of(warrant.signal as i32);
        self.roll.acted(warrant.id, action, self.since_exit());
        if self.log.is_on() {
            let decision =
                Decision { signal: signal_name(warrant.signal as i32), ..Decision::new(action, self.reason(warrant)) };
            let verified = Verified {
                start_ticks: Some(warrant.id.start_ticks),
                same_process: true,
                writes: matches!(warrant.ground, Ground::Holds { .. } | Ground::Policy { .. }).then_some(true),
                in_lineage: (warrant.relation != Relation::Foreign).then_some(true),
                pidfd: true,
            };
            let act = self.act(warrant, decision, Some(verified));
            self.signalled.retain(|signalled| signalled.id != warrant.id);
            self.signalled.push(Signalled { id: warrant.id, act: act.clone() });
            self.note_before_act(Event::HolderSignalled(Box::new(act)));
        }
        self.first_signal.get_or_insert_with(Instant::now);
    }

    fn refused(&mut self, warrant: &Warrant<'_>, refusal: Refusal) {
        self.roll.refused(warrant.id, &refusal.to_string());
        if self.log.is_on() {
            let reason = Reason::from(refusal);
            let decision = Decision {
                signal: signal_name(warrant.signal as i32),
                note: Some(refusal.to_string()),
                ..Decision::new(Action::Refused, reason)
            };
            let act = self.act(warrant, decision, None);
            self.note(Event::HolderSpared(Box::new(act)));
        }
    }
}

fn action_of(signal: i32) -> Action {
    if signal == libc::SIGKILL { Action::Kill } else { Action::Term }
}

/// `TERM`; a realtime signal by its number.
fn signal_name(signal: i32) -> Option<String> {
    Some(
        Signal::try_from(signal)
            .map_or_else(|_| signal.to_string(), |signal| signal.as_str().trim_start_matches("SIG").to_owned()),
    )
}

/// `CLOCK_MONOTONIC`, which the kernel dates events by.
fn monotonic() -> Duration {
    // It fails on no kernel that runs us.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Who a process is, if it is not already known from the census that named it.
pub fn description_of(id: ProcessId, holders: &[Holder]) -> Option<Description> {
    let known = holders.iter().find(|holder| holder.id == id).map(|holder| holder.description.clone());
    known.or_else(|| describe(id.pid).ok())
}
