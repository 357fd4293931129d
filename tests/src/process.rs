//! A process that a test knows by a pidfd, so that it is never mistaken for another.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::deadline::Deadline;

/// A process, alive or dead.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pid, as the test sees it.
    pub pid: i32,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    /// The process at the other end of a connection. It must be waiting for our answer, so that
    /// its pid cannot have been given to another.
    #[must_use]
    pub fn peer(stream: &UnixStream) -> Option<Process> {
        let pid = getsockopt(stream, PeerCredentials).ok()?.pid();
        Self::open(pid).ok()
    }

    /// A child of the test that was not waited for yet, or a process that cannot end meanwhile.
    ///
    /// # Errors
    ///
    /// Those of pidfd_open(2).
    pub fn open(pid: i32) -> Result<Process, Errno> {
        // SAFETY: pidfd_open takes two integers.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the kernel just made it for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) };
        Ok(Process { pid, pidfd: Arc::new(pidfd) })
    }

    /// Whether it has ended, with all its threads.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dies(Deadline::after(std::time::Duration::ZERO))
    }

    /// Waits for its end.
    #[must_use]
    pub fn dies(&self, deadline: Deadline) -> bool {
        deadline.wait(self.pidfd.as_fd(), PollFlags::POLLIN)
    }

    /// Whether it lives, and no signal that it was already sent is about to end it.
    #[must_use]
    pub fn lives(&self) -> bool {
        let doomed = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).map_or(true, |status| {
            let pending = status.lines().filter(|line| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"));
            pending.filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()).any(is_fatal)
        });
        !doomed && !self.is_dead()
    }

    /// Another descriptor for what it has as `fd`. Needs what ptrace(2) needs.
    ///
    /// # Errors
    ///
    /// Those of pidfd_getfd(2).
    pub fn copy_of(&self, fd: i32) -> Result<OwnedFd, Errno> {
        // SAFETY: pidfd_getfd takes three integers.
        let copy = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), fd, 0) })?;
        // SAFETY: the kernel just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(copy).map_err(|_| Errno::EBADF)?) })
    }

    /// Sends it a signal, if it still lives.
    pub fn signal(&self, signal: Signal) {
        // SAFETY: pidfd_send_signal reads no memory when its third argument is null.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }
}

/// Whether a set of pending signals has one that ends a process in its default action.
fn is_fatal(pending: u64) -> bool {
    let bit = |signal: Signal| 1u64 << (signal as u32 - 1);
    let deadly = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE];
    deadly.into_iter().any(|signal| pending & bit(signal) != 0)
}
