//! The state of one command, without any I/O: what happened goes in, what is to be done comes out.
//!
//! ```text
//!            may start                ready
//! Waiting ──────────────> Starting ───────────> Running ── it exits ──┐
//!    ^                       │ it exits, is not ready in time │       │
//!    │                       v                                │       v
//!    │<── the pause is over ─ Backoff <──── the policy says "again" ──┤
//!    │                                                                │ "no more"
//!    │<── start, restart ── Resting (Stopped, Finished, Failed) <─────┘
//!    │                         ^
//!    └── its ending is over ── Stopping <── stop, restart, shutdown, from Starting and Running
//! ```
//!
//! A command is launched from `Waiting` only, and comes there only when its last ending is over: two
//! of its processes never live at once. While it is `Stopping`, requests only change what comes after.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::{Policy, Restart};

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is to be started once those that it comes after are ready.
    Waiting,
    /// It was started, and is not ready yet.
    Starting,
    /// It runs and is ready.
    Running,
    /// It is being ended.
    Stopping(Then),
    /// It is to be started again at this moment.
    Backoff(Instant),
    /// Nothing of it is there, and nothing will be until somebody asks for it.
    Resting(Rest),
}

/// What comes after an ending that we began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Rest,
    /// It is started again.
    Again,
    /// What its policy says of a failure: it was not ready in time.
    Judge,
}

/// Why a command rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Somebody stopped it.
    Stopped,
    /// It ended well.
    Finished,
    /// It ended badly, or too often.
    Failed,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is ready.
    Ready,
    /// It was not ready in time.
    NotReady,
    /// Its ending is over: this was its exit status, as shells tell it.
    Ended(u8),
    /// Somebody wants it to run.
    Start,
    /// Somebody wants it not to run.
    Stop,
    /// Somebody wants it to be started anew.
    Restart,
    /// One that it comes after has failed for good.
    Doomed,
    /// Everything is to end: it is not started any more. It is stopped when its turn comes.
    Shutdown,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// End the process that runs.
    End,
}

/// The state machine of one command.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    phase: Phase,
    since: Instant,
    /// When it was last launched.
    launched: Option<Instant>,
    /// The next pause.
    pause: Duration,
    /// When it was started again by its policy, as far back as the limit's window reaches.
    restarts: VecDeque<Instant>,
    launches: u64,
    closing: bool,
}

impl Machine {
    /// A command that is to be started.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Machine {
        let pause = policy.backoff;
        Machine {
            policy,
            phase: Phase::Waiting,
            since: now,
            launched: None,
            pause,
            restarts: VecDeque::new(),
            launches: 0,
            closing: false,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when it is there.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When it was launched, while it runs.
    #[must_use]
    pub fn running_since(&self) -> Option<Instant> {
        self.launched.filter(|_| self.has_process())
    }

    /// How often it was launched after the first time.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.launches.saturating_sub(1)
    }

    /// How often it was launched.
    #[must_use]
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// How many restarts count against the limit now.
    #[must_use]
    pub fn restarts_in_window(&self) -> usize {
        self.restarts.len()
    }

