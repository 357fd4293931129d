//! Withheld pipes, from when they are found until they are not withheld any more, and what is done about
//! their holders.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::super::journal;
use super::super::metrics::{Outcome, reason};
use super::super::names::Known;
use super::super::policy::{Subject, Verdict};
use super::super::withheld::Withheld;
use super::Node;
use crate::act::{self, Authority, Ground, Warrant};
use crate::audit::evidence::{Decision, Reason};
use crate::pipe::{Action, Pipe, PipeId, PipeKind, ProcessId, Relation};
use crate::process::describe::{Description, describe};
use crate::process::stat::Stat;
use crate::process::table::{Sought, look};

/// From the first signal to SIGKILL, as for a run.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// What is being done about a holder.
pub(super) enum State {
    /// Nothing yet.
    New,
    /// It is let live, until there are other policies.
    Spared,
    /// It was signalled.
    Signalled { policy: String, at: Instant, killed: bool },
}

/// How often a holder that was let live is put before the policies again because it has become another: each time is
/// on record, and it may become another as often as it likes.
const TURNS: u32 = 8;

/// A holder of a withheld pipe.
pub(super) struct Holder {
    pub(super) description: Description,
    pub(super) state: State,
    /// The policy that it was put before, and whether that keeps it.
    judge: (Option<String>, bool),
    /// How often that became another one.
    turns: u32,
}

/// A withheld pipe.
pub(super) struct Case {
    pub(super) pipe: Pipe,
    /// When it was found, and how long its command had been gone then.
    pub(super) since: Duration,
    pub(super) holders: HashMap<ProcessId, Holder>,
}

impl Holder {
    /// Who was let live is put before the policies once more when its names come, and when another policy is about it:
    /// it runs another program, as a command does that leaves its session by setsid(1).
    fn learn(&mut self, description: &Description, judge: &(Option<String>, bool)) {
        let has_names = self.description.names.is_none() && description.names.is_some();
        let has_turned = self.judge != *judge && self.turns < TURNS;
        if has_turned {
            self.judge = judge.clone();
            self.turns += 1;
        }
        if has_names || has_turned {
            self.description = description.clone();
            if matches!(self.state, State::Spared) {
                self.state = State::New;
            }
        }
    }
}

