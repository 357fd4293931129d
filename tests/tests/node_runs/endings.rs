//! Every kind of ending, with a node to ask.

use std::process::Child;

use pipewarden::pipe::{Action, Outcome, Relation};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{HOLDER, LAST_LINE};
use pipewarden_tests::node::Node;
use pipewarden_tests::report::Report;
use pipewarden_tests::run::Ended;
use pipewarden_tests::stage::Stage;

use crate::asking;

/// What every one of them has in common.
fn report_of(ended: &Ended) -> Report {
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (0, LAST_LINE), "{stderr}");
    let report = ended.report();
    assert_eq!(report.backend, "node", "{stderr}");
    report
}

macro_rules! endings {
    ($($name:ident: $fixture:literal $options:expr => $outcome:ident, $action:expr;)*) => {$(
        #[test]
        fn $name() {
            ends(stringify!($name), $fixture, &$options, Outcome::$outcome, $action);
        }
    )*};
}

fn ends(test: &str, fixture: &str, options: &[&str], outcome: Outcome, action: Option<Action>) {
    let Some(node) = Node::shared(test) else { return };
    let stage = Stage::new();
    let ended = asking(&stage, &node.socket()).options(options).fixture(fixture, [""; 0]).end();
    let (report, stderr) = (report_of(&ended), ended.stderr.text());
    assert_eq!(report.outcome, outcome, "{stderr}");
    let Some(action) = action else { return assert!(report.holders.is_empty(), "{stderr}") };
    let holder = stage.wait(HOLDER);
    assert_eq!(report.holder(holder.pid).map(|holder| holder.action), Some(action), "{stderr}");
    assert_eq!(report.holders.len(), 1, "{stderr}");
    if matches!(action, Action::Term | Action::Kill) {
        assert!(holder.dies(Deadline::patient()), "{stderr}");
    } else {
        assert!(holder.lives(), "{stderr}");
    }
}

endings! {
    natural: "just_exit" [] => Natural, None;
    an_escapee: "hold_setsid" [] => HoldersEnded, Some(Action::Term);
    one_in_a_group_of_its_own: "hold_setpgid" [] => HoldersEnded, Some(Action::Term);
    one_at_home: "hold_same_group" [] => HoldersEnded, Some(Action::Term);
    a_daemon: "hold_double_fork" [] => HoldersEnded, Some(Action::Term);
    one_that_ignores_the_signal: "hold_ignoring_term" ["-k", "100ms"] => HoldersEnded, Some(Action::Kill);
    one_that_is_killed_at_once: "hold_setsid" ["-s", "KILL", "--holder-grace", "0"] => HoldersEnded, Some(Action::Kill);
    one_that_is_drained: "hold_setsid" ["--on-holder", "drain"] => HoldersSpared, Some(Action::Drained);
    one_that_is_kept: "hold_setsid" ["--keep", "hold_setsid"] => HoldersSpared, Some(Action::Kept);
    one_behind_an_inherited_stream: "hold_setsid" ["--stdio", "inherit"] => HoldersEnded, Some(Action::Term);
    one_with_a_table_of_its_thread_s: "hold_unshared_table" [] => HoldersEnded, Some(Action::Term);
}

/// A process that ends when the test does.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_foreign_daemon_is_drained() {
    let Some(node) = Node::shared("a_foreign_daemon_is_drained") else { return };
    let stage = Stage::new();
    let path = stage.path("daemon.sock").display().to_string();
    let _daemon = Helper(stage.fixture("foreign_daemon").arg(&path).spawn().unwrap());
    let daemon = stage.wait("daemon");
    stage.hold("may write");
    let ended = asking(&stage, &node.socket()).fixture("pass_away", [&path]).end();
    let report = report_of(&ended);
    assert_eq!(report.outcome, Outcome::HoldersSpared, "{report:?}");
    let holder = report.holder(daemon.pid).unwrap_or_else(|| panic!("{report:?}"));
    assert_eq!((holder.relation, holder.action), (Relation::Foreign, Action::Drained), "{report:?}");
    assert!(daemon.lives());
}

/// The kernel counts open files, and this one is in a table of ours as well as in flight.
#[test]
fn one_in_flight_whose_open_file_somebody_else_has_too() {
    let Some(node) = Node::shared("one_in_flight_whose_open_file_somebody_else_has_too") else { return };
    let stage = Stage::new();
    let (_reader, writer) = std::io::pipe().unwrap();
    let run = asking(&stage, &node.socket()).options(["--stdio", "inherit"]).stdout(writer.try_clone().unwrap());
    let ended = run.fixture("hold_in_flight", [""; 0]).end();
    let (report, stderr) = (ended.report(), ended.stderr.text());
    assert_eq!(report.outcome, Outcome::HoldersEnded, "{stderr}");
    let holder = stage.wait(HOLDER);
    let told = report.holder(holder.pid).map(|holder| (holder.relation, holder.action));
    assert_eq!(told, Some((Relation::Suspect, Action::Term)), "{stderr}");
    assert!(holder.dies(Deadline::patient()), "{stderr}");
    drop(writer);
}
