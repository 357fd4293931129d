//! The live map: what the programs keep, and user space reads.
//!
//! It is state, not deltas: an event makes a program read a slot of a descriptor table again, and what
//! it finds there replaces what the map had. What was missed is mended by the next look.

use crate::Held;

/// Which slot of which descriptor table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// The kernel's `files_struct`, as a number.
    pub files: u64,
    /// The descriptor.
    pub fd: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What is in a slot, if it is an end of a pipe.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The pipe.
    pub held: Held,
    /// The [pass](Control::pass) in which it was last looked at.
    pub pass: u32,
    /// 1 if the pipe is watched, and the slot in the index too.
    pub watched: u32,
}

/// A descriptor table, and who has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// A process that has it.
    pub pid: u32,
    /// The thread of it that had it first.
    pub tid: u32,
    /// 1 if another process may have it too (`CLONE_FILES`).
    pub shared: u32,
    /// The [pass](Control::pass) in which it was last seen.
    pub pass: u32,
    /// 1 if the process's first thread had it and ended, and other threads went on with it.
    pub led_no_more: u32,
    /// Always 0.
    pub reserved: u32,
    /// How many of its slots the programs have put into the map, less those that they took out.
    pub slots: u64,
}

/// A process that is tracked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// When it started, in nanoseconds since boot; 0 while nobody has seen more of it than its pid.
    pub start_boot_ns: u64,
    /// Its leader's descriptor table.
    pub files: u64,
    /// Its cgroup's id in the v2 hierarchy; 0 where there is none.
    pub cgroup: u64,
    /// Its parent when it was forked.
    pub parent: u32,
    /// Its process group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// The [pass](Control::pass) in which it was last seen.
    pub pass: u32,
}

/// A call that a thread is in, on the kprobe rung: a value of the map `CALLERS`, whose keys are threads
/// (process << 32 | thread).
///
/// It is put in at the function's entry and taken out at its return. Of the return the kernel may not tell:
/// it has room for a few callers of each function at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The caller's registers, as an address in the kernel.
    pub regs: u64,
    /// When it began, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The system call's number.
    pub number: u64,
}

/// The identity of a watched pipe: a key of the map `WATCHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PipeKey {
    /// `i_ino`.
    pub ino: u64,
    /// The device in the kernel's own encoding.
    pub dev: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What user space tells the programs while they run: the one element of the map `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// While the map is seeded: descendants of this process are tracked from their fork on, whether
    /// their parent is known yet or not. 0: only known processes' children are.
    pub root: u32,
    /// The number of the pass that seeds the map; what an older pass saw last is gone.
    pub pass: u32,
}
