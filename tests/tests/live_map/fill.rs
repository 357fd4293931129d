//! What comes and goes leaves nothing in the map, and the map knows how full it is.

use pipewarden::kernel::object::{Scope, Sizes};
use pipewarden::kernel::rung::Rung;
use pipewarden::kernel::seed::Root;
use pipewarden::kernel::tracker::{Fill, Tracker};
use pipewarden_tests::process::Process;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;

/// What the counters say, which must be what is there.
fn fill(tracker: &Tracker) -> Fill {
    let fill = tracker.fill();
    let there = Fill {
        processes: tracker.processes().unwrap().len() as u64,
        tables: tracker.tables().unwrap().len() as u64,
        slots: tracker.slots().unwrap().len() as u64,
    };
    assert_eq!(fill, there, "counted, and there");
    fill
}

#[test]
fn a_week_of_work_leaves_the_map_as_full_as_it_was() {
    let attached = Rung::ALL.into_iter().find_map(|rung| Tracker::attach(rung, Scope::Lineage, Sizes::RUN).ok());
    let Some(mut tracker) = attached else {
        return skipped("a_week_of_work_leaves_the_map_as_full_as_it_was", "it needs a rung of bpf");
    };
    let stage = Stage::new();
    for role in ["command", "a day", "a week"] {
        stage.hold(role);
    }
    let mut fixture = stage.fixture("weeks_of_work").args(["10000", "100000"]).spawn().unwrap();
    let pid = fixture.id();
    let process = Process::open(pid.cast_signed()).unwrap();
    stage.adopt(&process);
    let _ = stage.wait("command");
    tracker.follow(pid).unwrap();
    tracker.seed(None::<&Root>).unwrap();
    let start = fill(&tracker);
    assert_eq!((start.processes, start.tables), (1, 1), "the fixture's");
    stage.release("command");
    let mut at = |role: &str| {
        // Events that nobody reads are counted as lost, and change nothing about the map.
        while stage.present(role).is_none() {
            while tracker.next_record().is_some() {}
            std::thread::yield_now();
        }
        fill(&tracker)
    };
    let day = at("a day");
    stage.release("a day");
    let week = at("a week");
    assert_eq!((start, start), (day, week), "at the start, after a day, after a week");
    let losses = tracker.losses();
    assert_eq!((losses.slots, losses.processes), (0, 0), "{losses:?}");
    stage.release("a week");
    assert!(fixture.wait().unwrap().success());
    assert_eq!(fill(&tracker), Fill::default());
}
