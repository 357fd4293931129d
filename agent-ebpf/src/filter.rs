//! Who may be tracked, asked about everybody: see `pipewarden_common::filter`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use core::ffi::c_void;
use pipewarden_common::filter::{PLACES, place};

use crate::counters::add_to;

/// By `pipewarden_common::filter::place`.
#[map]
static FILTER: Array<u64> = Array::with_max_entries(PLACES, 0);

/// Whether a process may be tracked. If not, nothing more has to be asked.
#[inline(always)]
pub fn may_be_tracked(pid: u32) -> bool {
    match FILTER.get_ptr(place(pid)) {
        // SAFETY: the element of an array map lives as long as the program, and is read as one word.
        Some(number) => unsafe { number.read_volatile() != 0 },
        None => true,
    }
}

/// A process is about to be put into the map.
#[inline(always)]
pub fn count_in(pid: u32) {
    add(pid, 1);
}

/// A process was taken out of it.
#[inline(always)]
pub fn count_out(pid: u32) {
    add(pid, u64::MAX);
}

#[inline(always)]
fn add(pid: u32, number: u64) {
    if let Some(count) = FILTER.get_ptr_mut(place(pid)) {
        // SAFETY: the pointer is a value of the map, which lives as long as the program.
        unsafe { add_to(count, number) };
    }
}

/// User space is about to put a process into the map; it cannot add to a number that others add to. As
/// `ask_writers`, it runs this, which is attached to nothing.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub fn expect_process(context: *mut c_void) -> i32 {
    let pid: u64 = RawTracePointContext::new(context).arg(0);
    count_in(pid as u32);
    0
}
