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
            SIGNAL_LIVE: "signal_struct.live",
            SIGNAL_PIDS: "signal_struct.pids",
            PID_NUMBERS: "pid.numbers",
            UPID_NR: "upid.nr",
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
    /// Offset in `pt_regs` of a kernel function's first parameter.
    pub const REGS_PARAMETER: &str = "REGS_PARAMETER";
    /// Offset in `pt_regs` of a kernel function's return value.
    pub const REGS_RETURN: &str = "REGS_RETURN";
    /// The number of setsid(2).
    pub const NR_SETSID: &str = "NR_SETSID";
    /// The number of setpgid(2).
    pub const NR_SETPGID: &str = "NR_SETPGID";
    /// 1: tell about every process; 0: only about those in the map `LINEAGE` and their children.
    pub const TRACK_ALL: &str = "TRACK_ALL";
}

/// The map of the lineage: pid (`u32`) -> anything (`u32`).
pub const MAP_LINEAGE: &str = "LINEAGE";
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
