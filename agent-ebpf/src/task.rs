//! What a `task_struct` says about its process.

use aya_ebpf::helpers::bpf_get_current_task;

use crate::globals::{
    CGROUP_NODE, CSS_SET_CGROUP, NODE_ID, PID_LEVEL, PID_NUMBERS, SIGNAL_LIVE, SIGNAL_PIDS, TASK_CGROUPS, TASK_COMM,
    TASK_FILES, TASK_LEADER, TASK_PARENT, TASK_PID, TASK_SIGNAL, TASK_START, TASK_TGID, TASK_THREAD_PID, UPID_NR,
};
use crate::read;

/// `enum pid_type` of include/linux/pid_types.h, unchanged since 4.19.
pub const PIDTYPE_PGID: u64 = 2;
/// As above.
pub const PIDTYPE_SID: u64 = 3;

/// The address of a `task_struct`.
#[derive(Clone, Copy)]
pub struct Task(pub u64);

impl Task {
    /// The thread that runs this program. (Its typed variant came with Linux 5.11.)
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no argument; always allowed.
        Task(unsafe { bpf_get_current_task() })
    }

    /// The process.
    #[inline(always)]
    pub fn process(self) -> u32 {
        read::member(self.0, &TASK_TGID)
    }

    /// The thread.
    #[inline(always)]
    pub fn thread(self) -> u32 {
        read::member(self.0, &TASK_PID)
    }

    /// The process's first thread.
    #[inline(always)]
    pub fn leader(self) -> Self {
        Task(read::member(self.0, &TASK_LEADER))
    }

    /// The parent process.
    #[inline(always)]
    pub fn parent(self) -> Self {
        Task(read::member(self.0, &TASK_PARENT))
    }

    /// When the process started, in nanoseconds since boot.
    #[inline(always)]
    pub fn start(self) -> u64 {
        read::member(self.leader().0, &TASK_START)
    }

    /// Its descriptor table (`files_struct`).
    #[inline(always)]
    pub fn files(self) -> u64 {
        read::member(self.0, &TASK_FILES)
    }

    /// How many pid namespaces deep it is: 0 in the initial one.
    #[inline(always)]
    pub fn namespace_level(self) -> u32 {
        read::member(read::member(self.0, &TASK_THREAD_PID), &PID_LEVEL)
    }

    /// The id of its cgroup in the v2 hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        let set: u64 = read::member(self.0, &TASK_CGROUPS);
        let node: u64 = read::member(read::member(set, &CSS_SET_CGROUP), &CGROUP_NODE);
        read::member(node, &NODE_ID)
    }

    /// The program's name.
    #[inline(always)]
    pub fn comm(self) -> [u8; 16] {
        read::member(self.0, &TASK_COMM)
    }

    /// How many of the process's threads still run: 0 while the last one exits.
    #[inline(always)]
    pub fn live_threads(self) -> u32 {
        read::member(read::member(self.0, &TASK_SIGNAL), &SIGNAL_LIVE)
    }

    /// The number of its group ([`PIDTYPE_PGID`]) or session ([`PIDTYPE_SID`]), in the initial namespace.
    #[inline(always)]
    pub fn number(self, kind: u64) -> u32 {
        let signal: u64 = read::member(self.0, &TASK_SIGNAL);
        let pid: u64 = read::at(signal + SIGNAL_PIDS.load() + 8 * kind);
        read::at(pid + PID_NUMBERS.load() + UPID_NR.load())
    }
}
