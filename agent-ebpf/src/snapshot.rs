//! What exists now: iterators over all threads and all their descriptors.
//!
//! They use typed loads only, and so work under lockdown=confidentiality.

use aya_ebpf::helpers::bpf_seq_write;
use aya_ebpf::programs::RawTracePointContext;
use core::ffi::c_void;
use pipewarden_common::snapshot::{FileRow, TaskRow};
use pipewarden_common::{END_READ, END_WRITE, Held};

use crate::fd_table::{S_IFIFO, S_IFMT, pipe_behind, writers};
use crate::globals::{
    FILE_INODE, FILE_MODE, INODE_INO, INODE_MODE, INODE_PIPE, INODE_SB, META_SEQ, PID_NUMBERS, SB_DEV, SIGNAL_PIDS,
    TASK_FILES, TASK_LEADER, TASK_PARENT, TASK_PID, TASK_SIGNAL, TASK_START, TASK_TGID, UPID_NR,
};
use crate::read::typed;
use crate::task::{PIDTYPE_PGID, PIDTYPE_SID, Task};
use crate::{lineage, live_map};

/// `struct bpf_iter__task_file` of the kernel, as programs see it; `bpf_iter__task` is its beginning.
/// A context takes constant offsets only, so this one layout is written down (unchanged since 5.8).
#[repr(C)]
pub struct Context {
    meta: u64,
    task: u64,
    fd: u64, // an int, aligned
    file: u64,
}

/// A row for each thread.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_task(context: *const Context) -> i32 {
    // SAFETY: the verifier knows the types of the context and of all that is loaded through it.
    unsafe {
        let task = (&raw const (*context).task).read_volatile();
        if task == 0 {
            return 0; // the call after the last row
        }
        let row = TaskRow {
            start_boot_ns: typed(typed(task, &TASK_LEADER), &TASK_START),
            files: typed(task, &TASK_FILES),
            pid: typed(task, &TASK_TGID),
            tid: typed(task, &TASK_PID),
            parent: typed(typed(task, &TASK_PARENT), &TASK_TGID),
            pgid: number(task, PIDTYPE_PGID),
            sid: number(task, PIDTYPE_SID),
            reserved: 0,
        };
        put(context, &row);
    }
    0
}

/// A row for each descriptor on a pipe or FIFO.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn iter_task_file(context: *const Context) -> i32 {
    // SAFETY: as above.
    unsafe {
        let task = (&raw const (*context).task).read_volatile();
        let file = (&raw const (*context).file).read_volatile();
        if task == 0 || file == 0 {
            return 0;
        }
        let inode: u64 = typed(file, &FILE_INODE);
        let ends = typed::<u32>(file, &FILE_MODE) & (END_READ | END_WRITE);
        if typed::<u16>(inode, &INODE_MODE) & S_IFMT != S_IFIFO || ends == 0 {
            return 0;
        }
        let row = FileRow {
            files: typed(task, &TASK_FILES),
            pid: typed(task, &TASK_TGID),
            tid: typed(task, &TASK_PID),
            held: Held {
                object: typed(inode, &INODE_PIPE),
                file,
                ino: typed(inode, &INODE_INO),
                dev: typed(typed(inode, &INODE_SB), &SB_DEV),
                fd: (&raw const (*context).fd).cast::<u32>().read_volatile(),
                ends,
                reserved: 0,
            },
        };
        put(context, &row);
    }
    0
}

/// Enters every thread's process and table into the live map, if it is tracked.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_seed_tasks(context: *const Context) -> i32 {
    // SAFETY: as above.
    let task = unsafe { (&raw const (*context).task).read_volatile() };
    if task == 0 {
        return 0;
    }
    // SAFETY: as above; what follows takes it for a number.
    let pid = unsafe { typed::<u32>(task, &TASK_TGID) };
    let task = Task(task);
    if !lineage::tracked(pid) {
        return 0;
    }
    if task.thread() == pid {
        lineage::enter(task, task.parent().process());
    }
    let files = task.files();
    if files != 0 {
        lineage::seed_table(files, task);
    }
    0
}

/// Enters every descriptor on a pipe into the live map, if its process is tracked, and notes where the
/// watched pipes are, whoever holds them.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn iter_seed_files(context: *const Context) -> i32 {
    // SAFETY: as above.
    unsafe {
        let task = (&raw const (*context).task).read_volatile();
        let file = (&raw const (*context).file).read_volatile();
        if task == 0 || file == 0 {
            return 0;
        }
        let inode: u64 = typed(file, &FILE_INODE);
        if typed::<u16>(inode, &INODE_MODE) & S_IFMT != S_IFIFO {
            return 0;
        }
        let fd = (&raw const (*context).fd).cast::<u32>().read_volatile();
        if let Some(held) = pipe_behind(file, fd) {
            live_map::note_object(&held);
        }
        if lineage::tracked(typed(task, &TASK_TGID)) {
            // Not what the iterator saw: what is there now.
            // (A number: global functions take no typed pointers for numbers.)
            live_map::mend(Task(task).files(), fd);
        }
    }
    0
}

/// Answers how many open file descriptions write to a pipe, by the kernel's object. User space runs this
/// (`BPF_PROG_TEST_RUN`, Linux 5.10); it is attached to nothing. Written out, because the macro's
/// programs all answer 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub fn ask_writers(context: *mut c_void) -> i32 {
    writers(RawTracePointContext::new(context).arg(0)) as i32
}

/// # Safety
///
/// `task` must be a typed pointer to a task.
#[inline(always)]
unsafe fn number(task: u64, kind: u64) -> u32 {
    // SAFETY: as the caller promises; the array of pointers and what they point to have types too.
    unsafe {
        let signal: u64 = typed(task, &TASK_SIGNAL);
        let pid: u64 = typed(signal + 8 * kind, &SIGNAL_PIDS);
        if pid == 0 {
            return 0; // being reaped
        }
        typed(pid + PID_NUMBERS.load(), &UPID_NR)
    }
}

/// # Safety
///
/// `context` must be the iterator's.
#[inline(always)]
unsafe fn put<T>(context: *const Context, row: &T) {
    // SAFETY: as the caller promises; a row is on our stack and has no padding. A full buffer makes
    // the kernel call us again for the same row.
    unsafe {
        let meta = (&raw const (*context).meta).read_volatile();
        let seq: u64 = typed(meta, &META_SEQ);
        bpf_seq_write(seq as *mut _, (&raw const *row).cast_mut().cast(), size_of::<T>() as u32);
    }
}
