//! Who takes our programs off their hooks makes us deaf, and we notice.

#![cfg(target_arch = "x86_64")]

use pipewarden::pipe::Outcome;
use pipewarden_tests::detach::detach_programs;
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
