//! The decisions of an ending, without any I/O: what to ask, whom to signal, when to let go.
//!
//! ```text
//! Grace ── quiet for holder-grace ──> Hunt ── nobody left to end ──> LettingGo ──> over
//!   ├─ every stream at EOF ──> over     ├─ every stream at EOF ──> over
//!                                       └─ max-drain ──> LettingGo
//! ```
//!
//! All clocks run on one [`Stopwatch`], which counts time spent waiting for holders: while downstream
//! takes nothing it stands still.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::options::{OnForeign, OnHolder, OnOpaque, Options};
use crate::act::Ground;
use crate::ownership::{Census, Holder, Scope};
use crate::pipe::{Outcome, Pipe, ProcessId, Relation};
use crate::process::stat::Stat;

/// SIGKILL comes no later than this before `max_drain`, so that its effect is still seen.
const KILL_BEFORE_BOUND: Duration = Duration::from_millis(100);

/// How soon to ask again while nothing new is found, at first and at most. Only what EOF does not
/// tell waits for this: a holder that was passed the pipe meanwhile, a process that is to be reaped.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// The same for questions that walk over every process of the machine.
const PAUSE_MACHINE: Duration = Duration::from_millis(250);

/// What the ending may know of the streams.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Whether some pumped stream has had neither EOF nor been let go.
    pub pumping: bool,
    /// Whether some inherited pipe is watched.
    pub watching: bool,
    /// Whether bytes wait for downstream.
    pub blocked: bool,
    /// When bytes last came out of a pipe.
    pub last_bytes: Option<Instant>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this moment, unless something happens.
    Wait(Instant),
    /// Ask the source.
    Ask(Scope),
    /// Let go of every stream that is still open.
    LetGo(LetGo),
    /// Nobody is waited for any more.
    Over,
}

/// How to let go of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// Its holders go on writing, into a sink.
    Drain,
    /// Its holders get SIGPIPE at their next write.
    Close,
}

/// A process to be signalled.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// Who.
    pub id: ProcessId,
    /// What it is to the run.
    pub relation: Relation,
    /// On what ground.
    pub ground: Ground,
    /// With what.
    pub signal: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Holders may still be at work.
    Grace,
    /// They are stale: find them, end them.
    Hunt(Scope),
    /// They are waited for until the bound (`report`, `wait`).
    Sit,
    /// The streams are let go.
    LettingGo(LetGo),
}

/// The part of [`Options`] that an ending looks at.
#[derive(Clone, Copy, Debug)]
struct Policy {
    signal: Signal,
    kill_after: Duration,
    grace: Duration,
    max_drain: Duration,
    on_holder: OnHolder,
    on_foreign: OnForeign,
    on_opaque: OnOpaque,
    reap_all: bool,
    home: i32,
}

/// How an ending comes about.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// When the command exited.
    pub exit: Instant,
    /// The home group.
    pub home: i32,
    /// How long before that the home group got the first signal, if the ending was asked for.
    pub signalled: Option<Duration>,
    /// Whether the whole lineage is to end.
    pub reap_all: bool,
}

/// The state of an ending.
pub struct Ending {
    policy: Policy,
    clock: Stopwatch,
    phase: Phase,
    /// Since when nothing speaks for the holders being at work.
    quiet_since: Duration,
    seen_bytes: Option<Instant>,
    /// The home group's members at the last sample, with their CPU ticks.
    home_at_work: Option<HashMap<ProcessId, u64>>,
    /// When the first signal was sent.
    first_signal: Option<Duration>,
    /// Whether the home group got it.
    home_signalled: bool,
    /// The last signal that each process was sent.
    sent: HashMap<ProcessId, Signal>,
    /// Whom the verification spares for good.
    spared: HashSet<ProcessId>,
    asking: bool,
    /// Whether the last question got no answer.
    unanswered: bool,
    next_ask: Duration,
    pause: Duration,
    /// Whether the tables show no lineage holder of a watched pipe.
    tables_clear: bool,
    /// Whether nobody is left that must be reaped.
    reaped: bool,
    outcome: Option<Outcome>,
}

