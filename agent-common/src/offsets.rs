//! Where things are in the running kernel: the programs' frozen globals and what each one means.
//!
//! The toolchain emits no relocations for kernel types, so user space reads the offsets from the
//! kernel's own BTF and writes them into read-only globals before it loads the programs. The verifier
//! knows them as constants.

/// Calls `$each!` with one line for each offset: the global's name, and the path from a kernel
/// structure through its members (anonymous ones are passed through) to the byte that it means.
#[macro_export]
macro_rules! kernel_offsets {
    ($each:ident) => {
        $each! {
            TASK_PID: "task_struct.pid",
            TASK_TGID: "task_struct.tgid",
            TASK_LEADER: "task_struct.group_leader",
            TASK_START: "task_struct.start_boottime",
            TASK_PARENT: "task_struct.real_parent",
            TASK_SIGNAL: "task_struct.signal",
            TASK_FILES: "task_struct.files",
            TASK_COMM: "task_struct.comm",
            TASK_CGROUPS: "task_struct.cgroups",
            CSS_SET_CGROUP: "css_set.dfl_cgrp",
            CGROUP_NODE: "cgroup.kn",
            NODE_ID: "kernfs_node.id",
            SIGNAL_LIVE: "signal_struct.live",
            SIGNAL_PIDS: "signal_struct.pids",
            TASK_THREAD_PID: "task_struct.thread_pid",
            PID_LEVEL: "pid.level",
            PID_NUMBERS: "pid.numbers",
            UPID_NR: "upid.nr",
            FILES_COUNT: "files_struct.count",
            FILES_FDT: "files_struct.fdt",
            FDT_MAX: "fdtable.max_fds",
            FDT_FD: "fdtable.fd",
            FDT_OPEN: "fdtable.open_fds",
            FILE_MODE: "file.f_mode",
            FILE_INODE: "file.f_inode",
            INODE_MODE: "inode.i_mode",
            INODE_INO: "inode.i_ino",
            INODE_SB: "inode.i_sb",
            INODE_PIPE: "inode.i_pipe",
            PIPE_WRITERS: "pipe_inode_info.writers",
            REQUEST_OPCODE: "io_kiocb.opcode",
            SB_DEV: "super_block.s_dev",
            META_SEQ: "bpf_iter_meta.seq",
        }
    };
}

/// The other globals that user space sets: registers, which each architecture names in its own way,
/// and plain numbers.
pub mod global {
    /// Offset in `pt_regs` of the system call's number.
    pub const REGS_NR: &str = "REGS_NR";
    /// Offset in `pt_regs` of a system call's first argument, as it is still found at the return.
    pub const REGS_ARGUMENT: &str = "REGS_ARGUMENT";
    /// The same of its second argument.
    pub const REGS_ARGUMENT_2: &str = "REGS_ARGUMENT_2";
    /// Offset in `pt_regs` of a 32-bit caller's first argument.
    pub const REGS_COMPAT_ARGUMENT: &str = "REGS_COMPAT_ARGUMENT";
    /// The same of its second argument.
    pub const REGS_COMPAT_ARGUMENT_2: &str = "REGS_COMPAT_ARGUMENT_2";
    /// Offset in `pt_regs` of a kernel function's first parameter.
    pub const REGS_PARAMETER: &str = "REGS_PARAMETER";
    /// Offset in `pt_regs` of a kernel function's return value.
    pub const REGS_RETURN: &str = "REGS_RETURN";
    /// Offset in `task_struct` of the 32 bits in which [`COMPAT_MASK`] marks a 32-bit caller.
    pub const TASK_COMPAT: &str = "TASK_COMPAT";
    /// See [`TASK_COMPAT`].
    pub const COMPAT_MASK: &str = "COMPAT_MASK";
    /// 1: track every process; 0: only those in the map `PROCESSES` and their children.
    pub const TRACK_ALL: &str = "TRACK_ALL";
}

/// The processes that are tracked: pid (`u32`) -> [`Process`](crate::live_map::Process).
pub const MAP_PROCESSES: &str = "PROCESSES";
/// `files_struct` (`u64`) -> [`Table`](crate::live_map::Table).
pub const MAP_TABLES: &str = "TABLES";
/// [`SlotKey`](crate::live_map::SlotKey) -> [`Slot`](crate::live_map::Slot).
pub const MAP_SLOTS: &str = "SLOTS";
/// The index: the slots on watched pipes, as in `SLOTS`.
pub const MAP_HOLDERS: &str = "HOLDERS";
/// [`PipeKey`](crate::live_map::PipeKey) -> the kernel's object (`u64`), 0 until it was seen.
pub const MAP_WATCHED: &str = "WATCHED";
/// System call's number -> what it does: see [`call`](crate::call).
pub const MAP_CALLS: &str = "CALLS";
/// Kprobe rung: threads -> the [`Call`](crate::live_map::Call) that each is in.
pub const MAP_CALLERS: &str = "CALLERS";
/// One [`Control`](crate::live_map::Control).
pub const MAP_CONTROL: &str = "CONTROL";
/// The ring buffer of events.
pub const MAP_EVENTS: &str = "EVENTS";
/// The array of [`counter`](crate::counter)s (`u64`).
pub const MAP_COUNTERS: &str = "COUNTERS";

macro_rules! table {
    ($($name:ident: $path:literal,)*) => {
        /// Every offset that the programs need: (global, path of the member).
        pub const OFFSETS: &[(&str, &str)] = &[$((stringify!($name), $path)),*];
    };
}
kernel_offsets!(table);
