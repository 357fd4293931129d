//! Who is tracked, which descriptor tables they have, and what they do: the events.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, RingBuf};
use core::mem::MaybeUninit;
use pipewarden_common::Held;
use pipewarden_common::counter::{
    LOST_EVENTS, LOST_PROCESSES, PROCESSES as IN_PROCESSES, TABLES as IN_TABLES, UNSURE_TABLES,
};
use pipewarden_common::event::{Closed, Escape, Event, Exec, OTHER_UNKNOWN, kind};
use pipewarden_common::live_map::{Process, Table};

use crate::counters::{add_to, count, uncount};
use crate::fd_table::{self, users};
use crate::filter;
use crate::globals::TRACK_ALL;
use crate::live_map::control;
use crate::task::{PIDTYPE_PGID, PIDTYPE_SID, Task};
use crate::walk::Way;

/// The tracked processes that live: user space puts the first in, forks add to them.
#[map]
static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(16384, 0);

/// Their descriptor tables.
#[map]
static TABLES: HashMap<u64, Table> = HashMap::with_max_entries(16384, 0);

/// The records, for user space. 256 KiB are about 600 escapes or 2500 forks that nobody reads.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

const NEW_ONLY: u64 = 1; // BPF_NOEXIST

/// Whether a process is one of those that are tracked.
#[inline(always)]
pub fn tracked(pid: u32) -> bool {
    TRACK_ALL.load() == 1 || (filter::may_be_tracked(pid) && PROCESSES.get_ptr(&pid).is_some())
}

/// How far up a chain of parents is followed.
const GENERATIONS: u32 = 32;

/// Whether a task descends from the process under which the map is being seeded: then its children are
/// tracked whether it was found yet or not.
#[inline(always)]
fn is_being_seeded(task: Task) -> bool {
    let root = control().root;
    if root == 0 {
        return false;
    }
    let mut at = task.leader();
    let mut generation = 0;
    while generation < GENERATIONS {
        let parent = at.parent();
        let pid = parent.process();
        if pid == root {
            return true;
        }
        if pid <= 1 {
            return false;
        }
        at = parent;
        generation += 1;
    }
    false
}

/// Puts a process into the map, or what is known of it now.
#[inline(always)]
pub fn enter(task: Task, parent: u32) {
    let process = Process {
        start_boot_ns: task.start(),
        files: task.files(),
        cgroup: task.cgroup(),
        parent,
        pgid: task.number(PIDTYPE_PGID),
        sid: task.number(PIDTYPE_SID),
        pass: control().pass,
    };
    let pid = task.process();
    // Who is in the map already is counted once more, and so kept: it may be on its way out right now.
    filter::count_in(pid);
    if PROCESSES.insert(&pid, &process, NEW_ONLY).is_ok() {
        count(IN_PROCESSES);
    } else if PROCESSES.insert(&pid, &process, 0).is_err() {
        count(LOST_PROCESSES);
    }
}

/// Puts a descriptor table into the map. Whether it was there.
#[inline(always)]
pub fn enter_table(files: u64, owner: Task, shared: bool) -> bool {
    let (pid, tid) = (owner.process(), owner.thread());
    let pass = control().pass;
    match TABLES.get_ptr_mut(&files) {
        Some(table) => {
            // SAFETY: a value of the map; each word is written as one.
            unsafe {
                (&raw mut (*table).pid).write_volatile(pid);
                (&raw mut (*table).tid).write_volatile(tid);
                (&raw mut (*table).pass).write_volatile(pass);
                if shared {
                    (&raw mut (*table).shared).write_volatile(1);
                }
            }
            true
        }
        None => {
            let table = Table { pid, tid, shared: shared as u32, pass, led_no_more: 0, reserved: 0, slots: 0 };
            match TABLES.insert(&files, &table, NEW_ONLY) {
                Ok(()) => count(IN_TABLES),
                Err(_) => count(LOST_PROCESSES),
            }
            false
        }
    }
}

/// The first thread of the process that has a table ends, and others go on with it.
#[inline(always)]
fn led_no_more(files: u64) {
    if let Some(table) = TABLES.get_ptr_mut(&files) {
        // SAFETY: a value of the map; the word is written as one.
        unsafe { (&raw mut (*table).led_no_more).write_volatile(1) };
    }
}

/// How many slots of a table are in the map, as far as that is known.
#[inline(always)]
pub fn slots_of(files: u64) -> u64 {
    match TABLES.get_ptr(&files) {
        // SAFETY: a value of the map, read as one word.
        Some(table) => unsafe { (&raw const (*table).slots).read_volatile() },
        None => u64::MAX,
    }
}

