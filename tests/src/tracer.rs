//! Stops a program at the n-th of its system calls, whichever that is.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A program that is traced by the calling thread: its first process and thread alone, none of its
/// children.
#[derive(Debug)]
pub struct Traced {
    child: Child,
    status: Option<i32>,
}

impl Traced {
    /// Starts a program and stops it after its exec.
    ///
    /// # Panics
    ///
    /// When it cannot be traced.
    #[must_use]
    pub fn start(command: &mut Command) -> Traced {
        // SAFETY: ptrace(PTRACE_TRACEME) is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
        let child = command.spawn().unwrap();
        let traced = Traced { child, status: None };
        assert_eq!(waitpid(traced.pid(), None), Ok(WaitStatus::Stopped(traced.pid(), Signal::SIGTRAP)));
        ptrace::setoptions(traced.pid(), Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
        traced
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Lets it run until it has entered or left that many system calls (counted from 1); false when it
    /// ended before.
    ///
    /// # Panics
    ///
    /// When tracing fails.
    pub fn stop_at(&mut self, nth: usize) -> bool {
        let mut left = nth;
        let mut deliver = None;
        while left > 0 {
            ptrace::syscall(self.pid(), deliver.take()).unwrap();
            match waitpid(self.pid(), Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::PtraceSyscall(_) => left -= 1,
                // A signal on its way to it: it gets it.
                WaitStatus::Stopped(_, signal) => deliver = Some(signal),
                WaitStatus::Exited(_, code) => return self.ended(code),
                WaitStatus::Signaled(_, signal, _) => return self.ended(128 + signal as i32),
                other => panic!("{other:?}"),
            }
        }
        true
    }

    fn ended(&mut self, status: i32) -> bool {
        self.status = Some(status);
        false
    }

    /// Sends it a signal while it is stopped, and lets it run on untraced.
    ///
    /// # Panics
    ///
    /// When tracing fails.
    pub fn go_on_with(&self, signal: Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
        // Killed, it is gone already.
        assert!(matches!(ptrace::detach(self.pid(), None), Ok(()) | Err(Errno::ESRCH)));
    }

    /// Waits for its end; its status as a shell tells it.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    #[must_use]
    pub fn end(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        if let Some(status) = self.status {
            return status;
        }
        let process = crate::process::Process::open(self.pid().as_raw()).unwrap();
        assert!(process.dies(crate::deadline::Deadline::patient()), "it does not end");
        let status = self.child.wait().unwrap();
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        self.status = Some(status);
        status
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
