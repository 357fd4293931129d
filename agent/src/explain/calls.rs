//! What a system call waits for, by its number and arguments.

use crate::process::wait::Call;

/// What a thread asked the kernel to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Something to read from a descriptor.
    Read(i32),
    /// Room to write to a descriptor.
    Write(i32),
    /// Something to move from the first descriptor to the second: either may be what it waits for.
    Move(i32, i32),
    /// The other end of a FIFO.
    Open {
        /// The folder that a relative path begins at: a descriptor, or `AT_FDCWD`.
        folder: i32,
        /// The address of the path.
        path: u64,
        /// The open mode and flags; none where they are in memory (`openat2`).
        flags: Option<i32>,
    },
    /// A child's change of state: `wait4`'s argument.
    Child(i32),
    /// The process of a pidfd.
    Pidfd(i32),
    /// A child that was made by vfork and neither ended nor became another program.
    Vfork,
    /// Any of an array of `struct pollfd`.
    Poll {
        /// Its address.
        array: u64,
        /// How many.
        count: u64,
        /// Whether there is a timeout.
        timed: bool,
    },
    /// Any of up to three sets of descriptors.
    Select {
        /// The number of bits in each.
        count: i32,
        /// Address of the set to read from, 0 for none.
        read: u64,
        /// Address of the set to write to, 0 for none.
        write: u64,
        /// Whether there is a timeout.
        timed: bool,
    },
    /// Any event of an epoll.
    Epoll {
        /// The epoll's descriptor.
        fd: i32,
        /// Whether there is a timeout.
        timed: bool,
    },
    /// A futex to change from this value.
    Futex(i32),
    /// A connection to come in.
    Connection(i32),
    /// A completion of an io_uring.
    IoUring(i32),
    /// A file lock.
    Lock(i32),
    /// A signal.
    Signal,
    /// Time.
    Sleep,
    /// Something else, or nothing.
    Other,
}

/// What a call waits for, and its name where we know it.
///
/// A call that goes on after a stop shows as `restart_syscall` with the arguments it had: of those, only
/// poll and the sleeps are restarted so, and `wchan` tells which.
#[must_use]
pub fn classify(call: &Call, wchan: Option<&str>) -> (Asks, Option<&'static str>) {
    let poll = |timed| Asks::Poll { array: call.args[0], count: call.args[1], timed };
    let select =
        || Asks::Select { count: call.int(0), read: call.args[1], write: call.args[2], timed: call.args[4] != 0 };
    let (asks, name) = match call.number {
        libc::SYS_read => (Asks::Read(call.fd(0)), "read"),
        libc::SYS_readv => (Asks::Read(call.fd(0)), "readv"),
        libc::SYS_preadv2 => (Asks::Read(call.fd(0)), "preadv2"),
        libc::SYS_recvfrom => (Asks::Read(call.fd(0)), "recvfrom"),
        libc::SYS_recvmsg => (Asks::Read(call.fd(0)), "recvmsg"),
        libc::SYS_recvmmsg => (Asks::Read(call.fd(0)), "recvmmsg"),
        libc::SYS_write => (Asks::Write(call.fd(0)), "write"),
        libc::SYS_writev => (Asks::Write(call.fd(0)), "writev"),
        libc::SYS_pwritev2 => (Asks::Write(call.fd(0)), "pwritev2"),
        libc::SYS_vmsplice => (Asks::Write(call.fd(0)), "vmsplice"),
        libc::SYS_sendto => (Asks::Write(call.fd(0)), "sendto"),
        libc::SYS_sendmsg => (Asks::Write(call.fd(0)), "sendmsg"),
        libc::SYS_sendmmsg => (Asks::Write(call.fd(0)), "sendmmsg"),
        libc::SYS_splice => (Asks::Move(call.fd(0), call.fd(2)), "splice"),
        libc::SYS_tee => (Asks::Move(call.fd(0), call.fd(1)), "tee"),
        libc::SYS_sendfile => (Asks::Move(call.fd(1), call.fd(0)), "sendfile"),
        libc::SYS_openat => (Asks::Open { folder: call.fd(0), path: call.args[1], flags: Some(call.int(2)) }, "openat"),
        libc::SYS_openat2 => (Asks::Open { folder: call.fd(0), path: call.args[1], flags: None }, "openat2"),
        libc::SYS_wait4 => (Asks::Child(call.int(0)), "wait4"),
        libc::SYS_waitid => (waitid(call), "waitid"),
        libc::SYS_clone => (Asks::Vfork, "clone"),
        libc::SYS_clone3 => (Asks::Vfork, "clone3"),
        libc::SYS_ppoll => (poll(call.args[2] != 0), "ppoll"),
        libc::SYS_pselect6 => (select(), "pselect6"),
        libc::SYS_epoll_pwait => (Asks::Epoll { fd: call.fd(0), timed: call.int(3) >= 0 }, "epoll_pwait"),
        libc::SYS_epoll_pwait2 => (Asks::Epoll { fd: call.fd(0), timed: call.args[3] != 0 }, "epoll_pwait2"),
        libc::SYS_futex => (Asks::Futex(call.int(2)), "futex"),
        libc::SYS_futex_waitv => (Asks::Futex(0), "futex_waitv"),
        libc::SYS_accept => (Asks::Connection(call.fd(0)), "accept"),
        libc::SYS_accept4 => (Asks::Connection(call.fd(0)), "accept4"),
        libc::SYS_connect => (Asks::Connection(call.fd(0)), "connect"),
        libc::SYS_io_uring_enter => (Asks::IoUring(call.fd(0)), "io_uring_enter"),
        libc::SYS_flock => (Asks::Lock(call.fd(0)), "flock"),
        libc::SYS_fcntl => (Asks::Lock(call.fd(0)), "fcntl"),
        libc::SYS_rt_sigsuspend => (Asks::Signal, "rt_sigsuspend"),
        libc::SYS_rt_sigtimedwait => (Asks::Signal, "rt_sigtimedwait"),
        libc::SYS_nanosleep => (Asks::Sleep, "nanosleep"),
        libc::SYS_clock_nanosleep => (Asks::Sleep, "clock_nanosleep"),
        libc::SYS_restart_syscall if wchan.is_some_and(|name| name.contains("poll")) => (poll(true), "restart_syscall"),
        libc::SYS_restart_syscall => (Asks::Sleep, "restart_syscall"),
        _ => return legacy(call, &poll, &select),
    };
    (asks, Some(name))
}

