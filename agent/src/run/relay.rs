//! A small init that stands in front of the supervisor where it cannot be its own.
//!
//! Everything below the supervisor is the lineage. That is not so where other processes can become
//! its children: as pid 1, which adopts every orphan of the namespace, and where a shell that had
//! children replaced itself by us (`sh -c 'helper & exec pipewarden run …'`). Then the supervisor
//! runs in a child, whose descendants are the lineage by construction, and this process stays behind
//! to forward signals, reap what is not lineage, and return the supervisor's exit status.

use std::io;
use std::os::fd::OwnedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

use super::footprint;
use super::options::Options;
use super::reap;
use super::signals::{self, Signals};
use super::terminal;
use crate::act::{pidfd_open, signal_child};
use crate::pipe::ExitStatus;

/// Which of the two processes we are from here on.
pub enum Role {
    /// The supervisor. The number is the process that stands in front, if one does.
    Supervisor(Option<i32>),
    /// The one that stood in front, with how the supervisor ended: nothing is left to do.
    Relay(ExitStatus),
}

/// What is to be said at the start to who asks pid 1 for what it cannot give, if there is something.
#[must_use]
pub fn caution(options: &Options) -> Option<&'static str> {
    let promised = nix::unistd::getpid().as_raw() == 1 && !options.keep.is_empty();
    promised.then_some(
        "as pid 1 it takes its whole pid namespace with it, so --keep spares only until it exits; \
         to let a process live longer, start it outside",
    )
}

/// Forks where that is needed. Must be called before there is a second thread.
///
/// Where the command gets a group of its own, so does the supervisor: what is sent to our group it
/// then gets from us, once. Else it stays in ours, because a terminal deals with groups.
///
/// # Errors
///
/// When there is no process to be had.
pub fn enter(signals: &mut Signals, own_group: bool) -> io::Result<Role> {
    let us = nix::unistd::getpid();
    if us.as_raw() != 1 && !reap::has_children() {
        return Ok(Role::Supervisor(None));
    }
    // SAFETY: there is one thread, so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            // Without the process in front nobody would forward signals to us or wait for us.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != us {
                return Err(io::Error::other("the process in front of the supervisor was killed"));
            }
            if own_group {
                nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            }
            Ok(Role::Supervisor(Some(us.as_raw())))
        }
        ForkResult::Parent { child } => {
            let supervisor = pidfd_open(child.as_raw())?;
            if own_group {
                // The child does the same: whoever comes first, what we forward comes once.
                let _ = nix::unistd::setpgid(child, child);
            } else {
                signals.share_the_group()?;
            }
            footprint::shrink();
            stand_in_front(child.as_raw(), &supervisor, signals).map(Role::Relay)
        }
    }
}

/// Forward, stop, reap, return.
fn stand_in_front(supervisor: i32, pidfd: &OwnedFd, signals: &mut Signals) -> io::Result<ExitStatus> {
    loop {
        let mut fds = [PollFd::new(signals.fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(arrival) = signals.next()? {
            if arrival.signal != libc::SIGCHLD && !arrival.to_the_group {
                signal_child(pidfd, arrival.signal);
            }
        }
        if let Some(signal) = reap::stopped(supervisor)?
            && terminal::stops_with(nix::unistd::getpid().as_raw(), signal)
            && signals::stop_by(signal).is_none()
            && signals::is_stop(signal)
        {
            // Nobody stops here, and so nobody would continue it.
            signal_child(pidfd, libc::SIGCONT);
        }
        while let Some(death) = reap::peek()? {
            let _ = reap::reap(death.pid);
            if death.pid == supervisor {
                return Ok(death.status);
            }
        }
    }
}
