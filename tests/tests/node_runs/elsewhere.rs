//! Runs that are not where the node is: of another user, in another pid namespace.

use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::HOLDER;
use pipewarden_tests::node::Node;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

use crate::asking;

fn ends_its_holder(stage: &Stage, run: Run<'_>) {
    let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.stdout.eof), (3, true), "{stderr}");
    let report = ended.report();
    assert_eq!((report.outcome, report.backend.as_str()), (Outcome::HoldersEnded, "node"), "{stderr}");
    assert_eq!(report.holders.len(), 1, "{stderr}");
    assert!(report.holders[0].escaped, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{stderr}");
}

#[test]
fn of_another_user() {
    let Some(node) = Node::shared("of_another_user") else { return };
    let stage = Stage::new();
    ends_its_holder(&stage, asking(&stage, &node.socket()).as_user(65534));
}

/// Only whom the socket's mode lets in is let in.
#[test]
fn of_a_user_whom_the_mode_keeps_out() {
    let test = "of_a_user_whom_the_mode_keeps_out";
    let Some(node) = Node::configured(test, "mode = \"0660\"\ngroup = 65534\n", "") else { return };
    let stage = Stage::new();
    ends_its_holder(&stage, asking(&stage, &node.socket()).as_user(65534));
    let stage = Stage::new();
    let ended = asking(&stage, &node.socket()).as_user(65533).report("text").command(["true"]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("Permission denied") && said.contains("node.sock"), "{said}");
}

/// Pids are those of the run's own namespace, in which it is pid 1.
#[test]
fn in_another_pid_namespace() {
    let Some(node) = Node::shared("in_another_pid_namespace") else { return };
    let stage = Stage::new();
    let first = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    ends_its_holder(&stage, asking(&stage, &node.socket()).wrapped_in(first));
}

#[test]
fn in_another_pid_namespace_behind_a_shell() {
    let Some(node) = Node::shared("in_another_pid_namespace_behind_a_shell") else { return };
    let stage = Stage::new();
    let first = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", "\"$@\"; exit $?", "bash"];
    ends_its_holder(&stage, asking(&stage, &node.socket()).wrapped_in(first));
}
