//! Operations that an `io_uring` executes: at once, by a worker, or by its polling thread.
//!
//! The rings are set up by hand. Another thread may close a ring or put something else at its number
//! while it is in use, which a library rightly takes for a fault of its user.

use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

use super::Task;
use super::op::{Kind, Op};
use super::pass::{MAILBOX, receive_with};
use super::sys::{self, Answer, Word};

/// The descriptor of the first ring that is kept.
pub const RING: u32 = 48;

const ENTRIES: u32 = 2;
const SETUP_SQPOLL: u32 = 1 << 1; // include/uapi/linux/io_uring.h, like the numbers below
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const REGISTER_FILES: u32 = 2;
const OFFSET_SQES: Word = 0x1000_0000;
/// Enough for both rings of so few entries, and no more than the kernel has for them: Linux 5.10 refuses a
/// larger mapping.
const RINGS_SIZE: Word = 4096;
const SQES_SIZE: Word = ENTRIES as Word * 64;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array, reserved, and an address
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, cqes, flags, reserved, and an address
    cq: [u32; 10],
}

/// By whom a ring executes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    AtOnce,
    Worker,
    Polling,
}

impl How {
    fn of(number: u32) -> How {
        match number {
            0 => How::AtOnce,
            1 => How::Worker,
            _ => How::Polling,
        }
    }
}

/// Performs an operation by a ring that is made for it.
pub fn perform(task: Task, op: &Op) -> Answer {
    let [a, b, _] = op.with;
    let mut fds = [0i32; 2];
    match op.kind {
        Kind::UringOpen => {
            let path = task.board().path(b"fifo", Some(a));
            let here = types::Fd(libc::AT_FDCWD);
            once(How::of(b), None, opcode::OpenAt::new(here, path.as_ptr().cast()).flags(libc::O_RDWR).build())
        }
        Kind::UringClose => once(How::of(b), None, opcode::Close::new(types::Fd(a as i32)).build()),
        Kind::UringPipe => once(How::of(a), None, opcode::Pipe::new(fds.as_mut_ptr()).build()),
        Kind::UringInstall => once(How::of(b), Some(a), opcode::FixedFdInstall::new(types::Fixed(0), 0).build()),
        Kind::UringReceive => receive_with(|header| {
            let entry = opcode::RecvMsg::new(types::Fd((MAILBOX + a) as i32), header as *mut libc::msghdr);
            once(How::of(b), None, entry.flags(libc::MSG_DONTWAIT as u32).build())
        }),
        Kind::UringRegister => keep(a, RING + b),
        _ => -libc::EINVAL,
    }
}

/// A ring that stays, with this file registered.
fn keep(fd: u32, at: u32) -> Answer {
    let mut params = Params::default();
    let ring = match setup(&mut params) {
        Ok(ring) => ring,
        Err(error) => return error,
    };
    let result = register(ring, fd);
    if result >= 0 && ring != at {
        let _ = sys::numbers(libc::SYS_dup3, &[ring, at, libc::O_CLOEXEC as u32]);
    }
    if ring != at {
        let _ = sys::numbers(libc::SYS_close, &[ring]);
    }
    result
}

fn setup(params: &mut Params) -> Result<u32, Answer> {
    let arguments = [ENTRIES as Word, (&raw mut *params) as Word, 0, 0, 0, 0];
    // SAFETY: the parameters live through the call.
    let result = sys::short(unsafe { sys::call(libc::SYS_io_uring_setup, arguments) });
    u32::try_from(result).map_err(|_| result)
}

fn register(ring: u32, fd: u32) -> Answer {
    let fds = [fd];
    let arguments = [ring as Word, REGISTER_FILES as Word, fds.as_ptr() as Word, 1, 0, 0];
    // SAFETY: the array lives through the call.
    sys::short(unsafe { sys::call(libc::SYS_io_uring_register, arguments) })
}

/// Makes a ring, has it execute one entry, and closes it.
fn once(how: How, registered: Option<u32>, entry: Entry) -> Answer {
    let mut params = Params { flags: if how == How::Polling { SETUP_SQPOLL } else { 0 }, ..Params::default() };
    params.sq_thread_idle = 1; // ms
    let ring = match setup(&mut params) {
        Ok(ring) => ring,
        Err(error) => return error,
    };
    let registered = registered.map_or(0, |fd| register(ring, fd));
    let entry = if how == How::Worker { entry.flags(Flags::ASYNC) } else { entry };
    let result = if registered < 0 { registered } else { with_maps(ring, &params, &entry) };
    let _ = sys::numbers(libc::SYS_close, &[ring]);
    result
}

fn with_maps(ring: u32, params: &Params, entry: &Entry) -> Answer {
    let (rings, entries) = match (map(ring, RINGS_SIZE, 0), map(ring, SQES_SIZE, OFFSET_SQES)) {
        (Ok(rings), Ok(entries)) => (rings, entries),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    // SAFETY: both mappings are there, and of the sizes that the kernel gave offsets for.
    let result = unsafe { submit(ring, params, rings, entries, entry) };
    for (address, size) in [(rings, RINGS_SIZE), (entries, SQES_SIZE)] {
        // SAFETY: nothing refers to the mappings any more.
        unsafe { sys::call(libc::SYS_munmap, [address, size, 0, 0, 0, 0]) };
    }
    result
}

/// Since Linux 5.4 one mapping has both rings.
fn map(ring: u32, size: Word, offset: Word) -> Result<Word, Answer> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as Word;
    let flags = (libc::MAP_SHARED | libc::MAP_POPULATE) as Word;
    // SAFETY: a new mapping somewhere free.
    let address = unsafe { sys::call(libc::SYS_mmap, [0, size, protection, flags, ring as Word, offset]) };
    if address > 0 { Ok(address as Word) } else { Err(sys::short(address)) }
}

/// Submits the entry and waits for its completion, but not for ever: the ring may be another's by now.
///
/// # Safety
///
/// The mappings must be those of a ring with these parameters.
unsafe fn submit(ring: u32, params: &Params, rings: Word, entries: Word, entry: &Entry) -> Answer {
    const TRIES: u32 = 20_000; // of 50 us: a second
    // SAFETY: the caller's promise; the offsets are the kernel's.
    unsafe {
        let word = |offset: u32| &*((rings + offset as Word) as *const AtomicU32);
        (entries as *mut [u8; 64]).write(std::ptr::from_ref(entry).cast::<[u8; 64]>().read());
        word(params.sq[6]).store(0, Ordering::Relaxed); // the array's first: entry 0
        word(params.sq[1]).store(1, Ordering::Release); // the tail
        let mut result = enter(ring, 1, ENTER_GETEVENTS | ENTER_SQ_WAKEUP);
        let mut tries = 0;
        while word(params.cq[1]).load(Ordering::Acquire) == 0 {
            if result < 0 || tries == TRIES {
                return if result < 0 { result } else { -libc::ETIME };
            }
            tries += 1;
            let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
            sys::call(libc::SYS_nanosleep, [(&raw const pause) as Word, 0, 0, 0, 0, 0]);
            result = enter(ring, 0, ENTER_GETEVENTS | ENTER_SQ_WAKEUP);
        }
        // struct io_uring_cqe: user_data, res, flags
        ((rings + params.cq[5] as Word + 8) as *const i32).read_volatile()
    }
}

fn enter(ring: u32, count: u32, flags: u32) -> Answer {
    sys::numbers(libc::SYS_io_uring_enter, &[ring, count, 0, flags])
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<Entry>() == 64);