    /// Whether a process of it is there.
    #[must_use]
    pub fn has_process(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running | Phase::Stopping(_))
    }

    /// Another policy from here on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.pause = policy.backoff;
        self.policy = policy;
    }

    /// When something is due that no event tells.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Backoff(until) => Some(until),
            _ => None,
        }
    }

    /// The pause is over, if it is.
    pub fn tick(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Backoff(until) if now >= until) {
            self.enter(Phase::Waiting, now);
        }
    }

    /// Launches it if it is to be launched; whether it is. Those that it comes after are ready, and
    /// nothing of its last process is left.
    pub fn launch(&mut self, now: Instant) -> bool {
        if self.phase != Phase::Waiting || self.closing {
            return false;
        }
        self.launches += 1;
        self.launched = Some(now);
        self.enter(Phase::Starting, now);
        true
    }

    /// Takes what happened.
    #[must_use]
    pub fn take(&mut self, event: Event, now: Instant) -> Act {
        match event {
            Event::Ready if self.phase == Phase::Starting => self.enter(Phase::Running, now),
            Event::NotReady if self.phase == Phase::Starting => return self.stop(Then::Judge, now),
            Event::Ended(code) => self.ended(code, now),
            Event::Doomed if self.phase == Phase::Waiting => self.enter(Phase::Resting(Rest::Failed), now),
            Event::Start => self.want(now),
            Event::Stop => return self.unwant(now),
            Event::Restart if self.closing => {}
            Event::Restart if matches!(self.phase, Phase::Starting | Phase::Running) => {
                return self.stop(Then::Again, now);
            }
            Event::Restart => self.want(now),
            Event::Shutdown => self.close(now),
            Event::Ready | Event::NotReady | Event::Doomed => {}
        }
        Act::Nothing
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn stop(&mut self, then: Then, now: Instant) -> Act {
        self.enter(Phase::Stopping(then), now);
        Act::End
    }

    /// Somebody wants it to run: what was held against it is forgotten.
    fn want(&mut self, now: Instant) {
        if self.closing {
            return;
        }
        match self.phase {
            Phase::Resting(_) | Phase::Backoff(_) => {
                self.pause = self.policy.backoff;
                self.restarts.clear();
                self.enter(Phase::Waiting, now);
            }
            Phase::Stopping(_) => self.phase = Phase::Stopping(Then::Again),
            Phase::Waiting | Phase::Starting | Phase::Running => {}
        }
    }

    fn unwant(&mut self, now: Instant) -> Act {
        match self.phase {
            Phase::Starting | Phase::Running => return self.stop(Then::Rest, now),
            Phase::Stopping(_) => self.phase = Phase::Stopping(Then::Rest),
            Phase::Waiting | Phase::Backoff(_) => self.enter(Phase::Resting(Rest::Stopped), now),
            Phase::Resting(_) => {}
        }
        Act::Nothing
    }

    fn close(&mut self, now: Instant) {
        self.closing = true;
        match self.phase {
            Phase::Waiting | Phase::Backoff(_) => self.enter(Phase::Resting(Rest::Stopped), now),
            Phase::Stopping(_) => self.phase = Phase::Stopping(Then::Rest),
            Phase::Starting | Phase::Running | Phase::Resting(_) => {}
        }
    }

    fn ended(&mut self, code: u8, now: Instant) {
        match self.phase {
            Phase::Stopping(Then::Rest) => self.enter(Phase::Resting(Rest::Stopped), now),
            Phase::Stopping(Then::Again) => self.enter(Phase::Waiting, now),
            Phase::Stopping(Then::Judge) => self.judge(false, now),
            Phase::Starting | Phase::Running => self.judge(code == 0, now),
            Phase::Waiting | Phase::Backoff(_) | Phase::Resting(_) => {}
        }
    }

    /// What the policy says about an end that nobody asked for.
    fn judge(&mut self, success: bool, now: Instant) {
        let again = match self.policy.restart {
            Restart::Never => false,
            Restart::OnFailure => !success,
            Restart::Always => true,
        };
        if !again || self.closing {
            let rest = if success { Rest::Finished } else { Rest::Failed };
            return self.enter(Phase::Resting(rest), now);
        }
        if let Some((limit, window)) = self.policy.limit {
            self.restarts.retain(|restart| now.saturating_duration_since(*restart) < window);
            if self.restarts.len() >= limit {
                return self.enter(Phase::Resting(Rest::Failed), now);
            }
            self.restarts.push_back(now);
        }
        let ran = self.launched.map_or(Duration::ZERO, |launched| now.saturating_duration_since(launched));
        if ran >= self.policy.backoff_reset {
            self.pause = self.policy.backoff;
        }
        let until = now + self.pause;
        self.pause = self.pause.saturating_mul(2).min(self.policy.backoff_max);
        self.enter(Phase::Backoff(until), now);
    }
}

#[cfg(test)]
mod tests;
