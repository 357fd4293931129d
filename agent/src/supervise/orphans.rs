//! What a run leaves behind that was killed before its ending was over.
//!
//! A run is the subreaper of its lineage, and the manager that of its runs: what a run leaves behind
//! becomes a child of the manager. After a run's own ending that is what it spared (a kept process, a
//! sink), and it lives on. After a run's violent death (SIGKILL, the kernel's OOM killer) it is the
//! rest of a lineage that nobody ends any more: then the manager does.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::act::{self, Authority, Ground, Refusal, Warrant};
use crate::audit::detail::{Finished, Started};
use crate::audit::evidence::{Decision, Evidence, Reason};
use crate::audit::record::Act;
use crate::audit::{ACT_WAIT, Event, Log, RunId, Target};
use crate::ownership::keep::Keep;
use crate::pipe::{Action, ProcessId, Relation};
use crate::process::children;
use crate::process::describe::describe;
use crate::process::stat::Stat;
use crate::run::reap;

/// How long the rest of a lineage is pursued: SIGKILL needs no longer, unless the kernel holds a
/// process in D state.
const BOUND: Duration = Duration::from_secs(5);

/// How soon to look again while somebody is left.
const PAUSE: Duration = Duration::from_millis(2);

/// How the run ended of which this is the rest: by SIGKILL, as shells tell it.
const KILLED: u8 = 128 + 9;

/// How long the end of a hunt waits for the end of its log.
const LOG_WAIT: Duration = Duration::from_millis(100);

/// Those who live on by right, and those who are pursued.
#[derive(Default)]
pub struct Orphans {
    spared: HashSet<ProcessId>,
    hunts: Vec<Hunt>,
}

struct Hunt {
    name: String,
    roots: HashSet<ProcessId>,
    keep: Keep,
    until: Instant,
    log: Log,
    began: Instant,
    ended: HashSet<ProcessId>,
    /// Looks in a row that found nobody: one alone can have missed a child that had just become ours.
    nobody: u32,
}

/// On what terms somebody is pursued.
pub struct Terms {
    /// Who is never ended.
    pub keep: Keep,
    /// The command line, for the audit log.
    pub command: Vec<String>,
    /// Where the audit log goes.
    pub audit: Option<Target>,
}

impl Terms {
    /// Opens the audit log; a target that is not to be had any more must not save anybody.
    fn log(&self, name: &str) -> Log {
        let opened = self.audit.as_ref().and_then(|to| Log::open_named(to, RunId::new(), Some(name.to_owned())).ok());
        let log = opened.unwrap_or_else(|| Log::disabled(RunId::new()));
        if log.is_on() {
            let why = ("supervise".to_owned(), "ends what a run left that died".to_owned());
            let _ = log.record(Event::RunStarted { detail: Box::new(Started::new(&self.command, [why])) });
        }
        log
    }
}

/// What a hunt came to.
pub struct Ended {
    /// The command whose run had died.
    pub name: String,
    /// How many processes were ended.
    pub ended: u64,
    /// How many were not.
    pub left: usize,
}

/// Our children that are no runs.
fn adopted(runs: &HashSet<i32>) -> HashSet<ProcessId> {
    let us = nix::unistd::getpid().as_raw();
    let pids = children::children(us).unwrap_or_default();
    let stats = pids.into_iter().filter(|pid| !runs.contains(pid)).filter_map(|pid| Stat::read(pid).ok());
    stats.filter(|stat| !stat.is_dead()).map(|stat| stat.id).collect()
}

impl Orphans {
    fn known(&self) -> HashSet<ProcessId> {
        self.hunts.iter().flat_map(|hunt| hunt.roots.iter()).chain(&self.spared).copied().collect()
    }

    /// A run came to its own end: what it left behind lives on. `runs` are all our runs.
    pub fn spare(&mut self, runs: &HashSet<i32>) {
        let adopted = adopted(runs);
        self.spared.retain(|id| adopted.contains(id));
        let known = self.known();
        self.spared.extend(adopted.into_iter().filter(|id| !known.contains(id)));
    }

    /// A run died without a last word: what it left behind is ended. Where another run died at the
    /// same time, as `alone` denies, only the command's own group is known to be this run's.
    pub fn pursue(&mut self, name: &str, command: Option<i32>, terms: Terms, alone: bool, runs: &HashSet<i32>) {
        let known = self.known();
        let at_home = |id: &ProcessId| Stat::read(id.pid).is_ok_and(|stat| Some(stat.pgid) == command);
        let new = adopted(runs).into_iter().filter(|id| !known.contains(id));
        let new: Vec<ProcessId> = new.collect();
        // After the look: who died before it may have left some of these behind.
        let alone = alone && !runs.iter().any(|run| reap::has_exited(*run));
        let roots: HashSet<ProcessId> = new.into_iter().filter(|id| alone || at_home(id)).collect();
        let until = Instant::now() + BOUND;
        let log = terms.log(name);
        let (name, keep) = (name.to_owned(), terms.keep);
        self.hunts.push(Hunt {
            name,
            roots,
            keep,
            until,
            log,
            began: Instant::now(),
            ended: HashSet::new(),
            nobody: 0,
        });
    }

