//! Runs do not stack listeners: each one costs every fork of the machine, so that `auto` keeps to few.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use pipewarden::kernel::connector::{Connector, Kinds, listeners};
use pipewarden::kernel::self_test::in_initial_pid_namespace;
use pipewarden::ownership::ladder::MOST_LISTENERS;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE};
use pipewarden_tests::log::Log;
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;

/// One test at a time: they count what is the machine's.
static TURN: Mutex<()> = Mutex::new(());

/// A turn, where there is a connector to listen to; says so where there is none.
fn turn(test: &str) -> Option<MutexGuard<'static, ()>> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Connector::open(Kinds::LINEAGE) {
        _ if !in_initial_pid_namespace() => skipped(test, "it needs the machine's own pid namespace"),
        Err(error) => skipped(test, &format!("it needs the proc connector: {error}")),
        Ok(_) => return Some(turn),
    }
    None
}

#[test]
fn many_runs_at_once_leave_few_listeners() {
    const RUNS: usize = 60;
    let Some(_turn) = turn("many_runs_at_once_leave_few_listeners") else { return };
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let runs: Vec<Running> = (0..RUNS)
        .map(|_| {
            let run = Run::on(&stage).options(["--backend", "auto"]).options(log.options());
            let run = run.fixture("just_exit", ["--gate"]).start();
            run.signal(Signal::SIGSTOP);
            run
        })
        .collect();
    // All of them want to listen at the same time.
    for run in &runs {
        run.signal(Signal::SIGCONT);
    }
    // Every run says what became of its wish. Who lives for longer wants a live map as well, and says that too.
    let about_it = |event: &str, key: &str| {
        let records = log.of(event).into_iter();
        records.filter(|record| record["detail"][key] == "connector").collect::<Vec<_>>()
    };
    let attached = || about_it("tracker.attached", "rung");
    let degraded = || about_it("tracker.degraded", "from");
    let decided = || attached().len() + degraded().len();
    assert!(Deadline::patient().until(|| decided() == RUNS), "{} of {RUNS}", decided());
    let listen = listeners().unwrap();
    assert!(listen <= MOST_LISTENERS, "{listen} listen");
    assert!(attached().len() <= MOST_LISTENERS, "{} attached", attached().len());
    for record in degraded() {
        let why = record["detail"]["why"].as_str().unwrap();
        assert!(why.contains("others listen"), "{why}");
    }
    stage.release(GATE);
    for run in runs {
        let ended = run.end();
        assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    }
}

#[test]
fn where_many_listen_auto_does_not_and_the_forced_one_does() {
    let Some(_turn) = turn("where_many_listen_auto_does_not_and_the_forced_one_does") else { return };
    let _crowd: Vec<Connector> = (0..MOST_LISTENERS).map(|_| Connector::open(Kinds::LINEAGE).unwrap()).collect();
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = |backend| Run::on(&stage).options(["--backend", backend]).fixture("just_exit", ["--gate"]);
    let auto = run("auto").options(log.options()).start();
    let degraded = log.wait("tracker.degraded", |record| record["event"] == "tracker.degraded");
    assert!(degraded["detail"]["why"].as_str().unwrap().contains("others listen"), "{degraded}");
    let forced = run("connector").start();
    let _ = stage.wait(COMMAND);
    stage.release(GATE);
    assert_eq!(auto.end().report().rung, "proc");
    assert_eq!(forced.end().report().rung, "connector");
}
