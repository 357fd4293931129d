//! The live map, asked for one run: who holds its pipes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use pipewarden_common::Held;
use pipewarden_common::live_map::{Slot, SlotKey};

use super::add;
use super::shared::Shared;
use crate::kernel::record::{end_of, pipe_of, process_of};
use crate::kernel::seed::Root;
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
        BpfSource { shared, proc, seeding: None }
    }

    /// Whether the map can be asked. If not, it is being seeded: where it was attached late, when there are other pipes
    /// to watch, and whenever anything was lost.
    fn is_exact(&mut self, question: &Question) -> io::Result<bool> {
        if let Some(seeding) = self.seeding.take_if(|seeding| seeding.is_finished()) {
            seeding.join().unwrap_or_else(|_| Err(io::Error::other("the thread that seeds the live map panicked")))?;
            self.shared.must_seed.store(false, Ordering::Release);
        }
        let shared = Arc::clone(&self.shared);
        let Some(mut map) = shared.map_now().filter(|map| self.seeding.is_none() && !map.starting) else {
            return Ok(false);
        };
        map.tracker.is_heard().map_err(io::Error::other)?;
        let losses = map.tracker.losses();
        if losses != map.seen {
            shared.lost.store(true, Ordering::Release);
            shared.must_seed.store(true, Ordering::Release);
        }
        if map.watch(&question.pipes).map_err(io::Error::other)? {
            shared.must_seed.store(true, Ordering::Release);
        }
        if !shared.must_seed.load(Ordering::Acquire) {
            return Ok(true);
        }
        // What is lost meanwhile is lost after what the passes found, and asks for another seeding.
        map.seen = losses;
        drop(map);
        let root = Root { pid: shared.root, except: question.except.clone() };
        let seed = move || shared.seed(&root, &losses);
        // Where there are no more threads to be had, the next question tries again.
        self.seeding = thread::Builder::new().name("seed".to_owned()).spawn(seed).ok();
        Ok(false)
    }

    /// Reads the index.
    fn index(&self) -> io::Result<Index> {
        let tracker = &mut self.shared.map().tracker;
        let mut slots = tracker.holders().map_err(io::Error::other)?;
        let deserted = tracker.deserted();
        let users = tracker.users(&slots).map_err(io::Error::other)?;
        let is_wrong = tracker.deserted() != deserted;
        slots.retain(|(key, _)| users.contains_key(&key.files));
        Ok(Index { slots, users, is_wrong })
    }

    /// What the map says.
    fn census(&self, question: &Question, index: &Index) -> io::Result<Census> {
        // Who is on its way out has left the map, and with much memory to give back it is not gone for long.
        let mut members = self.proc.members(&question.except)?;
        let found: HashSet<i32> = members.iter().map(|stat| stat.id.pid).collect();
        // A walk misses who moves meanwhile.
        let mut missed = Vec::new();
        for (pid, process) in self.shared.map().tracker.processes().map_err(io::Error::other)? {
            let pid = pid.cast_signed();
            if question.except.contains(&pid) || found.contains(&pid) {
                continue;
            }
            // Where the map is behind, the number may be another's by now.
            if let Ok(stat) = Stat::read(pid)
                && !stat.is_dead()
                && (process.start_boot_ns == 0 || stat.id == process_of(pid.cast_unsigned(), process.start_boot_ns))
            {
                missed.push(stat);
            }
        }
        self.proc.mark_who_is_at_work(&mut missed);
        members.append(&mut missed);
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
        // Parents first.
        members.sort_unstable_by_key(|stat| (stat.id.start_ticks, stat.id.pid));
        census.members = members;
        Ok(census)
    }

    /// Whether the kernel counts no writer of these pipes that the map does not show.
    fn all_writers_are_known(&self, question: &Question, index: &Index) -> bool {
        let tracker = &self.shared.map().tracker;
        question.pipes.iter().all(|pipe| {
            let of_pipe = |slot: &Slot| writes(slot, question).is_some_and(|(id, _)| id == pipe.id);
            let shown: Vec<Held> =
                index.slots.iter().map(|(_, slot)| slot).filter(|slot| of_pipe(slot)).map(|slot| slot.held).collect();
            let files = shown.iter().map(|held| held.file).collect::<HashSet<u64>>().len();
            shown.first().and_then(|held| tracker.writers_of(held)).is_some_and(|writers| writers as usize <= files)
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
    use std::io::{BufRead, BufReader, PipeReader, Write};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use pipewarden_common::END_WRITE;

    use super::*;
    use crate::kernel::lock::TrackerLock;
    use crate::kernel::record::key_of;
    use crate::kernel::rung::Rung;
    use crate::ownership::Lineage;
    use crate::ownership::keep::Keep;
    use crate::pipe::{Pipe, PipeKind};
    use crate::process::children::descendants;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A source for what descends from us, and the folder that its lock is in.
    fn ours() -> Option<(BpfSource, tempfile::TempDir)> {
        below(nix::unistd::getpid().as_raw())
    }

    fn below(root: i32) -> Option<(BpfSource, tempfile::TempDir)> {
        let tracker = crate::kernel::tracker_for_test(&Rung::ALL)?;
        let folder = tempfile::tempdir().unwrap();
        let lock = TrackerLock::take(&folder.path().join("lock"), "test").unwrap().unwrap();
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

    fn pipe_behind(fd: impl AsFd) -> Pipe {
        let stat = nix::sys::stat::fstat(fd).unwrap();
        Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Pipe }
    }

    /// A shell that starts commands, whose stdout is one pipe.
    struct Supervisor {
        shell: Child,
        output: BufReader<PipeReader>,
        pipe: Pipe,
    }

    impl Supervisor {
        fn new() -> Supervisor {
            let (read, write) = io::pipe().unwrap();
            let pipe = pipe_behind(&read);
            let shell = Command::new("sh").stdin(Stdio::piped()).stdout(write).spawn().unwrap();
            Supervisor { shell, output: BufReader::new(read), pipe }
        }

        fn pid(&self) -> i32 {
            self.shell.id().cast_signed()
        }

        /// Starts a command that goes on; its pid.
        fn starts(&mut self) -> i32 {
            writeln!(self.shell.stdin.as_ref().unwrap(), "sleep 1000 & echo $!").unwrap();
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            line.trim_end().parse().unwrap()
        }
    }

    impl Drop for Supervisor {
        fn drop(&mut self) {
            for pid in descendants(self.pid(), &HashSet::new()).unwrap_or_default() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }

    fn who_holds(source: &mut BpfSource, pipe: Pipe) -> Vec<i32> {
        let question = about(vec![pipe]);
        assert!(source.is_exact(&question).unwrap(), "it need not be seeded");
        let index = source.index().unwrap();
        // The supervisor's is the same open file.
        assert!(source.all_writers_are_known(&question, &index));
        let census = source.holders(&question).unwrap();
        census.holders.iter().map(|holder| holder.id.pid).collect()
    }

    #[test]
    fn a_command_is_tracked_from_its_birth() {
        let mut supervisor = Supervisor::new();
        let Some((mut source, _folder)) = below(supervisor.pid()) else { return };
        let (shared, pipe) = (Arc::clone(&source.shared), supervisor.pipe);
        shared.expect(&[pipe], &HashSet::new());
        assert!(!source.is_exact(&about(vec![pipe])).unwrap(), "nobody seeds while a command is being started");
        let command = supervisor.starts();
        shared.born(Some(command));
        assert_eq!(who_holds(&mut source, pipe), [command]);
        // So is the next one, although the first one lives: the map is exact.
        shared.expect(&[pipe], &HashSet::new());
        let next = supervisor.starts();
        shared.born(Some(next));
        let mut both = [command, next];
        both.sort_unstable();
        let mut holders = who_holds(&mut source, pipe);
        holders.sort_unstable();
        assert_eq!(holders, both);
        // Nobody else is.
        let other = supervisor.starts();
        assert!(shared.map().tracker.process(other.cast_unsigned()).is_none());
    }

    #[test]
    fn a_birth_that_was_not_told_is_found_out() {
        let mut supervisor = Supervisor::new();
        let Some((source, _folder)) = below(supervisor.pid()) else { return };
        source.shared.expect(&[supervisor.pipe], &HashSet::new());
        source.shared.map().tracker.leave(supervisor.pid().cast_unsigned());
        let command = supervisor.starts();
        assert!(!source.shared.must_seed.load(Ordering::Acquire));
        source.shared.born(Some(command));
        assert!(source.shared.must_seed.load(Ordering::Acquire));
    }

    #[test]
    fn who_is_there_before_the_command_asks_for_a_seeding() {
        let mut supervisor = Supervisor::new();
        let Some((mut source, _folder)) = below(supervisor.pid()) else { return };
        let (shared, pipe) = (Arc::clone(&source.shared), supervisor.pipe);
        let first = supervisor.starts();
        let needs_none = |helpers: &[i32]| {
            shared.expect(&[pipe], &helpers.iter().copied().collect());
            let starting = shared.map().starting;
            shared.born(None);
            assert_eq!(shared.must_seed.load(Ordering::Acquire), !starting);
            starting
        };
        assert!(!needs_none(&[]));
        assert!(needs_none(&[first]), "one that is no lineage does not");
        shared.must_seed.store(true, Ordering::Release);
        becomes_exact(&mut source, &about(vec![pipe]));
        assert!(needs_none(&[]), "it is exact");
        shared.map().seen.events += 1;
        assert!(!needs_none(&[]), "something was lost");
    }

    #[test]
    fn nobody_waits_for_a_seeding() {
        let Some((mut source, _folder)) = ours() else { return };
        let (shared, question) = (Arc::clone(&source.shared), about(Vec::new()));
        let (tell, told) = channel();
        let at_it = shared.map(); // as who seeds it has it
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
        let (read, _write) = io::pipe().unwrap();
        let pipe = pipe_behind(&read);
        let (id, question) = (pipe.id, about(vec![pipe]));
        becomes_exact(&mut source, &question);
        let key = SlotKey { files: 0x1000, fd: 1, reserved: 0 };
        let held = Held { ino: id.ino, dev: key_of(id).dev, fd: 1, ends: END_WRITE, ..Held::default() };
        source.shared.map().tracker.put_deserted(key, Slot { held, pass: 0, watched: 1 });
        source.holders(&question).unwrap();
        assert!(source.seeding.is_some());
        becomes_exact(&mut source, &question);
        assert!(source.index().unwrap().slots.iter().all(|(at, _)| *at != key));
        assert_eq!(source.shared.map().tracker.slot(key.files, key.fd), None);
    }
}
