//! A rung attached: which programs on which hooks, and the events that they tell.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, Pod};
use pipewarden_common::event::{Escape, Event, kind};
use pipewarden_common::offsets::{MAP_COUNTERS, MAP_EVENTS, MAP_LINEAGE};
use pipewarden_common::{END_READ, END_WRITE, Held, counter};

use super::object::{self, LoadError, Scope, refused, registers};
use crate::pipe::{End, PipeId, ProcessId};

/// How the programs hear of what they tell, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Trampolines at the kernel's functions: only their callers pay.
    Fentry,
    /// Probes at the same functions.
    Kprobe,
    /// The tracepoint at the return of every system call of the machine.
    Tracepoint,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Rung; 3] = [Rung::Fentry, Rung::Kprobe, Rung::Tracepoint];

    /// Its name, for people and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rung::Fentry => "bpf-fentry",
            Rung::Kprobe => "bpf-kprobe",
            Rung::Tracepoint => "bpf-tracepoint",
        }
    }

    /// Program and hook, in the order of attachment: what takes processes away comes before what adds
    /// them, so that none is added whose end we then miss.
    fn hooks(self) -> Vec<(&'static str, &'static str)> {
        let mut hooks = vec![
            ("raw_exit", "sched_process_exit"),
            ("raw_exec", "sched_process_exec"),
            ("raw_fork", "sched_process_fork"),
        ];
        hooks.extend(match self {
            Rung::Fentry => vec![("fexit_setsid", "ksys_setsid"), ("fexit_setpgid", registers::SETPGID)],
            Rung::Kprobe => vec![
                ("kretprobe_setsid", "ksys_setsid"),
                ("kretprobe_setpgid", registers::SETPGID),
                ("kprobe_setpgid", registers::SETPGID),
            ],
            Rung::Tracepoint => vec![("raw_sys_exit", "sys_exit")],
        });
        hooks
    }

    /// Whether its programs have arguments with types, for which the loader needs the kernel's.
    fn typed(self) -> bool {
        self == Rung::Fentry
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

/// A rung, attached until it is dropped.
pub struct Listener {
    rung: Rung,
    cost: Cost,
    events: RingBuf<MapData>,
    lineage: HashMap<MapData, u32, u32>,
    counters: Array<MapData, u64>,
    #[cfg(feature = "bpf-log")]
    lines: super::log::Lines,
    /// Owns the programs and their links.
    ebpf: Ebpf,
}

/// One record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A fork, exec or exit.
    Event(Event),
    /// A setsid or setpgid, and the pipes that went along.
    Escape(Box<Escape>),
}