fn waitid(call: &Call) -> Asks {
    let id = call.int(1);
    match u32::try_from(call.int(0)) {
        Ok(libc::P_PID) => Asks::Child(id),
        Ok(libc::P_PGID) if id == 0 => Asks::Child(0),
        Ok(libc::P_PGID) => Asks::Child(id.saturating_neg()),
        Ok(libc::P_PIDFD) => Asks::Pidfd(id),
        _ => Asks::Child(-1),
    }
}

/// The calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
fn legacy(call: &Call, poll: &dyn Fn(bool) -> Asks, select: &dyn Fn() -> Asks) -> (Asks, Option<&'static str>) {
    let open = |flags| Asks::Open { folder: libc::AT_FDCWD, path: call.args[0], flags: Some(flags) };
    let (asks, name) = match call.number {
        libc::SYS_open => (open(call.int(1)), "open"),
        libc::SYS_creat => (open(libc::O_WRONLY), "creat"),
        libc::SYS_poll => (poll(call.int(2) >= 0), "poll"),
        libc::SYS_select => (select(), "select"),
        libc::SYS_epoll_wait => (Asks::Epoll { fd: call.fd(0), timed: call.int(3) >= 0 }, "epoll_wait"),
        libc::SYS_pause => (Asks::Signal, "pause"),
        libc::SYS_vfork => (Asks::Vfork, "vfork"),
        _ => return (Asks::Other, None),
    };
    (asks, Some(name))
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy(_: &Call, _: &dyn Fn(bool) -> Asks, _: &dyn Fn() -> Asks) -> (Asks, Option<&'static str>) {
    (Asks::Other, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: libc::c_long, args: [u64; 6]) -> Asks {
        classify(&Call { number, args }, None).0
    }

    #[test]
    fn arguments_are_read_as_the_kernel_takes_them() {
        // The high half of a descriptor's register may hold anything.
        assert_eq!(call(libc::SYS_read, [0xdead_0000_0003, 0, 0, 0, 0, 0]), Asks::Read(3));
        assert_eq!(call(libc::SYS_wait4, [0xffff_ffff, 0, 0, 0, 0, 0]), Asks::Child(-1));
        assert_eq!(call(libc::SYS_waitid, [1, 71, 0, 4, 0, 0]), Asks::Child(71));
        assert_eq!(call(libc::SYS_waitid, [3, 5, 0, 4, 0, 0]), Asks::Pidfd(5));
        assert_eq!(call(libc::SYS_epoll_pwait, [4, 1, 1, 0xffff_ffff, 0, 8]), Asks::Epoll { fd: 4, timed: false });
        assert_eq!(call(libc::SYS_getpid, [0; 6]), Asks::Other);
    }

    #[test]
    fn a_poll_that_goes_on_after_a_stop_is_still_a_poll() {
        let call = Call { number: libc::SYS_restart_syscall, args: [0x7000, 2, 0, 0, 0, 0] };
        let asks = Asks::Poll { array: 0x7000, count: 2, timed: true };
        assert_eq!(classify(&call, Some("poll_schedule_timeout")).0, asks);
        assert_eq!(classify(&call, Some("hrtimer_nanosleep")).0, Asks::Sleep);
    }
}
