//! A seccomp supervisor puts a descriptor into the table of the process that it supervises: no call
//! of that process shows it.

use std::sync::atomic::Ordering;

use super::birth::fork_briefly;
use super::sys::{self, Answer, Word};
use super::{Task, board};

/// The call that the filter stops; nothing else here makes it.
const STOPPED: libc::c_long = libc::SYS_getppid;

// _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp) and
// _IOW('!', 3, struct seccomp_notif_addfd) of include/uapi/linux/seccomp.h
const RECEIVE: Word = 0xc050_2100;
const SEND: Word = 0xc018_2101;
const ADD: Word = 0x4018_2103;

/// What the stopped call answers once the descriptor was added.
const ADDED: i32 = 1;

/// In [`Place::listener`](super::board::Place::listener): the child has not said yet.
const UNSAID: i32 = i32::MIN;

/// Makes a child in a place, and adds it our descriptor: at `target`, or where it is free. Where that
/// fails, the child is gone again.
pub fn add_fd(number: u32, fd: u32, target: u32) -> Answer {
    let Some(child) = Task::at(number) else { return -libc::EINVAL };
    let place = child.place();
    place.listener.store(UNSAID, Ordering::Release);
    match fork_briefly(true) {
        0 => be_supervised(child),
        pid if pid > 0 => {
            let mut listener = place.listener.load(Ordering::Acquire);
            while listener == UNSAID {
                // SAFETY: an AtomicI32 has the layout of an AtomicU32.
                board::wait(unsafe { &*place.listener.as_ptr().cast() }, UNSAID.cast_unsigned());
                listener = place.listener.load(Ordering::Acquire);
            }
            let Ok(listener) = u32::try_from(listener) else { return listener };
            let result = supervise(listener, fd, target);
            let _ = sys::numbers(libc::SYS_close, &[listener]);
            if result < 0 { result } else { pid }
        }
        error => error,
    }
}

/// Installs the filter while it still shares our table, so that the listener is ours too; then has a
/// table of its own, and makes the call that is stopped.
fn be_supervised(child: Task) -> ! {
    let listener = install_filter();
    child.place().listener.store(listener, Ordering::Release);
    // SAFETY: as above.
    board::wake(unsafe { &*child.place().listener.as_ptr().cast() });
    let _ = sys::numbers(libc::SYS_unshare, &[libc::CLONE_FILES as u32]);
    if let Ok(listener) = u32::try_from(listener) {
        let _ = sys::numbers(libc::SYS_close, &[listener]);
        if sys::numbers(STOPPED, &[]) == ADDED {
            child.act();
        }
    }
    sys::exit_group(0)
}

fn install_filter() -> Answer {
    let stopped = u32::try_from(STOPPED).unwrap_or(u32::MAX);
    let mut program = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }, // load the call's number
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: stopped }, // is it that?
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let _ = sys::numbers(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u32, 1]);
    let mode = libc::SECCOMP_SET_MODE_FILTER as Word;
    let arguments = [mode, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as Word, (&raw const filter) as Word, 0, 0, 0];
    // SAFETY: the filter lives through the call.
    sys::short(unsafe { sys::call(libc::SYS_seccomp, arguments) })
}

fn supervise(listener: u32, fd: u32, target: u32) -> Answer {
    // struct seccomp_notif; the first word is the notification's number.
    let mut notification = [0u64; 10];
    let received = ioctl(listener, RECEIVE, notification.as_mut_ptr() as Word);
    if received < 0 {
        return received;
    }
    // struct seccomp_notif_addfd: id, flags and srcfd, newfd and newfd_flags.
    let at_target = u64::from(target != 0) * libc::SECCOMP_ADDFD_FLAG_SETFD;
    let add = [notification[0], at_target | u64::from(fd) << 32, u64::from(target)];
    let result = ioctl(listener, ADD, add.as_ptr() as Word);
    // struct seccomp_notif_resp: id, val, error and flags.
    let response = [notification[0], u64::from(result >= 0) * ADDED as u64, 0];
    let sent = ioctl(listener, SEND, response.as_ptr() as Word);
    if result < 0 { result } else { sent }
}

fn ioctl(fd: u32, request: Word, argument: Word) -> Answer {
    // SAFETY: each request comes with the address of its own structure.
    sys::short(unsafe { sys::call(libc::SYS_ioctl, [fd as Word, request, argument, 0, 0, 0]) })
}