impl Ending {
    /// Begins the ending, at the command's exit.
    #[must_use]
    pub fn new(options: &Options, beginning: &Beginning) -> Ending {
        let policy = Policy {
            signal: options.signal,
            // There is one escalation clock: what of it passed before the exit has passed.
            kill_after: options.kill_after.saturating_sub(beginning.signalled.unwrap_or_default()),
            grace: options.holder_grace,
            max_drain: options.max_drain,
            on_holder: options.on_holder,
            on_foreign: options.on_foreign,
            on_opaque: options.on_opaque,
            reap_all: beginning.reap_all,
            home: beginning.home,
        };
        Ending {
            policy,
            clock: Stopwatch::start(beginning.exit),
            phase: Phase::Grace,
            quiet_since: Duration::ZERO,
            seen_bytes: None,
            home_at_work: None,
            first_signal: beginning.signalled.map(|_| Duration::ZERO),
            home_signalled: beginning.signalled.is_some(),
            sent: HashMap::new(),
            spared: HashSet::new(),
            asking: false,
            unanswered: false,
            next_ask: Duration::ZERO,
            pause: PAUSE.0,
            tables_clear: false,
            reaped: !beginning.reap_all,
            outcome: None,
        }
    }

    /// How the ending went, once it is over. What is not delivered by then is another matter.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome.unwrap_or(if self.sent.is_empty() { Outcome::Natural } else { Outcome::HoldersEnded })
    }

    /// Whether holders are still given the time to finish.
    #[must_use]
    pub fn in_grace(&self) -> bool {
        self.phase == Phase::Grace
    }

    /// Something happened (a child died): what was true may have changed.
    pub fn nudge(&mut self) {
        if matches!(self.phase, Phase::Hunt(Scope::Lineage | Scope::Hidden)) {
            self.pause = PAUSE.0;
            self.next_ask = self.next_ask.min(self.clock.read() + PAUSE.0);
        }
    }

    /// The user wants it over with: holders get the first signal now.
    pub fn end_the_grace(&mut self) {
        self.policy.grace = Duration::ZERO;
    }

    /// The user insists: whoever is found from now on is killed at once.
    pub fn hurry(&mut self) {
        self.policy.kill_after = Duration::ZERO;
        self.policy.grace = Duration::ZERO;
        self.first_signal.get_or_insert(Duration::ZERO);
        self.next_ask = Duration::ZERO;
    }

    /// What is to be done now.
    pub fn step(&mut self, now: Instant, view: View) -> Step {
        self.clock.advance(now, !view.blocked);
        let waited = self.clock.read();
        if view.blocked || view.last_bytes != self.seen_bytes {
            self.seen_bytes = view.last_bytes;
            self.quiet_since = waited;
        }
        if let Phase::LettingGo(how) = self.phase {
            if view.pumping {
                return Step::LetGo(how);
            }
            self.tables_clear = true;
        }
        if !view.pumping && (!view.watching || self.tables_clear) {
            if self.reaped {
                return Step::Over;
            }
            if self.phase == Phase::Sit {
                self.look_further(Scope::Lineage);
            }
        }
        if waited >= self.policy.max_drain {
            return self.reach_bound(view);
        }
        let (due, scope) = self.next_question(view);
        if self.asking || waited < due {
            // The answer itself wakes us; a source that never answers does not outlast the bound.
            let until = if self.asking { self.policy.max_drain } else { due.min(self.policy.max_drain) };
            return Step::Wait(now + until.saturating_sub(waited).max(PAUSE.0));
        }
        self.asking = true;
        Step::Ask(scope)
    }

    /// `max_drain` was reached: whoever is left is left.
    fn reach_bound(&mut self, view: View) -> Step {
        self.outcome.get_or_insert(Outcome::Closed);
        self.tables_clear = true;
        self.reaped = true;
        self.phase = Phase::LettingGo(LetGo::Close);
        if view.pumping { Step::LetGo(LetGo::Close) } else { Step::Over }
    }

    /// When to ask next, and how far the question reaches.
    fn next_question(&self, view: View) -> (Duration, Scope) {
        match self.phase {
            // Where only tables are watched they are the oracle: nobody is waited for that holds nothing.
            _ if self.unanswered => (self.next_ask, Scope::Hidden),
            Phase::Grace if !view.pumping && self.home_at_work.is_none() => (Duration::ZERO, Scope::Hidden),
            // Without a first sample there is nothing to compare the CPU time at the grace's end with.
            Phase::Grace if self.home_at_work.is_none() => (self.stale_at().min(self.policy.grace / 4), Scope::Lineage),
            Phase::Grace if !view.pumping => (self.stale_at(), Scope::Hidden),
            Phase::Grace => (self.stale_at(), Scope::Lineage),
            Phase::Hunt(scope) => (self.next_ask, scope),
            // A pump sees EOF by itself; tables have to be asked.
            Phase::Sit if view.pumping => (self.policy.max_drain, Scope::Lineage),
            Phase::Sit => (self.next_ask, Scope::Hidden),
            Phase::LettingGo(_) => (self.next_ask, Scope::Lineage),
        }
    }

    /// When the grace ends, if nothing restarts it. A holder that is still at work shortly before the
    /// bound gets its first signal then, so that `kill_after` fits in; this takes at most a tenth of the
    /// time there is.
    fn stale_at(&self) -> Duration {
        let warning = self.policy.kill_after.min(self.policy.max_drain / 10);
        let last_call = self.policy.max_drain.saturating_sub(KILL_BEFORE_BOUND + warning);
        (self.quiet_since + self.policy.grace).min(last_call)
    }

    /// From when on whoever is found gets SIGKILL at once.
    fn kill_at(&self) -> Duration {
        let latest = self.policy.max_drain.saturating_sub(KILL_BEFORE_BOUND);
        self.first_signal.map_or(latest, |first| latest.min(first + self.policy.kill_after))
    }

    /// The source could not answer, or its answer is useless: ask again soon.
    pub fn unanswered(&mut self) {
        self.asking = false;
        self.unanswered = true;
        self.next_ask = self.clock.read() + PAUSE.1;
    }

    /// Takes the source's answer and says whom to signal.
    ///
    /// `pipes` are those that were asked for and are still open; a hold of another one is no ground.
    pub fn judge(&mut self, census: &Census, pipes: &[Pipe], view: View) -> Vec<Sentence> {
        self.asking = false;
        self.unanswered = false;
        if self.phase == Phase::Grace && self.still_at_work(census, view) {
            return Vec::new();
        }
        if self.phase == Phase::Grace {
            self.phase = Phase::Hunt(Scope::Lineage);
        }
        let streams_open = view.pumping || view.watching;
        let holders: Vec<&Holder> = if streams_open { census.holders.iter().collect() } else { Vec::new() };
        if matches!(self.phase, Phase::Hunt(_))
            && let Some(patience) = self.patience(&holders)
        {
            self.be_patient(patience);
        }
        let condemned = self.condemned(&holders, census, pipes);
        let sentences: Vec<Sentence> = condemned.iter().filter_map(|sentence| self.due(sentence, census)).collect();
        if !sentences.is_empty() {
            self.first_signal.get_or_insert(self.clock.read());
        }
        self.plan(census, &holders, condemned.is_empty(), !sentences.is_empty(), view);
        sentences
    }

    /// During the grace: whether the home group used CPU time since the last sample, or the grace is
    /// not over for another reason.
    fn still_at_work(&mut self, census: &Census, view: View) -> bool {
        let lineage = |holder: &&Holder| holder.relation == Relation::Lineage;
        let may_hold = |holder: &Holder| matches!(holder.relation, Relation::Lineage | Relation::Suspect);
        if !view.pumping && !census.holders.iter().any(may_hold) && census.complete {
            self.tables_clear = true;
        }
        // The grace is for those who are there.
        self.reaped |= census.complete && census.members.is_empty();
        let waited = self.clock.read();
        let home = self.policy.home;
        let at_home = census.members.iter().filter(|stat| stat.pgid == home);
        let waits_for_a_core = at_home.clone().any(|stat| stat.state == 'R');
        let sample: HashMap<ProcessId, u64> = at_home.map(|stat| (stat.id, stat.cpu_ticks)).collect();
        // Who waits for another member of its pipeline uses no CPU time itself: the group counts as
        // one, and a member that finished its part has been at work too.
        // And on a busy machine it can be ready to run, and get none.
        let worked = |before: &HashMap<ProcessId, u64>| {
            before.iter().any(|(id, ticks)| sample.get(id) != Some(ticks)) || waits_for_a_core
        };
        let home_holds = census.holders.iter().any(|holder| lineage(&holder) && !holder.escaped);
        if home_holds && self.home_at_work.as_ref().is_some_and(worked) && waited < self.policy.max_drain {
            self.quiet_since = waited;
        }
        self.home_at_work = Some(sample);
        waited < self.stale_at()
    }

    /// What the policy asks for instead of ending, if a holder is there that it concerns.
    fn patience(&self, holders: &[&Holder]) -> Option<OnHolder> {
        let lineage = holders.iter().any(|holder| holder.relation == Relation::Lineage && !self.is_spared(holder));
        (lineage && self.policy.on_holder != OnHolder::End).then_some(self.policy.on_holder)
    }

    fn be_patient(&mut self, how: OnHolder) {
        match how {
            OnHolder::End => {}
            OnHolder::Report | OnHolder::Wait => self.phase = Phase::Sit,
            OnHolder::Close => self.let_go(LetGo::Close),
            OnHolder::Drain => self.let_go(LetGo::Drain),
        }
    }

    fn let_go(&mut self, how: LetGo) {
        self.phase = Phase::LettingGo(how);
        self.outcome = Some(Outcome::HoldersSpared);
    }

    fn is_spared(&self, holder: &Holder) -> bool {
        holder.kept || self.spared.contains(&holder.id)
    }

    /// Everybody who is to be ended, whatever they were sent already.
    fn condemned(&self, holders: &[&Holder], census: &Census, pipes: &[Pipe]) -> Vec<Sentence> {
        let mut condemned: Vec<Sentence> = holders
            .iter()
            .filter(|holder| !self.is_spared(holder))
            .filter_map(|holder| {
                let ground = self.ground(holder, holders, pipes)?;
                Some(Sentence { id: holder.id, relation: holder.relation, ground, signal: self.policy.signal })
            })
            .collect();
        if self.policy.reap_all {
            let known: HashSet<ProcessId> = condemned.iter().map(|sentence| sentence.id).collect();
            let kept = |stat: &Stat| census.holders.iter().any(|holder| holder.id == stat.id && self.is_spared(holder));
            condemned.extend(
                census
                    .members
                    .iter()
                    .filter(|stat| !known.contains(&stat.id) && !self.spared.contains(&stat.id) && !kept(stat))
                    .map(|stat| Sentence {
                        id: stat.id,
                        relation: Relation::Lineage,
                        ground: Ground::Reap,
                        signal: self.policy.signal,
                    }),
            );
        }
        condemned
    }

    /// On what ground a holder may be ended, if on any.
    fn ground(&self, holder: &Holder, all: &[&Holder], pipes: &[Pipe]) -> Option<Ground> {
        let visible = |holder: &Holder| {
            holder.holds.iter().find_map(|hold| {
                let pipe = pipes.iter().find(|pipe| pipe.id == hold.pipe)?;
                Some(Ground::Holds { pipe: *pipe, seen: hold.clone() })
            })
        };
        match holder.relation {
            Relation::Lineage if self.policy.on_holder == OnHolder::End => visible(holder),
            Relation::Foreign | Relation::Adopted if self.policy.on_foreign == OnForeign::As(OnHolder::End) => {
                visible(holder)
            }
            Relation::Opaque if self.policy.on_opaque == OnOpaque::End => Some(Ground::Opaque),
            Relation::Suspect if self.policy.on_holder == OnHolder::End => {
                let alone = !all.iter().any(|other| other.relation == Relation::Lineage && !self.is_spared(other));
                alone.then_some(Ground::Suspect)
            }
            _ => None,
        }
    }

    /// The sentence with the signal that is due now, unless it was sent already.
    fn due(&self, sentence: &Sentence, census: &Census) -> Option<Sentence> {
        let signal = if self.clock.read() >= self.kill_at() { Signal::SIGKILL } else { self.policy.signal };
        let with_the_group = || self.home_signalled && self.is_at_home(sentence.id, census);
        let sent = self.sent.get(&sentence.id).copied().or_else(|| with_the_group().then_some(self.policy.signal));
        let settled = sent.is_some_and(|sent| sent == signal || sent == Signal::SIGKILL);
        (!settled).then(|| Sentence { signal, ..sentence.clone() })
    }

    fn is_at_home(&self, id: ProcessId, census: &Census) -> bool {
        census.members.iter().any(|stat| stat.id == id && stat.pgid == self.policy.home)
    }

    /// A sentence was carried out.
    pub fn signalled(&mut self, id: ProcessId, signal: Signal) {
        self.sent.insert(id, signal);
    }

    /// A sentence was refused, and would be again.
    pub fn refused(&mut self, id: ProcessId) {
        self.spared.insert(id);
    }

    /// Decides what to ask next, or to let go.
    fn plan(&mut self, census: &Census, holders: &[&Holder], nobody: bool, fresh: bool, view: View) {
        let waited = self.clock.read();
        self.reaped = !self.policy.reap_all || (nobody && census.complete);
        if !matches!(self.phase, Phase::Hunt(_)) {
            let held = holders.iter().any(|holder| holder.relation == Relation::Lineage);
            self.tables_clear = !view.pumping && !held && census.complete;
            self.next_ask = waited + PAUSE_MACHINE;
            return;
        }
        if !nobody {
            self.phase = Phase::Hunt(Scope::Lineage.max(self.reach_of_the_condemned(holders)));
            self.next_ask = match (fresh, waited >= self.kill_at()) {
                // Who was found just now may have forked meanwhile; once that is deadly, do not pause.
                (true, true) => waited,
                (true, false) => waited + PAUSE.0,
                (false, _) => waited + self.pause_longer(),
            };
            if waited < self.kill_at() {
                self.next_ask = self.next_ask.min(self.kill_at());
            }
            return;
        }
        match census.scope {
            _ if !view.pumping => {
                self.tables_clear = census.complete && census.scope != Scope::Lineage;
                self.phase = Phase::Hunt(Scope::Hidden);
                self.next_ask = if census.scope == Scope::Lineage { waited } else { waited + self.pause_longer() };
            }
            Scope::Lineage => self.look_further(Scope::Hidden),
            Scope::Hidden => self.look_further(Scope::Machine),
            Scope::Machine => self.spare(holders),
        }
    }

    fn reach_of_the_condemned(&self, holders: &[&Holder]) -> Scope {
        let relations = || holders.iter().filter(|holder| !self.is_spared(holder)).map(|holder| holder.relation);
        if relations().any(|relation| relation == Relation::Lineage) {
            Scope::Lineage
        } else if relations().any(|relation| matches!(relation, Relation::Foreign | Relation::Adopted)) {
            Scope::Machine
        } else {
            Scope::Hidden
        }
    }

    fn look_further(&mut self, scope: Scope) {
        self.phase = Phase::Hunt(scope);
        self.next_ask = self.clock.read();
    }

    fn pause_longer(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        pause
    }

    /// Everybody who could be ended is gone, and still there is no EOF: what is to become of the rest.
    fn spare(&mut self, holders: &[&Holder]) {
        let mut wishes = Vec::new();
        for holder in holders {
            wishes.push(match (holder.relation, self.policy.on_foreign) {
                _ if self.is_spared(holder) => OnHolder::Drain,
                (Relation::Foreign | Relation::Adopted, OnForeign::As(wish)) => wish,
                (Relation::Foreign | Relation::Adopted, OnForeign::Auto) if holder.ignores_sigpipe => OnHolder::Close,
                (Relation::Foreign | Relation::Adopted, OnForeign::Auto) | (Relation::Opaque, _) => OnHolder::Drain,
                // Found late: the next round of questions ends it.
                (Relation::Lineage | Relation::Suspect, _) => OnHolder::End,
            });
        }
        let wished = |wish| wishes.contains(&wish);
        if wishes.is_empty() || wished(OnHolder::End) {
            // It moved while we looked, or nobody shows it to us.
            self.phase = Phase::Hunt(Scope::Lineage);
            self.next_ask = self.clock.read() + if wishes.is_empty() { PAUSE_MACHINE } else { PAUSE.0 };
        } else if wished(OnHolder::Wait) {
            self.be_patient(OnHolder::Wait);
        } else if wished(OnHolder::Report) {
            self.be_patient(OnHolder::Report);
        } else if wished(OnHolder::Drain) {
            self.let_go(LetGo::Drain);
        } else {
            self.let_go(LetGo::Close);
        }
    }
}

/// Time that was spent waiting for holders.
struct Stopwatch {
    total: Duration,
    last: Instant,
}

impl Stopwatch {
    fn start(now: Instant) -> Stopwatch {
        Stopwatch { total: Duration::ZERO, last: now }
    }

    fn advance(&mut self, now: Instant, running: bool) {
        if running {
            self.total += now.saturating_duration_since(self.last);
        }
        self.last = self.last.max(now);
    }

    fn read(&self) -> Duration {
        self.total
    }
}

#[cfg(test)]
mod tests;
