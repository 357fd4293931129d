//! Who descends from the command, and what they do: the events.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use core::mem::MaybeUninit;
use pipewarden_common::counter::{self, LOST_EVENTS, LOST_LINEAGE};
use pipewarden_common::event::{Escape, Event, kind};

use crate::fd_table;
use crate::globals::TRACK_ALL;
use crate::task::{PIDTYPE_PGID, PIDTYPE_SID, Task};

/// The processes of the lineage that live: user space puts the command in, forks add to it.
#[map]
static LINEAGE: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// The records, for user space. 256 KiB are about 700 escapes or 2500 forks that nobody reads.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// What was counted: indices in `pipewarden_common::counter`.
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(counter::COUNT, 0);

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is a value of the map, which lives as long as the program.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, 1);
        }
    }
}

#[inline(always)]
fn tracked(pid: u32) -> bool {
    TRACK_ALL.load() == 1 || LINEAGE.get_ptr(&pid).is_some()
}

#[inline(always)]
fn describe(task: Task, kind: u32, other: u32) -> Event {
    Event {
        // SAFETY: no argument; always allowed.
        time_ns: unsafe { bpf_ktime_get_ns() },
        start_boot_ns: task.start(),
        files: task.files(),
        kind,
        pid: task.process(),
        tid: task.thread(),
        parent: task.parent(),
        pgid: task.number(PIDTYPE_PGID),
        sid: task.number(PIDTYPE_SID),
        other,
        reserved: 0,
        comm: task.comm(),
    }
}

#[inline(always)]
fn tell(event: Event) -> bool {
    match EVENTS.reserve::<Event>(0) {
        Some(mut record) => {
            record.write(event);
            record.submit(0);
            true
        }
        None => {
            count(LOST_EVENTS);
            false
        }
    }
}

/// A task was made. A thread is not news; a process of the lineage makes the child one too.
///
/// As all of these, it says whether it told anything.
#[inline(always)]
pub fn fork(parent: Task, child: Task) -> bool {
    let pid = child.process();
    if pid != child.thread() || !tracked(parent.process()) {
        return false;
    }
    if TRACK_ALL.load() != 1 && LINEAGE.insert(&pid, &1, 0).is_err() {
        count(LOST_LINEAGE);
    }
    tell(describe(parent, kind::FORK, pid))
}

/// A process runs another program.
#[inline(always)]
pub fn exec(task: Task) -> bool {
    tracked(task.process()) && tell(describe(task, kind::EXEC, 0))
}

/// A thread ends; the last one is the process's end, whichever it is.
#[inline(always)]
pub fn exit(task: Task) -> bool {
    let pid = task.process();
    if task.live_threads() != 0 || !tracked(pid) {
        return false;
    }
    let told = tell(describe(task, kind::EXIT, 0));
    if TRACK_ALL.load() != 1 {
        let _ = LINEAGE.remove(&pid); // absent is what we want
    }
    told
}

/// The current process left its session or group (`other` 0), or put another process into a group:
/// then what *that* one holds is for user space to read.
#[inline(always)]
pub fn escape(kind: u32, other: u32) -> bool {
    let task = Task::current();
    if !tracked(task.process()) {
        return false;
    }
    let Some(mut record) = EVENTS.reserve::<Escape>(0) else {
        count(LOST_EVENTS);
        return false;
    };
    let escape = MaybeUninit::as_mut_ptr(&mut *record);
    let event = describe(task, kind, other);
    // SAFETY: the ring buffer gave us a whole record; it is filled before it is submitted, except
    // for `held` beyond `count`, which nobody reads.
    unsafe {
        fd_table::walk(event.files, escape);
        (&raw mut (*escape).event).write(event);
    }
    record.submit(0);
    true
}
