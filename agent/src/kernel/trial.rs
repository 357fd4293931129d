//! The self-test of a tracker while its process has other things to do: it executes nothing, and who
//! reaps our children reaps the one that it makes.
//!
//! [`self_test`](super::self_test) is the longer one, for who may wait.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use pipewarden_common::event::{Escape, kind};

use super::record::{Record, end_of, pipe_of};
use super::self_test::{SelfTestError, in_initial_pid_namespace};
use super::tracker::{Reader, Tracker};
use crate::pipe::{End, PipeId};

/// An exit is told when the kernel gets there: by when is the scheduler's business.
const TOLD: Duration = Duration::from_secs(2);

/// Puts an attached tracker to the test by a child that puts a pipe over another, closes one, leaves our
/// session and exits. The tracker follows us meanwhile: [`Tracker::seed`] it afterwards.
///
/// # Errors
///
/// [`SelfTestError`]: then the tracker must not be used.
pub fn on_trial(tracker: &mut Tracker, reader: &mut Reader) -> Result<(), SelfTestError> {
    if !in_initial_pid_namespace() {
        return Err(SelfTestError::ForeignPids);
    }
    let us = std::process::id();
    tracker.follow(us)?;
    let verdict = try_it(us, tracker, reader);
    tracker.leave(us);
    verdict
}

fn try_it(us: u32, tracker: &Tracker, reader: &mut Reader) -> Result<(), SelfTestError> {
    let (read, write) = pipe()?;
    let (over, _other) = pipe()?;
    let pipe = identity(&write)?;
    let part = Part { from: write.as_raw_fd(), over: over.as_raw_fd(), close: read.as_raw_fd() };
    let child = play(&part)?;
    let deadline = Instant::now() + TOLD;
    let mut told = Vec::new();
    loop {
        told.extend(std::iter::from_fn(|| reader.next_record()));
        if told.iter().any(|record| record.event().kind == kind::EXIT && record.event().pid == child) {
            let files = told_truly(us, child, pipe, &part, &told)?;
            return of_map(tracker, files);
        }
        if !reader.wait(deadline)? {
            return Err(SelfTestError::Untold { event: "exit" });
        }
    }
}

/// Puts the map to the test by what this thread does to its own table, which is the one by that number:
/// our process must be followed.
///
/// # Errors
///
/// [`SelfTestError`].
pub(super) fn of_map(tracker: &Tracker, files: u64) -> Result<(), SelfTestError> {
    let (read, write) = pipe()?;
    let (other, mut over) = pipe()?;
    let pipe = identity(&write)?;
    let (pipe_fds, over_fd) = ([read.as_raw_fd(), write.as_raw_fd()], over.as_raw_fd());
    let says = |fd: i32, what: Option<(PipeId, End)>, event: &'static str| {
        let slot = tracker.slot(files, fd.cast_unsigned());
        let told = slot.and_then(|slot| Some((pipe_of(&slot.held), end_of(&slot.held)?)));
        if told == what {
            return Ok(());
        }
        Err(SelfTestError::Wrong { event, what: format!("descriptor {fd} is {told:?} in the map instead of {what:?}") })
    };
    says(pipe_fds[0], Some((pipe, End::Read)), "pipe2")?;
    says(pipe_fds[1], Some((pipe, End::Write)), "pipe2")?;
    says(over_fd, Some((identity(&other)?, End::Write)), "pipe2")?;
    nix::unistd::dup2(&write, &mut over).map_err(io::Error::from)?;
    says(over_fd, Some((pipe, End::Write)), "dup2")?;
    drop((read, write, other, over));
    for fd in [pipe_fds[0], pipe_fds[1], over_fd] {
        // Another thread may have it by now, but not for this pipe.
        if tracker.slot(files, fd.cast_unsigned()).is_some_and(|slot| pipe_of(&slot.held) == pipe) {
            return Err(SelfTestError::Wrong { event: "close", what: format!("descriptor {fd} is still in the map") });
        }
    }
    Ok(())
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

fn identity(fd: impl AsFd) -> io::Result<PipeId> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok(PipeId { dev: stat.st_dev, ino: stat.st_ino })
}

