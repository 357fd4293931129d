//! Nothing is usable before it told the truth about a child of ours.
//!
//! The child leaves its group with the write end of a pipe in its hands, runs another program and
//! exits: what a source of events must tell about it is known to the last number.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use pipewarden_common::event::{Escape, HELD_MAX, WALK_FDS, kind};

use super::record::{Record, end_of, pipe_of, process_of};
use super::tracker::Tracker;
use super::trial::of_map;
use crate::pipe::{End, PipeId, ProcessId};
use crate::process::stat::Stat;

/// Why a source of events is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The test itself could not be made.
    #[error("the self-test could not run: {0}")]
    Io(#[from] io::Error),
    /// The process to follow did not fit into the map.
    #[error("the self-test could not run: {0}")]
    Map(#[from] aya::maps::MapError),
    /// Something that happened was not told.
    #[error("the {event} of a child of ours was not told")]
    Untold {
        /// What.
        event: &'static str,
    },
    /// Pids are told as another pid namespace numbers them: they would name the wrong processes here.
    #[error("pids are told as the initial pid namespace numbers them, and we are in another one")]
    ForeignPids,
    /// Something was told, and it is not what happened.
    #[error("the {event} of a child of ours was told wrongly: {what}")]
    Wrong {
        /// What.
        event: &'static str,
        /// The difference.
        what: String,
    },
}

/// By which call the child leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// setsid(2): a session and a group of its own.
    Session,
    /// setpgid(2): a group of its own in our session.
    Group,
}

impl Leave {
    fn name(self) -> &'static str {
        match self {
            Leave::Session => "setsid",
            Leave::Group => "setpgid",
        }
    }
}

/// A child that comes, leaves, runs another program and goes.
#[derive(Debug)]
struct Acting {
    leave: Leave,
    pipe: PipeId,
    /// Our ends, and its own until it runs the program.
    ends: (OwnedFd, OwnedFd),
    zombie: Zombie,
}

/// What really happened: a child that came, left, ran another program and went.
#[derive(Debug)]
pub struct Acted {
    /// The child.
    pub child: ProcessId,
    /// How it left.
    pub leave: Leave,
    /// The pipe.
    pub pipe: PipeId,
    /// Its descriptor on the pipe's write end.
    pub write_fd: i32,
    /// Reaps the child.
    zombie: Zombie,
}

#[derive(Debug)]
struct Zombie(Pid);

impl Drop for Zombie {
    fn drop(&mut self) {
        let _ = nix::sys::wait::waitpid(self.0, None); // it ends by itself, and mostly has
    }
}

/// Makes the child and waits for its end. Whatever is told synchronously has been told then.
///
/// # Errors
///
/// When there is no pipe or no process to be had.
pub fn act(leave: Leave) -> io::Result<Acted> {
    let acting = begin(leave)?;
    acting.is_over(WaitPidFlag::empty())?;
    acting.over()
}

fn begin(leave: Leave) -> io::Result<Acting> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let stat = nix::sys::stat::fstat(&write)?;
    let null: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    let (program, arguments) = another_program()?;
    let pointers: Vec<*const libc::c_char> =
        arguments.iter().map(|argument| argument.as_ptr()).chain([std::ptr::null()]).collect();

    // SAFETY: between fork and exec the child only calls functions that are async-signal-safe, on
    // memory that was prepared before.
    let pid = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        // SAFETY: as above.
        ForkResult::Child => unsafe {
            match leave {
                Leave::Session => libc::setsid(),
                Leave::Group => libc::setpgid(0, 0),
            };
            for fd in 0..3 {
                libc::dup2(null.as_raw_fd(), fd);
            }
            libc::execv(program.as_ptr(), pointers.as_ptr());
            libc::_exit(127)
        },
    };
    let pipe = PipeId { dev: stat.st_dev, ino: stat.st_ino };
    Ok(Acting { leave, pipe, ends: (read, write), zombie: Zombie(pid) })
}

impl Acting {
    fn pid(&self) -> Pid {
        self.zombie.0
    }

