//! The machine's tracker, and what of it says whose pipes are withheld.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::withheld::{Commands, Withheld};
use crate::kernel::lock::{self, Carrier, TrackerLock};
use crate::kernel::object::{LoadError, Scope, Sizes};
use crate::kernel::rung::Rung;
use crate::kernel::self_test::{self, SelfTestError};
use crate::kernel::tracker::{Losses, Reader, Tracker};
use crate::pipe::PipeId;

mod descent;
mod holders;

/// Why there is no tracker.
#[derive(Debug, thiserror::Error)]
pub enum NoTracker {
    /// The machine has one, and it is another's.
    #[error("the machine's tracker is carried by {0}; one is enough, so end that one first")]
    Carried(String),
    /// The lock that says so cannot be had.
    #[error("/run/pipewarden/tracker.lock: {0}; run it as root")]
    Lock(#[source] io::Error),
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
    losses: Losses,
    _lock: TrackerLock,
}

impl Live {
    /// Takes the machine's lock, attaches the best rung that there is to all processes, tests it and
    /// seeds it. Must be called while nobody else reaps our children.
    ///
    /// # Errors
    ///
    /// [`NoTracker`].
    pub fn attach() -> Result<Live, NoTracker> {
        let Some(lock) = TrackerLock::take(&lock::path(), "node").map_err(NoTracker::Lock)? else {
            return Err(NoTracker::Carried(match lock::carrier(&lock::path()) {
                Ok(Carrier::Process { pid, role }) => format!("{role} (pid {pid})"),
                _ => "another process".to_owned(),
            }));
        };
        let mut last = None;
        for rung in Rung::ALL {
            match tested(rung) {
                Ok((tracker, reader)) => {
                    let (commands, losses) = (Commands::default(), tracker.losses());
                    let mut live = Live { tracker, reader, commands, watched: HashMap::new(), losses, _lock: lock };
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
    pub fn take_in(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(record) = self.reader.next_record() else { return false };
            self.record(&record);
        }
        true
    }

    /// What was lost since this was asked last: then everything was read anew.
    ///
    /// # Errors
    ///
    /// When it could not be.
    pub fn mend(&mut self) -> io::Result<Option<(&'static str, u64)>> {
        let lost = self.tracker.losses().since(&self.losses);
        if lost.is_some() {
            self.reseed()?;
        }
        Ok(lost)
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
        for pipe in self.watched.keys().filter(|pipe| !candidates.contains(pipe)) {
            self.tracker.forget(*pipe);
        }
        self.watched.retain(|pipe, _| candidates.contains(pipe));
        let mut others = false;
        for pipe in &candidates {
            if !self.watched.contains_key(pipe) {
                self.tracker.watch(*pipe).map_err(io::Error::other)?;
                self.watched.insert(*pipe, now);
                others = true;
            }
        }
        if others {
            // Who holds them already is found by a pass over everything.
            self.tracker.seed(None).map_err(io::Error::other)?;
        }
        let rows = if candidates.is_empty() { Vec::new() } else { self.rows()? };
        let found = self.commands.judge(&rows);
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
        self.commands.resync(&processes.iter().map(|(pid, _)| pid.cast_signed()).collect());
        for (pid, _) in processes {
            self.ran(pid);
        }
        Ok(())
    }
}

fn tested(rung: Rung) -> Result<(Tracker, Reader), NoTracker> {
    let mut tracker = Tracker::attach(rung, Scope::All, Sizes::NODE)?;
    self_test::of_tracker(&mut tracker)?;
    let reader = tracker.take_reader().ok_or_else(|| LoadError::Stale("events".to_owned()))?;
    Ok((tracker, reader))
}
