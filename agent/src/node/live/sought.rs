//! Pipes that somebody asks about: who holds them, and what happens to those.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use pipewarden_common::event::{Escape, OTHER_UNKNOWN, kind};

use super::Live;
use crate::kernel::record::{Record, end_of, pipe_of, process_of};
use crate::pipe::{End, PipeId, ProcessId};

/// Escapes that nobody has taken yet; more are lost, and that is told.
const MOST_ESCAPES: usize = 4096;
/// After somebody who held it ended, the kernel takes a moment to close what it had: milliseconds between looks.
const FADES: [u64; 6] = [1, 2, 5, 20, 100, 500];
/// Tables are forgotten when the index is read; between two readings there are not more than this.
const MOST_TABLES: usize = 65536;

/// What is known of the pipes that were asked about.
#[derive(Default)]
pub(super) struct Sought {
    /// How often each was asked about.
    pipes: HashMap<PipeId, usize>,
    /// Descriptor tables that have, or had, one of them.
    tables: HashMap<u64, Vec<PipeId>>,
    news: News,
    /// Pipes whose last writer may be gone: when to look, and how often that was done.
    fading: HashMap<PipeId, (Instant, usize)>,
}

/// What happened, each pipe once.
#[derive(Debug, Default)]
pub struct News {
    /// Who holds it may be others now.
    pub changed: HashSet<PipeId>,
    /// Nobody writes to it any more.
    pub eof: HashSet<PipeId>,
    /// Who left its session or group.
    pub escapes: Vec<Fled>,
    /// Whether there were more of these than anybody can take.
    pub missed: bool,
}

impl News {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.eof.is_empty() && self.escapes.is_empty() && !self.missed
    }
}

/// A process that left its group with a pipe.
#[derive(Clone, Debug)]
pub struct Fled {
    /// Which pipe.
    pub pipe: PipeId,
    /// Who.
    pub pid: i32,
    /// When, by `CLOCK_MONOTONIC`.
    pub happened: Duration,
    /// What it holds of the pipe, where that is known.
    pub hold: Option<Part>,
}

/// What one table has of a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A thread that has the table.
    pub tid: i32,
    /// The end, or both.
    pub end: End,
    /// The descriptors.
    pub fds: Vec<i32>,
}

/// Who holds a pipe.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    /// By process, whatever end they have.
    pub parts: BTreeMap<ProcessId, Vec<Part>>,
    /// Tables whose process is not known, and that write.
    pub unknown: u32,
    /// Writing file descriptions that no table shows, where the kernel tells.
    pub hidden: Option<u32>,
}

impl Holding {
    fn add(&mut self, id: ProcessId, tid: i32, end: End, fd: i32) {
        let parts = self.parts.entry(id).or_default();
        match parts.iter_mut().find(|part| part.tid == tid) {
            Some(part) => {
                part.end = part.end.and(end);
                part.fds.push(fd);
            }
            None => parts.push(Part { tid, end, fds: vec![fd] }),
        }
    }
}

impl Sought {
    pub(super) fn contains(&self, pipe: PipeId) -> bool {
        self.pipes.contains_key(&pipe)
    }

    /// Events were lost: the end of any last writer may have been among them.
    pub(super) fn may_have_faded(&mut self) {
        for pipe in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.fades(pipe);
        }
    }

    fn fades(&mut self, pipe: PipeId) {
        self.fading.insert(pipe, (Instant::now() + Duration::from_millis(FADES[0]), 0));
    }
}

impl Live {
    /// Puts pipes among those whose holders are known: all of them, once this returns.
    ///
    /// # Errors
    ///
    /// When the map is full or cannot be read; then none of them is sought by this.
    pub fn seek(&mut self, pipes: &[PipeId]) -> io::Result<()> {
        let mut others = false;
        let mut result = Ok(());
        for pipe in pipes {
            let known = self.sought.contains(*pipe);
            if !known && !self.watched.contains_key(pipe) {
                result = result.and(self.tracker.watch(*pipe).map_err(io::Error::other));
                others = true;
            }
            *self.sought.pipes.entry(*pipe).or_default() += 1;
        }
        if result.is_ok() && others {
            // Who holds them already is found by a pass over everything.
            result = self.tracker.seed(None).map(drop).map_err(io::Error::other);
        }
        if result.is_err() {
            pipes.iter().for_each(|pipe| self.leave(*pipe));
        }
        result
    }