/// Whether everything was told as it was; our own table's number.
fn told_truly(us: u32, child: u32, pipe: PipeId, part: &Part, told: &[Record]) -> Result<u64, SelfTestError> {
    let birth =
        told.iter().map(Record::event).find(|event| (event.kind, event.pid, event.other) == (kind::FORK, us, child));
    let birth = birth.ok_or(SelfTestError::Untold { event: "fork" })?;
    let escape = told.iter().find_map(|record| match record {
        Record::Escape(escape) if escape.event.pid == child && escape.event.kind == kind::SETSID => Some(escape),
        _ => None,
    });
    let escape: &Escape = escape.ok_or(SelfTestError::Untold { event: "setsid" })?;
    if (escape.event.pgid, escape.event.sid) != (child, child) {
        return Err(SelfTestError::Wrong { event: "setsid", what: "its group and session are not its own".to_owned() });
    }
    // Where there are many descriptors it does not tell of all, and says so.
    let held: Vec<_> = escape.held.iter().take(escape.count as usize).filter(|held| pipe_of(held) == pipe).collect();
    let holds = |fd: i32, end: End| held.iter().any(|held| held.fd.cast_signed() == fd && end_of(held) == Some(end));
    if escape.unseen == 0
        && (!holds(part.from, End::Write) || !holds(part.over, End::Write) || holds(part.close, End::Read))
    {
        return Err(SelfTestError::Wrong { event: "setsid", what: format!("it holds {held:?} of {pipe}") });
    }
    Ok(birth.files)
}

/// What the child does.
struct Part {
    from: i32,
    over: i32,
    close: i32,
}

/// Lets the child play its part, in a descriptor table of its own; its pid. All but its end is over when
/// this returns.
fn play(part: &Part) -> io::Result<u32> {
    /// Four system calls, and 16 bytes aligned wherever the stack grows from.
    #[repr(align(16))]
    struct Stack([u8; 16 * 1024]);
    extern "C" fn child(part: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent passes its part and stands still. All of these only enter the kernel; the
        // last one does not return.
        unsafe {
            let part = &*part.cast::<Part>();
            libc::dup2(part.from, part.over);
            libc::close(part.close);
            libc::setsid();
            libc::_exit(0)
        }
    }
    let mut stack = Box::new(Stack([0; 16 * 1024]));
    // In our memory, so that nothing is copied; we stand still meanwhile (CLONE_VFORK).
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on a stack of its own, which outlives it because we stand still until it
    // has exited; it reads its part, and writes nothing but that stack and errno, which nobody reads
    // before we go on.
    let pid = unsafe {
        let top = stack.0.as_mut_ptr_range().end;
        libc::clone(child, top.cast(), flags, std::ptr::from_ref(part).cast_mut().cast())
    };
    Ok(Errno::result(pid)?.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::waitpid;
    use nix::unistd::Pid;

    use super::super::rung::Rung;
    use super::*;

    #[test]
    fn a_tracker_passes_beside_other_threads() {
        let Some(mut tracker) = crate::kernel::tracker_for_test(&Rung::ALL) else { return };
        let mut reader = tracker.take_reader().unwrap();
        let verdict = on_trial(&mut tracker, &mut reader);
        assert!(verdict.is_ok(), "{verdict:?}");
    }

    #[test]
    fn a_map_that_is_not_told_of_our_descriptors_fails() {
        let Some(tracker) = crate::kernel::tracker_for_test(&Rung::ALL) else { return };
        assert!(matches!(of_map(&tracker, 1), Err(SelfTestError::Wrong { event: "pipe2", .. })));
    }

    #[test]
    fn the_childs_part_leaves_our_own_table_alone() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (over, _other) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let before = identity(&over).unwrap();
        let part = Part { from: write.as_raw_fd(), over: over.as_raw_fd(), close: read.as_raw_fd() };
        let child = play(&part).unwrap();
        waitpid(Pid::from_raw(child.cast_signed()), None).unwrap();
        assert_eq!(identity(&over).unwrap(), before);
        assert!(identity(&read).is_ok());
    }
}
