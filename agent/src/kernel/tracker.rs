//! A rung attached: the live map of pipe ownership, and the events that come with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use aya::programs::{Program, ProgramError};
use aya::{RawTracePointRunOptions, TestRun};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pipewarden_common::live_map::{Control, PipeKey, Process, Slot, SlotKey, Table};
use pipewarden_common::offsets::{
    MAP_CALLERS, MAP_CONTROL, MAP_COUNTERS, MAP_EVENTS, MAP_HOLDERS, MAP_PROCESSES, MAP_SLOTS, MAP_TABLES, MAP_WATCHED,
};
use pipewarden_common::{Held, call, counter};

use super::btf::Name;
use super::missed::Callers;
use super::object::{self, LoadError, Scope, Sizes, in_spite_of_signals, refused};
use super::record::{Record, key_of};
use super::rung::{Hook, Rung};
use super::users::Deserted;
use crate::pipe::PipeId;

/// What bringing the programs into the kernel took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From nothing to all programs verified.
    pub load: Duration,
    /// From there to all of them attached.
    pub attach: Duration,
    /// Instructions that the verifier looked at, in all programs. 0 before Linux 5.16, which does not tell.
    pub verified_instructions: u64,
}

/// A rung, attached until it is dropped. Nothing of it is pinned: the kernel takes everything away with
/// the process, however that ends.
pub struct Tracker {
    rung: Rung,
    cost: Cost,
    sizes: Sizes,
    /// Hooks that this kernel does not have, and the rung can do without.
    without: Vec<String>,
    reader: Option<Reader>,
    pub(super) maps: Maps,
    /// Kprobe rung: whose returns may be missed.
    callers: Option<Callers>,
    pub(super) deserted: Deserted,
    /// How many elements user space took out of the maps that the programs count.
    pub(super) taken_out: Fill,
    /// Owns the programs and their links.
    pub(super) ebpf: Ebpf,
}

/// The maps that user space reads and writes.
pub(super) struct Maps {
    pub(super) processes: HashMap<MapData, u32, Process>,
    pub(super) tables: HashMap<MapData, u64, Table>,
    pub(super) slots: HashMap<MapData, SlotKey, Slot>,
    pub(super) holders: HashMap<MapData, SlotKey, Slot>,
    pub(super) watched: HashMap<MapData, PipeKey, u64>,
    pub(super) control: Array<MapData, Control>,
    counters: Array<MapData, u64>,
}

/// How many elements there are in the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Tracked processes.
    pub processes: u64,
    /// Descriptor tables.
    pub tables: u64,
    /// Descriptors on pipes.
    pub slots: u64,
}

/// What went wrong since the tracker was attached: whenever one of these moves, the map may be wrong and
/// must be seeded anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records that did not fit into the ring buffer.
    pub events: u64,
    /// Processes or tables that did not fit into their maps.
    pub processes: u64,
    /// Descriptors that did not fit.
    pub slots: u64,
    /// Tables of which it is not known whether anybody still has them, or what is in all of them; and those that
    /// were in the map and [nobody had](Tracker::users).
    pub unsure: u64,
    /// Slots that changed each time they were looked at.
    pub unsettled: u64,
    /// How often the kernel skipped a program because it was running already on that processor
    /// (preemptible kernels). 0 before Linux 5.12, which does not count.
    pub skipped: u64,
}

impl Losses {
    /// Whether nothing was lost.
    #[must_use]
    pub fn none(&self) -> bool {
        *self == Losses::default()
    }

    /// What was lost since `before`, if anything was: the worst of it in a word, and how much in all.
    #[must_use]
    pub fn since(&self, before: &Losses) -> Option<(&'static str, u64)> {
        let all = [
            (self.slots - before.slots, "the map of descriptors was full"),
            (self.processes - before.processes, "the map of processes was full"),
            (self.skipped - before.skipped, "the kernel skipped programs that were running already"),
            (self.unsure - before.unsure, "descriptor tables were left in doubt"),
            (self.unsettled - before.unsettled, "descriptors changed faster than they were looked at"),
            (self.events - before.events, "the ring buffer was full"),
        ];
        let worst = all.iter().find(|(number, _)| *number > 0)?;
        Some((worst.1, all.iter().map(|(number, _)| number).sum()))
    }

