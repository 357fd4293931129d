//! A live map that is too small is given up, and events that nobody reads are made up for. Both are on
//! record, and nothing is lost.

use std::fs;

use nix::sys::signal::Signal;
use pipewarden::kernel::room::{DESCRIPTORS, EVENT_BYTES, PROCESSES};
use pipewarden::pipe::Outcome;
use pipewarden_tests::fixture::{GATE, HOLDER, LAST_LINE, pattern};
use pipewarden_tests::log::Log;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

const BYTES: usize = 100_000;

/// What the self-test needs, and not much more.
fn is_given_up(variable: &str, room: &str, why: &str) {
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--backend", "bpf"]).options(log.options()).env(variable, room);
    // With a shell around them there are three processes.
    let run = run.command(["sh", "-c", "\"$@\"; exit $?", "sh"]);
    let run = run.fixture("hold_many_pipes", ["40", "--gate", "--bytes", &BYTES.to_string(), "--exit", "3"]).start();
    let holder = stage.wait(HOLDER);
    let degraded = log.wait("tracker.degraded", |record| record["event"] == "tracker.degraded");
    assert!(degraded["detail"]["from"].as_str().unwrap().starts_with("bpf-"), "{degraded}");
    assert_eq!(degraded["detail"]["to"], "proc", "{degraded}");
    assert!(degraded["detail"]["why"].as_str().unwrap().contains(why), "{degraded}");
    stage.release(GATE);
    let ended = run.end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert_eq!(ended.stdout.bytes, [&pattern(BYTES), LAST_LINE].concat());
    let report = ended.report();
    assert_eq!((report.backend.as_str(), report.outcome), ("proc", Outcome::HoldersEnded), "{report:?}");
    assert!(report.holder(holder.pid).is_some_and(|holder| holder.escaped), "{report:?}");
    assert_eq!(log.of("tracker.degraded").len(), 1);
}

#[test]
fn more_descriptors_than_there_is_room_for() {
    if !no_live_map("more_descriptors_than_there_is_room_for") {
        is_given_up(DESCRIPTORS, "32", "of 32 descriptors");
    }
}

#[test]
fn more_processes_than_there_is_room_for() {
    if !no_live_map("more_processes_than_there_is_room_for") {
        is_given_up(PROCESSES, "2", "the live map");
    }
}

#[test]
fn what_is_no_size_is_refused() {
    let stage = Stage::new();
    let run = Run::on(&stage).report("text").options(["--backend", "bpf"]).env(DESCRIPTORS, "plenty");
    let ended = run.command(["true"]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("PIPEWARDEN_MAP_DESCRIPTORS=plenty: it wants a number"), "{said}");
}

#[test]
fn a_fork_storm_that_overruns_the_ring_buffer_is_made_up_for() {
    if no_live_map("a_fork_storm_that_overruns_the_ring_buffer_is_made_up_for") {
        return;
    }
    let stage = Stage::new();
    let log = Log::on(&stage);
    for role in ["ready", "leaver", GATE] {
        stage.hold(role);
    }
    let run = Run::on(&stage).options(["--backend", "bpf"]).options(log.options()).env(EVENT_BYTES, "4096");
    let run = run.fixture("leave_when_told", ["storm", "200", "--gate"]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGSTOP);
    stage.release("ready");
    let leaver = stage.wait("leaver");
    run.signal(Signal::SIGCONT);
    let reseeded = log.wait("tracker.reseeded", |record| record["event"] == "tracker.reseeded");
    let detail = &reseeded["detail"];
    assert!(detail["rung"].as_str().unwrap().starts_with("bpf-"), "{reseeded}");
    assert_eq!(detail["why"], "the ring buffer was full", "{reseeded}");
    assert!(detail["missed"].as_u64().unwrap() > 100, "{reseeded}");
    // Its birth was not told; its escape is heard of, and with what it holds.
    stage.release("leaver");
    let escape = log.wait_for("pipe.escape", leaver.pid);
    assert!(escape["detail"]["noticed_after_us"].is_u64(), "{escape}");
    assert!(log.of("run.exited").is_empty());
    assert_eq!(stage.wait(HOLDER).pid, leaver.pid);
    stage.release(GATE);
    let report = run.end().report();
    assert_eq!((report.backend.as_str(), report.outcome), ("bpf", Outcome::HoldersEnded), "{report:?}");
    assert!(report.holder(leaver.pid).is_some(), "{report:?}");
}

/// Kilobytes that a process has resident.
fn resident(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn a_week_of_work_leaves_the_supervisor_as_large_as_it_was() {
    if no_live_map("a_week_of_work_leaves_the_supervisor_as_large_as_it_was") {
        return;
    }
    let stage = Stage::new();
    stage.hold("a day");
    stage.hold("a week");
    let run = Run::on(&stage).options(["--backend", "bpf"]).fixture("weeks_of_work", ["10000", "100000"]).start();
    let _ = stage.wait("a day");
    let day = resident(&run.process);
    stage.release("a day");
    let _ = stage.wait("a week");
    let week = resident(&run.process);
    // What a starved supervisor has not read yet needs some room; what is lost with each of 90,000 more pipes,
    // and were it a list's smallest entry, needs more.
    assert!(week < day + 2048, "{day} kB after a day, {week} kB after a week");
    stage.release("a week");
    let report = run.end().report();
    assert_eq!((report.backend.as_str(), report.outcome), ("bpf", Outcome::Natural), "{report:?}");
}
