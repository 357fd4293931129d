//! Who has the descriptor tables of the map.
//!
//! The map knows one thread of each, which had it first. Of most tables that is all there is to know: they are had by
//! the first thread of a process, and by nobody outside of it. Of the others an iterator knows more: of those that
//! several processes share, of a thread's own, and of those that the first thread left.
//!
//! Some of these nobody has. Of two threads that leave a table at once, neither is the last one to the programs, and
//! the table stays in the map. That is found out here, and mended by a seeding.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use pipewarden_common::live_map::{Slot, SlotKey};

use super::snapshot::SnapshotError;
use super::tracker::Tracker;

/// By table (its `files_struct`): the processes that have it, each with a thread of it that does. A table that nobody
/// has is not among them.
pub type Users = HashMap<u64, Vec<(u32, u32)>>;

/// Tables that were in the map, and nobody had.
#[derive(Debug, Default)]
pub(super) struct Deserted {
    /// Since the last seeding.
    pub(super) known: HashSet<u64>,
    /// How many there ever were.
    number: u64,
}

impl Tracker {
    /// How many tables were found in the map so far that nobody had.
    #[must_use]
    pub fn deserted(&self) -> u64 {
        self.deserted.number
    }

    /// Who has the tables that these slots are in, now.
    ///
    /// A table that nobody has, and that is in the map still, counts among the
    /// [losses](super::tracker::Losses::unsure) from here on: the map must be seeded.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn users(&mut self, slots: &[(SlotKey, Slot)]) -> Result<Users, SnapshotError> {
        let mut users = Users::new();
        let mut unclear: Vec<SlotKey> = Vec::new();
        for (key, _) in slots {
            if let Entry::Vacant(entry) = users.entry(key.files) {
                let leader = self.leader_with(key.files);
                unclear.extend(leader.is_none().then_some(*key));
                entry.insert(leader.map(|pid| (pid, pid)).into_iter().collect());
            }
        }
        if unclear.is_empty() {
            return Ok(users);
        }
        for task in self.tasks()? {
            if let Some(its) = users.get_mut(&task.files)
                && its.iter().all(|(pid, _)| *pid != task.pid)
            {
                its.push((task.pid, task.tid));
            }
        }
        for key in unclear.iter().filter(|key| users[&key.files].is_empty()) {
            // Its last user may have left, and taken it out, since the slots were read.
            if self.slot(key.files, key.fd).is_some() && self.deserted.known.insert(key.files) {
                self.deserted.number += 1;
            }
        }
        users.retain(|_, its| !its.is_empty());
        Ok(users)
    }

    /// The process whose first thread certainly has a table, and that shares it with no other.
    fn leader_with(&self, files: u64) -> Option<u32> {
        let table = self.table(files)?;
        let its = table.shared == 0
            && table.led_no_more == 0
            && self.process(table.pid).is_some_and(|process| process.files == files);
        its.then_some(table.pid)
    }

    /// Puts a slot on a watched pipe into the map, in a table of ours that nobody has.
    #[cfg(test)]
    pub(crate) fn put_deserted(&mut self, key: SlotKey, slot: Slot) {
        let us = std::process::id();
        let table = pipewarden_common::live_map::Table { pid: us, tid: us, slots: 1, ..Default::default() };
        self.maps.tables.insert(key.files, table, 0).unwrap();
        self.maps.slots.insert(key, slot, 0).unwrap();
        self.maps.holders.insert(key, slot, 0).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;

    use super::super::record::pipe_of;
    use super::super::rung::Rung;
    use super::*;
    use crate::pipe::PipeId;

    /// A tracker of ourselves, and a pipe of ours that it watches.
    fn ours() -> Option<(Tracker, PipeId, std::io::PipeReader, std::io::PipeWriter)> {
        let mut tracker = crate::kernel::tracker_for_test(&Rung::ALL)?;
        let (read, write) = std::io::pipe().unwrap();
        let stat = nix::sys::stat::fstat(read.as_fd()).unwrap();
        let pipe = PipeId { dev: stat.st_dev, ino: stat.st_ino };
        tracker.follow(std::process::id()).unwrap();
        tracker.watch(pipe).unwrap();
        tracker.seed(None).unwrap();
        Some((tracker, pipe, read, write))
    }

    fn holders(tracker: &Tracker, pipe: PipeId) -> Vec<(SlotKey, Slot)> {
        let mut slots = tracker.holders().unwrap();
        slots.retain(|(_, slot)| pipe_of(&slot.held) == pipe);
        slots
    }

    #[test]
    fn a_thread_that_has_a_table_of_its_own_is_told_with_its_process() {
        let Some((mut tracker, pipe, _read, _write)) = ours() else { return };
        let us = std::process::id();
        let ((tell, told), (end, ended)) = (channel(), channel::<()>());
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
            tell.send(nix::unistd::gettid().as_raw().cast_unsigned()).unwrap();
            let _ = ended.recv(); // until the other end is dropped
        });
        let tid = told.recv().unwrap();
        let slots = holders(&tracker, pipe);
        let users = tracker.users(&slots).unwrap();
        assert_eq!(users[&tracker.process(us).unwrap().files], [(us, us)]);
        // Other tests' children may have it for a moment, too.
        assert!(users.values().any(|users| *users == [(us, tid)]), "{users:?}");
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_table_that_nobody_has_is_not_told_and_is_a_loss_until_the_map_is_seeded() {
        const NOBODYS: u64 = 0x1000;
        let Some((mut tracker, pipe, _read, _write)) = ours() else { return };
        let us = std::process::id();
        let files = tracker.process(us).unwrap().files;
        let (key, slot) = holders(&tracker, pipe).into_iter().find(|(key, _)| key.files == files).unwrap();
        let deserted = SlotKey { files: NOBODYS, ..key };
        tracker.put_deserted(deserted, slot);

        let before = tracker.losses();
        assert_eq!(tracker.deserted(), 0);
        let slots = [(key, slot), (deserted, slot)];
        for _ in 0..2 {
            let users = tracker.users(&slots).unwrap();
            assert_eq!(users.into_iter().collect::<Vec<_>>(), [(files, vec![(us, us)])]);
            assert_eq!(tracker.deserted(), 1, "counted once");
        }
        assert!(tracker.losses().unsure > before.unsure, "a seeding is asked for");
        tracker.seed(None).unwrap();
        assert!(holders(&tracker, pipe).iter().all(|(key, _)| key.files != NOBODYS));
        assert_eq!((tracker.table(NOBODYS), tracker.slot(NOBODYS, key.fd)), (None, None));
        // These slots are not in the map any more: nothing is wrong with a table that is gone from it.
        assert_eq!(tracker.users(&slots).unwrap().len(), 1);
        assert_eq!(tracker.deserted(), 1);
    }
}
