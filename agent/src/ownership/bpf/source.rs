//! The live map, asked for one run: who holds its pipes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use pipewarden_common::live_map::{Slot, SlotKey};

use super::add;
use super::shared::Shared;
use crate::kernel::record::{end_of, pipe_of, process_of};
use crate::kernel::seed::Root;
use crate::kernel::tracker::Losses;
use crate::kernel::users::Users;
use crate::ownership::proc::Proc;
use crate::ownership::{Census, Question, Scope, Source};
use crate::pipe::{End, PipeId, Relation};
use crate::process::stat::Stat;
use crate::process::table::Hold;

/// The live map, asked for one run.
pub(super) struct BpfSource {
    shared: Arc<Shared>,
    /// Describes holders, and looks where the map shows nothing.
    proc: Proc,
    watched: HashSet<PipeId>,
    seen: Losses,
    /// Until its end was taken note of.
    seeding: Option<JoinHandle<io::Result<()>>>,
}

impl Source for BpfSource {
    fn holders(&mut self, question: &Question) -> io::Result<Census> {
        // A seeding looks at the whole machine: until it has, nobody waits.
        if !self.is_exact(question)? {
            return self.proc.holders(question);
        }
        let index = self.index()?;
        if index.is_wrong {
            self.is_exact(question)?;
            return self.proc.holders(question);
        }
        let mut census = self.census(question, &index)?;
        if question.scope == Scope::Lineage {
            return Ok(census);
        }
        // What the kernel counts and no table of the lineage shows is in another's table, in flight, or with
        // an io_uring. Where nothing is, nobody has to look.
        if self.all_writers_are_known(question, &index) {
            return Ok(census);
        }
        let found = self.proc.holders(question)?;
        let known: HashSet<_> = census.holders.iter().map(|holder| holder.id).collect();
        census.holders.extend(found.holders.into_iter().filter(|holder| !known.contains(&holder.id)));
        census.unseen = found.unseen;
        census.complete = found.complete;
        Ok(census)
    }
}

impl BpfSource {
    pub(super) fn new(shared: Arc<Shared>, proc: Proc) -> BpfSource {
        BpfSource { shared, proc, watched: HashSet::new(), seen: Losses::default(), seeding: None }
    }

    /// Whether the map can be asked. If not, it is being seeded: the first time, when there are other pipes to watch,
    /// and whenever anything was lost.
    fn is_exact(&mut self, question: &Question) -> io::Result<bool> {
        if let Some(seeding) = self.seeding.take_if(|seeding| seeding.is_finished()) {
            seeding.join().unwrap_or_else(|_| Err(io::Error::other("the thread that seeds the live map panicked")))?;
            self.shared.must_seed.store(false, Ordering::Release);
        }
        let shared = Arc::clone(&self.shared);
        let Some(mut tracker) = shared.tracker_now().filter(|_| self.seeding.is_none()) else { return Ok(false) };
        tracker.is_heard().map_err(io::Error::other)?;
        let wanted: HashSet<PipeId> = question.pipes.iter().map(|pipe| pipe.id).collect();
        for pipe in self.watched.difference(&wanted) {
            tracker.forget(*pipe);
        }
        for pipe in wanted.difference(&self.watched) {
            tracker.watch(*pipe).map_err(io::Error::other)?;
            shared.must_seed.store(true, Ordering::Release);
        }
        self.watched = wanted;
        let losses = tracker.losses();
        if let Some((why, missed)) = losses.since(&self.seen) {
            shared.must_seed.store(true, Ordering::Release);
            if self.seen != Losses::default() {
                shared.note(why, missed);
            }
        }
        drop(tracker);
        if !shared.must_seed.load(Ordering::Acquire) {
            return Ok(true);
        }
        // What is lost meanwhile is lost after what the passes found, and asks for another seeding.
        self.seen = losses;
        let root = Root { pid: shared.root, except: question.except.clone() };
        let seed = {
            let root = root.clone();
            move || shared.seed(&root, &losses)
        };
        match thread::Builder::new().name("seed".to_owned()).spawn(seed) {
            Ok(seeding) => {
                self.seeding = Some(seeding);
                Ok(false)
            }
            // There may be no more threads.
            Err(_) => {
                self.shared.seed(&root, &losses)?;
                self.shared.must_seed.store(false, Ordering::Release);
                Ok(true)
            }
        }
    }

    /// Reads the index.
    fn index(&self) -> io::Result<Index> {
        let mut tracker = self.shared.tracker();
        let mut slots = tracker.holders().map_err(io::Error::other)?;
        let deserted = tracker.deserted();
        let users = tracker.users(&slots).map_err(io::Error::other)?;
        let is_wrong = tracker.deserted() != deserted;
        slots.retain(|(key, _)| users.contains_key(&key.files));
        Ok(Index { slots, users, is_wrong })
    }