/// Another slot of a table is in the map, or (all ones) one less.
#[inline(always)]
pub fn add_slots(files: u64, number: u64) {
    if let Some(table) = TABLES.get_ptr_mut(&files) {
        // SAFETY: a value of the map.
        unsafe { add_to(&raw mut (*table).slots, number) };
    }
}

/// Puts a table into the map that some thread of `pid` has. Another process's is a shared one.
#[inline(always)]
pub fn seed_table(files: u64, owner: Task) {
    let pid = owner.process();
    let pass = control().pass;
    // SAFETY: the value is copied at once.
    let before = unsafe { TABLES.get(&files) }.copied();
    let seen = before.is_some_and(|table| table.pass == pass);
    let shared = seen && before.is_some_and(|table| table.pid != pid);
    if !seen || shared {
        enter_table(files, owner, shared);
    }
}

/// A table that the current process did not have before, or one that may have changed anywhere.
#[inline(always)]
pub fn table_changed<W: Way>(task: Task) {
    let files = task.files();
    if TABLES.get_ptr(&files).is_none() {
        enter_table(files, task, false);
    }
    if task.thread() == task.process() {
        table_of_process(task.process(), files);
    }
    W::look(files);
}

/// A process's first thread has this table now.
#[inline(always)]
fn table_of_process(pid: u32, files: u64) {
    if let Some(process) = PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a value of the map; the word is written as one.
        unsafe { (&raw mut (*process).files).write_volatile(files) };
    }
}

/// Fills in a record where it is: on the stack, of which there are 512 bytes for all callers together, it
/// would be copied from there.
///
/// # Safety
///
/// `event` must point to a whole, writable event.
#[inline(always)]
unsafe fn describe(event: *mut Event, task: Task, kind: u32, other: u32) {
    // SAFETY: as the caller promises; the helper takes no argument and is always allowed.
    unsafe {
        (&raw mut (*event).time_ns).write(bpf_ktime_get_ns());
        (&raw mut (*event).start_boot_ns).write(task.start());
        (&raw mut (*event).files).write(task.files());
        (&raw mut (*event).kind).write(kind);
        (&raw mut (*event).pid).write(task.process());
        (&raw mut (*event).tid).write(task.thread());
        (&raw mut (*event).parent).write(task.parent().process());
        (&raw mut (*event).pgid).write(task.number(PIDTYPE_PGID));
        (&raw mut (*event).sid).write(task.number(PIDTYPE_SID));
        (&raw mut (*event).other).write(other);
        (&raw mut (*event).reserved).write(0);
        (&raw mut (*event).comm).write(task.comm());
    }
}

#[inline(always)]
fn tell(task: Task, kind: u32, other: u32) -> bool {
    match EVENTS.reserve::<Event>(0) {
        Some(mut record) => {
            // SAFETY: the ring buffer gave us a whole record.
            unsafe { describe(MaybeUninit::as_mut_ptr(&mut *record), task, kind, other) };
            record.submit(0);
            true
        }
        None => {
            count(LOST_EVENTS);
            false
        }
    }
}

/// A task was made by `parent`, and does not run yet. As all of these, this says whether it told
/// anything: a thread is not news.
#[inline(always)]
pub fn fork<W: Way>(parent: Task, child: Task) -> bool {
    let (maker, pid) = (parent.process(), child.process());
    if !tracked(maker) && !is_being_seeded(parent) {
        return false;
    }
    let is_thread = pid != child.thread();
    let files = child.files();
    if files == parent.files() {
        if !is_thread {
            enter_table(files, parent, true);
        }
    } else {
        // A table by this address can only be known if its end was missed: then so were its slots'.
        let known = enter_table(files, child, false);
        if known {
            W::look(files);
        } else {
            W::enter(files);
        }
    }
    if is_thread {
        return false;
    }
    enter(child, maker);
    tell(parent, kind::FORK, pid)
}

/// A process runs another program; its descriptors that were to be closed are.
#[inline(always)]
pub fn exec<W: Way>(task: Task) -> bool {
    let pid = task.process();
    if !tracked(pid) {
        return false;
    }
    let files = task.files();
    // Who shared its table has got one of its own.
    enter_table(files, task, false);
    W::look(files);
    table_of_process(pid, files);
    tell_exec(task.0, files) != 0
}

/// 1 if it was told.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_exec(task: u64, files: u64) -> u32 {
    let task = Task(task);
    let Some(mut record) = EVENTS.reserve::<Exec>(0) else {
        count(LOST_EVENTS);
        return 0;
    };
    let exec = MaybeUninit::as_mut_ptr(&mut *record);
    // SAFETY: the ring buffer gave us a whole record; all of it is filled before it is submitted.
    unsafe {
        describe(&raw mut (*exec).event, task, kind::EXEC, 0);
        (&raw mut (*exec).cgroup).write(task.cgroup());
        fd_table::outputs(files, &raw mut (*exec).outputs);
    }
    record.submit(0);
    1
}

