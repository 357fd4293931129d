//! A backend that was asked for by name is had, or nothing is started; `auto` goes on without.

use pipewarden_tests::fixture::GATE;
use pipewarden_tests::log::Log;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

fn is_refused(wrapper: &[&str], options: [&str; 2], why: &str) {
    let stage = Stage::new();
    let proof = stage.path("started");
    let run = Run::on(&stage).report("text").wrapped_in(wrapper).options(options);
    let ended = run.command(["touch"]).command([&proof]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.contains(&options.join(" ")) && said.contains(why), "{said}");
    assert!(!proof.exists(), "nothing was started");
}

/// The connector is the initial network namespace's.
#[test]
fn no_connector_in_another_network_namespace() {
    if !skip("no_connector_in_another_network_namespace", &[Need::Root]) {
        is_refused(&["unshare", "--net"], ["--backend", "connector"], "network namespace");
    }
}

/// It ignores who is in another pid namespace, whose pids it would not tell.
#[test]
fn no_connector_in_another_pid_namespace() {
    if !skip("no_connector_in_another_pid_namespace", &[Need::Root]) {
        is_refused(&["unshare", "-pf", "--mount-proc"], ["--backend", "connector"], "pid");
    }
}

/// Programs are loaded with `CAP_BPF` and `CAP_PERFMON`, or with `CAP_SYS_ADMIN`.
#[test]
fn no_live_map_without_the_capabilities() {
    if !skip("no_live_map_without_the_capabilities", &[Need::Root]) {
        let less = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-all"];
        is_refused(&less, ["--backend", "bpf"], "pipewarden doctor says more");
    }
}

/// `auto` says what it wanted and goes on.
fn goes_without(wrapper: &[&str]) {
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = Run::on(&stage).wrapped_in(wrapper).options(["--backend", "auto"]).options(log.options());
    let run = run.fixture("hold_setsid", ["--gate", "--exit", "3"]).start();
    let degraded = log.wait("tracker.degraded", |record| record["event"] == "tracker.degraded");
    let detail = &degraded["detail"];
    assert_eq!((&detail["from"], &detail["to"]), (&"connector".into(), &"proc".into()), "{degraded}");
    stage.release(GATE);
    let ended = run.end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    // (On a slow machine the run may have lived for long enough to have come to a live map.)
    assert_ne!(ended.report().rung, "connector");
    let mut degraded = log.of("tracker.degraded");
    degraded.retain(|record| record["detail"]["from"] == "connector");
    assert_eq!(degraded.len(), 1, "it is not tried again and again: {degraded:?}");
}

#[test]
fn auto_does_without_in_another_network_namespace() {
    if !skip("auto_does_without_in_another_network_namespace", &[Need::Root]) {
        goes_without(&["unshare", "--net"]);
    }
}

#[test]
fn auto_does_without_in_another_pid_namespace() {
    if !skip("auto_does_without_in_another_pid_namespace", &[Need::Root]) {
        goes_without(&["unshare", "-pf", "--mount-proc"]);
    }
}
