//! What is: the rows of the iterators.

use crate::Held;

/// A row of `iter/task`: one thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// When the process (its leader) started, in nanoseconds since boot.
    pub start_boot_ns: u64,
    /// The kernel's `files_struct`, as a number. 0 once it exited.
    pub files: u64,
    /// The process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its process group; 0 for a process that is being reaped.
    pub pgid: u32,
    /// Its session; 0 as above.
    pub sid: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A row of `iter/task_file`: one descriptor on a pipe or FIFO.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// The kernel's `files_struct`, as a number.
    pub files: u64,
    /// The process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// The thread whose table was read: one thread for each table.
    pub tid: u32,
    /// The pipe and the descriptor.
    pub held: Held,
}
