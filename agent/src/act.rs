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
mod tests {
    use super::*;
    use crate::pipe::{End, PipeKind};
    use crate::process::describe::describe;
    use crate::process::table::{Sought, look};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    /// What was recorded, in the order in which it was.
    #[derive(Default)]
    struct Books(Vec<String>);

    impl Journal for Books {
        fn signalling(&mut self, warrant: &Warrant<'_>) {
            let alive = Stat::read(warrant.id.pid).is_ok_and(|stat| !stat.is_dead());
            self.0.push(format!("signalling {} while alive: {alive}", warrant.signal));
        }
        fn refused(&mut self, _: &Warrant<'_>, refusal: Refusal) {
            self.0.push(format!("refused: {refusal}"));
        }
    }

    /// A child of ours on one end of a pipe of ours, both of which end with the test.
    struct Fixture {
        child: Child,
        pipe: Pipe,
        ours: std::io::PipeReader,
        _write: Option<std::io::PipeWriter>,
    }

    impl Fixture {
        fn new(end: End) -> Fixture {
            let (read, write) = std::io::pipe().unwrap();
            let stat = nix::sys::stat::fstat(read.as_fd()).unwrap();
            let id = crate::pipe::PipeId { dev: stat.st_dev, ino: stat.st_ino };
            let mut command = Command::new("sleep");
            command.arg("600");
            let write = match end {
                End::Read => {
                    command.stdin(Stdio::from(read.try_clone().unwrap()));
                    Some(write)
                }
                End::Write | End::Both => {
                    command.stdout(Stdio::from(write));
                    None
                }
            };
            let child = command.spawn().unwrap();
            drop(command); // and with it its copy of the child's end
            Fixture { child, pipe: Pipe { id, kind: PipeKind::Pipe }, ours: read, _write: write }
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.child.id()).unwrap()
        }

        fn hold(&self) -> Hold {
            let found = look(self.pid(), &Sought { pipes: vec![self.pipe], hidden: false }).unwrap();
            found.holds.first().cloned().unwrap()
        }

