//! The node's audit records: what is withheld, by whom, and what was done about it.

use std::time::Duration;

use super::identity::Place;
use super::names::Names;
use super::withheld::Withheld;
use crate::act::{self, Ground, Refusal, Warrant};
use crate::audit::detail::{Attached, Finished, Reseeded, Started, Withheld as Detail};
use crate::audit::evidence::{Decision, Evidence, PipeSeen, Reason, Verified};
use crate::audit::record::Act;
use crate::audit::{ACT_WAIT, Event, Log};
use crate::pipe::{Action, End, Pipe, Relation};
use crate::process::describe::Description;
use nix::sys::signal::Signal;

/// The node's log.
pub struct Journal {
    log: Log,
    rung: &'static str,
}

impl Journal {
    /// Begins the log.
    #[must_use]
    pub fn begin(log: Log, rung: &'static str, config: String, took: Duration) -> Journal {
        let journal = Journal { log, rung };
        let command = ["pipewarden", "node"].map(str::to_owned);
        journal.note(Event::RunStarted { detail: Box::new(Started::new(&command, [("config".to_owned(), config)])) });
        let took_us = Some(micros(took));
        let detail = Attached { backend: "bpf".to_owned(), rung: rung.to_owned(), took_us };
        journal.note(Event::TrackerAttached { detail });
        journal
    }

    /// Ends it. Nothing about logging outlasts that by more than the wait of an act.
    pub fn finish(self, elapsed: Duration) {
        let _ = self.log.finish(Finished::new(None, 0, micros(elapsed)), ACT_WAIT);
    }

    /// The map was read anew.
    pub fn reseeded(&self, why: &str, missed: u64) {
        let detail = Reseeded { rung: self.rung.to_owned(), why: why.to_owned(), missed };
        self.note(Event::TrackerReseeded { detail });
    }

    /// A pipe was found to be withheld.
    pub fn withheld(&self, pipe: Pipe, found: &Withheld, since: Duration) {
        let lineage = u32::try_from(found.escapees.len()).unwrap_or(u32::MAX);
        let detail = Detail { since_exit_us: micros(since), lineage, foreign: 0, opaque: 0, suspect: 0 };
        self.note(Event::PipeWithheld { pipe: PipeSeen::new(pipe, None), detail });
    }

    /// A holder is let live, and why.
    pub fn spared(&self, pipe: Pipe, process: &Description, decision: Decision) {
        let act = self.act(process, PipeSeen { end: Some(End::Write), ..PipeSeen::new(pipe, None) }, decision);
        self.note(Event::HolderSpared(Box::new(act)));
    }

    /// A holder that was signalled holds no longer.
    pub fn ended(&self, pipe: Pipe, process: &Description, policy: &str, exited: bool) {
        let reason = if exited { Reason::Exited } else { Reason::LetGo };
        let decision = Decision { option: Some(option(policy)), ..Decision::new(Action::None, reason) };
        let act = self.act(process, PipeSeen { end: Some(End::Write), ..PipeSeen::new(pipe, None) }, decision);
        self.note(Event::HolderEnded(Box::new(act)));
    }

    fn act(&self, process: &Description, pipe: PipeSeen, decision: Decision) -> Act {
        let evidence =
            Evidence { source: Some(format!("bpf+{}", self.rung)), ..Evidence::new(Relation::Lineage, true) };
        Act { process: process.clone(), pipe: Some(pipe), decision, evidence }
    }

    /// What a warrant says, as a record's act.
    fn warranted(&self, warrant: &Warrant<'_>, decision: Decision, verified: Option<Verified>) -> Option<Act> {
        let Ground::Policy { policy, pipe, seen } = &warrant.ground else { return None };
        let decision = Decision {
            signal: Some(warrant.signal.as_str().trim_start_matches("SIG").to_owned()),
            option: Some(option(policy)),
            ..decision
        };
        let mut act = self.act(warrant.description, PipeSeen::held(*pipe, None, seen), decision);
        act.evidence.holds = vec![seen.into()];
        act.evidence.verified = verified;
        Some(act)
    }

    fn note(&self, event: Event) {
        let _ = self.log.record(event);
    }
}

impl act::Journal for Journal {
    fn signalling(&mut self, warrant: &Warrant<'_>) {
        let kill = warrant.signal == Signal::SIGKILL;
        let (action, reason) = if kill { (Action::Kill, Reason::Escalated) } else { (Action::Term, Reason::Policy) };
        let verified = Verified {
            start_ticks: Some(warrant.id.start_ticks),
            same_process: true,
            writes: Some(true),
            in_lineage: None,
            pidfd: true,
        };
        if let Some(act) = self.warranted(warrant, Decision::new(action, reason), Some(verified)) {
            let _ = self.log.record(Event::HolderSignalled(Box::new(act))).wait(ACT_WAIT);
        }
    }

    fn refused(&mut self, warrant: &Warrant<'_>, refusal: Refusal) {
        let reason = Reason::from(refusal);
        let decision = Decision { note: Some(refusal.to_string()), ..Decision::new(Action::Refused, reason) };
        if let Some(act) = self.warranted(warrant, decision, None) {
            self.note(Event::HolderSpared(Box::new(act)));
        }
    }
}

/// The policy, as decisions name what said so.
#[must_use]
pub fn option(policy: &str) -> String {
    format!("policy {policy}")
}

/// Puts the container and the pod into a description.
pub fn locate(description: &mut Description, cgroup: String, place: &Place, names: Option<&Names>) {
    description.cgroup = Some(cgroup);
    description.container = place.container.as_ref().map(|container| container.id.clone());
    description.pod = place.pod.as_ref().map(|pod| pod.uid.clone());
    description.names = names.cloned();
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