    /// Whether it has ended; without `WNOHANG`, once it has. It is not reaped: its number is its own, and /proc still
    /// knows when it started.
    fn is_over(&self, how: WaitPidFlag) -> io::Result<bool> {
        loop {
            match waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | how) {
                Ok(status) => return Ok(status != WaitStatus::StillAlive),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// It has ended.
    fn over(self) -> io::Result<Acted> {
        let child = Stat::read(self.pid().as_raw())?.id;
        let Acting { leave, pipe, ends, zombie } = self;
        Ok(Acted { child, leave, pipe, write_fd: ends.1.as_raw_fd(), zombie })
    }
}

/// A program that is certainly there and ends by itself: ours, asked for its version. How it ends
/// does not matter.
fn another_program() -> io::Result<(CString, Vec<CString>)> {
    let arguments = ["pipewarden", "--version"].map(CString::new);
    Ok((CString::new("/proc/self/exe")?, arguments.into_iter().collect::<Result<_, _>>()?))
}

/// Puts an attached tracker to the test, both ways of leaving.
///
/// # Errors
///
/// [`SelfTestError`]: then it must not be used.
pub fn of_tracker(tracker: &mut Tracker) -> Result<(), SelfTestError> {
    if !in_initial_pid_namespace() {
        return Err(SelfTestError::ForeignPids);
    }
    let us = std::process::id();
    tracker.follow(us)?;
    let verdict = both_ways(us, tracker);
    tracker.leave(us);
    verdict
}

/// How long it is tried anew where something was lost: the machine may be busy with what fills a ring buffer.
const ANEW: Duration = Duration::from_secs(5);

fn both_ways(us: u32, tracker: &mut Tracker) -> Result<(), SelfTestError> {
    for leave in [Leave::Session, Leave::Group] {
        let until = Instant::now() + ANEW;
        loop {
            drop(told_about(us, 0, tracker)); // room for what comes
            let before = tracker.losses();
            let (acted, told) = act_and_hear(us, leave, tracker)?;
            let verdict = told_truly(us, &acted, &told).and_then(|files| of_map(tracker, files));
            match verdict {
                // Where something is lost or a program skipped, which is counted and healed, it is no lie.
                Err(SelfTestError::Untold { .. } | SelfTestError::Wrong { .. })
                    if Instant::now() < until && tracker.losses() != before => {}
                verdict => break verdict?,
            }
        }
    }
    Ok(())
}

/// Between two questions whether the child has ended, where nothing is told meanwhile.
const ASKED_AGAIN: Duration = Duration::from_millis(10);

/// What happened, and what was told of it meanwhile: others may tell so much that there is no room for it otherwise.
fn act_and_hear(us: u32, leave: Leave, tracker: &mut Tracker) -> io::Result<(Acted, Vec<Record>)> {
    let acting = begin(leave)?;
    let child = acting.pid().as_raw().cast_unsigned();
    let mut told = Vec::new();
    loop {
        let is_over = acting.is_over(WaitPidFlag::WNOHANG)?;
        told.append(&mut told_about(us, child, tracker));
        if is_over {
            return Ok((acting.over()?, told));
        }
        tracker.wait(Instant::now() + ASKED_AGAIN)?;
    }
}

/// More than any ring buffer of ours has room for: who tells faster than we read is not waited for.
const TOLD_MOST: usize = 1 << 20;

/// What is told of us and of a child of ours, up to its exit. There may be any number of others, who do much.
fn told_about(us: u32, child: u32, tracker: &mut Tracker) -> Vec<Record> {
    let mut told = Vec::new();
    for _ in 0..TOLD_MOST {
        let Some(record) = tracker.next_record() else { break };
        let event = record.event();
        if [us, child].contains(&event.pid) || event.other == child && child != 0 {
            let over = event.pid == child && event.kind == kind::EXIT;
            told.push(record);
            if over {
                break;
            }
        }
    }
    told
}

/// Whether everything was told as it was; our own table's number.
fn told_truly(us: u32, acted: &Acted, told: &[Record]) -> Result<u64, SelfTestError> {
    let child = acted.child.pid.cast_unsigned();
    let find = |kind: u32, pid: u32, event: &'static str| {
        let found = told.iter().find(|record| record.event().kind == kind && record.event().pid == pid);
        found.ok_or(SelfTestError::Untold { event })
    };
    let fork = told.iter().find(|record| record.event().kind == kind::FORK && record.event().other == child);
    let fork = fork.ok_or(SelfTestError::Untold { event: "fork" })?;
    expect("fork", "parent", fork.event().pid, us)?;

    let event = acted.leave.name();
    let left = if acted.leave == Leave::Session { kind::SETSID } else { kind::SETPGID };
    let Record::Escape(escape) = find(left, child, event)? else { return Err(SelfTestError::Untold { event }) };
    expect(event, "start", process_of(child, escape.event.start_boot_ns), acted.child)?;
    expect(event, "group", escape.event.pgid, child)?;
    expect(event, "session is its own", escape.event.sid == child, acted.leave == Leave::Session)?;
    holds_the_pipe(event, escape, acted)?;

    for (kind, event) in [(kind::EXEC, "exec"), (kind::EXIT, "exit")] {
        let record = find(kind, child, event)?.event();
        expect(event, "start", process_of(child, record.start_boot_ns), acted.child)?;
    }
    Ok(fork.event().files)
}

/// The escapee holds the write end by exactly our descriptor (and the read end by another).
fn holds_the_pipe(event: &'static str, escape: &Escape, acted: &Acted) -> Result<(), SelfTestError> {
    let held = escape.held.iter().take(escape.count as usize);
    let ours: Vec<_> = held.filter(|held| pipe_of(held) == acted.pipe).collect();
    let write = ours.iter().find(|held| end_of(held) == Some(End::Write));
    match write {
        Some(held) => expect(event, "descriptor", held.fd.cast_signed(), acted.write_fd),
        // Beyond what the walk can tell: then it must say so, and does.
        None if escape.unseen > 0
            && (acted.write_fd >= WALK_FDS.cast_signed() || escape.count as usize == HELD_MAX) =>
        {
            Ok(())
        }
        None => Err(SelfTestError::Wrong { event, what: format!("it holds {}, which is not told", acted.pipe) }),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "plain numbers, and calls that read well")]
fn expect<T: PartialEq + std::fmt::Debug>(
    event: &'static str,
    what: &str,
    told: T,
    real: T,
) -> Result<(), SelfTestError> {
    if told == real {
        return Ok(());
    }
    Err(SelfTestError::Wrong { event, what: format!("{what} {told:?} instead of {real:?}") })
}

/// The kernel's number of the pid namespace that everything began in (include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether pids mean to us what they mean to the kernel.
#[must_use]
pub fn in_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE)
}

