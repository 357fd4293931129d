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
}

impl Map {
    /// Watches these pipes and no others. Whether some were not watched before.
    pub(super) fn watch(&mut self, pipes: &[Pipe]) -> Result<bool, MapError> {
        let wanted: HashSet<PipeId> = pipes.iter().map(|pipe| pipe.id).collect();
        for pipe in self.watched.difference(&wanted) {
            self.tracker.forget(*pipe);
        }
        let mut others = false;
        for pipe in wanted.difference(&self.watched) {
            self.tracker.watch(*pipe)?;
            others = true;
        }
        self.watched = wanted;
        Ok(others)
    }
}

impl Shared {
    pub(super) fn new(tracker: Tracker, lock: TrackerLock, root: i32) -> Shared {
        let map = Mutex::new(Map { tracker, watched: HashSet::new(), seen: Losses::default() });
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

    /// A command is about to be started: it is to be tracked from its birth. Whether it will be; then
    /// [`born`](Self::born) must follow.
    ///
    /// The map needs no seeding where there is nobody yet to be found by one, or where it is exact already. New pipes
    /// have no holders but us.
    pub(super) fn expect(&self, pipes: &[Pipe], helpers: &HashSet<i32>) -> bool {
        let nobody = children::descendants(self.root, helpers).is_ok_and(|descendants| descendants.is_empty());
        if !nobody && self.must_seed.load(Ordering::Acquire) {
            return false;
        }
        let Some(mut map) = self.map_now() else { return false };
        let losses = map.tracker.losses();
        if !nobody && losses != map.seen {
            return false;
        }
        if map.watch(pipes).is_err() || map.tracker.follow(self.root.cast_unsigned()).is_err() {
            return false;
        }
        map.seen = losses;
        true
    }

    /// It was started, or could not be. We are no lineage any more. Whether its birth was told.
    pub(super) fn born(&self, command: Option<i32>) -> bool {
        let tracker = &mut self.map().tracker;
        tracker.leave(self.root.cast_unsigned());
        command.is_none_or(|pid| {
            // Who ended since has left the map.
            tracker.process(pid.cast_unsigned()).is_some() || Stat::read(pid).is_ok_and(|stat| stat.is_dead())
        })
    }
}