    /// What the map says.
    fn census(&self, question: &Question, index: &Index) -> io::Result<Census> {
        let processes = self.shared.tracker().processes().map_err(io::Error::other)?;
        let mut members = Vec::new();
        for (pid, process) in processes {
            let pid = pid.cast_signed();
            if question.except.contains(&pid) {
                continue;
            }
            // Where the map is behind, the number may be another's by now.
            if let Ok(stat) = Stat::read(pid)
                && !stat.is_dead()
                && (process.start_boot_ns == 0 || stat.id == process_of(pid.cast_unsigned(), process.start_boot_ns))
            {
                members.push(stat);
            }
        }
        let mut holds = HashMap::<i32, BTreeMap<PipeId, Hold>>::new();
        for (key, slot) in &index.slots {
            let Some((pipe, end)) = writes(slot, question) else { continue };
            // A thread may have a table of its own: then it is its process's all the same.
            for (pid, tid) in &index.users[&key.files] {
                let holds = holds.entry(pid.cast_signed()).or_default();
                add(holds, pipe, end, tid.cast_signed(), key.fd.cast_signed());
            }
        }
        let mut census =
            Census { scope: question.scope, holders: Vec::new(), members: Vec::new(), unseen: 0, complete: true };
        for stat in &members {
            let Some(holds) = holds.remove(&stat.id.pid) else { continue };
            // Who ended while we looked holds nothing any more.
            if let Ok(holder) = self.proc.holder(stat, Relation::Lineage, holds.into_values().collect()) {
                census.holders.push(holder);
            }
        }
        self.proc.mark_who_is_at_work(&mut members);
        // Parents first.
        members.sort_unstable_by_key(|stat| (stat.id.start_ticks, stat.id.pid));
        census.members = members;
        Ok(census)
    }

    /// Whether the kernel counts no writer of these pipes that the map does not show.
    fn all_writers_are_known(&self, question: &Question, index: &Index) -> bool {
        let tracker = self.shared.tracker();
        question.pipes.iter().all(|pipe| {
            let of_pipe = |slot: &Slot| writes(slot, question).is_some_and(|(id, _)| id == pipe.id);
            let shown = index.slots.iter().filter(|(_, slot)| of_pipe(slot)).map(|(_, slot)| slot.held.file);
            let shown = shown.collect::<HashSet<u64>>().len();
            tracker.writers(pipe.id).is_some_and(|writers| writers as usize <= shown)
        })
    }
}

/// The slots on watched pipes, at one time.
struct Index {
    slots: Vec<(SlotKey, Slot)>,
    /// Who has their tables.
    users: Users,
    /// Whether there were some that nobody has.
    is_wrong: bool,
}

/// The pipe and end of a slot, if it writes to a pipe of the question.
fn writes(slot: &Slot, question: &Question) -> Option<(PipeId, End)> {
    let (pipe, end) = (pipe_of(&slot.held), end_of(&slot.held)?);
    (end.writes() && question.pipes.iter().any(|asked| asked.id == pipe)).then_some((pipe, end))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use pipewarden_common::{END_WRITE, Held};

    use super::*;
    use crate::kernel::lock::TrackerLock;
    use crate::kernel::record::key_of;
    use crate::kernel::rung::Rung;
    use crate::ownership::Lineage;
    use crate::ownership::keep::Keep;
    use crate::pipe::{Pipe, PipeKind};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A source for what descends from us, and the folder that its lock is in.
    fn ours() -> Option<(BpfSource, tempfile::TempDir)> {
        let tracker = crate::kernel::tracker_for_test(&Rung::ALL)?;
        let folder = tempfile::tempdir().unwrap();
        let lock = TrackerLock::take(&folder.path().join("lock"), "test").unwrap().unwrap();
        let root = nix::unistd::getpid().as_raw();
        let lineage = Lineage { root, home: 0, adopter: None };
        let shared = Arc::new(Shared::new(tracker, lock, root));
        Some((BpfSource::new(shared, Proc::new(lineage, Keep::default())), folder))
    }

    fn about(pipes: Vec<Pipe>) -> Question {
        let deadline = Instant::now() + PATIENCE;
        Question { pipes, scope: Scope::Lineage, except: HashSet::new(), deadline }
    }

    fn becomes_exact(source: &mut BpfSource, question: &Question) {
        while !source.is_exact(question).unwrap() {
            assert!(Instant::now() < question.deadline, "it is seeded");
            thread::yield_now();
        }
    }

    #[test]
    fn nobody_waits_for_a_seeding() {
        let Some((mut source, _folder)) = ours() else { return };
        let (shared, question) = (Arc::clone(&source.shared), about(Vec::new()));
        let (tell, told) = channel();
        let at_it = shared.tracker(); // as who seeds it has it
        let asker = thread::spawn(move || {
            tell.send(source.holders(&question).is_ok()).unwrap();
            (source, question)
        });
        assert_eq!(told.recv_timeout(PATIENCE), Ok(true), "it answers meanwhile");
        drop(at_it);
        let (mut source, question) = asker.join().unwrap();
        assert!(!source.is_exact(&question).unwrap(), "who finds that it must be seeded does not wait for that either");
        becomes_exact(&mut source, &question);
        source.holders(&question).unwrap();
        assert!(!shared.must_seed.load(Ordering::Acquire));
    }

    #[test]
    fn a_table_that_nobody_has_makes_for_a_seeding_at_once() {
        let Some((mut source, _folder)) = ours() else { return };
        let (read, _write) = std::io::pipe().unwrap();
        let stat = nix::sys::stat::fstat(read.as_fd()).unwrap();
        let id = PipeId { dev: stat.st_dev, ino: stat.st_ino };
        let question = about(vec![Pipe { id, kind: PipeKind::Pipe }]);
        becomes_exact(&mut source, &question);
        let key = SlotKey { files: 0x1000, fd: 1, reserved: 0 };
        let held = Held { ino: id.ino, dev: key_of(id).dev, fd: 1, ends: END_WRITE, ..Held::default() };
        source.shared.tracker().put_deserted(key, Slot { held, pass: 0, watched: 1 });
        source.holders(&question).unwrap();
        assert!(source.seeding.is_some());
        becomes_exact(&mut source, &question);
        assert!(source.index().unwrap().slots.iter().all(|(at, _)| *at != key));
        assert_eq!(source.shared.tracker().slot(key.files, key.fd), None);
    }
}
