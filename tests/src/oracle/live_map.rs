//! The live map as a view.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use pipewarden::kernel::facts;
use pipewarden::kernel::object::{LoadError, Scope, Sizes};
use pipewarden::kernel::rung::Rung;
use pipewarden::kernel::seed::Root;
use pipewarden::kernel::self_test::in_initial_pid_namespace;
use pipewarden::kernel::snapshot::Snapshot;
use pipewarden::kernel::tracker::{Losses, Tracker};
use pipewarden_common::snapshot::{FileRow, TaskRow};

use super::view::View;
use crate::actor::op::Hole;

/// The live map of whatever descends from this process.
pub struct LiveMap {
    name: String,
    map: Arc<Mutex<Map>>,
    /// Whether entries are spoiled before each look, which a seeding then has to mend.
    spoils: Option<Chance>,
}

/// A tracker, which many tests may ask at once: to attach one takes longer than most of them.
struct Map {
    tracker: Tracker,
    /// What the map does not keep: threads.
    snapshot: Snapshot,
    losses: Losses,
}

/// One of each rung, or why there is none.
type Shared = Mutex<Vec<(Rung, Result<Arc<Mutex<Map>>, String>)>>;
static SHARED: Shared = Mutex::new(Vec::new());

/// A small generator of numbers (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl LiveMap {
    /// The map of a rung; otherwise why it is not to be had.
    ///
    /// # Errors
    ///
    /// One line that says why.
    ///
    /// # Panics
    ///
    /// When the verifier objects to a program: that is no lack of the machine's.
    pub fn attach(rung: Rung) -> Result<LiveMap, String> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shared.iter().position(|(known, _)| *known == rung);
        let known = known.unwrap_or_else(|| {
            shared.push((rung, Map::attach(rung).map(|map| Arc::new(Mutex::new(map)))));
            shared.len() - 1
        });
        let map = shared[known].1.clone()?;
        Ok(LiveMap { name: rung.to_string(), map, spoils: None })
    }

    /// The same, but nobody else's, and with entries lost, invented and altered before each look: the map
    /// must find out by itself.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn spoiled(rung: Rung, seed: u64) -> Result<LiveMap, String> {
        let map = Arc::new(Mutex::new(Map::attach(rung)?));
        Ok(LiveMap { name: format!("{rung}, spoiled"), map, spoils: Some(Chance(seed | 1)) })
    }
}

impl Map {
    fn attach(rung: Rung) -> Result<Map, String> {
        if !in_initial_pid_namespace() {
            return Err("needs the initial pid namespace".into());
        }
        let snapshot = Snapshot::load().map_err(|error| format!("needs BPF iterators: {error}"))?;
        let sizes = Sizes { slots: 131_072, ..Sizes::RUN };
        let mut tracker = Tracker::attach(rung, Scope::Lineage, sizes).map_err(|error: LoadError| {
            let forbidden = facts::lockdown().is_ok_and(|lockdown| lockdown == "confidentiality");
            let objection = error.verifier_tail(40).filter(|_| !forbidden);
            assert!(objection.is_none(), "{rung}: {error}\n{}", objection.unwrap_or_default().join("\n"));
            format!("needs {rung}: {error}")
        })?;
        // Whoever this process starts is tracked from the fork on.
        tracker.follow(std::process::id()).expect("an empty map has room");
        seed(&mut tracker);
        Ok(Map { tracker, snapshot, losses: Losses::default() })
    }
}

fn seed(tracker: &mut Tracker) {
    let root = Root { pid: std::process::id().cast_signed(), except: HashSet::new() };
    tracker.seed(Some(&root)).expect("the map can be seeded");
}

impl View for LiveMap {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chance) = &mut self.spoils {
            map.tracker.spoil([chance.next(), chance.next(), chance.next()]);
            seed(&mut map.tracker);
        }
        map.rows()
    }

    fn holes(&self) -> &'static [Hole] {
        &[]
    }
}

impl Map {
    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>) {
        self.make_exact();
        let mut slots = self.tracker.slots().expect("the map can be read");
        let deserted = self.tracker.deserted();
        let mut users = self.tracker.users(&slots).expect("the task iterator can be read");
        if self.tracker.deserted() != deserted {
            self.make_exact();
            slots = self.tracker.slots().expect("the map can be read");
            users = self.tracker.users(&slots).expect("the task iterator can be read");
        }
        let processes: HashMap<_, _> = self.tracker.processes().expect("the map can be read").into_iter().collect();
        let mut tasks = Vec::new();
        for mut row in self.snapshot.tasks().expect("the task iterator can be read") {
            if row.tid != row.pid {
                tasks.extend(processes.contains_key(&row.pid).then_some(row));
            } else if let Some(process) = processes.get(&row.pid) {
                row.start_boot_ns = process.start_boot_ns;
                (row.pgid, row.sid) = (process.pgid, process.sid);
                // A leader that has left its threads has no table.
                row.files = if row.files == 0 { 0 } else { process.files };
                tasks.push(row);
            }
        }
        // What is in the map, and no process has.
        for (pid, process) in processes.iter().filter(|(_, process)| process.start_boot_ns != 0) {
            if !tasks.iter().any(|row| row.tid == *pid) {
                tasks.push(TaskRow {
                    start_boot_ns: process.start_boot_ns,
                    files: process.files,
                    pid: *pid,
                    tid: *pid,
                    parent: process.parent,
                    pgid: process.pgid,
                    sid: process.sid,
                    reserved: 0,
                });
            }
        }
        let mut files = Vec::new();
        for (key, slot) in slots {
            // What is in the map still although nobody has it is shown as well: it must not be there.
            let users = users.get(&key.files).cloned().unwrap_or_else(|| vec![(0, 0)]);
            files.extend(users.into_iter().map(|(pid, tid)| FileRow { files: key.files, pid, tid, held: slot.held }));
        }
        (tasks, files)
    }

    /// As a run does: what was lost is made up for by another seeding.
    fn make_exact(&mut self) {
        let losses = self.tracker.losses();
        if losses != self.losses {
            // What is lost while it is seeded is lost after what it found.
            seed(&mut self.tracker);
            self.losses = losses;
        }
    }
}
