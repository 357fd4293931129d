//! A 64-bit program that calls as a 32-bit one does, by `int 0x80`: what a tracer that knows one table
//! of numbers reads wrongly.

use std::sync::atomic::Ordering;

use super::op::{Kind, Op};
use super::sys::{self, Answer};
use super::{LOW, Task, Word};

/// fork(2) in the 32-bit table (arch/x86/entry/syscalls/syscall_32.tbl), like the others here.
pub const FORK: u32 = 2;
const OPEN: u32 = 5;
const CLOSE: u32 = 6;
const GETPID: u32 = 20;
const DUP: u32 = 41;
const PIPE: u32 = 42;
const DUP2: u32 = 63;
const FCNTL64: u32 = 221;
const CLOSE_RANGE: u32 = 436;

/// A call, where they are answered.
///
/// # Safety
///
/// As for [`sys::compat`].
pub unsafe fn call(number: u32, a: u32, b: u32, c: u32) -> Answer {
    let answered = Task::at(0).is_some_and(|task| task.board().compat.load(Ordering::Relaxed) != 0);
    // SAFETY: the caller's promise; and the keeper tried it.
    if answered { unsafe { sys::compat(number, a, b, c) } } else { -libc::ENOSYS }
}

/// Performs an operation.
pub fn perform(task: Task, op: &Op) -> Answer {
    let [a, b, c] = op.with;
    // SAFETY: addresses are those of the low page, which is ours.
    unsafe {
        match op.kind {
            Kind::CompatDup => call(DUP, a, 0, 0),
            Kind::CompatDup2 => call(DUP2, a, b, 0),
            Kind::CompatDupFd => call(FCNTL64, a, libc::F_DUPFD as u32, b),
            Kind::CompatClose => call(CLOSE, a, 0, 0),
            Kind::CompatCloseRange => call(CLOSE_RANGE, a, b, c),
            Kind::CompatPipe => with_low(&[], |address| call(PIPE, address, 0, 0)),
            Kind::CompatOpen => {
                let path = task.board().path(b"fifo", Some(a));
                with_low(&path, |address| call(OPEN, address, libc::O_RDWR as u32, 0))
            }
            _ => -libc::EINVAL,
        }
    }
}

/// Puts bytes where 32 bits reach them. Tasks that do so at once may disturb each other: they
/// write the same prefix of a path, and a wrong number in it is a FIFO too, or none.
fn with_low(bytes: &[u8], use_it: impl FnOnce(u32) -> Answer) -> Answer {
    let page: Word = LOW.load(Ordering::Acquire);
    let Ok(address) = u32::try_from(page) else { return -libc::ENOSYS };
    if page == 0 {
        return -libc::ENOSYS;
    }
    for (at, byte) in bytes.iter().enumerate() {
        // SAFETY: the page is ours and longer than any path here.
        unsafe { ((page + at) as *mut u8).write_volatile(*byte) };
    }
    use_it(address)
}

/// Whether this kernel answers such calls; without IA32 emulation this ends the process.
#[must_use]
pub fn is_answered() -> bool {
    // SAFETY: no address is among the arguments.
    unsafe { sys::compat(GETPID, 0, 0, 0) > 0 }
}
