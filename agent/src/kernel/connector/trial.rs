//! The self-test of who must not wait: begun, and fed with events as they come.

use std::io;
use std::time::Instant;

use nix::errno::Errno;

use super::{Connector, ConnectorError, ConnectorEvent, TOLD};

/// A connector on probation: it has to tell of a child of ours by the pids that we know.
///
/// Unlike [`self_test`](super::self_test) it executes nothing and waits for nobody. The child must be
/// reaped by whoever reaps ours.
pub struct Trial {
    connector: Connector,
    child: i32,
    untold: Vec<(ConnectorEvent, &'static str)>,
    deadline: Instant,
}

impl Trial {
    /// Makes the child: it is over when this returns, and only its end may still be to be told.
    ///
    /// # Errors
    ///
    /// When there is no process to be had.
    pub fn begin(connector: Connector) -> io::Result<Trial> {
        let child = leave_and_exit()?;
        let untold = vec![
            (ConnectorEvent::Exit(child), "exit"),
            (ConnectorEvent::Setsid(child), "setsid"),
            (ConnectorEvent::Fork { parent: std::process::id().cast_signed(), child }, "fork"),
        ];
        Ok(Trial { connector, child, untold, deadline: Instant::now() + TOLD })
    }

    /// What becomes readable when there is something to read.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The child.
    #[must_use]
    pub fn child(&self) -> i32 {
        self.child
    }

    /// By when everything must have been told.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what was told. `None` while it is not everything; then whether it was the truth.
    pub fn read(&mut self) -> Option<Result<(), ConnectorError>> {
        while let Some((_, name)) = self.untold.last() {
            match self.connector.next_event() {
                Ok(Some(event)) => self.untold.retain(|(expected, _)| *expected != event),
                Ok(None) if Instant::now() < self.deadline => return None,
                Ok(None) => return Some(Err(ConnectorError::Untold(name))),
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok(()))
    }

    /// The connector, which is to be used only if it told the truth.
    #[must_use]
    pub fn into_connector(self) -> Connector {
        self.connector
    }
}

/// A child that leaves our session and exits; its pid.
fn leave_and_exit() -> io::Result<i32> {
    /// Two system calls, and 16 bytes aligned wherever the stack grows from.
    #[repr(align(16))]
    struct Stack([u8; 16 * 1024]);
    extern "C" fn child(_: *mut libc::c_void) -> libc::c_int {
        // SAFETY: both only enter the kernel; the second does not return.
        unsafe {
            libc::setsid();
            libc::_exit(0)
        }
    }
    let mut stack = Box::new(Stack([0; 16 * 1024]));
    // In our memory and with our descriptors, so that nothing is copied or held; we stand still
    // meanwhile (CLONE_VFORK).
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: the child runs on a stack of its own, which outlives it because we stand still until it
    // has exited; it touches no memory but that stack and errno, which nobody reads before we go on.
    let pid = unsafe {
        let top = stack.0.as_mut_ptr_range().end;
        libc::clone(child, top.cast(), flags, std::ptr::null_mut())
    };
    Ok(Errno::result(pid)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::wait::waitpid;
    use nix::unistd::Pid;

    use super::super::Kinds;
    use super::*;
    use crate::kernel::self_test::in_initial_pid_namespace;

    #[test]
    fn a_child_that_only_leaves_and_exits_is_told_of_too() {
        let connector = match Connector::open(Kinds::LINEAGE) {
            Ok(connector) => connector,
            Err(error) => return crate::kernel::skipped(format_args!("needs the proc connector: {error}")),
        };
        let mut trial = Trial::begin(connector).unwrap();
        waitpid(Pid::from_raw(trial.child()), None).unwrap();
        let verdict = loop {
            if let Some(verdict) = trial.read() {
                break verdict;
            }
            trial.connector.wait(Instant::now() + Duration::from_millis(10)).unwrap();
        };
        assert_eq!(verdict.is_ok(), in_initial_pid_namespace(), "{verdict:?}");
    }
}
