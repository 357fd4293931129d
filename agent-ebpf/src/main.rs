//! The programs that run in the kernel.
//!
//! One core, and thin entry points for each way to be called: [`entry`] says which function or
//! tracepoint leads where, [`lineage`] what an event means, [`fd_table`] and [`task`] how the kernel's
//! structures are read, [`snapshot`] what exists now.
//!
//! What walks over tables or changes the map is a global function (`extern "C"`, `no_mangle`): the verifier
//! looks at those once for each program that calls them, and at others once for each call.
//!
//! The bytecode does not depend on the architecture: what does (offsets, registers, numbers of system
//! calls) comes through [`globals`]. One object serves both.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "AtomicU64::fetch_add does not compile for this target")]

mod calls;
mod counters;
mod empty;
mod entry;
mod fd_table;
mod filter;
mod globals;
mod lineage;
mod live_map;
mod read;
mod rings;
mod snapshot;
mod task;
mod walk;

/// The kernel lends `bpf_probe_read_kernel` and its like to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses any program from which this could be reached.
    loop {}
}
