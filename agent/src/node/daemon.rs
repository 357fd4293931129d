//! The node itself: it watches, finds what is withheld, and does what the policies say.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::attribution::Attribution;
use super::config::Config;
use super::journal::{self, Journal};
use super::live::{Live, NoTracker};
use super::policy::{Policies, Subject, Verdict};
use super::withheld::Withheld;
use crate::act::{self, Authority, Ground, Warrant};
use crate::audit::evidence::{Decision, Reason};
use crate::audit::{Log, OpenError, Rotation, RunId};
use crate::config::ConfigError;
use crate::pipe::{Action, Pipe, PipeId, PipeKind, ProcessId, Relation};
use crate::process::describe::{Description, describe};
use crate::process::stat::Stat;
use crate::process::table::{Sought, look};

/// Why a node could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The audit log cannot be had.
    #[error("node: {0}")]
    Audit(#[from] OpenError),
    /// There is no tracker.
    #[error("node: {0}")]
    Tracker(#[from] NoTracker),
    /// The kernel refused us something.
    #[error("node: {0}")]
    Kernel(#[from] io::Error),
}

/// How often candidates are looked at, and losses where there is none.
const LOOK: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(1);
/// Records that are taken in before anything else is looked at.
const BATCH: usize = 4096;
/// From the first signal to SIGKILL, as for a run.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// What is being done about a holder.
enum State {
    /// Nothing yet.
    New,
    /// It is let live, until there are other policies.
    Spared,
    /// It was signalled.
    Signalled { policy: String, at: Instant, killed: bool },
}

/// A holder of a withheld pipe.
struct Holder {
    description: Description,
    state: State,
}

/// A withheld pipe.
struct Case {
    pipe: Pipe,
    /// When it was found, and how long its command had been gone then.
    since: Duration,
    holders: HashMap<ProcessId, Holder>,
}

/// A node at work.
struct Node {
    file: Option<PathBuf>,
    live: Live,
    policies: Policies,
    attribution: Attribution,
    journal: Journal,
    cases: HashMap<PipeId, Case>,
    pipefs: u64,
    started: Instant,
    say: fn(&dyn std::fmt::Display),
}

/// Watches until it is told to end (SIGTERM, SIGINT). SIGHUP reads the configuration again. Without a
/// file the defaults hold. `say` is told what an operator should know.
///
/// Must be called from the main thread of a process that does nothing else.
///
/// # Errors
///
/// [`NodeError`]; nothing stays behind.
pub fn run(file: Option<PathBuf>, say: fn(&dyn std::fmt::Display)) -> Result<(), NodeError> {
    let config = file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let signals = signals()?;
    let rotation = Rotation { max_size: config.audit.max_size, files: config.audit.files };
    if let crate::audit::Target::Path(path) = &config.audit.target
        && let Some(folder) = path.parent()
    {
        let _ = std::fs::create_dir_all(folder); // what is wrong with it is said by the open
    }
    let log = Log::open_rotated(&config.audit.target, rotation, RunId::new())?;
    let started = Instant::now();
    let live = Live::attach()?;
    let said = file.as_ref().map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
    say(&format_args!("node: watching by {}, with {} policies of {said}", live.rung(), config.policies.len()));
    let journal = Journal::begin(log, live.rung(), said, started.elapsed());
    let mut node = Node {
        file,
        live,
        policies: Policies::new(config.policies),
        attribution: Attribution::default(),
        journal,
        cases: HashMap::new(),
        pipefs: pipefs()?,
        started,
        say,
    };
    let outcome = node.watch(&signals);
    node.journal.finish(node.started.elapsed());
    Ok(outcome?)
}

/// SIGTERM, SIGINT and SIGHUP come by a descriptor from here on.
fn signals() -> io::Result<SignalFd> {
    let mut ours = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ours.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
    Ok(SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The device of anonymous pipes.
fn pipefs() -> io::Result<u64> {
    let (read, _write): (OwnedFd, OwnedFd) = nix::unistd::pipe()?;
    Ok(nix::sys::stat::fstat(read.as_fd())?.st_dev)
}

impl Node {
    fn watch(&mut self, signals: &SignalFd) -> io::Result<()> {
        let mut next_look = Instant::now();
        loop {
            let more = self.live.take_in(BATCH);
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo == libc::SIGHUP.cast_unsigned() {
                    self.reload();
                } else {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if now >= next_look {
                if let Some((why, missed)) = self.live.mend()? {
                    self.journal.reseeded(why, missed);
                }
                self.look()?;
                let at_work = self.live.has_candidates() || !self.cases.is_empty();
                next_look = now + if at_work { LOOK } else { IDLE };
            }
            if !more {
                self.wait(signals, next_look)?;
                if self.live.has_candidates() {
                    next_look = next_look.min(Instant::now() + LOOK);
                }
            }
        }
    }

    /// Until something happens, or it is time to look.
    fn wait(&self, signals: &SignalFd, until: Instant) -> io::Result<()> {
        // Up to the next millisecond, so that the wait is never one too few.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let mut fds = [self.live.fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the policies again. A file that has an error changes nothing.
    fn reload(&mut self) {
        let Some(file) = &self.file else {
            (self.say)(&"node: SIGHUP: there is no file to read again; name one with --config");
            return;
        };
        match Config::load(file) {
            Ok(config) => {
                let number = config.policies.len();
                self.policies.replace(config.policies);
                // Who was let live is put before the new ones.
                let holders = self.cases.values_mut().flat_map(|case| case.holders.values_mut());
                for holder in holders.filter(|holder| matches!(holder.state, State::Spared)) {
                    holder.state = State::New;
                }
                (self.say)(&format_args!("node: read {} again: {number} policies", file.display()));
            }
            Err(error) => (self.say)(&format_args!("{error}; nothing is changed")),
        }
    }

    fn look(&mut self) -> io::Result<()> {
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
        let kind = if found.pipe.dev == self.pipefs { PipeKind::Pipe } else { PipeKind::Fifo };
        let pipe = Pipe { id: found.pipe, kind };
        self.journal.withheld(pipe, found, since);
        Case { pipe, since: self.started.elapsed().saturating_sub(since), holders: HashMap::new() }
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
        if let (Some(path), Some(place)) = (&path, &place) {
            journal::locate(&mut description, path.clone(), place);
        }
        let subject =
            Subject { comm: &description.comm, uid: description.uid, cgroup: path.as_deref(), place: place.as_ref() };
        let policy = self.policies.of(&subject);
        let name = policy.map(|policy| policy.name.clone());
        let keep = policy.map(|policy| policy.keep.live.clone()).unwrap_or_default();
        let holder =
            case.holders.entry(id).or_insert_with(|| Holder { description: description.clone(), state: State::New });
        let spare = |reason, note: String| Decision {
            option: name.as_deref().map(journal::option),
            note: Some(note),
            ..Decision::new(Action::None, reason)
        };
        match &mut holder.state {
            State::Spared => {}
            State::Signalled { policy, at, killed } => {
                if !*killed && at.elapsed() >= KILL_AFTER {
                    *killed = true;
                    let policy = policy.clone();
                    self.act(case.pipe, id, &description, &policy, keep, Signal::SIGKILL);
                }
            }
            State::New if keep.matches(id.pid, &description.comm) => {
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
                    let signalled = self.act(case.pipe, id, &description, &name, keep, Signal::SIGTERM);
                    holder.state = if signalled {
                        State::Signalled { policy: name, at: Instant::now(), killed: false }
                    } else {
                        State::Spared
                    };
                }
            },
        }
    }

    /// Puts a warrant before [`act`]. Whether the process was signalled.
    fn act(
        &mut self,
        pipe: Pipe,
        id: ProcessId,
        description: &Description,
        policy: &str,
        keep: crate::ownership::keep::Keep,
        signal: Signal,
    ) -> bool {
        let Ok(found) = look(id.pid, &Sought { pipes: vec![pipe], hidden: false }) else { return false };
        let Some(seen) = found.holds.into_iter().find(|hold| hold.end.writes()) else { return false };
        let ground = Ground::Policy { policy: policy.to_owned(), pipe, seen };
        let warrant = Warrant { id, relation: Relation::Lineage, ground, description, signal };
        let authority = Authority { root: nix::unistd::getpid().as_raw(), keep, foreign: false, node: true };
        match act::signal(&warrant, &authority, &mut self.journal) {
            Ok(verdict) => verdict == act::Verdict::Signalled,
            Err(error) => {
                (self.say)(&format_args!("node: {} ({}): {error}", description.comm, id.pid));
                false
            }
        }
    }
}
