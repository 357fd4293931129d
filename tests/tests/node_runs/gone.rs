//! A node may be killed or stopped at any moment: no ending is lost, and nobody is signalled twice.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{GATE, HOLDER};
use pipewarden_tests::log::Log;
use pipewarden_tests::node::Node;
use pipewarden_tests::run::{Ended, Running};
use pipewarden_tests::stage::Stage;

use crate::asking;

/// To attach a tracker and to take it off keeps a machine busy for a while: one of these tests at a time does.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A node of the test's own.
fn own_node(test: &str) -> Option<(Node, MutexGuard<'static, ()>)> {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Some((Node::start(test)?, turn))
}

/// How long a run may take in which nodes are started again and again, or wait for their turn.
const LONG: Duration = Duration::from_secs(600);

/// A run on a node whose command waits, with an escapee that holds its stdout.
struct Scene {
    stage: Stage,
    log: Log,
    run: Running,
}

impl Scene {
    fn set(node: &Node, fixture: &str, options: &[&str]) -> Scene {
        let stage = Stage::new();
        let log = Log::on(&stage);
        stage.hold(GATE);
        let run = asking(&stage, &node.socket()).options(log.options()).options(options).patience(LONG);
        let run = run.fixture(fixture, ["--gate", "--exit", "3"]).start();
        let _ = log.wait("the node", |record| record["detail"]["backend"] == "node");
        // With which it is known that the node watches.
        let _ = log.wait_for("pipe.escape", stage.wait(HOLDER).pid);
        Scene { stage, log, run }
    }

    fn attached(&self) -> usize {
        self.log.of("tracker.attached").iter().filter(|record| record["detail"]["backend"] == "node").count()
    }

    /// Lets the command end. The holder is ended, by one TERM and whatever else was to follow.
    fn end(self, signals: &[&str]) -> (Log, Ended, Stage) {
        let holder = self.stage.wait(HOLDER);
        self.stage.release(GATE);
        let ended = self.run.end();
        let stderr = ended.stderr.text();
        assert_eq!((ended.code(), ended.stdout.eof), (3, true), "{stderr}");
        assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{stderr}");
        assert!(holder.dies(Deadline::patient()), "{stderr}");
        let sent: Vec<_> = self.log.of("holder.signalled");
        assert!(sent.iter().all(|record| record["process"]["pid"] == holder.pid), "{sent:#?}");
        let sent: Vec<_> = sent.iter().map(|record| record["decision"]["signal"].as_str().unwrap()).collect();
        assert_eq!(sent, signals, "{stderr}");
        (self.log, ended, self.stage)
    }
}

fn says_why(log: &Log, from: &str, why: &str) -> bool {
    log.of("tracker.degraded").iter().any(|record| {
        let detail = &record["detail"];
        detail["from"].as_str().unwrap().starts_with(from) && detail["why"].as_str().unwrap().contains(why)
    })
}

#[test]
fn killed_while_the_command_runs() {
    let Some((mut node, _turn)) = own_node("killed_while_the_command_runs") else { return };
    let scene = Scene::set(&node, "hold_setsid", &[]);
    node.kill();
    let _ = scene.log.wait("tracker.degraded", |record| record["event"] == "tracker.degraded");
    let (log, ended, _stage) = scene.end(&["TERM"]);
    assert!(says_why(&log, "bpf-", "the node is gone"), "{:#?}", log.of("tracker.degraded"));
    assert_eq!(ended.report().backend, "proc");
}

#[test]
fn killed_in_the_ending() {
    let Some((mut node, _turn)) = own_node("killed_in_the_ending") else { return };
    let scene = Scene::set(&node, "hold_ignoring_term", &["-k", "1s", "--max-drain", "1m"]);
    scene.stage.release(GATE);
    let _ = scene.log.wait("TERM", |record| record["event"] == "holder.signalled");
    node.kill();
    scene.end(&["TERM", "KILL"]);
}

/// Killed and started again while it is asked.
#[test]
fn started_again_in_the_ending() {
    let Some((mut node, _turn)) = own_node("started_again_in_the_ending") else { return };
    let scene = Scene::set(&node, "hold_ignoring_term", &["-k", "2s", "--max-drain", "1m"]);
    scene.stage.release(GATE);
    let _ = scene.log.wait("TERM", |record| record["event"] == "holder.signalled");
    node.kill();
    node.start_again();
    scene.end(&["TERM", "KILL"]);
}

#[test]
fn stopped_while_the_command_runs() {
    let Some((node, _turn)) = own_node("stopped_while_the_command_runs") else { return };
    let scene = Scene::set(&node, "hold_setsid", &["--max-drain", "1m"]);
    node.signal(Signal::SIGSTOP);
    let stat = || fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    assert!(Deadline::patient().until(|| stat().contains(") T ")), "it stops");
    let (log, _, _stage) = scene.end(&["TERM"]);
    assert!(says_why(&log, "bpf-", "does not answer"), "{:#?}", log.of("tracker.degraded"));
}

/// Also where the node is stopped and the run is just about to ask.
#[test]
fn stopped_in_the_ending() {
    let Some((node, _turn)) = own_node("stopped_in_the_ending") else { return };
    let scene = Scene::set(&node, "hold_ignoring_term", &["-k", "1s", "--max-drain", "1m"]);
    scene.stage.release(GATE);
    let _ = scene.log.wait("TERM", |record| record["event"] == "holder.signalled");
    node.signal(Signal::SIGSTOP);
    scene.end(&["TERM", "KILL"]);
}

/// A run takes it again, and what it knows of whom it has signalled does not depend on that.
#[test]
fn started_again_and_again() {
    const TIMES: usize = 12;
    let Some((mut node, _turn)) = own_node("started_again_and_again") else { return };
    let mut scenes: Vec<Scene> = (0..4).map(|_| Scene::set(&node, "hold_setsid", &[])).collect();
    for time in 1..=TIMES {
        let before: Vec<usize> = scenes.iter().map(Scene::attached).collect();
        node.kill();
        node.start_again();
        let back = || scenes.iter().zip(&before).all(|(scene, before)| scene.attached() > *before);
        assert!(Deadline::patient().until(back), "every run finds it again");
        if time % (TIMES / 4) == 0 {
            let scene = scenes.pop().unwrap();
            let (log, _, _stage) = scene.end(&["TERM"]);
            assert_eq!(log.of("pipe.escape").len(), 1, "it is told once");
            let verified =
                std::process::Command::new(pipewarden_tests::binaries::binary(pipewarden_tests::binaries::UNDER_TEST))
                    .args(["audit", "verify", &log.options()[1]])
                    .output()
                    .unwrap();
            assert!(verified.status.success(), "{verified:?}");
        }
    }
}
