//! The only file that signals a process which we did not spawn.
//!
//! Whoever wants a process signalled hands in a [`Warrant`]: who, and on what ground. Here it is
//! verified afresh, recorded, and only then carried out:
//!
//! 1. **pidfd first.** It is opened before anything is read, and asked once more after everything was
//!    read: if the process it means still exists then, its pid cannot have been used again meanwhile,
//!    and all that `/proc/PID` said was said of that process.
//! 2. **Start time** is that of the process the warrant was made for.
//! 3. **Never**: ourselves, our ancestors, pid 1, kernel threads, what `--keep` names.
//! 4. **Hold**: it has a *writing* descriptor on that pipe at this moment (unless the warrant's ground
//!    is another, which an option asked for: see [`Ground`]).
//! 5. **Lineage**: its chain of parents leads to us (unless an option says `foreign`, or a policy of the
//!    node names it: then nothing but its hold of a withheld pipe is ground enough).
//! 6. **Record**, then signal through the pidfd.
//!
//! What is left between the last look and the signal are some microseconds in which the process can
//! let go of the pipe by itself. The kernel has no call that would close that gap.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;

use crate::ownership::keep::Keep;
use crate::pipe::{Pipe, ProcessId, Relation};
use crate::process::children::descends_from;
use crate::process::describe::Description;
use crate::process::stat::Stat;
use crate::process::table::{Hold, still_writes};
use crate::process::{is_denied, is_gone};

/// Why a process may be signalled.
#[derive(Clone, Debug)]
pub enum Ground {
    /// It holds the write end of a watched pipe, seen here.
    Holds {
        /// The pipe.
        pipe: Pipe,
        /// The descriptors by which it was seen to hold it.
        seen: Hold,
    },
    /// It holds the write end of a withheld pipe, and a policy of the node says that such holders are ended.
    Policy {
        /// The policy's name.
        policy: String,
        /// The pipe.
        pipe: Pipe,
        /// The descriptors by which it was seen to hold it.
        seen: Hold,
    },
    /// It is lineage with descriptors in flight in its sockets' receive queues, every visible holder is
    /// gone, and still there is no EOF.
    Suspect,
    /// It is lineage whose tables we may not read, and `--on-opaque end` was asked for.
    Opaque,
    /// It is lineage, and the whole lineage is to end (`--reap all`).
    Reap,
}

/// A process to be signalled, and why.
#[derive(Clone, Debug)]
pub struct Warrant<'a> {
    /// The process that was seen.
    pub id: ProcessId,
    /// What it is to the run; foreign ones are refused unless `foreign` allows them.
    pub relation: Relation,
    /// On what ground.
    pub ground: Ground,
    /// Who it is, for the record.
    pub description: &'a Description,
    /// The signal.
    pub signal: Signal,
}

/// What the warrant's bearer may do, the same for a whole run.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The supervisor, whose descendants are the lineage.
    pub root: i32,
    /// Who is never ended.
    pub keep: Keep,
    /// Whether foreign holders may be signalled (`--on-foreign end`).
    pub foreign: bool,
    /// Whether the bearer is a node: policies name whom it may signal, whoever that descends from, and
    /// it may signal on no other ground. Everybody else may on every ground but that.
    pub node: bool,
}

/// Why a warrant was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The process is this one, pid 1 or one of our ancestors.
    #[error("it is pid 1, ourselves or an ancestor of ours")]
    Ancestor,
    /// It is a kernel thread.
    #[error("it is a kernel thread")]
    KernelThread,
    /// Another process has the pid by now.
    #[error("its start time differs: the pid was used again")]
    Reused,
    /// `--keep` names it.
    #[error("--keep names it")]
    Kept,
    /// It does not hold a write end (any more).
    #[error("it holds no write end of the pipe")]
    NoHold,
    /// It does not descend from us.
    #[error("it is not in the lineage")]
    NotLineage,
    /// A node's warrant without a policy, or a policy's warrant without a node.
    #[error("no policy of a node names it")]
    NoPolicy,
    /// We may not look at its descriptors, so its hold cannot be verified.
    #[error("its descriptors cannot be read")]
    Unreadable,
    /// The kernel does not let us signal it.
    #[error("the kernel refused the signal")]
    NotPermitted,
}

/// What became of a warrant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The signal was sent.
    Signalled,
    /// The process was gone already.
    Gone,
    /// It was not signalled.
    Refused(Refusal),
}

