//! Who holds the pipes that could be withheld.

use std::collections::{HashMap, HashSet};
use std::io;

use pipewarden_common::live_map::{Process, Slot, SlotKey};

use super::super::withheld::{Row, Writer};
use super::Live;
use crate::kernel::record::{end_of, pipe_of, process_of};
use crate::pipe::{End, PipeId, ProcessId};

/// A writer that is of no lineage: it stands for somebody who is not known.
const SOMEBODY: Writer = Writer { id: ProcessId { pid: 0, start_ticks: 0 }, pgid: 0, cgroup: 0 };

/// By table: its processes, each with a thread of it.
type Users = HashMap<u64, Vec<(u32, u32)>>;

impl Live {
    /// Everybody who holds a watched pipe.
    pub(super) fn rows(&mut self) -> io::Result<Vec<Row>> {
        let slots = self.tracker.holders().map_err(io::Error::other)?;
        let shared = self.users_of_shared_tables(&slots)?;
        let mut rows: HashMap<PipeId, (Row, HashSet<u64>)> = HashMap::new();
        for (key, slot) in &slots {
            let (pipe, Some(end)) = (pipe_of(&slot.held), end_of(&slot.held)) else { continue };
            let empty = || (Row { pipe, writers: Vec::new(), readers: Vec::new() }, HashSet::new());
            let (row, files) = rows.entry(pipe).or_insert_with(empty);
            let table = self.tracker.table(key.files);
            let users = shared.get(&key.files).cloned().or_else(|| table.map(|table| vec![(table.pid, table.tid)]));
            let users = users.unwrap_or_default();
            if end.writes() {
                files.insert(slot.held.file);
                if users.is_empty() {
                    row.writers.push(SOMEBODY);
                }
            }
            for (pid, _) in users {
                if end.writes() {
                    row.writers.push(self.tracker.process(pid).map_or(SOMEBODY, |process| writer(pid, &process)));
                }
                if end != End::Write {
                    row.readers.push(pid.cast_signed());
                }
            }
        }
        // What the kernel counts and no table shows is in flight, or with an io_uring.
        for (row, files) in rows.values_mut() {
            if self.tracker.writers(row.pipe).is_none_or(|writers| writers as usize != files.len()) {
                row.writers.push(SOMEBODY);
            }
        }
        Ok(rows.into_values().map(|(row, _)| row).collect())
    }

    /// The processes of tables that several processes have: the map knows one of them, an iterator all.
    pub(super) fn users_of_shared_tables(&mut self, slots: &[(SlotKey, Slot)]) -> io::Result<Users> {
        let is_shared = |files: &u64| self.tracker.table(*files).is_some_and(|table| table.shared == 1);
        let tables = slots.iter().map(|(key, _)| key.files).filter(is_shared);
        let mut users: Users = tables.map(|files| (files, Vec::new())).collect();
        if users.is_empty() {
            return Ok(users);
        }
        for task in self.tracker.tasks().map_err(io::Error::other)? {
            if let Some(users) = users.get_mut(&task.files)
                && users.iter().all(|(known, _)| *known != task.pid)
            {
                users.push((task.pid, task.tid));
            }
        }
        Ok(users)
    }
}

fn writer(pid: u32, process: &Process) -> Writer {
    Writer { id: process_of(pid, process.start_boot_ns), pgid: process.pgid.cast_signed(), cgroup: process.cgroup }
}
