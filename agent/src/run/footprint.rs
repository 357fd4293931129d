//! What of this program stays mapped into a process that will live for hours.

use std::ffi::c_void;

/// Makes all threads allocate from one heap. They are two or three and allocate little; a heap for each
/// costs more than they ever wait. To be called before there is a second one.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // What is large goes back to the kernel when it is freed. (By itself the bound moves up to the
        // largest block that was freed so far.)
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives back what something large left behind: freed memory between what is still in use, and the code
/// that it took.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and only gives back what nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
    shrink();
}

/// Takes the program's code and constants out of this process's memory: what is needed again comes
/// back from the page cache by itself. Most of what a run ever touches it touches before its command
/// runs, above all the parser of the command line.
pub fn shrink() {
    // SAFETY: `forget` keeps to the contract of dl_iterate_phdr(3): it reads what it is given.
    unsafe { libc::dl_iterate_phdr(Some(forget), std::ptr::null_mut()) };
}

/// Asked for each loaded object; the first is the program itself.
unsafe extern "C" fn forget(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> libc::c_int {
    // SAFETY: the caller passes an object that is loaded, with the table of its segments.
    let (base, segments) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    for segment in
        segments.iter().filter(|segment| segment.p_type == libc::PT_LOAD && segment.p_flags & libc::PF_W == 0)
    {
        let Ok((start, length)) = range(base + segment.p_vaddr, segment.p_memsz) else { continue };
        // SAFETY: a segment that is never writable is the file's content, and nothing else; the
        // kernel brings each page back at the next access. Where it refuses, nothing changes.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, libc::MADV_DONTNEED) };
    }
    1 // ask for no other
}

/// The whole pages that nothing else shares with a segment.
fn range(address: u64, length: u64) -> Result<(usize, usize), std::num::TryFromIntError> {
    const PAGE: u64 = 4096;
    let (start, end) = (address.next_multiple_of(PAGE), (address + length) / PAGE * PAGE);
    Ok((start.try_into()?, end.saturating_sub(start).try_into()?))
}
