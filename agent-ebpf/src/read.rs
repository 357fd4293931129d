//! Reading kernel memory at offsets that are known only at load time.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::ffi::c_void;
use core::mem::MaybeUninit;

/// Reads a member of the structure at `base`; zero where the memory is not there.
///
/// Works for any number that is meant as an address, in every kind of program; refused by the
/// verifier under lockdown=confidentiality.
#[inline(always)]
pub fn member<T: Copy + Default>(base: u64, offset: &Global<u64>) -> T {
    at(base + offset.load())
}

/// Reads what is at an address; zero where the memory is not there.
///
/// The helper's verdict is not looked at: it fills the place with zeroes when it fails (since 5.5).
/// A branch here would be one in every walk's every turn, and verifiers before 6.3 go both ways.
#[inline(always)]
pub fn at<T: Copy + Default>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the place is as large as we say, and filled whatever the address is.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const c_void);
        value.assume_init()
    }
}

/// Loads a member through a pointer whose type the verifier knows (an iterator's argument, and what
/// is loaded from it in turn). Allowed under lockdown=confidentiality, and cheaper.
///
/// # Safety
///
/// `base` must be such a pointer: the verifier refuses the program otherwise.
#[inline(always)]
pub unsafe fn typed<T: Copy>(base: u64, offset: &Global<u64>) -> T {
    // SAFETY: the verifier proves the load, or the caller's promise was broken and it refuses it.
    unsafe { core::ptr::read_volatile((base as *const u8).add(offset.load() as usize).cast()) }
}
