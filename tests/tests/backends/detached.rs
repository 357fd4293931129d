//! Who takes our programs off their hooks makes us deaf, and we notice.

#![cfg(target_arch = "x86_64")]

use nix::sys::signal::Signal;
use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::detach::{detach_from_calls, detach_programs};
use pipewarden_tests::fixture::{GATE, HOLDER, LAST_LINE};
use pipewarden_tests::log::Log;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

#[test]
fn a_run_whose_programs_are_detached_goes_on_with_proc() {
    if no_live_map("a_run_whose_programs_are_detached_goes_on_with_proc") {
        return;
    }
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--backend", "bpf"]).options(log.options());
    let run = run.fixture("hold_setsid", ["--gate", "--exit", "3"]).start();
    let holder = stage.wait(HOLDER);
    let _ = stage.wait(GATE);
    detach_programs(run.process.pid);
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{stderr}");
    let report = ended.report();
    assert_eq!((report.backend.as_str(), report.outcome), ("proc", Outcome::HoldersEnded), "{stderr}");
    assert!(report.holder(holder.pid).is_some(), "{stderr}");
    let degraded = log.of("tracker.degraded");
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert_eq!(degraded[0]["detail"]["to"], "proc");
    assert!(degraded[0]["detail"]["why"].as_str().unwrap().contains("took them off their hooks"), "{degraded:?}");
}

/// Nobody leaves its group, so nobody asks who holds what.
#[test]
fn a_run_that_hears_of_births_alone_notices_while_its_command_runs() {
    if no_live_map("a_run_that_hears_of_births_alone_notices_while_its_command_runs") {
        return;
    }
    let stage = Stage::new();
    let log = Log::on(&stage);
    let run = Run::on(&stage).options(["--backend", "bpf"]).options(log.options());
    let begun = stage.path("begun");
    // By then the first look at who holds what, which asks as well, is long over.
    let line = "for i in {1..500}; do /bin/true; done; touch FILE; while [ -e FILE ]; do /bin/true; done";
    let run = run.bash(&line.replace("FILE", &begun.display().to_string())).start();
    assert!(Deadline::patient().until(|| begun.exists()));
    detach_from_calls(run.process.pid);
    assert!(Deadline::patient().until(|| !log.of("tracker.degraded").is_empty()), "{:?}", log.records());
    let degraded = &log.of("tracker.degraded")[0]["detail"];
    assert!(degraded["why"].as_str().unwrap().contains("took them off their hooks"), "{degraded}");
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert_eq!(ended.report().backend, "proc", "{}", ended.stderr.text());
}
