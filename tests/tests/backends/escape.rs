//! An escape is on record when it happens, and once.

use pipewarden::kernel::lock::TrackerLock;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{GATE, HOLDER};
use pipewarden_tests::log::Log;
use pipewarden_tests::own_lock;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

use crate::no_connector;

/// A run whose descendant is about to escape, and whose command stays until the gate opens.
struct Scene {
    stage: Stage,
    log: Log,
    run: Running,
    leaver: Process,
    /// The tracker's lock, as of somebody else: this is about the connector, however long all of it takes.
    _carried: Option<TrackerLock>,
}

impl Scene {
    fn set(backend: &str, words: &[&str]) -> Scene {
        let stage = Stage::new();
        let log = Log::on(&stage);
        stage.hold("leaver");
        stage.hold(GATE);
        let mut run = Run::on(&stage).options(["--backend", backend]).options(log.options());
        let mut carried = None;
        if nix::unistd::geteuid().is_root() {
            let lock = own_lock::new(&stage);
            carried = TrackerLock::take(&lock, "test").unwrap();
            run = run.own_lock(lock);
        }
        let run = run.fixture("leave_when_told", words.iter().chain(&["--gate"])).start();
        let leaver = stage.wait("leaver");
        Scene { stage, log, run, leaver, _carried: carried }
    }

    /// The same with events attached in the background. Other runs of this machine may listen too, or the
    /// self-test may have got no core: then there are none for this one, and it is tried again.
    fn set_with_auto(words: &[&str]) -> Scene {
        let deadline = Deadline::patient();
        loop {
            let scene = Scene::set("auto", words);
            let first = scene.log.wait("tracker record", |record| {
                record["event"].as_str().is_some_and(|event| event.starts_with("tracker."))
            });
            if first["event"] == "tracker.attached" {
                assert_eq!(
                    (&first["detail"]["backend"], &first["detail"]["rung"]),
                    (&"proc".into(), &"connector".into())
                );
                assert!(first["detail"]["took_us"].is_u64(), "{first}");
                return scene;
            }
            assert!(!deadline.left().is_zero(), "{first}");
        }
    }

    /// Lets it escape, and waits until that is on record, while the command runs.
    fn escape(&self) -> Value {
        self.stage.release("leaver");
        let record = self.log.wait_for("pipe.escape", self.leaver.pid);
        assert!(self.log.of("run.exited").is_empty(), "the command runs: {:#?}", self.log.records());
        record
    }

    /// Lets the command end; what is on record then: about the escapee, and in all.
    fn end(self) -> (Vec<Value>, Vec<Value>) {
        self.stage.release("leaver");
        assert_eq!(self.stage.wait(HOLDER).pid, self.leaver.pid);
        self.stage.release(GATE);
        let ended = self.run.end();
        assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
        let report = ended.report();
        assert!(report.holder(self.leaver.pid).is_some_and(|holder| holder.escaped), "{report:?}");
        let mut escapes = self.log.of("pipe.escape");
        escapes.retain(|record| record["process"]["pid"] == self.leaver.pid);
        (escapes, self.log.records())
    }
}

fn is_known_at_once(set: impl Fn() -> Scene) {
    let deadline = Deadline::patient();
    let mut scene = set();
    let mut record = scene.escape();
    // A machine that forks faster than a starved supervisor reads has it lose events, and walk.
    while !scene.log.of("tracker.reseeded").is_empty() && !deadline.left().is_zero() {
        scene = set();
        record = scene.escape();
    }
    let pid = scene.leaver.pid;
    assert_eq!((&record["detail"]["sid"], &record["detail"]["pgid"]), (&pid.into(), &pid.into()), "{record}");
    assert!(record["detail"]["noticed_after_us"].is_u64(), "the kernel dates it: {record}");
    assert_eq!(record["pipe"]["end"], "write");
    assert_eq!(record["evidence"]["source"], "proc+connector");
    assert_eq!(scene.end().0.len(), 1, "once, although the ending sees it again");
}

macro_rules! known_at_once {
    ($($name:ident: $($word:literal)*;)*) => {$(
        #[test]
        fn $name() {
            if !no_connector(stringify!($name)) {
                is_known_at_once(|| Scene::set("connector", &[$($word),*]));
                is_known_at_once(|| Scene::set_with_auto(&[$($word),*]));
            }
        }
    )*};
}

known_at_once! {
    a_child:;
    a_sibling_made_by_the_command: "clone_parent";
    a_child_of_one_whose_first_thread_ended: "second_thread";
}

/// The connector does not tell of setpgid(2), so that the next look finds it: here the ending's.
#[test]
fn who_leaves_by_setpgid_is_found_by_the_ending() {
    if no_connector("who_leaves_by_setpgid_is_found_by_the_ending") {
        return;
    }
    let scene = Scene::set("connector", &["setpgid"]);
    assert_eq!(scene.end().0.len(), 1);
}

/// Without events it is found when the command has exited.
#[test]
fn without_events_it_is_on_record_after_the_exit() {
    let scene = Scene::set("proc", &[]);
    let (escapes, records) = scene.end();
    assert_eq!(escapes.len(), 1);
    let events: Vec<&str> = records.iter().filter_map(|record| record["event"].as_str()).collect();
    let at = |name: &str| events.iter().position(|event| event.contains(name)).unwrap();
    assert!(at("run.exited") < at("pipe.escape"), "{events:?}");
    let attached: Vec<&Value> = records.iter().filter(|record| record["event"] == "tracker.attached").collect();
    assert!(attached.iter().all(|record| record["detail"]["rung"] == "proc"), "{attached:?}");
}

/// What was started before anything listened is found by the walk with which listening begins.
#[test]
fn who_had_escaped_before_is_found_when_listening_begins() {
    if no_connector("who_had_escaped_before_is_found_when_listening_begins") {
        return;
    }
    let deadline = Deadline::patient();
    loop {
        let stage = Stage::new();
        let log = Log::on(&stage);
        stage.hold(GATE);
        let run = Run::on(&stage).options(["--backend", "auto"]).options(log.options());
        let run = run.fixture("hold_setsid", ["--gate"]).start();
        let holder = stage.wait(HOLDER);
        let first = log.wait("tracker record", |record| {
            record["event"].as_str().is_some_and(|event| event.starts_with("tracker."))
        });
        if first["event"] == "tracker.degraded" && !deadline.left().is_zero() {
            continue; // others listen
        }
        let _ = log.wait_for("pipe.escape", holder.pid);
        assert!(log.of("run.exited").is_empty());
        stage.release(GATE);
        assert_eq!(run.end().code(), 0);
        return;
    }
}
