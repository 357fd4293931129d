//! Seeding the live map: what exists already is entered, what is gone is taken out.
//!
//! The programs enter what they see happen. A pass of the iterators enters the rest, slot by slot, by the
//! same code and while things go on happening; what no pass has seen any more is gone. It makes an empty
//! map exact, and one that lost something.

use std::collections::HashSet;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use pipewarden_common::counter;
use pipewarden_common::live_map::{Control, Process, Slot, SlotKey, Table};
use pipewarden_common::snapshot::TaskRow;

use super::snapshot::{self, SnapshotError};
use super::tracker::{SEED, TASKS, Tracker, iterator};
use crate::process::children;

/// Whose descendants are tracked.
#[derive(Clone, Debug)]
pub struct Root {
    /// An ancestor of all of them, which is itself not tracked.
    pub pid: i32,
    /// Children of it that are none of them.
    pub except: HashSet<i32>,
}

/// What a seeding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Descriptors that the map did not have, or had wrong.
    pub mended: u64,
    /// Entries of the map that were gone.
    pub dropped: u64,
    /// Passes over everything that it took.
    pub passes: u32,
    /// How long it took.
    pub took: Duration,
}

/// Why the map could not be seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A map refused.
    #[error("the live map cannot be written: {}", why(.0))]
    Map(#[from] MapError),
    /// An iterator refused.
    #[error(transparent)]
    Pass(#[from] SnapshotError),
    /// The lineage could not be read.
    #[error("the lineage cannot be read: {0}")]
    Lineage(#[from] io::Error),
}

/// What a map said, in words: the library names the call alone.
fn why(error: &MapError) -> String {
    match error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => "it is full".to_owned(),
        MapError::SyscallError(call) => format!("{}: {}", call.call, call.io_error),
        error => error.to_string(),
    }
}

/// A pass that took something out is followed by another: what was taken out wrongly, because it came
/// into being meanwhile, is back then. It takes two, but for the unluckiest.
const PASSES: u32 = 4;

impl Tracker {
    /// Makes the map say what is, whatever it said before. With a `root`, its descendants become tracked;
    /// without one, those that are tracked already (or, in [`Scope::All`](super::object::Scope), everybody)
    /// are looked at.
    ///
    /// Processes that are forked meanwhile are tracked from their fork on, by whom they descend from.
    ///
    /// # Errors
    ///
    /// [`SeedError`].
    pub fn seed(&mut self, root: Option<&Root>) -> Result<Seeded, SeedError> {
        let started = Instant::now();
        let mended = self.counter(counter::MENDED);
        let mut seeded = Seeded::default();
        let outcome = loop {
            match self.pass(root) {
                Ok(dropped) => {
                    seeded.dropped += dropped;
                    seeded.passes += 1;
                    if dropped == 0 || seeded.passes == PASSES {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        // From here on a child is tracked if its parent is.
        let pass = self.control().pass;
        self.maps.control.set(0, Control { root: 0, pass }, 0)?;
        outcome?;
        self.deserted.known.clear();
        seeded.mended = self.counter(counter::MENDED).wrapping_sub(mended);
        seeded.took = started.elapsed();
        Ok(seeded)
    }

    /// One pass over everything: how many entries were gone.
    fn pass(&mut self, root: Option<&Root>) -> Result<u64, SeedError> {
        let pass = self.control().pass.wrapping_add(1);
        let ancestor = root.map_or(0, |root| root.pid.cast_unsigned());
        self.maps.control.set(0, Control { root: ancestor, pass }, 0)?;
        if let Some(root) = root {
            for pid in children::descendants(root.pid, &root.except)? {
                self.follow(pid.cast_unsigned())?;
            }
        }
        for (name, _) in SEED {
            self.run(name)?;
        }
        let processes = take_out(&mut self.maps.processes, |process: &Process| process.pass != pass)?;
        let tables = take_out(&mut self.maps.tables, |table: &Table| table.pass != pass)?;
        let slots = take_out(&mut self.maps.slots, |slot: &Slot| slot.pass != pass)?;
        let holders = take_out(&mut self.maps.holders, |slot: &Slot| slot.pass != pass)?;
        self.taken_out.processes = self.taken_out.processes.wrapping_add(processes);
        self.taken_out.tables += tables;
        self.taken_out.slots += slots;
        Ok(processes + tables + slots + holders)
    }

    /// Runs an iterator that prints nothing.
    fn run(&mut self, name: &str) -> Result<(), SnapshotError> {
        let iterator = iterator(&mut self.ebpf, name)?;
        let link = iterator.attach()?;
        let mut file: std::fs::File = iterator.take_link(link)?.into_file()?;
        let mut buffer = [0; 64];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                // After a million objects without a word the kernel wants to be asked again.
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Spoils the map, for tests of how it mends: a slot is lost, one is there that is not, one is another
    /// pipe's, and a process and a table are forgotten.
    #[doc(hidden)]
    pub fn spoil(&mut self, chance: [u64; 3]) {
        let slots = self.slots().unwrap_or_default();
        let pick = |number: u64| usize::try_from(number).ok().and_then(|number| slots.get(number % slots.len().max(1)));
        if let Some((key, _)) = pick(chance[0] >> 8) {
            let _ = self.maps.slots.remove(key);
            let _ = self.maps.tables.remove(&key.files);
        }
        if let Some((key, slot)) = pick(chance[1] >> 8) {
            let phantom = SlotKey { fd: 4000 + key.fd, ..*key };
            let _ = self.maps.slots.insert(phantom, slot, 0);
        }
        if let (Some((key, _)), Some((_, slot))) = (pick(chance[2] >> 8), pick(chance[0] >> 16)) {
            let _ = self.maps.slots.insert(key, slot, 0);
        }
        let processes = self.processes().unwrap_or_default();
        let number = usize::try_from(chance[2] >> 16).unwrap_or(0) % processes.len().max(1);
        if let Some((pid, _)) = processes.get(number) {
            let _ = self.maps.processes.remove(pid);
        }
    }

    /// Every entry of the map: slots with what is in them.
    ///
    /// # Errors
    ///
    /// From the map.
    pub fn slots(&self) -> Result<Vec<(SlotKey, Slot)>, MapError> {
        all(&self.maps.slots)
    }

    /// The slots on watched pipes.
    ///
    /// # Errors
    ///
    /// From the map.
    pub fn holders(&self) -> Result<Vec<(SlotKey, Slot)>, MapError> {
        all(&self.maps.holders)
    }

    /// Every descriptor table, by its `files_struct`.
    ///
    /// # Errors
    ///
    /// From the map.
    pub fn tables(&self) -> Result<Vec<(u64, Table)>, MapError> {
        all(&self.maps.tables)
    }

    /// Every tracked process, by its pid.
    ///
    /// # Errors
    ///
    /// From the map.
    pub fn processes(&self) -> Result<Vec<(u32, Process)>, MapError> {
        all(&self.maps.processes)
    }

    /// Every thread of the machine, as an iterator finds them now.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn tasks(&mut self) -> Result<Vec<TaskRow>, SnapshotError> {
        snapshot::read(iterator(&mut self.ebpf, TASKS.0)?)
    }

    /// One slot.
    #[must_use]
    pub fn slot(&self, files: u64, fd: u32) -> Option<Slot> {
        self.maps.slots.get(&SlotKey { files, fd, reserved: 0 }, 0).ok()
    }

    /// One table.
    #[must_use]
    pub fn table(&self, files: u64) -> Option<Table> {
        self.maps.tables.get(&files, 0).ok()
    }

    /// One process.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<Process> {
        self.maps.processes.get(&pid, 0).ok()
    }
}

/// The elements of a map that is written meanwhile: one that is moved may be seen twice, and is given once.
fn all<K: Pod + Eq + std::hash::Hash, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>, MapError> {
    let mut seen = HashSet::new();
    let mut elements = Vec::new();
    for key in map.keys() {
        let key = key?;
        match map.get(&key, 0) {
            Ok(value) if seen.insert(key) => elements.push((key, value)),
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(elements)
}

fn take_out<K: Pod + Eq + std::hash::Hash, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    gone: impl Fn(&V) -> bool,
) -> Result<u64, MapError> {
    let mut taken = 0;
    for (key, _) in all(map)?.into_iter().filter(|(_, value)| gone(value)) {
        match map.remove(&key) {
            Ok(()) => taken += 1,
            Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, end_of, pipe_of};
    use super::super::rung::Rung;
    use super::*;
    use crate::pipe::{End, PipeId};
    use pipewarden_common::event::kind;
    use std::io::{PipeReader, Write};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    fn tracker() -> Option<Tracker> {
        crate::kernel::tracker_for_test(&Rung::ALL)
    }

    fn us() -> Root {
        Root { pid: std::process::id().cast_signed(), except: HashSet::new() }
    }

    /// A shell that does what it is told, a line at a time, and holds the write end of a pipe as its
    /// stdout and stderr.
    struct Shell {
        child: Child,
        stdout: PipeReader,
        pipe: PipeId,
    }

    impl Shell {
        fn new() -> Shell {
            let (stdout, write) = std::io::pipe().unwrap();
            let stat = nix::sys::stat::fstat(stdout.as_fd()).unwrap();
            let mut command = Command::new("sh");
            command.stdin(Stdio::piped()).stdout(write.try_clone().unwrap()).stderr(write);
            let child = command.spawn().unwrap();
            Shell { child, stdout, pipe: PipeId { dev: stat.st_dev, ino: stat.st_ino } }
        }

        /// Lets it run a line, and waits until it did.
        fn run(&mut self, line: &str) -> String {
            writeln!(self.child.stdin.as_mut().unwrap(), "{line}\necho .").unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b".\n") {
                let mut byte = [0];
                self.stdout.read_exact(&mut byte).unwrap();
                said.push(byte[0]);
            }
            String::from_utf8(said).unwrap().trim_end_matches(".\n").to_owned()
        }

        /// Who holds its stdout's write end: pids with their descriptors.
        fn writers(&self, tracker: &Tracker) -> Vec<(u32, u32)> {
            let slots = tracker.holders().unwrap();
            let ours = slots.iter().filter(|(_, slot)| pipe_of(&slot.held) == self.pipe);
            let mut writers: Vec<_> = ours
                .filter(|(_, slot)| end_of(&slot.held).is_some_and(End::writes))
                .map(|(key, _)| (tracker.table(key.files).unwrap().pid, key.fd))
                .collect();
            writers.sort_unstable();
            writers
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn what_was_before_is_found_by_a_pass_and_what_comes_after_by_the_programs() {
        let mut shell = Shell::new();
        shell.run("exec 7>&1");
        let Some(mut tracker) = tracker() else { return };
        tracker.watch(shell.pipe).unwrap();
        tracker.seed(Some(&us())).unwrap();
        let pid = shell.child.id();
        assert_eq!(shell.writers(&tracker), [(pid, 1), (pid, 2), (pid, 7)]);
        assert_eq!(tracker.writers(shell.pipe), Some(1), "one description, dup'ed");

        shell.run("exec 7>&- 8>&2 2>/dev/null");
        assert_eq!(shell.writers(&tracker), [(pid, 1), (pid, 8)]);

        let sleeper: u32 = shell.run("sleep 600 & echo $!").trim().parse().unwrap();
        let mut both = [(pid, 1), (pid, 8), (sleeper, 1), (sleeper, 8)];
        both.sort_unstable(); // pids begin anew at some time
        assert_eq!(shell.writers(&tracker), both);
        shell.run(&format!("kill -9 {sleeper}; wait"));
        assert_eq!(shell.writers(&tracker), [(pid, 1), (pid, 8)]);
        assert_eq!(tracker.losses().skipped, 0);
        assert!(tracker.losses().none(), "{:?}", tracker.losses());
    }

    #[test]
    fn an_escape_and_the_last_writers_end_are_told() {
        let mut shell = Shell::new();
        let Some(mut tracker) = tracker() else { return };
        tracker.watch(shell.pipe).unwrap();
        tracker.seed(Some(&us())).unwrap();
        let told = |tracker: &mut Tracker| std::iter::from_fn(|| tracker.next_record()).collect::<Vec<_>>();
        told(&mut tracker);
        shell.run("setsid true");
        let records = told(&mut tracker);
        let escape = records.iter().find_map(|record| match record {
            Record::Escape(escape)
                if escape.held[..escape.count as usize].iter().any(|held| pipe_of(held) == shell.pipe) =>
            {
                Some(escape)
            }
            _ => None,
        });
        assert!(escape.is_some_and(|escape| escape.event.sid == escape.event.pid), "{records:?}");

        // Its answers go where nobody hears them from here on.
        writeln!(shell.child.stdin.as_mut().unwrap(), "exec >/dev/null 2>&1").unwrap();
        assert_eq!(shell.stdout.read(&mut [0]).unwrap(), 0, "EOF");
        if crate::kernel::facts::version() < (6, 6) {
            return crate::kernel::skipped(format_args!("the last writer's end is not told before Linux 6.6"));
        }
        // We hear of EOF while the call that took the last writer away is still on its way back.
        let mut records = Vec::new();
        let gone = |record: &Record| matches!(record, Record::Closed(closed) if pipe_of(&closed.held) == shell.pipe && closed.event.kind == kind::LAST_WRITER);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !records.iter().any(gone) && Instant::now() < deadline {
            records.extend(told(&mut tracker));
            std::thread::yield_now();
        }
        assert!(records.iter().any(gone), "{records:?}");
        assert_eq!(tracker.writers(shell.pipe), Some(0));
    }

    #[test]
    fn a_map_that_lost_something_is_mended_and_says_so() {
        let mut shell = Shell::new();
        let Some(mut tracker) = tracker() else { return };
        tracker.watch(shell.pipe).unwrap();
        tracker.seed(Some(&us())).unwrap();
        let pid = shell.child.id();
        let (key, slot) =
            tracker.holders().unwrap().into_iter().find(|(_, slot)| pipe_of(&slot.held) == shell.pipe).unwrap();
        // One slot is lost, and one is there that is not.
        tracker.maps.slots.remove(&key).unwrap();
        tracker.maps.holders.remove(&key).unwrap();
        let phantom = SlotKey { fd: 63, ..key };
        tracker.maps.slots.insert(phantom, slot, 0).unwrap();
        tracker.maps.holders.insert(phantom, slot, 0).unwrap();
        let seeded = tracker.seed(Some(&us())).unwrap();
        assert!(seeded.mended >= 1 && seeded.dropped >= 2, "{seeded:?}");
        assert_eq!(shell.writers(&tracker), [(pid, 1), (pid, 2)]);
        shell.run(":");
    }
}
