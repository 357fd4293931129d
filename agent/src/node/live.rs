//! The machine's tracker, and what of it says whose pipes are withheld.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::backoff::Backoff;
use super::health::Room;
use super::metrics::Metrics;
use super::withheld::{Commands, Row, Withheld};
use crate::kernel::choice::{self, NoSuchRung};
use crate::kernel::lock::{self, Carrier, TrackerLock};
use crate::kernel::object::{LoadError, Scope, Sizes};
use crate::kernel::record::Record;
use crate::kernel::rung::Rung;
use crate::kernel::self_test::{self, SelfTestError};
use crate::kernel::tracker::{Losses, Reader, RunTime, Tracker};
use crate::pipe::PipeId;
use crate::process::stat::Stat;

mod descent;
mod holders;
mod sought;

pub use sought::{Fled, Holding, News, Part};

/// Why there is no tracker.
#[derive(Debug, thiserror::Error)]
pub enum NoTracker {
    /// The machine has one, and it is another's.
    #[error("the machine's tracker is carried by {0}; one is enough, so end that one first")]
    Carried(String),
    /// The lock that says so cannot be had.
    #[error("/run/pipewarden/tracker.lock: {0}; run it as root")]
    Lock(#[source] io::Error),
    /// The environment names a rung that does not exist.
    #[error(transparent)]
    Rung(#[from] NoSuchRung),
    /// No rung attaches; what the last one, which needs least, says.
    #[error("{0}; see pipewarden doctor")]
    Load(#[from] LoadError),
    /// It attaches, and does not tell the truth.
    #[error("{0}; see pipewarden doctor")]
    Untrue(#[from] SelfTestError),
    /// It cannot be seeded.
    #[error("{0}")]
    Seed(#[source] io::Error),
}

/// The tracker of all processes, and what is known of their commands.
pub struct Live {
    tracker: Tracker,
    reader: Reader,
    commands: Commands,
    /// Pipes whose holders are in the map's index, and since when their commands were seen to have ended.
    watched: HashMap<PipeId, Instant>,
    /// Whether there are such pipes whose holders before that nobody has looked for yet.
    unsought: bool,
    /// Who held them at the last look.
    rows: Vec<Row>,
    /// What had been lost when everything was read anew last.
    losses: Losses,
    /// When it may be again.
    again: Again,
    /// Pipes that others ask about.
    sought: sought::Sought,
    _lock: TrackerLock,
}

/// When everything may be read anew after a loss. It takes a while, and helps nobody who loses faster than that.
struct Again {
    /// After losses that it makes up for.
    lost: Backoff,
    /// After those that it does not: there is no room.
    full: Backoff,
}

impl Again {
    fn new() -> Again {
        let first = Duration::from_millis(250);
        Again { lost: Backoff::new(first, Duration::from_secs(4)), full: Backoff::new(first, Duration::from_secs(60)) }
    }
}

/// Everything was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The worst of what had been lost, in a sentence.
    pub why: &'static str,
    /// The same in a word.
    pub kind: &'static str,
    /// How much of all kinds.
    pub missed: u64,
    /// Whether it is a lack of room, and the first time since there was enough.
    pub full: bool,
}

/// How many records are taken in between two looks at the clock.
const CLOCK: usize = 64;

impl Live {
    /// Takes the machine's lock, attaches the best rung that there is to all processes, tests it and
    /// seeds it. Must be called while nobody else reaps our children.
    ///
    /// # Errors
    ///
    /// [`NoTracker`].
    pub fn attach(sizes: Sizes) -> Result<Live, NoTracker> {
        let rungs = choice::rungs()?;
        let Some(lock) = TrackerLock::take(&lock::path(), "node").map_err(NoTracker::Lock)? else {
            return Err(NoTracker::Carried(match lock::carrier(&lock::path()) {
                Ok(Carrier::Process { pid, role }) => format!("{role} (pid {pid})"),
                _ => "another process".to_owned(),
            }));
        };
        let mut last = None;
        for rung in rungs {
            match tested(rung, sizes) {
                Ok((tracker, reader)) => {
                    let losses = tracker.losses();
                    let mut live = Live {
                        tracker,
                        reader,
                        commands: Commands::default(),
                        watched: HashMap::new(),
                        unsought: false,
                        rows: Vec::new(),
                        losses,
                        again: Again::new(),
                        sought: sought::Sought::default(),
                        _lock: lock,
                    };
                    live.reseed().map_err(NoTracker::Seed)?;
                    return Ok(live);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| LoadError::Stale("rung".to_owned()).into()))
    }

    /// The rung that it is on.
    #[must_use]
    pub fn rung(&self) -> &'static str {
        self.tracker.rung().name()
    }

    /// What becomes readable when something happened.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Takes in what happened, at most so many records. Whether there may be more.
    pub fn take_in(&mut self, most: usize, metrics: &Metrics) -> bool {
        let mut now = Duration::ZERO;
        for number in 0..most {
            let Some(record) = self.reader.next_record() else { return false };
            if number % CLOCK == 0 {
                now = monotonic();
            }
            metrics.took_in_after(now.saturating_sub(Duration::from_nanos(record.event().time_ns)));
            if let Record::Escape(escape) = &record
                && escape.count > 0
            {
                metrics.escapes.inc();
            }
            self.record(&record);
            self.hear(&record);
        }
        true
    }

    /// Reads everything anew where something was lost since that was done last, unless it was done too often of late.
    ///
    /// # Errors
    ///
    /// When it could not be.
    pub fn mend(&mut self) -> io::Result<Option<Mended>> {
        self.tracker.is_heard().map_err(io::Error::other)?;
        let (losses, now) = (self.tracker.losses(), Instant::now());
        let Some((why, missed)) = losses.since(&self.losses) else {
            self.again.lost.well(now);
            self.again.full.well(now);
            return Ok(None);
        };
        let no_room = losses.does_not_fit(&self.losses);
        let again = if no_room { &mut self.again.full } else { &mut self.again.lost };
        if !again.is_due(now) {
            return Ok(None);
        }
        let first = again.tried(now);
        let before = self.losses.kinds();
        let worst = losses.kinds().into_iter().zip(before).find(|((_, now), (_, before))| now > before);
        let kind = worst.map_or("events", |((kind, _), _)| kind);
        self.reseed()?;
        self.sought.may_have_faded();
        Ok(Some(Mended { why, kind, missed, full: no_room && first }))
    }

    /// What was lost and is not made up for yet.
    #[must_use]
    pub fn unmended(&self) -> Option<(&'static str, u64)> {
        self.tracker.losses().since(&self.losses)
    }

    /// What was lost so far.
    #[must_use]
    pub fn losses(&self) -> Losses {
        self.tracker.losses()
    }

    /// How much the programs ran so far.
    #[must_use]
    pub fn run_time(&self) -> RunTime {
        self.tracker.run_time()
    }

    /// How full the maps are.
    #[must_use]
    pub fn rooms(&self) -> [Room; 4] {
        let (fill, sizes) = (self.tracker.fill(), self.tracker.sizes());
        let room = |map, entries, capacity: u32| Room { map, entries, capacity: u64::from(capacity) };
        [
            room("processes", fill.processes, sizes.processes),
            room("tables", fill.tables, sizes.processes),
            room("descriptors", fill.slots, sizes.slots),
            room("watched", self.watched.len() as u64, sizes.watched),
        ]
    }

    /// How many commands are followed.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Who held the pipes that could be withheld at the last look, and how long ago their commands were seen to
    /// have ended.
    pub fn watched(&self) -> impl Iterator<Item = (&Row, Duration)> {
        self.rows.iter().filter_map(|row| Some((row, self.watched.get(&row.pipe)?.elapsed())))
    }

    /// Whether what is done with the tracker all the time can be done: it is tried.
    #[must_use]
    pub fn works(&mut self) -> bool {
        let nobodys = PipeId { dev: 0, ino: 0 };
        let written = self.tracker.watch(nobodys).is_ok();
        self.tracker.forget(nobodys);
        written && self.tracker.is_heard().is_ok() && self.tracker.holders().is_ok() && self.tracker.tasks().is_ok()
    }

    /// Whether there is anything that could be withheld.
    #[must_use]
    pub fn has_candidates(&self) -> bool {
        !self.watched.is_empty() || !self.commands.candidates().is_empty()
    }

    /// Which pipes are withheld now, and for how long their commands were seen to have ended.
    ///
    /// # Errors
    ///
    /// When the map cannot be asked.
    pub fn withheld(&mut self) -> io::Result<Vec<(Withheld, Duration)>> {
        let now = Instant::now();
        let candidates: HashSet<PipeId> = self.commands.candidates().into_iter().collect();
        let needed = |pipe: &PipeId| candidates.contains(pipe) || self.sought.contains(*pipe);
        for pipe in self.watched.keys().filter(|pipe| !needed(pipe)) {
            self.tracker.forget(*pipe);
        }
        self.watched.retain(|pipe, _| candidates.contains(pipe));
        for pipe in &candidates {
            if !self.watched.contains_key(pipe) {
                self.tracker.watch(*pipe).map_err(io::Error::other)?;
                self.watched.insert(*pipe, now);
                self.unsought = true;
            }
        }
        if self.unsought {
            // Who holds them already is found by a pass over everything.
            self.tracker.seed(None).map_err(io::Error::other)?;
            self.unsought = false;
        }
        self.rows = if candidates.is_empty() { Vec::new() } else { self.rows()? };
        let found = self.commands.judge(&self.rows);
        let since = |pipe: &PipeId| self.watched.get(pipe).map_or(Duration::ZERO, |since| now.duration_since(*since));
        Ok(found.into_iter().map(|found| (since(&found.pipe), found)).map(|(since, found)| (found, since)).collect())
    }

    /// The id of a process's cgroup in the v2 hierarchy; 0 where there is none.
    #[must_use]
    pub fn cgroup(&self, pid: i32) -> u64 {
        self.tracker.process(pid.cast_unsigned()).map_or(0, |process| process.cgroup)
    }

    /// Reads everything anew: the map, who lives, and what was started with which pipes.
    fn reseed(&mut self) -> io::Result<()> {
        // What is lost meanwhile makes for another time.
        self.losses = self.tracker.losses();
        self.tracker.seed(None).map_err(io::Error::other)?;
        let mut processes = self.tracker.processes().map_err(io::Error::other)?;
        processes.sort_unstable_by_key(|(pid, process)| (process.start_boot_ns, *pid));
        // Its end may be among what was lost: it has no descriptors any more, and nobody has waited for it yet.
        processes.retain(|(pid, process)| process.files != 0 || !is_zombie(pid.cast_signed()));
        self.commands.resync(&processes.iter().map(|(pid, _)| pid.cast_signed()).collect());
        for (pid, process) in processes {
            self.ran(pid, process);
        }
        Ok(())
    }
}

/// Whether a process has ended, and its parent does not know yet. One whose first thread alone has ended lives.
fn is_zombie(pid: i32) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.is_dead())
}

/// The clock of the programs.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn tested(rung: Rung, sizes: Sizes) -> Result<(Tracker, Reader), NoTracker> {
    let mut tracker = Tracker::attach(rung, Scope::All, sizes)?;
    self_test::of_tracker(&mut tracker)?;
    let reader = tracker.take_reader().ok_or_else(|| LoadError::Stale("events".to_owned()))?;
    Ok((tracker, reader))
}