    /// Each kind of loss in a word, the worst first, and how much of it there was.
    #[must_use]
    pub fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("descriptors", self.slots),
            ("processes", self.processes),
            ("skipped", self.skipped),
            ("unsure", self.unsure),
            ("unsettled", self.unsettled),
            ("events", self.events),
        ]
    }

    /// Whether since `before` something had no room, which another look cannot mend.
    #[must_use]
    pub fn does_not_fit(&self, before: &Losses) -> bool {
        self.slots > before.slots || self.processes > before.processes
    }
}

/// The programs are not where they were attached any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the live map's programs hear nothing any more: somebody took them off their hooks")]
pub struct Deaf;

/// How often in a row a call must go unheard for that.
const PULSES: u32 = 8;

/// How much the programs ran. The kernel counts only while `kernel.bpf_stats_enabled` is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// How often.
    pub runs: u64,
    /// For how long in all.
    pub time: Duration,
}

/// Iterators that seed the map.
pub(super) const SEED: [(&str, &str); 2] = [("iter_seed_tasks", "task"), ("iter_seed_files", "task_file")];
/// The one that tells who has which table.
pub(super) const TASKS: (&str, &str) = ("iter_task", "task");
/// Programs that user space runs itself.
const ASK_WRITERS: &str = "ask_writers";
const EXPECT_PROCESS: &str = "expect_process";

