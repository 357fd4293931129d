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
        unsafe { add_to(counter, number) };
    }
}

/// Adds to a number in a map, whoever else does.
///
/// # Safety
///
/// The pointer must be into a value of a map.
#[inline(always)]
pub unsafe fn add_to(place: *mut u64, number: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(place, number);
    }
}