impl Acted {
    /// Lets the kernel forget the child.
    pub fn reap(self) {
        drop(self.zombie);
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::{Scope, Sizes};
    use super::super::rung::Rung;
    use super::super::tracker::Losses;
    use super::*;

    fn tracker(rung: Rung) -> Option<Tracker> {
        crate::kernel::tracker_for_test(&[rung])
    }

    #[test]
    fn every_rung_to_be_had_tells_the_truth() {
        for rung in Rung::ALL {
            let Some(mut tracker) = tracker(rung) else { continue };
            of_tracker(&mut tracker).unwrap_or_else(|error| panic!("{rung}: {error}"));
            eprintln!("{rung}: {:?}, {:?}", tracker.cost(), tracker.losses());
            assert_eq!(tracker.losses(), Losses { skipped: tracker.losses().skipped, ..Losses::default() });
        }
    }

    #[test]
    fn where_pids_are_not_ours_no_rung_is_believed() {
        if in_initial_pid_namespace() {
            return crate::kernel::skipped(format_args!("needs a pid namespace"));
        }
        let Ok(mut tracker) = Tracker::attach(Rung::Tracepoint, Scope::Lineage, Sizes::RUN) else {
            return crate::kernel::skipped(format_args!("needs BPF"));
        };
        assert!(matches!(of_tracker(&mut tracker), Err(SelfTestError::ForeignPids)));
    }

    #[test]
    fn a_process_outside_the_lineage_is_not_told_about() {
        let Some(mut tracker) = tracker(Rung::Tracepoint) else { return };
        act(Leave::Session).unwrap().reap();
        assert_eq!(tracker.next_record(), None);
    }

    #[test]
    fn a_lie_is_recognised() {
        let Some(mut tracker) = tracker(Rung::Tracepoint) else { return };
        let us = std::process::id();
        tracker.follow(us).unwrap();
        let mut acted = act(Leave::Session).unwrap();
        let told: Vec<_> = std::iter::from_fn(|| tracker.next_record()).collect();
        told_truly(us, &acted, &told).unwrap();
        for missing in 0..told.len() {
            let mut less = told.clone();
            less.retain({
                let gone = told[missing].clone();
                move |record| *record != gone
            });
            let ours =
                [told[missing].event().pid, told[missing].event().other].contains(&acted.child.pid.cast_unsigned());
            assert_eq!(told_truly(us, &acted, &less).is_err(), ours, "without {:?}", told[missing]);
        }
        // Not the pipe: where other tests' descriptors fill the walk, it may rightly be left out.
        acted.child.start_ticks += 1;
        assert!(matches!(told_truly(us, &acted, &told), Err(SelfTestError::Wrong { .. })));
    }
}
