//! The machine's tracker, and what of it says whose pipes are withheld.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use pipewarden_common::event::{OTHER_UNKNOWN, kind};
use pipewarden_common::live_map::{Process, Slot, SlotKey};

use super::withheld::{Commands, Row, Seen, Withheld, Writer};
use crate::kernel::lock::{self, Carrier, TrackerLock};
use crate::kernel::object::{LoadError, Scope, Sizes};
use crate::kernel::record::{Record, end_of, pipe_of, process_of};
use crate::kernel::rung::Rung;
use crate::kernel::self_test::{self, SelfTestError};
use crate::kernel::tracker::{Losses, Reader, Tracker};
use crate::pipe::{PipeId, ProcessId};
use crate::process::stat::Stat;

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

/// The most generations that are looked up.
const GENERATIONS: usize = 64;

/// A writer that is of no lineage: it stands for somebody who is not known.
const SOMEBODY: Writer = Writer { id: ProcessId { pid: 0, start_ticks: 0 }, pgid: 0, cgroup: 0 };

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

    fn record(&mut self, record: &Record) {
        let event = record.event();
        let pid = event.pid.cast_signed();
        match event.kind {
            kind::FORK => self.commands.forked(pid, event.other.cast_signed()),
            kind::EXEC => self.ran(event.pid),
            kind::EXIT => {
                self.commands.moved(pid, event.pgid.cast_signed());
                self.commands.exited(pid);
            }
            kind::SETSID => self.commands.moved(pid, event.pgid.cast_signed()),
            kind::SETPGID if event.other == OTHER_UNKNOWN => {} // its exit tells its group
            kind::SETPGID => {
                let whom = if event.other == 0 { event.pid } else { event.other };
                if let Some(process) = self.tracker.process(whom) {
                    self.commands.moved(whom.cast_signed(), process.pgid.cast_signed());
                }
            }
            _ => {}
        }
    }

    fn ran(&mut self, pid: u32) {
        let Some(process) = self.tracker.process(pid) else { return };
        let seen = self.seen(pid, &process);
        if !seen.outputs.is_empty() {
            let ancestors = self.ancestors(pid, process);
            self.commands.ran(&seen, &ancestors);
        }
    }

    fn seen(&self, pid: u32, process: &Process) -> Seen {
        let output = |fd| {
            let slot = self.tracker.slot(process.files, fd)?;
            end_of(&slot.held)?.writes().then(|| pipe_of(&slot.held))
        };
        let outputs = [1, 2].into_iter().filter_map(output).collect();
        Seen { pid: pid.cast_signed(), pgid: process.pgid.cast_signed(), cgroup: process.cgroup, outputs }
    }

    /// Who lives of those that a process descends from, its parent first.
    fn ancestors(&self, pid: u32, process: Process) -> Vec<Seen> {
        let mut above = Vec::new();
        let (mut pid, mut process) = (pid, process);
        while above.len() < GENERATIONS {
            // Its parent at its birth may be gone, and the pid another's.
            let born = self.tracker.process(process.parent).filter(|parent| {
                process.parent != 0 && parent.start_boot_ns != 0 && parent.start_boot_ns <= process.start_boot_ns
            });
            let parent = match born {
                Some(parent) => Some((process.parent, parent)),
                None => Stat::read(pid.cast_signed()).ok().and_then(|stat| {
                    let parent = stat.ppid.cast_unsigned();
                    Some((parent, self.tracker.process(parent)?))
                }),
            };
            let Some((parent, of_parent)) = parent else { break };
            above.push(self.seen(parent, &of_parent));
            (pid, process) = (parent, of_parent);
        }
        above
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

    /// Everybody who holds a watched pipe.
    fn rows(&mut self) -> io::Result<Vec<Row>> {
        let slots = self.tracker.holders().map_err(io::Error::other)?;
        let shared = self.users_of_shared_tables(&slots)?;
        let mut rows: HashMap<PipeId, (Row, HashSet<u64>)> = HashMap::new();
        for (key, slot) in &slots {
            let (pipe, Some(end)) = (pipe_of(&slot.held), end_of(&slot.held)) else { continue };
            let empty = || (Row { pipe, writers: Vec::new(), readers: Vec::new() }, HashSet::new());
            let (row, files) = rows.entry(pipe).or_insert_with(empty);
            let table = self.tracker.table(key.files);
            let users = shared.get(&key.files).cloned().or_else(|| Some(vec![table?.pid])).unwrap_or_default();
            if end.writes() {
                files.insert(slot.held.file);
                if users.is_empty() {
                    row.writers.push(SOMEBODY);
                }
            }
            for pid in users {
                if end.writes() {
                    row.writers.push(self.tracker.process(pid).map_or(SOMEBODY, |process| writer(pid, &process)));
                }
                if end != crate::pipe::End::Write {
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
    fn users_of_shared_tables(&mut self, slots: &[(SlotKey, Slot)]) -> io::Result<HashMap<u64, Vec<u32>>> {
        let is_shared = |files: &u64| self.tracker.table(*files).is_some_and(|table| table.shared == 1);
        let tables = slots.iter().map(|(key, _)| key.files).filter(is_shared);
        let mut users: HashMap<u64, Vec<u32>> = tables.map(|files| (files, Vec::new())).collect();
        if users.is_empty() {
            return Ok(users);
        }
        for task in self.tracker.tasks().map_err(io::Error::other)? {
            if let Some(users) = users.get_mut(&task.files)
                && !users.contains(&task.pid)
            {
                users.push(task.pid);
            }
        }
        Ok(users)
    }
}

fn writer(pid: u32, process: &Process) -> Writer {
    Writer { id: process_of(pid, process.start_boot_ns), pgid: process.pgid.cast_signed(), cgroup: process.cgroup }
}

fn tested(rung: Rung) -> Result<(Tracker, Reader), NoTracker> {
    let mut tracker = Tracker::attach(rung, Scope::All, Sizes::NODE)?;
    self_test::of_tracker(&mut tracker)?;
    let reader = tracker.take_reader().ok_or_else(|| LoadError::Stale("events".to_owned()))?;
    Ok((tracker, reader))
}