impl Node {
    /// Looks at what is withheld now, and does what is to be done about it.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let found = self.live.withheld()?;
        let withheld: HashMap<PipeId, (Withheld, Duration)> =
            found.into_iter().map(|(found, since)| (found.pipe, (found, since))).collect();
        let ended: Vec<PipeId> = self.cases.keys().filter(|pipe| !withheld.contains_key(pipe)).copied().collect();
        for pipe in ended {
            if let Some(mut case) = self.cases.remove(&pipe) {
                self.forget(&mut case, &[]);
            }
        }
        for (found, since) in withheld.values() {
            let mut case = match self.cases.remove(&found.pipe) {
                Some(case) => case,
                None if self.crosses_v1(found) => continue,
                None => self.open(found, *since),
            };
            self.forget(&mut case, &found.escapees);
            for id in &found.escapees {
                self.treat(&mut case, *id);
            }
            self.cases.insert(found.pipe, case);
        }
        if let Some(why) = self.names.trouble() {
            (self.say)(&format_args!("node: {why}; containers stay without names until it answers"));
        }
        Ok(())
    }

    /// Where the hierarchies of version 1 are in use, the v2 id does not tell whether somebody put a
    /// process elsewhere. Then only who is where its reader is may be judged.
    fn crosses_v1(&self, found: &Withheld) -> bool {
        let file = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
        let reader = file(found.reader);
        found.escapees.iter().any(|id| {
            let of_holder = file(id.pid);
            let v1 = of_holder.as_ref().is_none_or(|text| text.lines().any(|line| !line.starts_with("0::")));
            v1 && of_holder != reader
        })
    }

    fn open(&mut self, found: &Withheld, since: Duration) -> Case {
        let pipe = Pipe { id: found.pipe, kind: self.kind(found.pipe) };
        self.metrics.withheld.inc();
        self.journal.withheld(pipe, found, since);
        Case { pipe, since: self.started.elapsed().saturating_sub(since), holders: HashMap::new() }
    }

    pub(super) fn kind(&self, pipe: PipeId) -> PipeKind {
        if pipe.dev == self.pipefs { PipeKind::Pipe } else { PipeKind::Fifo }
    }

    /// Who is no holder any more.
    fn forget(&self, case: &mut Case, holders: &[ProcessId]) {
        let pipe = case.pipe;
        case.holders.retain(|id, holder| {
            let stays = holders.contains(id);
            if let (false, State::Signalled { policy, .. }) = (stays, &holder.state) {
                let exited = !Stat::read(id.pid).is_ok_and(|stat| stat.id == *id && !stat.is_dead());
                self.journal.ended(pipe, &holder.description, policy, exited);
            }
            stays
        });
    }

    fn treat(&mut self, case: &mut Case, id: ProcessId) {
        let Ok(mut description) = describe(id.pid) else { return };
        if description.start_ticks != id.start_ticks {
            return;
        }
        let cgroup = || std::fs::read_to_string(format!("/proc/{}/cgroup", id.pid)).ok();
        // On version 1 all have the same id, which is nobody's then.
        let key = if cgroup().is_some_and(|text| text.lines().count() == 1) { self.live.cgroup(id.pid) } else { 0 };
        let placed = self.attribution.place(key, Instant::now(), cgroup);
        let (path, place) = placed.map_or((None, None), |(path, place)| (Some(path), Some(place)));
        let container = place.as_ref().and_then(|place| place.container.as_ref());
        let known = container.map_or(Known::Nothing, |container| self.names.of(&container.id, Instant::now()));
        if let (Some(path), Some(place)) = (&path, &place) {
            journal::locate(&mut description, path.clone(), place, known.names());
        }
        let subject = Subject {
            comm: &description.comm,
            uid: description.uid,
            cgroup: path.as_deref(),
            place: place.as_ref(),
            names: known.names(),
        };
        let policy = self.policies.of(&subject);
        let name = policy.map(|policy| policy.name.clone());
        let keep = policy.map(|policy| policy.keep.live.clone()).unwrap_or_default();
        let judge = (name.clone(), keep.matches(id.pid, &description.comm));
        let is_kept = judge.1;
        let holder = case.holders.entry(id).or_insert_with(|| Holder {
            description: description.clone(),
            state: State::New,
            judge: judge.clone(),
            turns: 0,
        });
        holder.learn(&description, &judge);
        let spare = |reason, note: String| Decision {
            option: name.as_deref().map(journal::option),
            note: Some(note),
            ..Decision::new(Action::None, reason)
        };
        match &mut holder.state {
            // Its names decide which policy is about it: until they are told, or are not, nothing is.
            State::New if known == Known::Asked => {}
            State::Spared => {}
            State::Signalled { policy, at, killed } => {
                if !*killed && at.elapsed() >= KILL_AFTER {
                    let policy = policy.clone();
                    *killed = self.act(case.pipe, id, &description, &policy, keep, Signal::SIGKILL).is_some();
                }
            }
            State::New if is_kept => {
                holder.state = State::Spared;
                let decision =
                    Decision { action: Action::Kept, ..spare(Reason::Keep, "the policy keeps it".to_owned()) };
                self.journal.spared(case.pipe, &description, decision);
            }
            State::New => match self.policies.decide(&subject, case.since, self.started.elapsed()) {
                Verdict::Wait(_) => {}
                Verdict::Observe => {
                    holder.state = State::Spared;
                    self.journal.spared(case.pipe, &description, spare(Reason::Policy, "observed".to_owned()));
                }
                Verdict::Limited(limit) => {
                    holder.state = State::Spared;
                    let note = format!("{} is reached: observed", limit.key());
                    let name = name.as_deref().unwrap_or_default();
                    (self.say)(&format_args!("node: policy {name}: {note}: {} ({})", description.comm, id.pid));
                    self.journal.spared(case.pipe, &description, spare(Reason::Policy, note));
                }
                Verdict::End => {
                    let name = name.clone().unwrap_or_default();
                    holder.state = match self.act(case.pipe, id, &description, &name, keep, Signal::SIGTERM) {
                        Some(true) => {
                            self.metrics.acted_after(self.started.elapsed().saturating_sub(case.since));
                            State::Signalled { policy: name, at: Instant::now(), killed: false }
                        }
                        Some(false) => State::Spared,
                        // The next look knows better.
                        None => {
                            self.policies.not_done(&subject);
                            State::New
                        }
                    };
                }
            },
        }
    }

    /// Puts a warrant before [`act`]. Whether the process was signalled; `None` if it does not show what it is said to
    /// hold, or cannot be looked at.
    fn act(
        &mut self,
        pipe: Pipe,
        id: ProcessId,
        description: &Description,
        policy: &str,
        keep: crate::ownership::keep::Keep,
        signal: Signal,
    ) -> Option<bool> {
        let found = look(id.pid, &Sought { pipes: vec![pipe], hidden: false }).ok()?;
        let seen = found.holds.into_iter().find(|hold| hold.end.writes())?;
        let ground = Ground::Policy { policy: policy.to_owned(), pipe, seen };
        let warrant = Warrant { id, relation: Relation::Lineage, ground, description, signal };
        let authority = Authority { root: nix::unistd::getpid().as_raw(), keep, foreign: false, node: true };
        let (signalled, outcome) = match act::signal(&warrant, &authority, &mut self.journal) {
            Ok(act::Verdict::Signalled) if signal == Signal::SIGKILL => (true, Outcome::Kill),
            Ok(act::Verdict::Signalled) => (true, Outcome::Term),
            Ok(act::Verdict::Gone) => (false, Outcome::Gone),
            Ok(act::Verdict::Refused(refusal)) => {
                self.metrics.refused(reason(refusal));
                (false, Outcome::Refused)
            }
            Err(error) => {
                (self.say)(&format_args!("node: {} ({}): {error}", description.comm, id.pid));
                (false, Outcome::Failed)
            }
        };
        self.metrics.act(outcome);
        Some(signalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_becomes_another_again_and_again_is_judged_so_often_and_no_more() {
        let description = describe(std::process::id().cast_signed()).unwrap();
        let by = |policy: &str| (Some(policy.to_owned()), false);
        let mut holder = Holder { description: description.clone(), state: State::Spared, judge: by("a"), turns: 0 };
        let mut judged = 0;
        for turn in 0..100 {
            for policy in ["a", if turn % 2 == 0 { "b" } else { "c" }] {
                holder.learn(&description, &by(policy));
                judged += u32::from(matches!(holder.state, State::New));
                holder.state = State::Spared;
            }
        }
        assert_eq!(judged, TURNS);
        // Who is signalled already stays that.
        let state = State::Signalled { policy: "a".to_owned(), at: Instant::now(), killed: false };
        let mut holder = Holder { state, turns: 0, ..holder };
        holder.learn(&description, &by("b"));
        assert!(matches!(holder.state, State::Signalled { .. }));
    }
}
