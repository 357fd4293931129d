//! Entry points: a hook each, and nothing but the way from its arguments to the core.
//!
//! fork, exec, exit and completed io_uring requests come from tracepoints on every rung. How system calls
//! are heard of is what makes the rungs: at the return of their functions by trampoline (fentry rung), by
//! kretprobe, or at the return of every system call of the machine (tracepoint rung).
//!
//! Each that may have to walk over a whole table is here twice: with the kernel's own loop, and, for
//! kernels before 5.17, with a bounded one (`_bounded`).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, fexit, kprobe, kretprobe, map, raw_tracepoint};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext};
use pipewarden_common::call;
use pipewarden_common::counter::{LOST_PROCESSES, UNSURE_TABLES};
use pipewarden_common::live_map::Call;

use crate::counters::count;
use crate::globals::{REGS_ARGUMENT_2, REGS_NR, REGS_PARAMETER, REGS_RETURN};
use crate::task::Task;
use crate::walk::{Bounded, Loops, Way};
use crate::{calls, lineage, read, rings};

/// Says what was told, in the variant for debugging.
macro_rules! log {
    ($told:expr, $context:expr, $what:literal) => {
        let told = $told;
        #[cfg(feature = "log")]
        if told {
            aya_log_ebpf::info!(&$context, $what);
        }
        let _ = (told, &$context);
    };
}

// Every rung: sched_process_fork(parent, child), _exec(task, ..), _exit(task, ..), and
// io_uring_complete(ring, request, ..), which had other arguments before Linux 5.18.

macro_rules! tracepoints {
    ($way:ty, $fork:ident, $exec:ident, $exit:ident, $completed:ident, $sys_exit:ident) => {
        #[raw_tracepoint(tracepoint = "sched_process_fork")]
        pub fn $fork(context: RawTracePointContext) -> i32 {
            log!(lineage::fork::<$way>(Task(context.arg(0)), Task(context.arg(1))), context, "fork");
            0
        }

        #[raw_tracepoint(tracepoint = "sched_process_exec")]
        pub fn $exec(context: RawTracePointContext) -> i32 {
            log!(lineage::exec::<$way>(Task(context.arg(0))), context, "exec");
            0
        }

        #[raw_tracepoint(tracepoint = "sched_process_exit")]
        pub fn $exit(context: RawTracePointContext) -> i32 {
            log!(lineage::exit::<$way>(Task(context.arg(0))), context, "exit");
            0
        }

        #[raw_tracepoint(tracepoint = "io_uring_complete")]
        pub fn $completed(context: RawTracePointContext) -> i32 {
            rings::completed::<$way>(context.arg(1));
            0
        }

        // Tracepoint rung: sys_exit(regs, return value), for every system call of the machine. Its
        // argument has a type, so that the number of a call that is none of our business costs one load.
        #[btf_tracepoint(function = "sys_exit")]
        pub fn $sys_exit(context: BtfTracePointContext) -> i32 {
            let regs: u64 = context.arg(0);
            // The number is an int on arm64, and no number of a system call needs more.
            // SAFETY: the verifier knows the argument's type.
            let meaning = calls::meaning(unsafe { read::typed::<u32>(regs, &REGS_NR) });
            if calls::is_ioctl(meaning) {
                // SAFETY: as above.
                calls::ioctl_returned(unsafe { read::typed::<u32>(regs, &REGS_ARGUMENT_2) }, context.arg(1));
            } else if meaning != call::NONE {
                log!(calls::returned::<$way>(meaning, regs, context.arg(1)), context, "call");
            }
            0
        }
    };
}
tracepoints!(Loops, fork, exec, exit, completed, sys_exit);
tracepoints!(Bounded, fork_bounded, exec_bounded, exit_bounded, completed_bounded, sys_exit_bounded);

/// Kernels before 5.18: see [`rings::something_completed`]. All of them but 5.17 walk by a bounded loop anyway.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
pub fn completed_unnamed(_: RawTracePointContext) -> i32 {
    rings::something_completed::<Bounded>();
    0
}

// Fentry rung: on the system calls' wrappers, whose one argument is the registers. The return value
// follows it; reading it there works before 5.17 too. A program has one function: there is one each.

macro_rules! wrappers {
    ($($loops:ident $bounded:ident $bounded_returned:ident)*) => {
        $(
            #[fexit]
            pub fn $loops(context: FExitContext) -> i32 {
                wrapper_returned::<Loops>(&context)
            }

            #[fexit]
            pub fn $bounded(context: FExitContext) -> i32 {
                $bounded_returned::<Bounded>(&context)
            }
        )*
    };
}
wrappers! {
    fexit_close fexit_close_bounded wrapper_returned
    fexit_open fexit_open_bounded wrapper_returned
    fexit_creat fexit_creat_bounded wrapper_returned
    fexit_openat fexit_openat_bounded wrapper_returned
    fexit_openat2 fexit_openat2_bounded wrapper_returned
    fexit_open_by_handle_at fexit_open_by_handle_at_bounded wrapper_returned
    fexit_dup fexit_dup_bounded wrapper_returned
    fexit_dup2 fexit_dup2_bounded wrapper_returned
    fexit_dup3 fexit_dup3_bounded wrapper_returned
    fexit_fcntl fexit_fcntl_bounded wrapper_returned
    fexit_pidfd_getfd fexit_pidfd_getfd_bounded wrapper_returned
    fexit_pipe fexit_pipe_bounded wrapper_returned
    fexit_pipe2 fexit_pipe2_bounded wrapper_returned
    fexit_close_range fexit_close_range_bounded wrapper_returned
    fexit_unshare fexit_unshare_bounded wrapper_returned
    fexit_recvmsg fexit_recvmsg_bounded blindly_returned
    fexit_recvmmsg fexit_recvmmsg_bounded blindly_returned
    fexit_io_uring_enter fexit_io_uring_enter_bounded wrapper_returned
    fexit_ioctl fexit_ioctl_bounded wrapper_returned
    fexit_setpgid fexit_setpgid_bounded wrapper_returned
}