/// A thread ends; the last one is the process's end, whichever it is. It still has its table.
#[inline(always)]
pub fn exit<W: Way>(task: Task) -> bool {
    let pid = task.process();
    if !tracked(pid) {
        return false;
    }
    let files = task.files();
    let last = task.live_threads() == 0;
    if !last && task.thread() == pid {
        led_no_more(files);
    }
    leave_table::<W>(files, last);
    if !last {
        return false;
    }
    let told = tell(task, kind::EXIT, 0);
    if PROCESSES.remove(&pid).is_ok() {
        uncount(IN_PROCESSES);
        filter::count_out(pid);
    }
    told
}

/// A thread is about to lose its table, and the table its slots if nobody else has it.
///
/// Of two threads that leave a table at once, while their process lives on with another, each finds the other with it,
/// and nobody takes it out: of the moment in which a thread gives its table back nothing is told. User space finds
/// out when it asks who has such a table.
#[inline(always)]
fn leave_table<W: Way>(files: u64, last_of_process: bool) {
    // SAFETY: the value is copied at once.
    let shared = unsafe { TABLES.get(&files) }.is_some_and(|table| table.shared == 1);
    if users(files) > 1 {
        // The process's other threads may be on their way out on other processors: none of them will
        // find itself alone with the table.
        if !last_of_process {
            return;
        }
        if shared {
            count(UNSURE_TABLES);
            return;
        }
    }
    W::forget(files);
    if TABLES.remove(&files).is_ok() {
        uncount(IN_TABLES);
    }
}

/// The current process put `other` into a group (0: the other's own).
///
/// What another process holds is for user space to read.
#[inline(always)]
pub fn group_set(other: u32, group: u32) -> bool {
    let task = Task::current();
    // The numbers are those of the caller's pid namespace.
    let other = match other {
        0 => 0,
        _ if task.namespace_level() == 0 => other,
        _ => OTHER_UNKNOWN,
    };
    if other != task.process()
        && let Some(process) = PROCESSES.get_ptr_mut(&other)
    {
        let group = if group == 0 { other } else { group };
        // SAFETY: a value of the map; the word is written as one.
        unsafe { (&raw mut (*process).pgid).write_volatile(group) };
    }
    escape(kind::SETPGID, other)
}

/// The current process left its session or group, or put another one into a group (see [`group_set`]).
#[inline(always)]
pub fn escape(kind: u32, other: u32) -> bool {
    let task = Task::current();
    let pid = task.process();
    if !tracked(pid) {
        return false;
    }
    let Some(mut record) = EVENTS.reserve::<Escape>(0) else {
        count(LOST_EVENTS);
        return false;
    };
    let escape = MaybeUninit::as_mut_ptr(&mut *record);
    // SAFETY: the ring buffer gave us a whole record; it is filled before it is submitted, except
    // for `held` beyond `count`, which nobody reads.
    let (pgid, sid) = unsafe {
        let event = &raw mut (*escape).event;
        describe(event, task, kind, other);
        fd_table::walk((&raw const (*event).files).read_volatile(), escape);
        ((&raw const (*event).pgid).read_volatile(), (&raw const (*event).sid).read_volatile())
    };
    record.submit(0);
    if let Some(process) = PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a value of the map; each word is written as one.
        unsafe {
            (&raw mut (*process).pgid).write_volatile(pgid);
            (&raw mut (*process).sid).write_volatile(sid);
        }
    }
    true
}

/// A slot of the current process was a writer of a watched pipe, and is not any more, or its table is going.
///
/// The kernel may let go of the file later. Where everybody is tracked, user space is told to look; a run
/// reads its pipes itself.
#[inline(never)]
pub fn writer_gone(held: &Held) {
    let kind = match fd_table::writers(held.object) {
        0 => kind::LAST_WRITER,
        _ if TRACK_ALL.load() == 1 => kind::LEAVING,
        _ => return,
    };
    let Some(mut record) = EVENTS.reserve::<Closed>(0) else {
        count(LOST_EVENTS);
        return;
    };
    let closed: *mut Closed = MaybeUninit::as_mut_ptr(&mut *record);
    // SAFETY: the ring buffer gave us a whole record.
    unsafe {
        describe(&raw mut (*closed).event, Task::current(), kind, 0);
        (&raw mut (*closed).held).write(*held);
    }
    record.submit(0);
}