/// Where acts and refusals are recorded. [`signalling`](Journal::signalling) returns before the signal is sent.
pub trait Journal {
    /// This process is about to be signalled; everything was verified.
    fn signalling(&mut self, warrant: &Warrant<'_>);
    /// It was not signalled, and why.
    fn refused(&mut self, warrant: &Warrant<'_>, refusal: Refusal);
}

/// Verifies a warrant, records it and carries it out.
///
/// Minimum kernel: 5.3 (`pidfd_open`).
///
/// # Errors
///
/// What keeps us from verifying at all, such as no descriptor left (`EMFILE`): nothing was signalled.
pub fn signal(warrant: &Warrant<'_>, authority: &Authority, journal: &mut dyn Journal) -> io::Result<Verdict> {
    let pidfd = match pidfd_open(warrant.id.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if is_gone(&error) => return Ok(Verdict::Gone),
        // A thread that is no group leader: the pid was used again for a thread.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            journal.refused(warrant, Refusal::Reused);
            return Ok(Verdict::Refused(Refusal::Reused));
        }
        Err(error) => return Err(error),
    };
    match verify(warrant, authority) {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => {
            // A process that ends while we look "holds nothing": that is no refusal.
            if !exists(&pidfd) {
                return Ok(Verdict::Gone);
            }
            journal.refused(warrant, refusal);
            return Ok(Verdict::Refused(refusal));
        }
        Err(error) if is_gone(&error) => return Ok(Verdict::Gone),
        Err(error) => return Err(error),
    }
    if !exists(&pidfd) {
        return Ok(Verdict::Gone);
    }
    journal.signalling(warrant);
    match pidfd_send_signal(&pidfd, warrant.signal as i32) {
        Ok(()) => {
            if warrant.signal != Signal::SIGKILL {
                // A stopped process handles its signal only once it runs again.
                let _ = pidfd_send_signal(&pidfd, libc::SIGCONT);
            }
            Ok(Verdict::Signalled)
        }
        Err(error) if is_gone(&error) => Ok(Verdict::Gone),
        Err(error) if is_denied(&error) => {
            journal.refused(warrant, Refusal::NotPermitted);
            Ok(Verdict::Refused(Refusal::NotPermitted))
        }
        Err(error) => Err(error),
    }
}

/// Looks afresh at everything that the warrant claims.
fn verify(warrant: &Warrant<'_>, authority: &Authority) -> io::Result<Result<(), Refusal>> {
    let pid = warrant.id.pid;
    let named = matches!(&warrant.ground, Ground::Policy { policy, .. } if !policy.is_empty());
    if authority.node != named || matches!(warrant.ground, Ground::Policy { .. }) != named {
        return Ok(Err(Refusal::NoPolicy));
    }
    if pid <= 1 || pid == nix::unistd::getpid().as_raw() || pid == authority.root {
        return Ok(Err(Refusal::Ancestor));
    }
    let stat = Stat::read(pid)?;
    if stat.id != warrant.id {
        return Ok(Err(Refusal::Reused));
    }
    if stat.kernel_thread {
        return Ok(Err(Refusal::KernelThread));
    }
    // What descends from us is no ancestor of ours: parents form no circle.
    if !descends_from(pid, authority.root) {
        if is_our_ancestor(pid) {
            return Ok(Err(Refusal::Ancestor));
        }
        let foreign = authority.foreign && matches!(warrant.relation, Relation::Foreign | Relation::Adopted);
        if !(named || foreign) {
            return Ok(Err(Refusal::NotLineage));
        }
    }
    if authority.keep.matches(pid, &stat.comm) {
        return Ok(Err(Refusal::Kept));
    }
    match &warrant.ground {
        Ground::Holds { pipe, seen } | Ground::Policy { pipe, seen, .. } => match still_writes(pid, *pipe, seen) {
            Ok(true) => Ok(Ok(())),
            Ok(false) => Ok(Err(Refusal::NoHold)),
            Err(error) if is_denied(&error) => Ok(Err(Refusal::Unreadable)),
            Err(error) => Err(error),
        },
        Ground::Suspect | Ground::Opaque | Ground::Reap => Ok(Ok(())),
    }
}

/// Whether the process is one that our own life hangs on: found on the way up from our parent.
fn is_our_ancestor(pid: i32) -> bool {
    descends_from(nix::unistd::getpid().as_raw(), pid)
}

/// Signals the members of the home group, while its leader, our child, is not yet reaped: a zombie
/// pins the group's number, so that no other group can have it. That nobody is left in the group is no
/// error.
pub fn signal_home_group(leader: &PinnedLeader, signal: i32) {
    // SAFETY: kill(2) takes two integers; `PinnedLeader` promises that the group is ours.
    unsafe { libc::kill(-leader.pgid, signal) };
}

/// Signals a child of ours, through the pidfd that we got when we made it. That it is gone is no error.
pub fn signal_child(pidfd: &OwnedFd, signal: i32) {
    let _ = pidfd_send_signal(pidfd, signal);
}

/// Proof that the leader of the home group is a child of ours which was not reaped yet.
///
/// Only who waits for the command can make one, and must drop it before it reaps.
#[derive(Debug)]
pub struct PinnedLeader {
    pgid: i32,
}

impl PinnedLeader {
    /// For the process that was forked with a group of its own, whose number is its pid.
    ///
    /// Refuses what could be read as "every process" or "our own group" by kill(2).
    #[must_use]
    pub fn new(pid: i32) -> Option<PinnedLeader> {
        (pid > 1 && pid != nix::unistd::getpgrp().as_raw()).then_some(PinnedLeader { pgid: pid })
    }
}

/// pidfd_open(2): a descriptor that means this process and no later one with the same pid.
///
/// # Errors
///
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: takes three integers and a null pointer, which stands for "as kill(2) would fill it".
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the process of a pidfd was not reaped yet. One that we may not signal exists too.
fn exists(pidfd: &OwnedFd) -> bool {
    match pidfd_send_signal(pidfd, 0) {
        Ok(()) => true,
        Err(error) => is_denied(&error),
    }
}

#[cfg(test)]
mod tests;
