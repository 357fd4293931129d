//! What a task does to its own table.

use std::sync::atomic::Ordering;

use super::board::decimal;
use super::op::{Kind, Op};
use super::sys::{self, Answer, Word};
use super::{Task, at_cwd};

/// Calls whose arguments are descriptors and flags.
pub fn perform(op: &Op) -> Answer {
    let [a, b, c] = op.with;
    let cloexec = |bit: u32| if bit != 0 { libc::O_CLOEXEC as u32 } else { 0 };
    let fcntl = |command: libc::c_int, with: u32| sys::numbers(libc::SYS_fcntl, &[a, command as u32, with]);
    match op.kind {
        Kind::Pipe => pipe(None),
        Kind::Pipe2 => pipe(Some(cloexec(a & 1) | if a & 2 != 0 { libc::O_NONBLOCK as u32 } else { 0 })),
        Kind::Null => open_path(c"/dev/null".as_ptr() as Word, libc::O_RDWR as u32 | cloexec(a), 0),
        Kind::Dup => sys::numbers(libc::SYS_dup, &[a]),
        #[cfg(target_arch = "x86_64")]
        Kind::Dup2 => sys::numbers(libc::SYS_dup2, &[a, b]),
        #[cfg(not(target_arch = "x86_64"))] // where it never was a call
        Kind::Dup2 => sys::numbers(libc::SYS_dup3, &[a, b, 0]),
        Kind::Dup3 => sys::numbers(libc::SYS_dup3, &[a, b, cloexec(c)]),
        Kind::DupMany => (0..b).take_while(|_| sys::numbers(libc::SYS_dup, &[a]) >= 0).count() as Answer,
        Kind::Limit => limit(a),
        Kind::DupFd => fcntl(libc::F_DUPFD, b),
        Kind::DupFdCloexec => fcntl(libc::F_DUPFD_CLOEXEC, b),
        Kind::SetCloexec => fcntl(libc::F_SETFD, b),
        Kind::Close => sys::numbers(libc::SYS_close, &[a]),
        Kind::CloseRange => sys::numbers(libc::SYS_close_range, &[a, b, c]),
        Kind::Unshare => sys::numbers(libc::SYS_unshare, &[libc::CLONE_FILES as u32]),
        _ => -libc::EINVAL,
    }
}

/// Sets the soft limit of descriptors.
fn limit(soft: u32) -> Answer {
    let number = libc::RLIMIT_NOFILE as Word;
    let mut limits = [0u64; 2]; // struct rlimit64: soft, hard
    // SAFETY: the limits live through the call.
    unsafe { sys::call(libc::SYS_prlimit64, [0, number, 0, limits.as_mut_ptr() as Word, 0, 0]) };
    let limits = [u64::from(soft).min(limits[1]), limits[1]];
    // SAFETY: as above.
    sys::short(unsafe { sys::call(libc::SYS_prlimit64, [0, number, limits.as_ptr() as Word, 0, 0, 0]) })
}

fn pipe(flags: Option<u32>) -> Answer {
    let mut fds = [0u32; 2];
    let address = fds.as_mut_ptr() as Word;
    #[cfg(target_arch = "x86_64")]
    if flags.is_none() {
        // SAFETY: two descriptors are written, for which there is room.
        return sys::short(unsafe { sys::call(libc::SYS_pipe, [address, 0, 0, 0, 0, 0]) });
    }
    // SAFETY: as above.
    sys::short(unsafe { sys::call(libc::SYS_pipe2, [address, flags.unwrap_or(0) as Word, 0, 0, 0, 0]) })
}

/// Opens a path by one of the calls that open: see [`Arg::Way`](super::op::Arg::Way).
pub fn open_path(path: Word, flags: u32, way: u32) -> Answer {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = How { flags: u64::from(flags), mode: 0, resolve: 0 };
    // SAFETY: callers give a path that ends by a zero; `how` lives through the call.
    sys::short(unsafe {
        match way {
            #[cfg(target_arch = "x86_64")]
            1 => sys::call(libc::SYS_open, [path, flags as Word, 0, 0, 0, 0]),
            2 => sys::call(libc::SYS_openat2, at_cwd([path, (&raw const how) as Word, size_of::<How>(), 0, 0, 0])),
            _ => sys::call(libc::SYS_openat, at_cwd([path, flags as Word, 0, 0, 0, 0])),
        }
    })
}

/// The flags of an open that does not wait for anybody.
fn flags(kind: Kind) -> u32 {
    (match kind {
        Kind::FifoRead | Kind::ProcRead => libc::O_RDONLY | libc::O_NONBLOCK,
        Kind::FifoWrite | Kind::ProcWrite => libc::O_WRONLY | libc::O_NONBLOCK,
        Kind::FifoPath | Kind::ProcPath => libc::O_PATH,
        _ => libc::O_RDWR,
    }) as u32
}

/// Opens one of the troupe's FIFOs.
pub fn open_fifo(task: Task, op: &Op) -> Answer {
    let [number, way, cloexec] = op.with;
    let path = task.board().path(b"fifo", Some(number));
    let path = path.as_ptr() as Word;
    match op.kind {
        Kind::BlockWrite => open_path(path, libc::O_WRONLY as u32, 0),
        Kind::Unblock => {
            let fd = open_path(path, (libc::O_RDONLY | libc::O_NONBLOCK) as u32, 0);
            if fd < 0 { fd } else { sys::numbers(libc::SYS_close, &[fd as u32]) }
        }
        kind => open_path(path, flags(kind) | if cloexec != 0 { libc::O_CLOEXEC as u32 } else { 0 }, way),
    }
}

/// Opens what a descriptor of a task is on, through /proc.
pub fn open_through_proc(task: Task, op: &Op) -> Answer {
    let [peer, fd, way] = op.with;
    let mut path = [0u8; 40];
    let pid = decimal(task.peer(peer).pid.load(Ordering::Relaxed));
    let words = [b"/proc/".as_slice(), &pid, b"/fd/", &decimal(fd)];
    for (place, byte) in path.iter_mut().zip(words.into_iter().flatten().filter(|byte| **byte != 0)) {
        *place = *byte;
    }
    open_path(path.as_ptr() as Word, flags(op.kind), way)
}