impl Tracker {
    /// Loads and attaches. Nothing stays behind if any of it fails.
    ///
    /// The map is empty then: [`follow`](Self::follow) or [`seed`](Self::seed) it.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn attach(rung: Rung, scope: Scope, sizes: Sizes) -> Result<Self, LoadError> {
        let started = Instant::now();
        let mut opened = object::open(scope, &sizes)?;
        let hooks = rung.hooks();
        let iterators = SEED.map(|(_, kind)| format!("bpf_iter_{kind}"));
        let mut names = Rung::names(&hooks);
        names.extend(iterators.iter().map(|name| Name::Function(name)));
        let types = opened.types(&names)?;
        let ebpf = &mut opened.ebpf;
        let mut cost = Cost::default();
        let mut without = Vec::new();
        let mut loaded: Vec<&Hook> = Vec::new();
        for hook in &hooks {
            match load(ebpf, hook, &types) {
                Ok(instructions) => {
                    cost.verified_instructions += instructions;
                    loaded.push(hook);
                }
                Err(error) if hook.needed => return Err(error),
                Err(_) => without.push(hook.at.clone()),
            }
        }
        for (name, kind) in SEED.into_iter().chain([TASKS]) {
            let iterator = iterator(ebpf, name)?;
            in_spite_of_signals(|| iterator.load(kind, &types)).map_err(|error| refused(name, error))?;
        }
        for name in [ASK_WRITERS, EXPECT_PROCESS] {
            if let Some(Program::RawTracePoint(program)) = ebpf.program_mut(name) {
                in_spite_of_signals(|| program.load()).map_err(|error| refused(name, error))?;
            }
        }
        drop(types);
        cost.load = started.elapsed();
        let started = Instant::now();
        for hook in loaded {
            match attach(ebpf, hook) {
                Err(error) if hook.needed => return Err(error),
                Err(_) => without.push(hook.at.clone()),
                Ok(()) => {}
            }
        }
        cost.attach = started.elapsed();
        Ok(Tracker {
            rung,
            cost,
            sizes,
            without,
            reader: Some(Reader {
                #[cfg(feature = "bpf-log")]
                lines: super::log::Lines::of(ebpf),
                events: map(ebpf, MAP_EVENTS)?,
            }),
            maps: Maps {
                processes: map(ebpf, MAP_PROCESSES)?,
                tables: map(ebpf, MAP_TABLES)?,
                slots: map(ebpf, MAP_SLOTS)?,
                holders: map(ebpf, MAP_HOLDERS)?,
                watched: map(ebpf, MAP_WATCHED)?,
                control: map(ebpf, MAP_CONTROL)?,
                counters: map(ebpf, MAP_COUNTERS)?,
            },
            callers: match rung {
                Rung::Kprobe => Some(Callers::new(map(ebpf, MAP_CALLERS)?)),
                Rung::Fentry | Rung::Tracepoint => None,
            },
            deserted: Deserted::default(),
            taken_out: Fill::default(),
            ebpf: opened.ebpf,
        })
    }

    /// The rung that it is on.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// What attaching it took.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Functions and tracepoints that this kernel does not have, and that it does without.
    #[must_use]
    pub fn without(&self) -> &[String] {
        &self.without
    }

    /// Makes a process a tracked one: it and what descends from it from now on. What it holds by now is
    /// for [`seed`](Self::seed) to find.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn follow(&mut self, pid: u32) -> Result<(), MapError> {
        const NEW_ONLY: u64 = 1; // BPF_NOEXIST
        if self.process(pid).is_some() {
            return Ok(());
        }
        let pass = self.control().pass;
        self.ask(EXPECT_PROCESS, u64::from(pid)).map_err(|error| match error {
            ProgramError::SyscallError(error) => MapError::SyscallError(error),
            _ => MapError::ProgramNotLoaded,
        })?;
        match self.maps.processes.insert(pid, Process { pass, ..Process::default() }, NEW_ONLY) {
            Ok(()) => {
                // The programs count what they put in; this one is theirs to take out.
                self.taken_out.processes = self.taken_out.processes.wrapping_sub(1);
                Ok(())
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends that. What the map has of it goes with the next seeding.
    pub fn leave(&mut self, pid: u32) {
        if self.maps.processes.remove(&pid).is_ok() {
            self.taken_out.processes = self.taken_out.processes.wrapping_add(1);
        }
    }

    /// Makes a pipe a watched one: its holders are in the index, and its last writer's end is told.
    /// Who holds it already is for [`seed`](Self::seed) to find.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn watch(&mut self, pipe: PipeId) -> Result<(), MapError> {
        self.maps.watched.insert(key_of(pipe), 0, 0)
    }

    /// Ends that. The index loses its slots with the next look at each, or with the next seeding.
    pub fn forget(&mut self, pipe: PipeId) {
        let _ = self.maps.watched.remove(&key_of(pipe)); // absent is what we want
    }

    /// The next record, if there is one and [`take_reader`](Self::take_reader) did not take them away.
    pub fn next_record(&mut self) -> Option<Record> {
        self.reader.as_mut().and_then(Reader::next_record)
    }

    /// As [`Reader::wait`], unless [`take_reader`](Self::take_reader) took the records away.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait(&self, deadline: Instant) -> io::Result<bool> {
        self.reader.as_ref().map_or(Ok(false), |reader| reader.wait(deadline))
    }

    /// The way to the events, for who reads them on another thread than the one that asks the map.
    pub fn take_reader(&mut self) -> Option<Reader> {
        self.reader.take()
    }

    /// Gives it back.
    pub fn put_reader(&mut self, reader: Reader) {
        self.reader = Some(reader);
    }

    /// What went wrong so far.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses { skipped: self.skipped(), ..self.counted_losses() }
    }

    /// The same but for [`Losses::skipped`], which costs more to ask than all of the others.
    #[must_use]
    pub fn counted_losses(&self) -> Losses {
        Losses {
            events: self.counter(counter::LOST_EVENTS),
            processes: self.counter(counter::LOST_PROCESSES),
            slots: self.counter(counter::LOST_SLOTS),
            unsure: self.counter(counter::UNSURE_TABLES)
                + self.callers.as_ref().map_or(0, Callers::missed)
                + self.deserted(),
            unsettled: self.counter(counter::UNSETTLED),
            skipped: 0,
        }
    }

    /// Whether the programs still hear of system calls: whoever may do anything may take them off their hooks, and
    /// then nothing is counted as lost.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn is_heard(&self) -> Result<(), Deaf> {
        // One may go unheard: kernels skip a program that interrupts itself, and probes have room for few callers.
        for _ in 0..PULSES {
            let before = self.counter(counter::PULSES);
            // SAFETY: a call on no descriptor, which does nothing but fail.
            unsafe { libc::syscall(libc::SYS_ioctl, -1, call::PULSE, 0) };
            if self.counter(counter::PULSES) != before {
                return Ok(());
            }
        }
        Err(Deaf)
    }

    /// How much its programs ran so far.
    #[must_use]
    pub fn run_time(&self) -> RunTime {
        let infos = self.ebpf.programs().filter_map(|(_, program)| program.info().ok());
        infos.fold(RunTime::default(), |all, info| RunTime {
            runs: all.runs + info.run_count(),
            time: all.time + info.run_time(),
        })
    }

    /// How full the maps are.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let there = |index, out| self.counter(index).wrapping_sub(out);
        Fill {
            processes: there(counter::PROCESSES, self.taken_out.processes),
            tables: there(counter::TABLES, self.taken_out.tables),
            slots: there(counter::SLOTS, self.taken_out.slots),
        }
    }

    /// How much they have room for.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// How many open file descriptions write to a watched pipe, as the kernel counts them. `None` while
    /// the pipe was not seen, or where the kernel cannot be asked.
    #[must_use]
    pub fn writers(&self, pipe: PipeId) -> Option<u32> {
        self.writers_by(self.maps.watched.get(&key_of(pipe), 0).ok()?)
    }

    /// The same of the pipe that is in a slot now.
    #[must_use]
    pub fn writers_of(&self, held: &Held) -> Option<u32> {
        self.writers_by(held.object)
    }

    fn writers_by(&self, object: u64) -> Option<u32> {
        self.ask(ASK_WRITERS, Some(object).filter(|object| *object != 0)?).ok()
    }

    /// Runs a program that is attached to nothing, with one argument; gives its answer.
    fn ask(&self, name: &str, argument: u64) -> Result<u32, ProgramError> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(name) else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = argument;
        Ok(program.test_run(options)?.return_value)
    }

    pub(super) fn counter(&self, index: u32) -> u64 {
        self.maps.counters.get(&index, 0).unwrap_or(0)
    }

    pub(super) fn control(&self) -> Control {
        self.maps.control.get(&0, 0).unwrap_or_default()
    }

    fn skipped(&self) -> u64 {
        let fds = self.ebpf.programs().filter_map(|(_, program)| program.fd().ok());
        fds.filter_map(|fd| {
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(path).ok()?;
            text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse::<u64>().ok())
        })
        .sum()
    }

    /// Detaches everything, and says how long the kernel took.
    pub fn detach(self) -> Duration {
        let started = Instant::now();
        drop(self);
        started.elapsed()
    }
}

