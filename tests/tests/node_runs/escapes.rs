//! A node tells of an escape at once, also of one that the connector does not tell of.

use pipewarden_tests::fixture::GATE;
use pipewarden_tests::log::Log;
use pipewarden_tests::node::Node;
use pipewarden_tests::stage::Stage;

use crate::asking;

fn is_known_at_once(test: &str, words: &[&str]) {
    let Some(node) = Node::shared(test) else { return };
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold("leaver");
    stage.hold(GATE);
    let run = asking(&stage, &node.socket()).options(log.options());
    let run = run.fixture("leave_when_told", words.iter().chain(&["--gate"])).start();
    let leaver = stage.wait("leaver");
    stage.release("leaver");
    let escape = log.wait_for("pipe.escape", leaver.pid);
    assert!(log.of("run.exited").is_empty(), "the command runs: {:#?}", log.records());
    assert_eq!(escape["pipe"]["end"], "write", "{escape}");
    assert!(escape["evidence"]["source"].as_str().unwrap().starts_with("node"), "{escape}");
    stage.release(GATE);
    let ended = run.end();
    let report = ended.report();
    assert_eq!((ended.code(), report.backend.as_str()), (0, "node"), "{}", ended.stderr.text());
    assert!(report.holder(leaver.pid).is_some_and(|holder| holder.escaped), "{report:?}");
    assert_eq!(log.of("pipe.escape").len(), 1, "once, although the ending sees it again");
}

macro_rules! known_at_once {
    ($($name:ident: $($word:literal)*;)*) => {$(
        #[test]
        fn $name() {
            is_known_at_once(stringify!($name), &[$($word),*]);
        }
    )*};
}

known_at_once! {
    a_child:;
    into_a_group_of_its_own: "setpgid";
    a_sibling_made_by_the_command: "clone_parent";
    a_child_of_one_whose_first_thread_ended: "second_thread";
}

/// Who left before anything was watched is found by the look with which watching begins.
#[test]
fn who_had_escaped_before() {
    let Some(node) = Node::shared("who_had_escaped_before") else { return };
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = crate::may_ask(&stage, &node.socket()).options(log.options());
    let run = run.fixture("hold_setsid", ["--gate"]).start();
    let holder = stage.wait(pipewarden_tests::fixture::HOLDER);
    let _ = log.wait_for("pipe.escape", holder.pid);
    assert!(log.of("run.exited").is_empty());
    stage.release(GATE);
    assert_eq!(run.end().code(), 0);
}
