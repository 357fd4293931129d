//! System calls without a C library between: what it would interpose is part of what is tested, and
//! tasks of ours have no thread-local storage in which it could keep an error.

use std::arch::asm;

/// A number or the address of something that lives through the call.
pub type Word = usize;

/// A result as the kernel gives it: below 0 it is an error's number.
pub type Answer = i32;

/// A system call.
///
/// # Safety
///
/// Addresses among the arguments must be of memory that the call may read or write as it does.
#[cfg(target_arch = "x86_64")]
pub unsafe fn call(number: libc::c_long, a: [Word; 6]) -> isize {
    let result: isize;
    // SAFETY: the calling convention of system calls; the memory is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// As above.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
pub unsafe fn call(number: libc::c_long, a: [Word; 6]) -> isize {
    let result: isize;
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2], in("x3") a[3],
            in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

/// A call whose arguments are numbers only.
#[must_use]
pub fn numbers(number: libc::c_long, arguments: &[u32]) -> Answer {
    let mut words = [0; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = *argument as Word;
    }
    // SAFETY: no address is among the arguments.
    short(unsafe { call(number, words) })
}

/// A result that fits: descriptors, pids and errors do.
#[must_use]
pub fn short(result: isize) -> Answer {
    Answer::try_from(result).unwrap_or(Answer::MAX)
}

/// clone(2) with a stack for the child, which runs `child` and never returns from it.
///
/// # Safety
///
/// The stack must be the child's alone, and its top a multiple of 16.
#[cfg(target_arch = "x86_64")]
pub unsafe fn clone_on(stack: Word, flags: Word, clear_tid: Word, child: extern "C" fn(u32) -> !, with: u32) -> isize {
    let result: isize;
    // SAFETY: the kernel gives the child our registers and its own stack; it leaves by the call.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov edi, r12d", "call r13", "ud2", "2:",
            inlateout("rax") libc::SYS_clone as isize => result, in("rdi") flags, in("rsi") stack, in("rdx") 0,
            in("r10") clear_tid, in("r8") 0, in("r12") with as usize, in("r13") child, lateout("rcx") _,
            lateout("r11") _);
    }
    result
}

/// As above.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
pub unsafe fn clone_on(stack: Word, flags: Word, clear_tid: Word, child: extern "C" fn(u32) -> !, with: u32) -> isize {
    let result: isize;
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", "cbnz x0, 2f", "mov x29, xzr", "mov w0, w20", "blr x21", "brk 1", "2:",
            in("x8") libc::SYS_clone, inlateout("x0") flags => result, in("x1") stack, in("x2") 0, in("x3") 0,
            in("x4") clear_tid, in("x20") with as usize, in("x21") child);
    }
    result
}

/// A system call as a 32-bit program makes it, by `int 0x80`. Its addresses have 32 bits.
///
/// # Safety
///
/// As for [`call`]; without IA32 emulation in the kernel it ends the process.
#[cfg(target_arch = "x86_64")]
pub unsafe fn compat(number: u32, a: u32, b: u32, c: u32) -> Answer {
    let result: i64;
    // SAFETY: as above. rbx is the compiler's and is put back.
    unsafe {
        asm!("xchg rbx, {a}", "int 0x80", "xchg rbx, {a}", a = inout(reg) u64::from(a) => _,
            inlateout("rax") i64::from(number) => result, in("rcx") u64::from(b), in("rdx") u64::from(c),
            in("rsi") 0, in("rdi") 0, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    result as i32
}

/// There are no such callers on other machines.
///
/// # Safety
///
/// None to keep.
#[cfg(not(target_arch = "x86_64"))]
pub unsafe fn compat(_number: u32, _a: u32, _b: u32, _c: u32) -> Answer {
    -libc::ENOSYS
}

/// Ends this thread.
pub fn exit() -> ! {
    loop {
        let _ = numbers(libc::SYS_exit, &[0]);
    }
}

/// Ends this process.
pub fn exit_group(code: u32) -> ! {
    loop {
        let _ = numbers(libc::SYS_exit_group, &[code]);
    }
}
