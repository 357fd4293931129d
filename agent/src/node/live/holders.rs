//! Who holds the pipes that could be withheld.

use std::collections::{HashMap, HashSet};
use std::io;

use pipewarden_common::live_map::Process;

use super::super::withheld::{Row, Writer};
use super::Live;
use crate::kernel::record::{end_of, pipe_of, process_of};
use crate::pipe::{End, PipeId, ProcessId};

/// A writer that is of no lineage: it stands for somebody who is not known.
const SOMEBODY: Writer = Writer { id: ProcessId { pid: 0, start_ticks: 0 }, pgid: 0, cgroup: 0 };

impl Live {
    /// Everybody who holds a watched pipe.
    pub(super) fn rows(&mut self) -> io::Result<Vec<Row>> {
        let slots = self.tracker.holders().map_err(io::Error::other)?;
        let users = self.tracker.users(&slots).map_err(io::Error::other)?;
        let mut rows: HashMap<PipeId, (Row, HashSet<u64>)> = HashMap::new();
        for (key, slot) in &slots {
            let (pipe, Some(end)) = (pipe_of(&slot.held), end_of(&slot.held)) else { continue };
            let Some(users) = users.get(&key.files) else { continue };
            let empty = || (Row { pipe, writers: Vec::new(), readers: Vec::new() }, HashSet::new());
            let (row, files) = rows.entry(pipe).or_insert_with(empty);
            if end.writes() {
                files.insert(slot.held.file);
            }
            for &(pid, _) in users {
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
}

fn writer(pid: u32, process: &Process) -> Writer {
    Writer { id: process_of(pid, process.start_boot_ns), pgid: process.pgid.cast_signed(), cgroup: process.cgroup }
}
