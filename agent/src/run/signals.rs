//! Signals to us: blocked, read from a descriptor, forwarded to the command.
//!
//! We install no handlers, so what we inherited as ignored stays ignored, for us and the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::witness::Witness;

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
    /// Where the command shares our group.
    witness: Option<Witness>,
}

/// What the command gets back before it is executed.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The mask.
    pub mask: SigSet,
    /// Whether SIGCHLD was ignored, which we change.
    pub sigchld_ignored: bool,
    /// Whether SIGTERM was ignored, which we leave so.
    pub sigterm_ignored: bool,
    /// Whether SIGINT was ignored, which we leave so.
    pub sigint_ignored: bool,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which.
    pub signal: i32,
    /// Whether the kernel sent it: on a terminal's behalf, unless it is SIGCHLD.
    pub from_the_terminal: bool,
    /// Whether it was sent to our whole group, and so to a command that shares it.
    pub to_the_group: bool,
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
        let inherited = Inherited {
            mask,
            sigchld_ignored: matches!(before.handler(), SigHandler::SigIgn),
            sigterm_ignored: is_ignored(libc::SIGTERM),
            sigint_ignored: is_ignored(libc::SIGINT),
        };
        Ok(Signals { fd, inherited, witness: None })
    }

    /// The command will share our process group: from now on it is told what was sent to all of it.
    ///
    /// # Errors
    ///
    /// When there is no process or descriptor to be had for the [`Witness`].
    pub fn share_the_group(&mut self) -> io::Result<()> {
        self.witness = Some(Witness::start()?);
        Ok(())
    }

    /// A child of ours that is no lineage, if there is one.
    #[must_use]
    pub fn helper(&self) -> Option<i32> {
        self.witness.as_ref().map(Witness::pid)
    }

    /// The same in a process that was forked from one that had taken over signals: what was sent to
    /// that one is not for us, and its requests are to be heard whatever it was told to ignore.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had.
    pub fn after_fork(inherited: Inherited) -> io::Result<Signals> {
        let fd = SignalFd::with_flags(&taken(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let inherited = Inherited { sigterm_ignored: false, sigint_ignored: false, ..inherited };
        Ok(Signals { fd, inherited, witness: None })
    }

    /// What the command gets back.
    #[must_use]
    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// Whether a signal to us begins an ending: what a user or an orchestrator sends to have it over
    /// with. Not what was ignored when we were started (SIGINT behind a script's `&`): whoever arranged
    /// that wants the command to live.
    #[must_use]
    pub fn asks_to_end(&self, signal: i32) -> bool {
        match signal {
            libc::SIGTERM => !self.inherited.sigterm_ignored,
            libc::SIGINT => !self.inherited.sigint_ignored,
            _ => false,
        }
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
    pub fn next(&mut self) -> io::Result<Option<Arrival>> {
        let Some(info) = self.fd.read_signal()? else { return Ok(None) };
        let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
        let to_the_group = match &mut self.witness {
            Some(witness) if signal != libc::SIGCHLD => witness.had(signal),
            _ => false,
        };
        Ok(Some(Arrival { signal, from_the_terminal: info.ssi_code == libc::SI_KERNEL, to_the_group }))
    }
}

/// Whether a signal is one of job control's, which stops whoever does not handle it.
#[must_use]
pub fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// Stops us by that signal, as if we had never blocked it; returns when we are continued, with the
/// time that this took. In an orphaned process group the kernel stops nobody by a signal of job
/// control, nor pid 1 by any, nor who ignores it: nothing then.
pub fn stop_by(signal: i32) -> Option<Duration> {
    let before = Instant::now();
    // SAFETY: raise(3) takes an integer.
    unsafe { libc::raise(signal) };
    let_through(signal);
    // The stop signal discarded every SIGCONT from before, only SIGCONT ends a stop, and it is
    // blocked: it is there now if we were stopped.
    is_pending(libc::SIGCONT).then(|| before.elapsed())
}

/// Ends us by that signal, without a core file of ours: whoever waits for us sees how the command
/// ended. Returns where no signal ends us, as pid 1.
pub fn die_by(signal: i32) {
    let _ = nix::sys::prctl::set_dumpable(false);
    // SAFETY: the default disposition runs no code of ours.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    let_through(signal);
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain data, for which all zeroes is a value; a null new action only asks.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

fn only(signal: i32) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data; the calls only write into it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        set
    }
}

/// Lets a blocked signal that is pending take effect.
fn let_through(signal: i32) {
    let set = only(signal);
    // SAFETY: reads the set, and changes this thread's mask.
    unsafe {
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

fn is_pending(signal: i32) -> bool {
    // SAFETY: sigpending writes into the set; sigismember reads it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, signal) == 1
    }
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
