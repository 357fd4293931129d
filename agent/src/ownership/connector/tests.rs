use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::kernel::connector::Kinds;
use crate::kernel::self_test::in_initial_pid_namespace;
use crate::process::children::descendants;

const ROOT: i32 = 100;

fn members() -> Members {
    Members::new(ROOT, &HashSet::from([101]))
}

fn stat(pid: i32) -> Stat {
    let us = Stat::read(nix::unistd::getpid().as_raw()).unwrap();
    Stat { id: crate::pipe::ProcessId { pid, ..us.id }, state: 'S', threads: 1, ..us }
}

/// Pids that no process has, so that nothing of this machine is looked at.
const NOBODY: i32 = i32::MAX;

#[test]
fn what_descends_from_the_root_is_lineage_except_its_helpers() {
    let mut members = members();
    assert!(members.forked(ROOT, NOBODY), "the command");
    assert!(members.forked(NOBODY, NOBODY - 1));
    assert!(members.forked(NOBODY - 1, NOBODY - 2));
    assert!(members.forked(ROOT, NOBODY - 3), "a sibling made with CLONE_PARENT names the root as parent");
    assert!(!members.forked(ROOT, 101), "a helper is no lineage");
    assert!(!members.forked(101, NOBODY - 4), "nor is what descends from it");
    assert!(!members.forked(1, NOBODY - 5));
    assert_eq!(members.exited(NOBODY), Some(LineageEvent::Exited(NOBODY)));
    assert_eq!(members.exited(NOBODY), None, "once");
    assert!(!members.forked(NOBODY, NOBODY - 6), "its number may be anybody's now");
    assert!(members.forked(NOBODY - 1, NOBODY - 7), "an orphan is lineage as before");
}

#[test]
fn the_number_of_a_helper_that_ended_is_free_again() {
    let mut members = members();
    assert_eq!(members.exited(101), None);
    assert!(members.forked(ROOT, 101));
}

#[test]
fn a_walk_replaces_what_was_known_and_keeps_what_happened_meanwhile() {
    let mut members = members();
    let (lost, stays, gone, born) = (NOBODY, NOBODY - 1, NOBODY - 2, NOBODY - 3);
    for pid in [lost, gone] {
        members.forked(ROOT, pid);
    }
    members.meanwhile = Some(Meanwhile::default());
    assert!(members.forked(gone, born));
    members.exited(gone);
    members.walked(&[stat(stays), stat(gone)], true);
    let mut known: Vec<i32> = members.alive.iter().copied().collect();
    known.sort_unstable();
    assert_eq!(known, [born, stays], "the end of one was lost, and that of another came after it was seen");
    assert_eq!(members.left(NOBODY - 4, Duration::ZERO), None, "nobody that is known");
    assert_eq!(members.left(NOBODY - 5, Duration::ZERO), None);
    assert_eq!(members.who_left_meanwhile(), [], "nor is it one of the first walk");
    members.walked(&[stat(NOBODY - 4)], false);
    let escaped = Escaped { pid: NOBODY - 4, happened: Duration::ZERO, holds: None };
    assert_eq!(members.who_left_meanwhile(), [LineageEvent::Escaped(escaped)]);
    assert!(members.has(NOBODY - 4) && members.has(stays), "a second walk only adds");
}

/// A child of ours that leaves when its stdin ends, and stays.
struct Leaver(Child);

impl Leaver {
    fn start() -> Leaver {
        let line = "read line; exec setsid sleep 600";
        let child = Command::new("sh").args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Leaver(child.unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn leave(&mut self) {
        self.0.stdin.take();
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn listening(buffer: usize) -> Option<ConnectorEvents> {
    let us = nix::unistd::getpid().as_raw();
    match Connector::open_with(Kinds::LINEAGE, buffer) {
        _ if !in_initial_pid_namespace() => crate::kernel::skipped(format_args!("needs the initial pid namespace")),
        Err(error) => crate::kernel::skipped(format_args!("needs the proc connector: {error}")),
        Ok(connector) => return Some(ConnectorEvents::from_the_start(connector, us, &HashSet::new())),
    }
    None
}

/// Waits for an event; other tests make children too.
fn hear(events: &mut ConnectorEvents, wanted: impl Fn(&LineageEvent) -> bool) -> LineageEvent {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        while let Some(event) = events.next().unwrap() {
            if wanted(&event) {
                return event;
            }
        }
        assert!(Instant::now() < deadline, "it is not told");
        poll(&mut [PollFd::new(events.fd(), PollFlags::POLLIN)], PollTimeout::from(100_u16)).unwrap();
    }
}

#[test]
fn an_escape_is_told_with_its_time() {
    let Some(mut events) = listening(1 << 20) else { return };
    let mut leaver = Leaver::start();
    let pid = leaver.pid();
    hear(&mut events, |event| matches!(event, LineageEvent::Forked { child, .. } if *child == pid));
    let before = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    leaver.leave();
    let told = hear(&mut events, |event| matches!(event, LineageEvent::Escaped(escaped) if escaped.pid == pid));
    let LineageEvent::Escaped(escaped) = told else { panic!("{told:?}") };
    let after = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    assert!((before..=after).contains(&escaped.happened), "{before:?} {escaped:?} {after:?}");
    assert_eq!(escaped.holds, None);
    drop(leaver);
    hear(&mut events, |event| *event == LineageEvent::Exited(pid));
}

#[test]
fn a_storm_that_overflows_the_buffer_is_told_and_a_walk_makes_up_for_it() {
    let Some(mut events) = listening(1) else { return };
    assert!(!events.wants_walk());
    // Full long before the one that matters is born.
    for _ in 0..50 {
        assert!(Command::new("true").status().unwrap().success());
    }
    let mut leaver = Leaver::start();
    // Births from before it was full come first.
    let lost = hear(&mut events, |event| matches!(event, LineageEvent::Lost { .. }));
    assert!(matches!(lost, LineageEvent::Lost { missed, .. } if missed > 50), "{lost:?}");
    healed(events, &mut leaver);
}

/// Who was born unseen is lineage after the walk.
fn healed(mut events: ConnectorEvents, leaver: &mut Leaver) {
    let us = nix::unistd::getpid().as_raw();
    assert!(!events.members.has(leaver.pid()), "its birth was lost");
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut left = false;
    loop {
        while events.wants_walk() {
            let pids = descendants(us, &HashSet::new()).unwrap();
            let members: Vec<Stat> = pids.into_iter().filter_map(|pid| Stat::read(pid).ok()).collect();
            events.walked(&members);
        }
        assert!(events.members.has(leaver.pid()), "the walk found it");
        if !left {
            leaver.leave();
            left = true;
        }
        // The buffer is as small as before: with other tests around even this may be lost again, and
        // then it is walked again.
        match events.next().unwrap() {
            Some(LineageEvent::Escaped(escaped)) if escaped.pid == leaver.pid() => return,
            Some(LineageEvent::Lost { .. }) if has_left(leaver.pid()) => return,
            Some(_) => {}
            None => {
                poll(&mut [PollFd::new(events.fd(), PollFlags::POLLIN)], PollTimeout::from(100_u16)).unwrap();
            }
        }
        assert!(Instant::now() < deadline, "what it does is not told");
    }
}

fn has_left(pid: i32) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.sid == pid)
}
