//! What is counted: see `pipewarden_common::counter`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use pipewarden_common::counter;

/// By the indices of `pipewarden_common::counter`.
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(counter::COUNT, 0);

/// One more.
#[inline(always)]
pub fn count(index: u32) {
    add(index, 1);
}

/// One less.
#[inline(always)]
pub fn uncount(index: u32) {
    add(index, u64::MAX);
}

#[inline(always)]
fn add(index: u32, number: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is a value of the map, which lives as long as the program.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, number);
        }
    }
}
