//! Whom a warrant reaches, and whom never.

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
