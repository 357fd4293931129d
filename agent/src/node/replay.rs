//! What policies would have done, over an audit log.
//!
//! A log says who was found to hold the write end of a pipe whose command had ended: holders that were
//! signalled or spared. Of those, what had left the home group is what a node acts on. Each is put
//! before the policies at the time at which it would have been, so that limits count as they would have.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::time::Duration;

use super::identity::Place;
use super::policy::{Limit, Policies, Subject, Verdict};
use crate::audit::record::{Act, Time};
use crate::audit::{Event, Record, RunId};
use crate::pipe::{End, PipeId, Relation};
use crate::process::describe::Description;

/// What would have become of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No policy matches, or the one that does observes.
    Observed,
    /// It was gone, or had let go, before the grace was over.
    WentByItself,
    /// `keep` names it.
    Kept,
    /// It would have been ended.
    Ended,
    /// It would have been ended but for a limit.
    Limited(Limit),
}

/// A holder, and what would have become of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it would have been decided.
    pub time: Time,
    /// Who.
    pub process: Description,
    /// Where it was.
    pub place: Place,
    /// The policy that matched.
    pub policy: Option<String>,
    /// What would have become of it.
    pub fate: Fate,
}

/// What a log comes to.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// The holders, in the order of their times.
    pub outcomes: Vec<Outcome>,
    /// Records that were read.
    pub records: u64,
    /// Lines that are no records.
    pub foreign: u64,
}

/// A holder of a withheld pipe.
struct Case {
    pipe: (RunId, PipeId),
    process: Description,
    since: Time,
    /// When it was gone without our doing.
    gone: Option<Time>,
    signalled: bool,
}

/// What a log says about holders of withheld pipes; files are read one after the other.
#[derive(Default)]
pub struct Cases {
    cases: Vec<Case>,
    by_holder: HashMap<(RunId, PipeId, i32, u64), usize>,
    /// Since when pipes were withheld.
    withheld: HashMap<(RunId, PipeId), Time>,
    records: u64,
    foreign: u64,
}

impl Cases {
    /// Reads a file to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&mut self, input: impl BufRead) -> io::Result<()> {
        for line in input.split(b'\n') {
            let line = line?;
            match serde_json::from_slice::<Record>(&line) {
                Ok(record) => {
                    self.records += 1;
                    self.record(&record);
                }
                Err(_) if line.is_empty() => {}
                Err(_) => self.foreign += 1,
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &Record) {
        let (run, time) = (record.body.run, record.body.time);
        match &record.body.event {
            Event::PipeWithheld { pipe, detail } => {
                let id = PipeId { dev: pipe.dev, ino: pipe.ino };
                let since = i64::try_from(detail.since_exit_us).unwrap_or(i64::MAX);
                let since = time.0.checked_sub(jiff::SignedDuration::from_micros(since)).map_or(time, Time);
                self.withheld.entry((run, id)).or_insert(since);
            }
            Event::HolderSignalled(act) => self.holder(run, time, act, true),
            Event::HolderSpared(act) => self.holder(run, time, act, false),
            Event::HolderEnded(act) => {
                let case = self.find(run, act).and_then(|index| self.cases.get_mut(index));
                if let Some(case) = case.filter(|case| !case.signalled) {
                    case.gone.get_or_insert(time);
                }
            }
            // What we let go of was not let go by its holders.
            Event::PipeEof { pipe, detail } if detail.by_itself => {
                let id = (run, PipeId { dev: pipe.dev, ino: pipe.ino });
                for case in self.cases.iter_mut().filter(|case| case.pipe == id && !case.signalled) {
                    case.gone.get_or_insert(time);
                }
            }
            _ => {}
        }
    }

    fn holder(&mut self, run: RunId, time: Time, act: &Act, signalled: bool) {
        let Some(key) = key_of(run, act) else { return };
        let escapee = act.evidence.escaped && act.evidence.relation == Relation::Lineage;
        // Where a record does not name the end, it is the one that a run watches.
        let writes = act.pipe.as_ref().is_some_and(|pipe| pipe.end.is_none_or(End::writes));
        if !(escapee && writes) {
            return;
        }
        let pipe = (key.0, key.1);
        let cases = &mut self.cases;
        let since = self.withheld.get(&pipe).copied().unwrap_or(time);
        let index = *self.by_holder.entry(key).or_insert_with(|| {
            cases.push(Case { pipe, process: act.process.clone(), since, gone: None, signalled: false });
            cases.len() - 1
        });
        let case = &mut self.cases[index];
        // It may have run another program since it was spared.
        if !case.signalled {
            case.process = act.process.clone();
        }
        case.signalled |= signalled;
    }

    fn find(&self, run: RunId, act: &Act) -> Option<usize> {
        self.by_holder.get(&key_of(run, act)?).copied()
    }

    /// Puts every holder before the policies.
    #[must_use]
    pub fn decide(self, mut policies: Policies) -> Replay {
        let mut due: Vec<(Duration, Case)> = self
            .cases
            .into_iter()
            .map(|case| {
                let place = place_of(&case.process);
                let grace = policies.of(&subject(&case.process, &place)).map_or(Duration::ZERO, |policy| policy.grace);
                (since_epoch(case.since).saturating_add(grace), case)
            })
            .collect();
        due.sort_by_key(|(due, case)| (*due, case.process.pid));
        let outcomes = due.into_iter().map(|(due, case)| outcome(&mut policies, due, case)).collect();
        Replay { outcomes, records: self.records, foreign: self.foreign }
    }
}

fn key_of(run: RunId, act: &Act) -> Option<(RunId, PipeId, i32, u64)> {
    let pipe = act.pipe.as_ref()?;
    Some((run, PipeId { dev: pipe.dev, ino: pipe.ino }, act.process.pid, act.process.start_ticks))
}

fn outcome(policies: &mut Policies, due: Duration, case: Case) -> Outcome {
    let process = case.process;
    let place = place_of(&process);
    let subject = subject(&process, &place);
    let texts: Vec<&str> = [Some(process.comm.as_str()), process.exe.as_deref(), process.cmdline.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    let policy = policies.of(&subject);
    let name = policy.map(|policy| policy.name.clone());
    let fate = if policy.is_some_and(|policy| policy.keep.matches(&texts)) {
        Fate::Kept
    } else if case.gone.is_some_and(|gone| since_epoch(gone) < due) {
        Fate::WentByItself
    } else {
        match policies.decide(&subject, since_epoch(case.since), due) {
            Verdict::End => Fate::Ended,
            Verdict::Limited(limit) => Fate::Limited(limit),
            Verdict::Observe | Verdict::Wait(_) => Fate::Observed,
        }
    };
    let time = i64::try_from(due.as_nanos())
        .map_or(case.since, |nanos| Time(jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_nanos(nanos)));
    Outcome { time, place, policy: name, fate, process }
}

fn place_of(process: &Description) -> Place {
    process.cgroup.as_deref().map(Place::of_path).unwrap_or_default()
}

fn subject<'a>(process: &'a Description, place: &'a Place) -> Subject<'a> {
    Subject {
        comm: &process.comm,
        uid: process.uid,
        cgroup: process.cgroup.as_deref(),
        place: Some(place),
        names: process.names.as_ref(),
    }
}

/// A log from before 1970 has a wrong clock, and all its times at once.
fn since_epoch(time: Time) -> Duration {
    Duration::try_from(time.0.duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
