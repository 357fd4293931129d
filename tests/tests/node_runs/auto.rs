//! `auto` takes a node where there is one, and `doctor` says so.

use std::process::Command;

use pipewarden::ownership::node::protocol::ENVIRONMENT;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::fixture::GATE;
use pipewarden_tests::log::Log;
use pipewarden_tests::node::Node;
use pipewarden_tests::stage::Stage;
use serde_json::Value;

use crate::may_ask;

#[test]
fn auto_takes_the_node() {
    let Some(node) = Node::shared("auto_takes_the_node") else { return };
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = may_ask(&stage, &node.socket()).options(log.options()).fixture("hold_setsid", ["--gate"]).start();
    let attached = log.wait("tracker.attached", |record| record["event"] == "tracker.attached");
    assert_eq!(attached["detail"]["backend"], "node", "{attached}");
    assert!(attached["detail"]["took_us"].is_u64(), "{attached}");
    stage.release(GATE);
    let report = run.end().report();
    assert_eq!(report.backend, "node");
    assert!(report.rung.starts_with("bpf-"), "as the node says it: {}", report.rung);
    // On a busy machine it may be late with an answer.
    let degraded = log.of("tracker.degraded");
    let only_late = |record: &Value| record["detail"]["why"].as_str().unwrap().contains("does not answer");
    assert!(degraded.iter().all(only_late), "{degraded:#?}");
}

#[test]
fn doctor_says_that_a_node_is_there_and_auto_takes_it() {
    let Some(node) = Node::shared("doctor_says_that_a_node_is_there_and_auto_takes_it") else { return };
    let mut command = Command::new(binary(UNDER_TEST));
    let output = command.args(["doctor", "--json"]).env(ENVIRONMENT, node.socket()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rung = report["rungs"].as_array().unwrap().iter().find(|rung| rung["name"] == "node").unwrap();
    assert_eq!((&rung["usable"], &rung["used_by_run"]), (&true.into(), &true.into()), "{rung}");
    assert!(rung["reason"].as_str().unwrap().contains(node.socket().to_str().unwrap()), "{rung}");
    assert!(report["auto"].as_str().unwrap().starts_with("node"), "{}", report["auto"]);
    assert!(report["auto_later"].is_null(), "{}", report["auto_later"]);
}
