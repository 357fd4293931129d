//! Programs that do nothing: what a tracker costs is compared with what its hooks cost anyway.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

/// For the tracepoints of fork, exec, exit and io_uring: one program on all of them.
#[raw_tracepoint]
pub fn empty(_: RawTracePointContext) -> i32 {
    0
}

/// For the return of every system call of the machine.
#[btf_tracepoint(function = "sys_exit")]
pub fn empty_sys_exit(_: BtfTracePointContext) -> i32 {
    0
}
