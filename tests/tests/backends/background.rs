//! `auto` attaches a live map while the command runs: who lives shorter pays nothing, and what happened
//! before is found.

use std::collections::BTreeSet;
use std::fs;

use jiff::Timestamp;
use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE};
use pipewarden_tests::kernel;
use pipewarden_tests::log::Log;
use pipewarden_tests::own_lock;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

#[test]
fn a_short_command_has_no_tracker() {
    if no_live_map("a_short_command_has_no_tracker") {
        return;
    }
    let deadline = Deadline::patient();
    loop {
        let stage = Stage::new();
        let (lock, log) = (own_lock::new(&stage), Log::on(&stage));
        let run = Run::on(&stage).own_lock(lock.clone()).options(["--backend", "auto"]).options(log.options());
        assert_eq!(run.command(["true"]).end().code(), 0);
        let at = |event: &str| log.of(event)[0]["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let lived = at("run.exited").duration_since(at("run.started"));
        // On a machine that is busy enough nothing is short.
        if lived.as_secs() >= 1 && !deadline.left().is_zero() {
            continue;
        }
        assert_eq!(fs::read(&lock).unwrap(), b"", "nobody wrote there who has it");
        let attached = log.of("tracker.attached");
        assert!(attached.iter().all(|record| record["detail"]["backend"] != "bpf"), "{attached:?}");
        return;
    }
}

/// The command has done all it does before the map is attached, or while it is. Nobody has told of it: the
/// seed finds it. One process goes on, so that what is read changes meanwhile.
fn finds_what_was_before(backend: &str) {
    let stage = Stage::new();
    let (lock, log) = (own_lock::new(&stage), Log::on(&stage));
    stage.hold(GATE);
    let run = Run::on(&stage).own_lock(lock).options(["--backend", backend]).options(log.options());
    let run = run.fixture("busy_beginning", [stage.path("fifo").to_str().unwrap(), "--gate"]).start();
    let holders = ["duped", "daemon", "passed"].map(|role| stage.wait(role).pid);
    let others = ["left it", "reader", "storm"].map(|role| stage.wait(role));
    let attached = log.wait("live map", |record| record["detail"]["backend"] == "bpf");
    assert_eq!(attached["event"], "tracker.attached", "{attached}");
    for holder in holders {
        let escape = log.wait_for("pipe.escape", holder);
        assert!(escape["evidence"]["source"].is_string(), "{escape}");
    }
    assert!(log.of("run.exited").is_empty(), "the command runs");

    // The truth: who has the command's stdout.
    let command = stage.wait(COMMAND);
    let stdout = command.copy_of(1).unwrap();
    let mut truth: BTreeSet<i32> = kernel::holders(&stdout).into_iter().collect();
    assert!(truth.remove(&command.pid));
    truth.remove(&run.process.pid); // it reads
    assert_eq!(truth, BTreeSet::from(holders), "the fixture does what it says");
    drop(stdout);

    stage.release(GATE);
    let ended = run.end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    let report = ended.report();
    assert_eq!((report.backend.as_str(), report.outcome), ("bpf", Outcome::HoldersEnded), "{report:?}");
    let found: BTreeSet<i32> = report.holders.iter().map(|holder| holder.pid).collect();
    assert_eq!(found, truth, "{report:?}");
    assert!(report.holders.iter().all(|holder| holder.escaped), "{report:?}");
    for record in log.of("holder.signalled") {
        assert!(record["evidence"]["source"].as_str().unwrap().starts_with("bpf+"), "not by a scan: {record}");
    }
    assert!(others.iter().all(Process::lives), "who does not hold it is nobody's business");
}

#[test]
fn what_happened_before_the_map_was_attached_is_in_it() {
    if !no_live_map("what_happened_before_the_map_was_attached_is_in_it") {
        finds_what_was_before("auto");
    }
}

#[test]
fn what_happened_before_the_map_was_seeded_is_in_it() {
    if !no_live_map("what_happened_before_the_map_was_seeded_is_in_it") {
        finds_what_was_before("bpf");
    }
}
