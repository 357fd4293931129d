//! What happened: the records of the ring buffer.

use crate::Held;

/// The kinds of [`Event::kind`]. Plain numbers, not an enum: a reader must survive a number that
/// it does not know.
pub mod kind {
    /// A process forked; [`Event::other`](super::Event::other) is the child's pid. Threads are not told.
    pub const FORK: u32 = 1;
    /// A process runs another program now; what was close-on-exec is closed: the record is an
    /// [`Exec`](super::Exec).
    pub const EXEC: u32 = 2;
    /// The last thread of a process exits. It still has its descriptors: end-of-file comes after.
    pub const EXIT: u32 = 3;
    /// A process made itself a session: the record is an [`Escape`](super::Escape).
    pub const SETSID: u32 = 4;
    /// A process was put into a group: the record is an [`Escape`](super::Escape).
    pub const SETPGID: u32 = 5;
    /// A close took the last writer from a watched pipe: the record is a [`Closed`](super::Closed).
    pub const LAST_WRITER: u32 = 6;
    /// A descriptor that writes to a watched pipe is gone, or its process exits, and the kernel counts a writer
    /// still: maybe this one, of which it lets go in a moment. The record is a [`Closed`](super::Closed).
    /// Told only where every process is tracked.
    pub const LEAVING: u32 = 7;
}

/// One event about one process. Times and pids are the initial namespaces'.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// When the process started, in nanoseconds since boot: with the pid, its identity.
    pub start_boot_ns: u64,
    /// The kernel's `files_struct`, as a number: what tells descriptor tables apart. 0 if it has none.
    pub files: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// The process (thread group).
    pub pid: u32,
    /// The thread that did it.
    pub tid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its process group, after the event.
    pub pgid: u32,
    /// Its session, after the event.
    pub sid: u32,
    /// `FORK`: the child. `SETPGID`: whom the caller named, 0 for itself, or [`OTHER_UNKNOWN`]. Otherwise 0.
    pub other: u32,
    /// Always 0.
    pub reserved: u32,
    /// The program's name, filled up with zeroes.
    pub comm: [u8; 16],
}

/// In [`Event::other`]: somebody whom the caller named by a number of another pid namespace.
pub const OTHER_UNKNOWN: u32 = u32::MAX;

/// How many pipes an [`Escape`] can name: two for each standard stream, and a few more. An escapee
/// with more is told by [`Escape::unseen`], and read in full by user space.
pub const HELD_MAX: usize = 8;

/// How many descriptors the program looks at: the first word of the table's bitmap. The standard
/// streams, which are what an escapee keeps from others, are among them.
pub const WALK_FDS: u32 = 64;

/// A process left its group or session, and the pipes that it took along.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape {
    /// What every event has.
    pub event: Event,
    /// How many of [`held`](Self::held) are filled.
    pub count: u32,
    /// Pipes that did not fit, plus one if there may be descriptors past [`WALK_FDS`]: then only a
    /// look at the whole table tells what it holds.
    pub unseen: u32,
    /// The pipes, by ascending descriptor.
    pub held: [Held; HELD_MAX],
}

/// A process runs another program, and what that was given to write to.
///
/// It is told here because a command may be gone, and with it what the map had of it, before anybody reads the
/// record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// What every event has.
    pub event: Event,
    /// The process's cgroup in the v2 hierarchy, by its id; 0 where there is none.
    pub cgroup: u64,
    /// The pipes behind its stdout and its stderr, in this order, where these are write ends; elsewhere
    /// [`Held::ends`] is 0, and nothing else of it means anything.
    pub outputs: [Held; OUTPUTS],
}

/// How many standard streams a program writes to: the descriptors from [`FIRST_OUTPUT`] on.
pub const OUTPUTS: usize = 2;
/// stdout.
pub const FIRST_OUTPUT: u32 = 1;

/// A watched pipe has no writer any more ([`LAST_WRITER`](kind::LAST_WRITER)), or perhaps soon
/// ([`LEAVING`](kind::LEAVING)).
///
/// The former is told where close(2) takes the last one away, since Linux 6.6: before, for other calls, and
/// when a process exits, the kernel lets go of the file only afterwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// What every event has.
    pub event: Event,
    /// The pipe, as the slot had it.
    pub held: Held,
}