/// The events of a tracker.
pub struct Reader {
    #[cfg(feature = "bpf-log")]
    lines: super::log::Lines,
    events: RingBuf<MapData>,
}

impl Reader {
    /// The next record, if there is one. The descriptor is readable (poll it) when there may be.
    pub fn next_record(&mut self) -> Option<Record> {
        #[cfg(feature = "bpf-log")]
        self.lines.print();
        // A record that is not what this version writes is passed over.
        while let Some(item) = self.events.next() {
            if let Some(record) = Record::decode(&item) {
                return Some(record);
            }
        }
        None
    }

    /// Waits until there may be a record. False when the deadline came first.
    ///
    /// # Errors
    ///
    /// Those of poll(2), but for EINTR.
    pub fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => Ok(!left.is_zero()),
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

fn map<T: TryFrom<aya::maps::Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError> {
    ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or_else(|| LoadError::Stale(name.to_owned()))
}

pub(super) fn iterator<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Iter, LoadError> {
    let stale = || LoadError::Stale(name.to_owned());
    ebpf.program_mut(name).ok_or_else(stale)?.try_into().map_err(|_| stale())
}

/// Brings one program past the verifier, unless it is there already; gives the number of instructions that
/// it looked at.
fn load(ebpf: &mut Ebpf, hook: &Hook, types: &aya::Btf) -> Result<u64, LoadError> {
    let stale = || LoadError::Stale(hook.program.clone());
    let program = ebpf.program_mut(&hook.program).ok_or_else(stale)?;
    let loaded = in_spite_of_signals(|| match &mut *program {
        Program::RawTracePoint(program) => program.load(),
        Program::KProbe(program) => program.load(),
        Program::FExit(program) => program.load(&hook.at, types),
        Program::BtfTracePoint(program) => program.load(&hook.at, types),
        _ => Err(ProgramError::UnexpectedProgramType),
    });
    match loaded {
        // The kprobe rung's pair is attached to many functions.
        Err(ProgramError::AlreadyLoaded) => return Ok(0),
        loaded => loaded.map_err(|error| refused(&hook.program, error))?,
    }
    let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
    Ok(verified.map_or(0, u64::from))
}

fn attach(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), LoadError> {
    let program = ebpf.program_mut(&hook.program).ok_or_else(|| LoadError::Stale(hook.program.clone()))?;
    let attached = match program {
        Program::RawTracePoint(program) => program.attach(&hook.at).map(drop),
        Program::KProbe(program) => program.attach(&hook.at, 0).map(drop),
        Program::FExit(program) => program.attach().map(drop),
        Program::BtfTracePoint(program) => program.attach().map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    attached.map_err(|source| LoadError::Attach {
        program: hook.program.clone(),
        hook: hook.at.clone(),
        source: Box::new(source),
    })
}