    /// Whether somebody of this command is still pursued.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.hunts.iter().any(|hunt| hunt.name == name)
    }

    /// When to look again.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        (!self.hunts.is_empty()).then(|| now + PAUSE)
    }

    /// Looks, signals, and says what is over. The children of who is ended become ours: they are found
    /// by the next look, which is why a hunt ends with a look that finds nobody.
    pub fn turn(&mut self, runs: &HashSet<i32>) -> Vec<Ended> {
        if self.hunts.is_empty() {
            return Vec::new();
        }
        let adopted = adopted(runs);
        let known = self.known();
        let new: Vec<ProcessId> = adopted.iter().filter(|id| !known.contains(id)).copied().collect();
        let mut over = Vec::new();
        let one = self.hunts.len() == 1;
        for hunt in &mut self.hunts {
            // A child of one whom this hunt ended, unless it could be of another hunt's.
            if one && !hunt.ended.is_empty() {
                hunt.roots.extend(&new);
            }
            hunt.roots.retain(|id| adopted.contains(id));
            hunt.turn();
            hunt.nobody = if hunt.roots.is_empty() { hunt.nobody + 1 } else { 0 };
            if hunt.is_over() {
                let (name, ended) = (hunt.name.clone(), hunt.ended.len() as u64);
                over.push(Ended { name, ended, left: hunt.roots.len() });
            }
        }
        let (off, on): (Vec<_>, Vec<_>) = std::mem::take(&mut self.hunts).into_iter().partition(Hunt::is_over);
        self.hunts = on;
        for hunt in off {
            let finished =
                Finished::new(None, KILLED, u64::try_from(hunt.began.elapsed().as_micros()).unwrap_or(u64::MAX));
            let _ = hunt.log.finish(finished, LOG_WAIT);
            self.spared.extend(hunt.roots);
        }
        over
    }
}

impl Hunt {
    fn is_over(&self) -> bool {
        self.nobody >= 2 || Instant::now() >= self.until
    }

    fn turn(&mut self) {
        let us = nix::unistd::getpid().as_raw();
        let authority = Authority { root: us, keep: self.keep.clone(), foreign: false, node: false };
        let mut refused = Vec::new();
        for root in &self.roots {
            let below = children::descendants(root.pid, &HashSet::new()).unwrap_or_default();
            for pid in below.into_iter().chain([root.pid]) {
                let Ok(description) = describe(pid) else { continue };
                let id = ProcessId { pid, start_ticks: description.start_ticks };
                if self.ended.contains(&id) {
                    continue; // SIGKILL is sent once; it may take its time
                }
                let warrant = Warrant {
                    id,
                    relation: Relation::Lineage,
                    ground: Ground::Reap,
                    description: &description,
                    signal: Signal::SIGKILL,
                };
                match act::signal(&warrant, &authority, &mut Books(&self.log)) {
                    Ok(act::Verdict::Signalled) => drop(self.ended.insert(id)),
                    Ok(act::Verdict::Refused(Refusal::Kept)) => refused.push(id),
                    _ => {}
                }
            }
        }
        self.roots.retain(|root| !refused.contains(root));
    }
}

/// The audit log of a hunt: a chain of its own, because that of the run broke off when it died.
struct Books<'a>(&'a Log);

impl Books<'_> {
    fn note(&self, event: fn(Box<Act>) -> Event, warrant: &Warrant<'_>, decision: Decision) {
        if self.0.is_on() {
            let evidence = Evidence::new(warrant.relation, false);
            let act = Act { process: warrant.description.clone(), pipe: None, decision, evidence };
            let _ = self.0.record(event(Box::new(act))).wait(ACT_WAIT);
        }
    }
}

impl act::Journal for Books<'_> {
    fn signalling(&mut self, warrant: &Warrant<'_>) {
        let decision = Decision { signal: Some("KILL".to_owned()), ..Decision::new(Action::Kill, Reason::Reap) };
        self.note(Event::HolderSignalled, warrant, decision);
    }

    fn refused(&mut self, warrant: &Warrant<'_>, refusal: Refusal) {
        let decision = Decision { note: Some(refusal.to_string()), ..Decision::new(Action::Refused, Reason::Reap) };
        self.note(Event::HolderSpared, warrant, decision);
    }
}
