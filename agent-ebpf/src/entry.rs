//! Entry points: a hook each, and nothing but the way from its arguments to the core.
//!
//! fork, exec and exit come from raw tracepoints on every rung. How setsid and setpgid are heard of is
//! what makes the rungs: at the functions' return by trampoline (fentry rung), by kretprobe, or at
//! the return of every system call (tracepoint rung).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{fexit, kprobe, kretprobe, map, raw_tracepoint};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{FExitContext, ProbeContext, RawTracePointContext, RetProbeContext};
use pipewarden_common::event::kind;

use crate::globals::{NR_SETPGID, NR_SETSID, REGS_ARGUMENT, REGS_NR, REGS_PARAMETER, REGS_RETURN};
use crate::task::Task;
use crate::{lineage, read};

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

// Every rung: sched_process_fork(parent, child), _exec(task, ..), _exit(task, ..).

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn raw_fork(context: RawTracePointContext) -> i32 {
    log!(lineage::fork(Task(context.arg(0)), Task(context.arg(1))), context, "fork");
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn raw_exec(context: RawTracePointContext) -> i32 {
    log!(lineage::exec(Task(context.arg(0))), context, "exec");
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn raw_exit(context: RawTracePointContext) -> i32 {
    log!(lineage::exit(Task(context.arg(0))), context, "exit");
    0
}

// Tracepoint rung: sys_exit(regs, return value), for every system call of the machine.

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn raw_sys_exit(context: RawTracePointContext) -> i32 {
    let regs: u64 = context.arg(0);
    // The number is an int on arm64, and no number of a system call needs more.
    let number = u64::from(read::member::<u32>(regs, &REGS_NR));
    let setsid = number == NR_SETSID.load();
    if !setsid && number != NR_SETPGID.load() || context.arg::<i64>(1) < 0 {
        return 0;
    }
    // Both ways to the walk look alike to the verifier, so that it walks it once (setsid has no
    // argument: what is read then is of no meaning, and erased).
    let argument: u32 = read::member(regs, &REGS_ARGUMENT);
    let (kind, mask) = if setsid { (kind::SETSID, 0) } else { (kind::SETPGID, u32::MAX) };
    log!(lineage::escape(kind, argument & mask), context, "escape");
    0
}

// Fentry rung. The return value follows the arguments; reading it there works before 5.17 too.

#[fexit(function = "ksys_setsid")]
pub fn fexit_setsid(context: FExitContext) -> i32 {
    if context.arg::<i32>(0) >= 0 {
        log!(lineage::escape(kind::SETSID, 0), context, "escape");
    }
    0
}

/// On the system call's wrapper, whose one argument is the registers.
#[fexit]
pub fn fexit_setpgid(context: FExitContext) -> i32 {
    if context.arg::<i64>(1) == 0 {
        log!(lineage::escape(kind::SETPGID, read::member(context.arg(0), &REGS_ARGUMENT)), context, "escape");
    }
    0
}

// Kprobe rung.

#[kretprobe]
pub fn kretprobe_setsid(context: RetProbeContext) -> u32 {
    if returned(&context) >= 0 {
        log!(lineage::escape(kind::SETSID, 0), context, "escape");
    }
    0
}

/// Whom a thread's setpgid names, between entry and return. Few threads are in there at once.
#[map]
static SETPGID_TARGETS: HashMap<u64, u32> = HashMap::with_max_entries(1024, 0);

#[kprobe]
pub fn kprobe_setpgid(context: ProbeContext) -> u32 {
    // The wrapper's one argument, the caller's registers, is our first parameter.
    let callers: u64 = read::member(context.as_ptr() as u64, &REGS_PARAMETER);
    let target: u32 = read::member(callers, &REGS_ARGUMENT);
    let _ = SETPGID_TARGETS.insert(&bpf_get_current_pid_tgid(), &target, 0); // full: told as "itself"
    0
}

#[kretprobe]
pub fn kretprobe_setpgid(context: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied at once; an entry is used by its own thread alone.
    let target = unsafe { SETPGID_TARGETS.get(&thread) }.copied().unwrap_or(0);
    let _ = SETPGID_TARGETS.remove(&thread);
    if returned(&context) == 0 {
        log!(lineage::escape(kind::SETPGID, target), context, "escape");
    }
    0
}

#[inline(always)]
fn returned(context: &RetProbeContext) -> i64 {
    read::member(context.as_ptr() as u64, &REGS_RETURN)
}