    /// Takes one back.
    pub fn leave(&mut self, pipe: PipeId) {
        let Some(times) = self.sought.pipes.get_mut(&pipe) else { return };
        *times -= 1;
        if *times == 0 {
            self.sought.pipes.remove(&pipe);
            self.sought.fading.remove(&pipe);
            if !self.watched.contains_key(&pipe) {
                self.tracker.forget(pipe);
            }
        }
    }

    /// Who holds these sought pipes now: what it costs is the number of holders of all watched ones.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn holding(&mut self, pipes: &HashSet<PipeId>) -> io::Result<HashMap<PipeId, Holding>> {
        let slots = self.tracker.holders().map_err(io::Error::other)?;
        let users = self.tracker.users(&slots).map_err(io::Error::other)?;
        self.sought.tables.clear();
        let mut found: HashMap<PipeId, (Holding, HashSet<u64>)> = HashMap::new();
        for (key, slot) in slots {
            let (pipe, Some(end)) = (pipe_of(&slot.held), end_of(&slot.held)) else { continue };
            let Some(users) = users.get(&key.files).filter(|_| self.sought.contains(pipe)) else { continue };
            let of_table = self.sought.tables.entry(key.files).or_default();
            if !of_table.contains(&pipe) {
                of_table.push(pipe);
            }
            if !pipes.contains(&pipe) {
                continue;
            }
            let (holding, files) = found.entry(pipe).or_default();
            if end.writes() {
                files.insert(slot.held.file);
            }
            let mut nobody = true;
            for (pid, tid) in users {
                let Some(process) = self.tracker.process(*pid) else { continue };
                nobody = false;
                let id = process_of(*pid, process.start_boot_ns);
                holding.add(id, tid.cast_signed(), end, key.fd.cast_signed());
            }
            holding.unknown += u32::from(nobody && end.writes());
        }
        Ok(pipes
            .iter()
            .map(|pipe| {
                let (mut holding, files) = found.remove(pipe).unwrap_or_default();
                let shown = u32::try_from(files.len()).unwrap_or(u32::MAX);
                holding.hidden = self.tracker.writers(*pipe).map(|writers| writers.saturating_sub(shown));
                (*pipe, holding)
            })
            .collect())
    }

    /// Who holds the pipes that these processes have open, sought or not: it reads the whole map.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn own(&mut self, of: &HashSet<ProcessId>) -> io::Result<HashMap<ProcessId, Vec<(PipeId, Holding)>>> {
        let slots = self.tracker.slots().map_err(io::Error::other)?;
        let users = self.tracker.users(&slots).map_err(io::Error::other)?;
        let mut found: HashMap<PipeId, Holding> = HashMap::new();
        for (key, slot) in slots {
            let (pipe, Some(end)) = (pipe_of(&slot.held), end_of(&slot.held)) else { continue };
            for (pid, tid) in users.get(&key.files).into_iter().flatten() {
                let Some(process) = self.tracker.process(*pid) else { continue };
                let id = process_of(*pid, process.start_boot_ns);
                found.entry(pipe).or_default().add(id, tid.cast_signed(), end, key.fd.cast_signed());
            }
        }
        let of_one = |id: &ProcessId| {
            let its = found.iter().filter(|(_, holding)| holding.parts.contains_key(id));
            let mut its: Vec<_> = its.map(|(pipe, holding)| (*pipe, holding.clone())).collect();
            its.sort_unstable_by_key(|(pipe, _)| *pipe);
            its
        };
        Ok(of.iter().map(|id| (*id, of_one(id))).collect())
    }

    /// Whether nothing was lost that was not made up for. What only the kernel's own numbers tell is asked
    /// once a second, and not here.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let counted = self.tracker.counted_losses();
        counted.since(&crate::kernel::tracker::Losses { skipped: 0, ..self.losses }).is_none()
    }

    /// What happened to sought pipes since this was asked last.
    pub fn news(&mut self) -> News {
        let now = Instant::now();
        let due: Vec<PipeId> =
            self.sought.fading.iter().filter(|(_, (at, _))| *at <= now).map(|(pipe, _)| *pipe).collect();
        for pipe in due {
            // While nobody can be asked, the pipe itself is the oracle.
            let gone = self.tracker.writers(pipe) == Some(0);
            let Some((at, times)) = self.sought.fading.get_mut(&pipe) else { continue };
            *times += 1;
            match FADES.get(*times).filter(|_| !gone) {
                Some(pause) => *at = now + Duration::from_millis(*pause),
                None => {
                    self.sought.fading.remove(&pipe);
                }
            }
            if gone {
                self.sought.news.eof.insert(pipe);
            }
        }
        std::mem::take(&mut self.sought.news)
    }

    /// When there may be news without an event.
    #[must_use]
    pub fn fades_at(&self) -> Option<Instant> {
        self.sought.fading.values().map(|(at, _)| *at).min()
    }

    /// Takes in what a record says of sought pipes.
    pub(super) fn hear(&mut self, record: &Record) {
        if self.sought.pipes.is_empty() {
            return;
        }
        let event = record.event();
        match (event.kind, record) {
            (kind::FORK, _) => {
                let Some(pipes) = self.sought.tables.get(&event.files).cloned() else { return };
                self.sought.news.changed.extend(pipes.iter().copied());
                if let Some(child) = self.tracker.process(event.other)
                    && self.sought.tables.len() < MOST_TABLES
                {
                    self.sought.tables.insert(child.files, pipes);
                }
            }
            (kind::EXIT, _) => {
                let pipes = self.sought.tables.get(&event.files).cloned().unwrap_or_default();
                for pipe in pipes.into_iter().filter(|pipe| self.sought.pipes.contains_key(pipe)).collect::<Vec<_>>() {
                    self.sought.news.changed.insert(pipe);
                    self.sought.fades(pipe);
                }
            }
            (_, Record::Closed(closed)) => {
                let pipe = pipe_of(&closed.held);
                if self.sought.contains(pipe) {
                    self.sought.news.eof.insert(pipe);
                }
            }
            (_, Record::Escape(escape)) => self.hear_escape(escape),
            _ => {}
        }
    }

    fn hear_escape(&mut self, escape: &Escape) {
        let event = &escape.event;
        let happened = Duration::from_nanos(event.time_ns);
        let put = event.kind == kind::SETPGID && event.other != 0 && event.other != event.pid;
        if put && event.other == OTHER_UNKNOWN {
            return; // the next look finds it
        }
        let mut fled = Vec::new();
        let (pid, files) = if put {
            // A shell puts its children into their groups: what it holds is not what they hold.
            let Some(process) = self.tracker.process(event.other) else { return };
            (event.other, process.files)
        } else {
            let mut parts = BTreeMap::<PipeId, Part>::new();
            for held in escape.held.iter().take(escape.count as usize) {
                let (pipe, Some(end)) = (pipe_of(held), end_of(held)) else { continue };
                if self.sought.contains(pipe) {
                    let new = || Part { tid: event.tid.cast_signed(), end, fds: Vec::new() };
                    let part = parts.entry(pipe).or_insert_with(new);
                    part.end = part.end.and(end);
                    part.fds.push(held.fd.cast_signed());
                }
            }
            let pid = event.pid.cast_signed();
            parts.retain(|_, part| part.end.writes());
            fled.extend(parts.into_iter().map(|(pipe, part)| Fled { pipe, pid, happened, hold: Some(part) }));
            (event.pid, event.files)
        };
        if put || escape.unseen > 0 {
            let unseen = self.sought.tables.get(&files).into_iter().flatten();
            let unseen = unseen.filter(|pipe| fled.iter().all(|fled| fled.pipe != **pipe)).copied();
            let unseen: Vec<PipeId> = unseen.collect();
            fled.extend(unseen.into_iter().map(|pipe| Fled { pipe, pid: pid.cast_signed(), happened, hold: None }));
        }
        let room = MOST_ESCAPES.saturating_sub(self.sought.news.escapes.len());
        self.sought.news.missed |= fled.len() > room;
        fled.truncate(room);
        self.sought.news.escapes.extend(fled);
    }
}
