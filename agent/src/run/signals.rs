//! Signals to us: blocked, read from a descriptor, forwarded to the command.
//!
//! We install no handlers, so what we inherited as ignored stays ignored, for us and the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

/// What we leave to the kernel: faults of our own code. SIGPIPE is the runtime's to ignore.
const LEFT_ALONE: [i32; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    libc::SIGPIPE,
];

/// Everything but [`LEFT_ALONE`], the realtime signals included: forwarded, or SIGCHLD.
fn taken() -> SigSet {
    // SAFETY: sigset_t is plain data; sigfillset and sigdelset only write into it.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in LEFT_ALONE {
            libc::sigdelset(&raw mut set, signal);
        }
        set
    };
    // SAFETY: filled by sigfillset, so it is a valid set.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// The descriptor that yields the signals sent to us, and what of them was blocked or ignored before.
pub struct Signals {
    fd: SignalFd,
    inherited: Inherited,
}

/// What the command gets back before it is executed.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The mask.
    pub mask: SigSet,
    /// Whether SIGCHLD was ignored.
    pub sigchld_ignored: bool,
}

impl Signals {
    /// Blocks what we forward, and SIGCHLD, and opens the descriptor that yields them.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had.
    pub fn take_over() -> io::Result<Signals> {
        let ours = taken();
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), Some(&mut mask))?;
        // An ignored SIGCHLD would let the kernel reap the command, and its exit status with it.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code of ours.
        let before = unsafe { sigaction(Signal::SIGCHLD, &default) }?;
        let fd = SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let inherited = Inherited { mask, sigchld_ignored: matches!(before.handler(), SigHandler::SigIgn) };
        Ok(Signals { fd, inherited })
    }

    /// What the command gets back.
    #[must_use]
    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// What becomes readable when a signal has come.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal that has come.
    ///
    /// # Errors
    ///
    /// What read(2) says; nothing that happens on a sound descriptor.
    pub fn next(&mut self) -> io::Result<Option<siginfo>> {
        Ok(self.fd.read_signal()?)
    }
}

/// Whether a signal is one of job control's, which stops whoever does not handle it.
#[must_use]
pub fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// Stops us by that signal, as if we had never blocked it; returns when we are continued, with the
/// time that this took. In an orphaned process group the kernel does not stop anybody: no time then.
pub fn stop_by(signal: i32) -> Duration {
    let before = Instant::now();
    // SAFETY: sigset_t is plain data; the calls only write into it, and change this thread's mask.
    unsafe {
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const only, std::ptr::null_mut());
    }
    before.elapsed()
}

/// Whether the kernel sent it, to a whole process group, on a terminal's behalf.
#[must_use]
pub fn is_from_the_terminal(info: &siginfo) -> bool {
    info.ssi_code == libc::SI_KERNEL
}

/// Whether a signal to us begins an ending: what a user or an orchestrator sends to have it over with.
#[must_use]
pub fn asks_to_end(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGINT)
}

/// Whether the whole home group gets a signal: those that a terminal or a service manager would give
/// it. Any other one is for the command alone, because a helper without a handler would die of it.
#[must_use]
pub fn is_for_the_group(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT | libc::SIGCONT | libc::SIGWINCH | libc::SIGKILL
    ) || is_stop(signal)
}
