//! What the thread that reads a tracker's events shares with those that ask its map.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::kernel::lock::TrackerLock;
use crate::kernel::seed::Root;
use crate::kernel::tracker::{Losses, Tracker};

/// What both threads know.
pub(super) struct Shared {
    pub(super) tracker: Mutex<Tracker>,
    /// Whether the map must be seeded before it is asked.
    pub(super) must_seed: AtomicBool,
    /// What a seeding found that nothing had told of.
    pub(super) seeded: Mutex<Option<(&'static str, u64)>>,
    pub(super) root: i32,
    /// Ours as long as the tracker is.
    _lock: TrackerLock,
}

impl Shared {
    pub(super) fn new(tracker: Tracker, lock: TrackerLock, root: i32) -> Shared {
        let (tracker, must_seed, seeded) = (Mutex::new(tracker), AtomicBool::new(true), Mutex::new(None));
        Shared { tracker, must_seed, seeded, root, _lock: lock }
    }

    pub(super) fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless it is at something.
    pub(super) fn tracker_now(&self) -> Option<MutexGuard<'_, Tracker>> {
        match self.tracker.try_lock() {
            Ok(tracker) => Some(tracker),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Seeds the map, which had lost so much before.
    pub(super) fn seed(&self, root: &Root, losses: &Losses) -> io::Result<()> {
        let mut tracker = self.tracker();
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

    pub(super) fn note(&self, why: &'static str, missed: u64) {
        *self.seeded.lock().unwrap_or_else(PoisonError::into_inner) = Some((why, missed));
    }
}