        /// The verdict on a warrant for this fixture, changed as a test wants it, and what was recorded.
        fn try_on(&self, authority: &Authority, change: impl FnOnce(&mut Warrant<'_>)) -> (Verdict, Vec<String>) {
            let description = describe(self.pid()).unwrap();
            let mut warrant = Warrant {
                id: Stat::read(self.pid()).unwrap().id,
                relation: Relation::Lineage,
                ground: Ground::Holds { pipe: self.pipe, seen: self.hold() },
                description: &description,
                signal: Signal::SIGKILL,
            };
            change(&mut warrant);
            let mut books = Books::default();
            let verdict = signal(&warrant, authority, &mut books).unwrap();
            (verdict, books.0)
        }

        fn is_alive(&mut self) -> bool {
            self.child.try_wait().unwrap().is_none()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn authority() -> Authority {
        Authority { root: nix::unistd::getpid().as_raw(), keep: Keep::default(), foreign: false, node: false }
    }

    /// A node's, to which a fixture is a stranger: it descends from a sibling of the node.
    fn node(elsewhere: &Fixture) -> Authority {
        Authority { root: elsewhere.pid(), node: true, ..authority() }
    }

    fn policy(fixture: &Fixture, name: &str) -> Ground {
        Ground::Policy { policy: name.to_owned(), pipe: fixture.pipe, seen: fixture.hold() }
    }

    fn refused(refusal: Refusal) -> (Verdict, Vec<String>) {
        (Verdict::Refused(refusal), vec![format!("refused: {refusal}")])
    }

    #[test]
    fn a_verified_holder_is_recorded_and_then_signalled() {
        let mut fixture = Fixture::new(End::Write);
        let (verdict, books) = fixture.try_on(&authority(), |_| {});
        assert_eq!(verdict, Verdict::Signalled);
        assert_eq!(books, ["signalling SIGKILL while alive: true"]);
        // The oracle: EOF arrives at our end of its pipe.
        assert_eq!(std::io::Read::read(&mut fixture.ours, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_pid_that_was_used_again_is_refused() {
        let mut fixture = Fixture::new(End::Write);
        let answer = fixture.try_on(&authority(), |warrant| warrant.id.start_ticks -= 1);
        assert_eq!(answer, refused(Refusal::Reused));
        assert!(fixture.is_alive());
    }

    #[test]
    fn a_reader_is_refused() {
        let mut fixture = Fixture::new(End::Read);
        assert_eq!(fixture.try_on(&authority(), |_| {}), refused(Refusal::NoHold));
        assert!(fixture.is_alive());
    }

    #[test]
    fn a_holder_of_another_pipe_is_refused() {
        let mut fixture = Fixture::new(End::Write);
        let other = Fixture::new(End::Write);
        let ground = Ground::Holds { pipe: other.pipe, seen: fixture.hold() };
        assert_eq!(fixture.try_on(&authority(), |warrant| warrant.ground = ground), refused(Refusal::NoHold));
        assert!(fixture.is_alive());
    }

    #[test]
    fn the_same_inode_number_on_another_device_is_another_pipe() {
        let mut fixture = Fixture::new(End::Write);
        let mut pipe = fixture.pipe;
        pipe.kind = PipeKind::Fifo;
        pipe.id.dev += 1;
        let ground = Ground::Holds { pipe, seen: fixture.hold() };
        assert_eq!(fixture.try_on(&authority(), |warrant| warrant.ground = ground), refused(Refusal::NoHold));
        assert!(fixture.is_alive());
    }

    #[test]
    fn what_is_kept_is_refused() {
        let mut fixture = Fixture::new(End::Write);
        let keep = Keep::new(&["slee?"]).unwrap();
        assert_eq!(fixture.try_on(&Authority { keep, ..authority() }, |_| {}), refused(Refusal::Kept));
        assert!(fixture.is_alive());
    }

    #[test]
    fn what_does_not_descend_from_the_supervisor_is_refused() {
        let mut fixture = Fixture::new(End::Write);
        // Seen from a supervisor that is this fixture's sibling, it is a stranger.
        let sibling = Fixture::new(End::Write);
        let elsewhere = Authority { root: sibling.pid(), ..authority() };
        assert_eq!(fixture.try_on(&elsewhere, |_| {}), refused(Refusal::NotLineage));
        // Even where foreign holders may be ended, a warrant for lineage is no warrant for a stranger.
        let foreign = Authority { foreign: true, ..elsewhere };
        assert_eq!(fixture.try_on(&foreign, |_| {}), refused(Refusal::NotLineage));
        assert!(fixture.is_alive());
    }

    #[test]
    fn a_foreign_holder_is_signalled_only_where_that_is_asked_for() {
        let mut fixture = Fixture::new(End::Write);
        let sibling = Fixture::new(End::Write);
        let elsewhere = Authority { root: sibling.pid(), foreign: true, ..authority() };
        let (verdict, _) = fixture.try_on(&elsewhere, |warrant| warrant.relation = Relation::Foreign);
        assert_eq!(verdict, Verdict::Signalled);
        assert_eq!(std::io::Read::read(&mut fixture.ours, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn ourselves_our_ancestors_pid_1_and_kernel_threads_are_refused_whatever_is_asked_for() {
        let fixture = Fixture::new(End::Write);
        let everything = Authority { foreign: true, ..authority() };
        let try_on = |pid: i32| {
            let id = Stat::read(pid).map_or(ProcessId { pid, start_ticks: 0 }, |stat| stat.id);
            fixture.try_on(&everything, |warrant| {
                warrant.id = id;
                warrant.relation = Relation::Foreign;
                warrant.ground = Ground::Reap;
            })
        };
        let ancestor = refused(Refusal::Ancestor);
        assert_eq!(try_on(nix::unistd::getpid().as_raw()), ancestor, "ourselves");
        assert_eq!(try_on(1), ancestor, "pid 1");
        let parent = nix::unistd::getppid().as_raw();
        assert!(parent > 0, "run this test where its parent can be seen");
        assert_eq!(try_on(parent), ancestor, "our parent");
        match Stat::read(2) {
            Ok(stat) if stat.kernel_thread => assert_eq!(try_on(2), refused(Refusal::KernelThread)),
            _ => eprintln!("skipped: no kernel thread can be seen from this pid namespace"),
        }
    }

    #[test]
    fn a_policy_of_a_node_reaches_whoever_holds_the_write_end() {
        let mut fixture = Fixture::new(End::Write);
        let sibling = Fixture::new(End::Write);
        let ground = policy(&fixture, "agents");
        let (verdict, books) = fixture.try_on(&node(&sibling), |warrant| warrant.ground = ground);
        assert_eq!(verdict, Verdict::Signalled);
        assert_eq!(books, ["signalling SIGKILL while alive: true"]);
        assert_eq!(std::io::Read::read(&mut fixture.ours, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_node_acts_on_the_word_of_a_policy_alone_and_nobody_else_does() {
        let mut fixture = Fixture::new(End::Write);
        let sibling = Fixture::new(End::Write);
        let all = Authority { foreign: true, ..node(&sibling) };
        let no_policy = refused(Refusal::NoPolicy);
        let holds = || Ground::Holds { pipe: fixture.pipe, seen: fixture.hold() };
        for ground in [holds(), Ground::Suspect, Ground::Opaque, Ground::Reap, policy(&fixture, "")] {
            for relation in [Relation::Lineage, Relation::Foreign, Relation::Adopted] {
                let verdict = fixture.try_on(&all, |warrant| {
                    warrant.ground = ground.clone();
                    warrant.relation = relation;
                });
                assert_eq!(verdict, no_policy, "{ground:?} of {relation:?}");
            }
        }
        let run = Authority { foreign: true, ..authority() };
        for name in ["agents", ""] {
            let ground = policy(&fixture, name);
            assert_eq!(fixture.try_on(&run, |warrant| warrant.ground = ground), no_policy, "a run has no policies");
        }
        assert!(fixture.is_alive());
    }

    #[test]
    fn a_policy_reaches_no_reader_no_other_pipes_holder_nobody_kept_and_no_other_process_of_that_pid() {
        let (mut reader, mut writer) = (Fixture::new(End::Read), Fixture::new(End::Write));
        let sibling = Fixture::new(End::Write);
        let ground = policy(&reader, "agents");
        assert_eq!(reader.try_on(&node(&sibling), |warrant| warrant.ground = ground), refused(Refusal::NoHold));

        let other = Ground::Policy { policy: "agents".into(), pipe: sibling.pipe, seen: writer.hold() };
        assert_eq!(writer.try_on(&node(&sibling), |warrant| warrant.ground = other), refused(Refusal::NoHold));

        let kept = Authority { keep: Keep::new(&["sleep"]).unwrap(), ..node(&sibling) };
        let ground = policy(&writer, "agents");
        assert_eq!(writer.try_on(&kept, |warrant| warrant.ground = ground), refused(Refusal::Kept));

        let ground = policy(&writer, "agents");
        let older = |warrant: &mut Warrant<'_>| {
            warrant.ground = ground;
            warrant.id.start_ticks -= 1;
        };
        assert_eq!(writer.try_on(&node(&sibling), older), refused(Refusal::Reused));
        assert!(reader.is_alive() && writer.is_alive());
    }

    #[test]
    fn a_policy_never_reaches_ourselves_our_ancestors_or_pid_1() {
        let fixture = Fixture::new(End::Write);
        let parent = nix::unistd::getppid().as_raw();
        for pid in [nix::unistd::getpid().as_raw(), 1, parent] {
            let id = Stat::read(pid).map_or(ProcessId { pid, start_ticks: 0 }, |stat| stat.id);
            let ground = policy(&fixture, "agents");
            let node = Authority { node: true, ..authority() };
            let verdict = fixture.try_on(&node, |warrant| {
                warrant.id = id;
                warrant.ground = ground;
            });
            assert_eq!(verdict, refused(Refusal::Ancestor), "{pid}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_no_refusal() {
        let mut fixture = Fixture::new(End::Write);
        let (id, seen) = (Stat::read(fixture.pid()).unwrap().id, fixture.hold());
        let description = describe(fixture.pid()).unwrap();
        fixture.child.kill().unwrap();
        fixture.child.wait().unwrap();
        let ground = Ground::Holds { pipe: fixture.pipe, seen };
        let warrant =
            Warrant { id, relation: Relation::Lineage, ground, description: &description, signal: Signal::SIGKILL };
        let mut books = Books::default();
        assert_eq!(signal(&warrant, &authority(), &mut books).unwrap(), Verdict::Gone);
        assert_eq!(books.0, [""; 0]);
    }

    #[test]
    fn a_group_that_kill_2_reads_otherwise_is_no_home_group() {
        for pid in [-1, 0, 1, nix::unistd::getpgrp().as_raw()] {
            assert!(PinnedLeader::new(pid).is_none(), "{pid}");
        }
    }
}
