//! Tells a signal to our whole process group from one to us alone.
//!
//! Where the command shares our group, what is sent to the group reaches it directly, and what is
//! sent to us has to be forwarded. The kernel does not say which it was: both look alike in siginfo.
//! So a tiny process of ours stays in the group, blocks every signal and does nothing: what is pending
//! there too was sent to all. (The kernel signals a group's youngest member first, so it has the
//! signal before we do.)

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, Pid};

use crate::act::{pidfd_open, signal_child};
use crate::process::stat::Stat;

/// How long an answer may take before we look why, in milliseconds. It takes microseconds, unless
/// somebody stopped the witness; then the signal counts as ours, and the command may get it twice.
const PATIENCE: u16 = 100;

/// How often a witness that is not stopped gets that much more: on a busy machine it waits for a core.
const TURNS: u32 = 50;

/// The process that is signalled when our group is.
pub struct Witness {
    pid: i32,
    pidfd: OwnedFd,
    line: UnixStream,
}

impl Witness {
    /// Starts one in our group. Signals must be blocked already, so that it misses none.
    ///
    /// # Errors
    ///
    /// When there is no process or descriptor to be had.
    pub fn start() -> io::Result<Witness> {
        let (line, theirs) = UnixStream::pair()?;
        let us = nix::unistd::getpid();
        // SAFETY: the child calls only async-signal-safe functions, on integers and its own stack.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => testify(us, theirs.as_raw_fd()),
            ForkResult::Parent { child } => {
                let pidfd = pidfd_open(child.as_raw())?;
                Ok(Witness { pid: child.as_raw(), pidfd, line })
            }
        }
    }

    /// Its process id: it is a child of ours, and no lineage.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it was sent this signal too, which it then forgets. `false` where it does not answer.
    pub fn had(&mut self, signal: i32) -> bool {
        // Continued alone, we find it stopped: it was not sent the SIGCONT that woke us.
        let left_behind = signal == libc::SIGCONT && Stat::read(self.pid).is_ok_and(|stat| stat.state == 'T');
        if left_behind {
            signal_child(&self.pidfd, libc::SIGCONT);
        }
        match self.ask(signal) {
            Ok(had) => had && !left_behind,
            Err(_) => {
                signal_child(&self.pidfd, libc::SIGCONT);
                false
            }
        }
    }

    fn ask(&mut self, signal: i32) -> io::Result<bool> {
        use std::io::{Read, Write};
        let signal = u8::try_from(signal).map_err(io::Error::other)?;
        self.line.write_all(&[signal])?;
        let mut answer = [0; 2];
        let mut turns = 0;
        // An answer that was too late for its question comes before the one to this question.
        while answer[0] != signal {
            let mut fds = [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(PATIENCE))? > 0 {
                self.line.read_exact(&mut answer)?;
            } else if turns == TURNS || Stat::read(self.pid).is_ok_and(|stat| matches!(stat.state, 'T' | 't')) {
                return Err(io::ErrorKind::TimedOut.into());
            } else {
                turns += 1;
            }
        }
        Ok(answer[1] != 0)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        signal_child(&self.pidfd, libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(Pid::from_raw(self.pid), None);
    }
}

/// The witness: says for every signal that it is asked about whether it was pending here.
fn testify(us: Pid, line: RawFd) -> ! {
    // SAFETY: all of these are async-signal-safe, and the memory is this function's own.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != us.as_raw() {
            libc::_exit(0);
        }
        libc::prctl(libc::PR_SET_NAME, c"pipewarden-mate".as_ptr());
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        // It must hold nothing of ours, and nothing that we were given.
        libc::dup2(line, 0);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut words = [0_u8; 2];
        while libc::read(0, words.as_mut_ptr().cast(), 1) == 1 {
            let mut asked: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut asked);
            libc::sigaddset(&raw mut asked, words[0].into());
            let came = libc::sigtimedwait(&raw const asked, std::ptr::null_mut(), &raw const now);
            words[1] = u8::from(came > 0);
            libc::write(0, words.as_ptr().cast(), words.len());
        }
        libc::_exit(0)
    }
}
