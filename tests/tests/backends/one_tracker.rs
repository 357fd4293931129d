//! The machine has one tracker, whose carrier is known, and of which nothing is left when it is killed.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use pipewarden::kernel::lock::{self, Carrier, TrackerLock};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE};
use pipewarden_tests::log::Log;
use pipewarden_tests::own_lock;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

/// A run that carries the tracker, while its command waits for the gate.
fn carrier<'a>(stage: &'a Stage, log: &Log, lock: &Path) -> Running {
    stage.hold(GATE);
    let run: Run<'a> = Run::on(stage).own_lock(lock.to_owned()).options(["--backend", "bpf"]).options(log.options());
    let run = run.fixture("just_exit", ["--gate"]).start();
    let attached = log.wait("live map", |record| record["detail"]["backend"] == "bpf");
    assert_eq!(attached["event"], "tracker.attached");
    let _ = stage.wait(COMMAND);
    run
}

#[test]
fn who_asks_for_a_second_tracker_is_told_who_carries_it() {
    if no_live_map("who_asks_for_a_second_tracker_is_told_who_carries_it") {
        return;
    }
    let stage = Stage::new();
    let (lock, log) = (own_lock::new(&stage), Log::on(&stage));
    let first = carrier(&stage, &log, &lock);
    let pid = first.process.pid;
    assert_eq!(lock::carrier(&lock).unwrap(), Carrier::Process { pid, role: "run".into() });

    let proof = stage.path("started");
    let second = Run::on(&stage).own_lock(lock.clone()).report("text").options(["--backend", "bpf"]);
    let second = second.command(["touch"]).command([&proof]).end();
    let said = second.stderr.text();
    assert_eq!((second.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("--backend bpf") && said.contains(&format!("run (pid {pid})")), "{said}");
    assert!(!proof.exists(), "nothing was started");

    stage.release(GATE);
    assert_eq!(first.end().report().backend, "bpf");
    assert_eq!(lock::carrier(&lock).unwrap(), Carrier::Nobody);
}

#[test]
fn auto_goes_on_without_and_says_who_carries_it() {
    if no_live_map("auto_goes_on_without_and_says_who_carries_it") {
        return;
    }
    let stage = Stage::new();
    let (lock, log) = (own_lock::new(&stage), Log::on(&stage));
    let carried = TrackerLock::take(&lock, "node").unwrap();
    stage.hold(GATE);
    let run = Run::on(&stage).own_lock(lock).options(["--backend", "auto"]).options(log.options());
    let run = run.fixture("hold_setsid", ["--gate"]).start();
    let degraded = log.wait("live map", |record| record["detail"]["from"] == "bpf");
    assert_eq!(degraded["event"], "tracker.degraded", "{degraded}");
    let us = std::process::id();
    assert!(degraded["detail"]["why"].as_str().unwrap().contains(&format!("node (pid {us})")), "{degraded}");
    stage.release(GATE);
    let report = run.end().report();
    assert_eq!((report.backend.as_str(), report.holders.len()), ("proc", 1), "{report:?}");
    drop(carried);
}

/// What a process has in the kernel's tracing side: the numbers of its programs, maps and links.
fn objects(process: &Process) -> Vec<(&'static str, u32)> {
    let mut objects = Vec::new();
    for file in fs::read_dir(format!("/proc/{}/fdinfo", process.pid)).unwrap().flatten() {
        let Ok(text) = fs::read_to_string(file.path()) else { continue };
        for line in text.lines() {
            let Some((name, number)) = line.split_once(":\t") else { continue };
            if let Some(name) = ["prog_id", "map_id", "link_id"].into_iter().find(|known| *known == name) {
                objects.push((name, number.trim().parse().unwrap()));
            }
        }
    }
    objects
}

/// Whether the kernel still has an object.
fn exists((name, number): (&str, u32)) -> bool {
    // BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID, BPF_LINK_GET_FD_BY_ID (include/uapi/linux/bpf.h)
    let command = match name {
        "prog_id" => 13,
        "map_id" => 14,
        _ => 30,
    };
    let mut attributes = [0_u32; 32];
    attributes[0] = number;
    // SAFETY: the attributes are alive for the call, and as long as we say.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(&attributes)) };
    match Errno::result(fd) {
        Ok(fd) => {
            // SAFETY: the kernel just made it for us.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(i32::try_from(fd).unwrap()) });
            true
        }
        Err(Errno::ENOENT) => false,
        Err(error) => panic!("{name} {number}: {error}"),
    }
}

#[test]
fn nothing_stays_of_a_supervisor_that_is_killed() {
    if no_live_map("nothing_stays_of_a_supervisor_that_is_killed") {
        return;
    }
    let stage = Stage::new();
    let (lock, log) = (own_lock::new(&stage), Log::on(&stage));
    let run = carrier(&stage, &log, &lock);
    let objects = objects(&run.process);
    let count = |kind| objects.iter().filter(|(name, _)| *name == kind).count();
    assert!(count("prog_id") >= 4 && count("map_id") >= 8, "{objects:?}");
    assert!(objects.iter().all(|object| exists(*object)), "{objects:?}");
    run.signal(Signal::SIGKILL);
    assert!(run.process.dies(Deadline::patient()));
    // The kernel takes them away behind its own back: nobody can wait for that, but ask.
    let left = || objects.iter().filter(|object| exists(**object)).collect::<Vec<_>>();
    assert!(Deadline::patient().until(|| left().is_empty()), "pinned, or the command's: {:?}", left());
    assert_eq!(lock::carrier(&lock).unwrap(), Carrier::Nobody);
    assert!(stage.wait(COMMAND).lives(), "who would still hold what it inherited");
    stage.release(GATE);
}