#[inline(always)]
fn wrapper_returned<W: Way>(context: &FExitContext) -> i32 {
    call_returned::<W>(context.arg(0), context.arg(1));
    0
}

/// On the function behind setsid, which has no argument: its wrapper is not among the kernel's types.
#[fexit]
pub fn fexit_setsid(context: FExitContext) -> i32 {
    // Whether anything is walked over makes no difference to setsid.
    calls::returned::<Bounded>(call::SETSID | call::SETSID << call::COMPAT_SHIFT, 0, context.arg(0));
    0
}

// 32-bit callers have wrappers of their own. They are few, and nobody should pay much for them: who is
// tracked and called so has a table of which we are not sure, until the map is seeded again.

macro_rules! compat_wrappers {
    ($($name:ident)*) => {
        $(
            #[fexit]
            pub fn $name(_: FExitContext) -> i32 {
                calls::compat_returned();
                0
            }
        )*
    };
}
compat_wrappers! {
    fexit_compat_close
    fexit_compat_open
    fexit_compat_creat
    fexit_compat_openat
    fexit_compat_openat2
    fexit_compat_open_by_handle_at
    fexit_compat_dup
    fexit_compat_dup2
    fexit_compat_dup3
    fexit_compat_fcntl
    fexit_compat_fcntl64
    fexit_compat_pidfd_getfd
    fexit_compat_pipe
    fexit_compat_pipe2
    fexit_compat_close_range
    fexit_compat_unshare
    fexit_compat_recvmsg
    fexit_compat_recvmmsg
    fexit_compat_recvmmsg_time64
    fexit_compat_socketcall
    fexit_compat_io_uring_enter
    fexit_compat_setpgid
}

/// The same on the kprobe rung.
#[kretprobe]
pub fn kretprobe_compat(_: RetProbeContext) -> u32 {
    calls::compat_returned();
    0
}

/// Where the verifier does not know what registers are: the types of 5.10 have them, but not for functions
/// of the network's. Whatever was received may have brought descriptors.
#[inline(always)]
fn blindly_returned<W: Way>(context: &FExitContext) -> i32 {
    calls::returned::<W>(call::TABLE | call::TABLE << call::COMPAT_SHIFT, 0, context.arg(1));
    0
}

// Kprobe rung: one pair of programs on all of the wrappers.

/// What each thread called, between entry and return. Few threads are in there at once.
#[map]
static CALLERS: HashMap<u64, Call> = HashMap::with_max_entries(4096, 0);

#[kprobe]
pub fn kprobe_call(context: ProbeContext) -> u32 {
    // The wrapper's one argument, the caller's registers, is our first parameter.
    let regs: u64 = read::member(context.as_ptr() as u64, &REGS_PARAMETER);
    let number = read::member::<u32>(regs, &REGS_NR);
    let thread = bpf_get_current_pid_tgid();
    if calls::is_ioctl(calls::meaning(number)) || lineage::tracked((thread >> 32) as u32) {
        // SAFETY: the helper takes no argument and is always allowed.
        enter(thread, &Call { regs, time_ns: unsafe { bpf_ktime_get_ns() }, number: u64::from(number) });
    }
    0
}

#[inline(always)]
fn enter(thread: u64, call: &Call) {
    const NEW_ONLY: u64 = 1; // BPF_NOEXIST
    if CALLERS.insert(&thread, call, NEW_ONLY).is_ok() {
        return;
    }
    // Of its last call's return we were not told; or there is no room.
    count(if CALLERS.insert(&thread, call, 0).is_ok() { UNSURE_TABLES } else { LOST_PROCESSES });
}

macro_rules! kretprobes {
    ($($name:ident $way:ty;)*) => {
        $(
            #[kretprobe]
            pub fn $name(context: RetProbeContext) -> u32 {
                let thread = bpf_get_current_pid_tgid();
                // SAFETY: the value is copied at once; an entry is used by its own thread alone.
                let Some(call) = (unsafe { CALLERS.get(&thread) }).copied() else { return 0 };
                let _ = CALLERS.remove(&thread);
                call_returned::<$way>(call.regs, read::member(context.as_ptr() as u64, &REGS_RETURN));
                0
            }
        )*
    };
}
kretprobes! {
    kretprobe_call Loops;
    kretprobe_call_bounded Bounded;
}

#[inline(always)]
fn call_returned<W: Way>(regs: u64, result: i64) {
    let meaning = calls::meaning(read::member(regs, &REGS_NR));
    if calls::is_ioctl(meaning) {
        calls::ioctl_returned(read::member(regs, &REGS_ARGUMENT_2), result);
    } else {
        calls::returned::<W>(meaning, regs, result);
    }
}
