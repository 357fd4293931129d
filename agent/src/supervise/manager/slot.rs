//! One command's place: its configuration, its state, its run.

use std::time::{Duration, Instant};

use super::input::{Input, Owner};
use crate::audit;
use crate::pipe::ExitStatus;
use crate::run::fifo::FifoError;
use crate::supervise::child::Child;
use crate::supervise::config::{Command, Ready, Stdin};
use crate::supervise::ready::Probe;
use crate::supervise::state::{Event, Machine, Phase, Rest, Then};

/// One command's place.
pub struct Slot {
    /// Its configuration, which is that of its next start.
    pub command: Command,
    /// Its state.
    pub machine: Machine,
    /// Its run, until nothing is left of it.
    pub child: Option<Child>,
    /// The FIFO that it reads, from its first start until it rests.
    pub input: Option<Input>,
    /// Whether it is ready.
    pub probe: Probe,
    /// How it exited last.
    pub last_exit: Option<ExitStatus>,
    /// The last launch, counted from 1, that became ready.
    pub ready_launch: u64,
    /// How many processes had to be ended because they held its pipes.
    pub holders_ended: u64,
    /// Whether the configuration has it no longer: it goes once it has ended.
    pub removed: bool,
}

impl Slot {
    /// A command that is to be started.
    #[must_use]
    pub fn new(command: Command, now: Instant) -> Slot {
        let machine = Machine::new(command.policy.clone(), now);
        Slot {
            command,
            machine,
            child: None,
            input: None,
            probe: Probe::Nothing,
            last_exit: None,
            ready_launch: 0,
            holders_ended: 0,
            removed: false,
        }
    }

    /// Whether one that comes after this may start: it is ready, or has done its part.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.machine.phase(), Phase::Running | Phase::Resting(Rest::Finished))
    }

    /// Takes the FIFO that it is to read, unless it has it.
    ///
    /// # Errors
    ///
    /// As [`FifoError`] says.
    pub fn open_input(&mut self, audit: Option<&audit::Target>) -> Result<(), FifoError> {
        let Stdin::Fifo(path) = &self.command.launch.stdin else {
            self.input = None;
            return Ok(());
        };
        if self.input.as_ref().is_some_and(|input| input.is_open_at(path)) {
            return Ok(());
        }
        self.input = None; // first, because nobody can own it twice
        let owner = Owner { name: &self.command.name, command: &self.command.launch.run, audit };
        self.input = Some(Input::open(path, &owner)?);
        Ok(())
    }

    /// Ends its input, if it is not to be started again: what is in the FIFO it may still read.
    pub fn close_input(&mut self) {
        match self.machine.phase() {
            Phase::Resting(_) => self.input = None,
            Phase::Stopping(Then::Rest) => {
                if let Some(input) = &mut self.input {
                    input.close();
                }
            }
            _ => {}
        }
    }

    /// Does what is asked about its input.
    pub fn attend_input(&mut self) {
        let command = self.child.as_ref().and_then(|child| child.command).unwrap_or(0);
        if let Some(input) = &mut self.input {
            input.attend(command);
        }
    }

    /// It is ready.
    pub fn is_ready(&mut self, now: Instant) {
        let _ = self.machine.take(Event::Ready, now);
        self.ready_launch = self.machine.launches();
    }

    /// It will not be started, because one that it comes after has failed.
    pub fn doom(&mut self, now: Instant) {
        let _ = self.machine.take(Event::Doomed, now);
    }

    /// When it has to be ready, while it starts.
    #[must_use]
    pub fn not_ready_at(&self) -> Option<Instant> {
        if matches!(self.command.launch.ready, Ready::Started | Ready::Finished) {
            return None;
        }
        Some(self.machine.since() + self.command.launch.ready_timeout?)
    }

    /// How long it has been running.
    #[must_use]
    pub fn ran(&self, now: Instant) -> Duration {
        self.machine.running_since().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// What comes after an end, for the log.
    #[must_use]
    pub fn what_now(&self, asked: bool, now: Instant) -> String {
        match self.machine.phase() {
            Phase::Backoff(until) => {
                let pause = took(until.saturating_duration_since(now));
                match self.command.policy.limit {
                    Some((limit, _)) => {
                        let count = self.machine.restarts_in_window();
                        format!("; starts again in {pause} ({count} of {limit})")
                    }
                    None => format!("; starts again in {pause}"),
                }
            }
            Phase::Waiting if asked => "; starts again".to_owned(),
            Phase::Resting(Rest::Stopped) => "; stopped".to_owned(),
            Phase::Resting(Rest::Finished) => "; finished".to_owned(),
            Phase::Resting(Rest::Failed) => match self.command.policy.limit {
                Some((limit, window)) if limit > 0 && self.machine.restarts_in_window() >= limit => {
                    format!("; failed: {limit} restarts in {} is the limit", took(window))
                }
                _ => "; failed".to_owned(),
            },
            _ => String::new(),
        }
    }

    /// The state's name.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.machine.phase() {
            Phase::Waiting => "waiting",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping(_) => "stopping",
            Phase::Backoff(_) => "backoff",
            Phase::Resting(Rest::Stopped) => "stopped",
            Phase::Resting(Rest::Finished) => "finished",
            Phase::Resting(Rest::Failed) => "failed",
        }
    }
}

/// What the log says of a change that is no end.
#[must_use]
pub fn change(before: Phase, after: Phase) -> Option<&'static str> {
    match (before, after) {
        (Phase::Starting | Phase::Running, Phase::Stopping(Then::Again)) => Some("stopping, to start it anew"),
        (Phase::Starting | Phase::Running, Phase::Stopping(_)) => Some("stopping"),
        (Phase::Stopping(Then::Rest | Then::Judge), Phase::Stopping(Then::Again)) => {
            Some("to be started again once it has stopped")
        }
        (Phase::Stopping(Then::Again), Phase::Stopping(Then::Rest)) => Some("not to be started again"),
        (Phase::Waiting | Phase::Backoff(_), Phase::Resting(Rest::Stopped)) => Some("stopped"),
        (Phase::Backoff(_) | Phase::Resting(_), Phase::Waiting) => Some("to be started"),
        _ => None,
    }
}

/// How a command exited, for the log.
#[must_use]
pub fn exited(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exited with {code}"),
        ExitStatus::Signal(number) => {
            let name = nix::sys::signal::Signal::try_from(number).map(nix::sys::signal::Signal::as_str);
            name.map_or_else(|_| format!("ended by signal {number}"), |name| format!("ended by {name}"))
        }
    }
}

/// A duration as a person says it.
#[must_use]
pub fn took(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