impl Record {
    /// What every record has.
    #[must_use]
    pub fn event(&self) -> &Event {
        match self {
            Record::Event(event) => event,
            Record::Escape(escape) => &escape.event,
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let event: Event = from_bytes(bytes)?;
        Some(match event.kind {
            kind::SETSID | kind::SETPGID => Record::Escape(Box::new(from_bytes(bytes)?)),
            _ => Record::Event(event),
        })
    }
}

/// A plain structure from the beginning of a record.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, they need not be aligned, and any bytes are a value of a Pod.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl Listener {
    /// Loads and attaches. Nothing stays behind if any of it fails.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn attach(rung: Rung, scope: Scope) -> Result<Self, LoadError> {
        let started = Instant::now();
        let mut ebpf = object::open(scope)?;
        let types = if rung.typed() { Some(Btf::from_sys_fs()?) } else { None };
        let mut cost = Cost::default();
        for (name, hook) in rung.hooks() {
            cost.verified_instructions += load(&mut ebpf, name, hook, types.as_ref())?;
        }
        cost.load = started.elapsed();
        let started = Instant::now();
        for (name, hook) in rung.hooks() {
            attach(&mut ebpf, name, hook)?;
        }
        cost.attach = started.elapsed();
        Ok(Listener {
            rung,
            cost,
            events: map(&mut ebpf, MAP_EVENTS)?,
            lineage: map(&mut ebpf, MAP_LINEAGE)?,
            counters: map(&mut ebpf, MAP_COUNTERS)?,
            #[cfg(feature = "bpf-log")]
            lines: super::log::Lines::of(&mut ebpf),
            ebpf,
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

    /// Makes a process one of the lineage: it and what descends from it is told about from now on.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn follow(&mut self, pid: u32) -> Result<(), MapError> {
        self.lineage.insert(pid, 1, 0)
    }

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

    /// How many records, and how many processes of the lineage, did not fit: state must be read anew
    /// whenever this moves.
    #[must_use]
    pub fn lost(&self) -> u64 {
        [counter::LOST_EVENTS, counter::LOST_LINEAGE].iter().filter_map(|index| self.counters.get(index, 0).ok()).sum()
    }

    /// How often the kernel skipped a program because it was running already on that processor
    /// (preemptible kernels): as [`lost`](Self::lost). 0 before Linux 5.12, which does not count.
    #[must_use]
    pub fn skipped(&self) -> u64 {
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

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

fn map<T: TryFrom<aya::maps::Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError> {
    ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or(LoadError::Stale(name))
}

/// Brings one program past the verifier; gives the number of instructions that it looked at.
fn load(ebpf: &mut Ebpf, name: &'static str, hook: &str, types: Option<&Btf>) -> Result<u64, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Stale(name))?;
    let loaded = match (&mut *program, types) {
        (Program::RawTracePoint(program), _) => program.load(),
        (Program::KProbe(program), _) => program.load(),
        (Program::FExit(program), Some(types)) => program.load(hook, types),
        _ => return Err(LoadError::Stale(name)),
    };
    loaded.map_err(|error| refused(name, error))?;
    let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
    Ok(verified.map_or(0, u64::from))
}

fn attach(ebpf: &mut Ebpf, name: &'static str, hook: &'static str) -> Result<(), LoadError> {
    let attached = match ebpf.program_mut(name).ok_or(LoadError::Stale(name))? {
        Program::RawTracePoint(program) => program.attach(hook).map(drop),
        Program::KProbe(program) => program.attach(hook, 0).map(drop),
        Program::FExit(program) => program.attach().map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    attached.map_err(|source| LoadError::Attach { program: name, hook, source })
}

/// The identity of a pipe that a program saw.
#[must_use]
pub fn pipe_of(held: &Held) -> PipeId {
    // The kernel's own encoding of a device is another one than stat's.
    const MINOR_BITS: u32 = 20;
    let dev = libc::makedev(held.dev >> MINOR_BITS, held.dev & ((1 << MINOR_BITS) - 1));
    PipeId { dev, ino: held.ino }
}

/// The end that a descriptor is on.
#[must_use]
pub fn end_of(held: &Held) -> Option<End> {
    match (held.ends & END_READ != 0, held.ends & END_WRITE != 0) {
        (true, true) => Some(End::Both),
        (true, false) => Some(End::Read),
        (false, true) => Some(End::Write),
        (false, false) => None,
    }
}

/// The process of an event, as the rest of the program names processes.
#[must_use]
pub fn process_of(pid: u32, start_boot_ns: u64) -> ProcessId {
    // /proc counts in ticks of USER_HZ, which is 100 on every architecture that we build for.
    const TICK_NS: u64 = 10_000_000;
    ProcessId { pid: pid.cast_signed(), start_ticks: start_boot_ns / TICK_NS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_number_that_stat_gives_it() {
        let held = Held { dev: 259 << 20 | 0x1_2345, ino: 7, ..Held::default() };
        assert_eq!(pipe_of(&held), PipeId { dev: libc::makedev(259, 0x1_2345), ino: 7 });
    }

    #[test]
    fn a_short_or_unknown_record_is_no_event() {
        assert_eq!(Record::decode(&[1; 20]), None);
        let mut bytes = [0; size_of::<Event>()];
        bytes[24] = u8::try_from(kind::SETSID).unwrap();
        assert_eq!(Record::decode(&bytes), None, "an escape without its pipes");
    }
}
