//! What the thread that reads a tracker's events shares with those that ask its map.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use aya::maps::MapError;

use crate::kernel::lock::TrackerLock;
use crate::kernel::seed::Root;
use crate::kernel::tracker::{Losses, Tracker};
use crate::pipe::{Pipe, PipeId};
use crate::process::children;
use crate::process::stat::Stat;

/// What the threads know.
pub(super) struct Shared {
    map: Mutex<Map>,
    /// Whether the map must be seeded before it is asked.
    pub(super) must_seed: AtomicBool,
    /// Whether who asked the map found that something was lost: who reads the events tells it.
    pub(super) lost: AtomicBool,
    pub(super) root: i32,
    /// Ours as long as the tracker is.
    _lock: TrackerLock,
}

/// The live map, and what it was asked about.
pub(super) struct Map {
    pub(super) tracker: Tracker,
    watched: HashSet<PipeId>,
    /// What had been lost when it was seeded, or needed no seeding.
    pub(super) seen: Losses,
    /// Whether a command is being started whose birth will be told. Until it is, we are tracked ourselves.
    pub(super) starting: bool,
}

impl Map {
    /// Watches these pipes and no others. Whether some were not watched before.
    pub(super) fn watch(&mut self, pipes: &[Pipe]) -> Result<bool, MapError> {
        for pipe in self.watched.extract_if(|pipe| pipes.iter().all(|wanted| wanted.id != *pipe)) {
            self.tracker.forget(pipe);
        }
        let mut others = false;
        for pipe in pipes {
            if !self.watched.contains(&pipe.id) {
                self.tracker.watch(pipe.id)?;
                self.watched.insert(pipe.id);
                others = true;
            }
        }
        Ok(others)
    }
}

impl Shared {
    pub(super) fn new(tracker: Tracker, lock: TrackerLock, root: i32) -> Shared {
        let map = Map { tracker, watched: HashSet::new(), seen: Losses::default(), starting: false };
        let map = Mutex::new(map);
        Shared { map, must_seed: AtomicBool::new(true), lost: AtomicBool::new(false), root, _lock: lock }
    }

    pub(super) fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless somebody is at it.
    pub(super) fn map_now(&self) -> Option<MutexGuard<'_, Map>> {
        match self.map.try_lock() {
            Ok(map) => Some(map),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Seeds the map, which had lost so much before.
    pub(super) fn seed(&self, root: &Root, losses: &Losses) -> io::Result<()> {
        let tracker = &mut self.map().tracker;
        tracker.seed(Some(root)).map_err(io::Error::other)?;
        if tracker.losses().does_not_fit(losses) {
            // Another seeding would not help.
            let (fill, sizes) = (tracker.fill(), tracker.sizes());
            return Err(io::Error::other(format!(
                "the live map is full: {} of {} processes, {} of {} descriptors on pipes",
                fill.processes, sizes.processes, fill.slots, sizes.slots
            )));
        }
        Ok(())
    }

    /// A command is about to be started: it is to be tracked from its birth. [`born`](Self::born) must follow.
    ///
    /// Then the map needs no seeding, if it is exact already, or nobody is there yet who could be found by one: it has
    /// not been asked about any pipe, and we have no children. New pipes have no holders but us.
    pub(super) fn expect(&self, pipes: &[Pipe], helpers: &HashSet<i32>) {
        let starting = self.map_now().is_some_and(|mut map| {
            let losses = map.tracker.losses();
            let is_exact = !self.must_seed.load(Ordering::Acquire) && losses == map.seen;
            let is_ready = (is_exact || map.watched.is_empty() && self.has_nobody(helpers))
                && map.watch(pipes).is_ok()
                && map.tracker.follow(self.root.cast_unsigned()).is_ok();
            if is_ready {
                (map.seen, map.starting) = (losses, true);
                self.must_seed.store(false, Ordering::Release);
            }
            is_ready
        });
        if !starting {
            self.must_seed.store(true, Ordering::Release);
        }
    }

    /// Whether the supervisor has no children. One may be missed while another goes, but not twice.
    fn has_nobody(&self, helpers: &HashSet<i32>) -> bool {
        let is_empty = || children::descendants(self.root, helpers).is_ok_and(|descendants| descendants.is_empty());
        is_empty() && is_empty()
    }

    /// It was started, or could not be. We are no lineage any more. Where its birth was not told, the map must be
    /// seeded.
    pub(super) fn born(&self, command: Option<i32>) {
        let mut map = self.map();
        if !std::mem::take(&mut map.starting) {
            return;
        }
        map.tracker.leave(self.root.cast_unsigned());
        // Who ended since has left the map.
        let is_told = command.is_none_or(|pid| {
            map.tracker.process(pid.cast_unsigned()).is_some() || Stat::read(pid).is_ok_and(|stat| stat.is_dead())
        });
        if !is_told {
            self.must_seed.store(true, Ordering::Release);
        }
    }
}
