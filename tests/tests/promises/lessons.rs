//! What earlier systems got wrong, line by line: each test is one failure that somebody had.
//!
//! Where the table of another file has the same promise, the row here has the most eager settings:
//! no grace, SIGKILL first. Exactness must not depend on patience.

use std::time::{Duration, Instant};

use pipewarden::pipe::Action::{Kept, Kill, Term};
use pipewarden::pipe::{Action, Outcome, Relation};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER, LAST_LINE};
use pipewarden_tests::kernel::DeadMount;
use pipewarden_tests::row::{Row, row};
use pipewarden_tests::rows;
use pipewarden_tests::run::{Run, backend_is};
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

const EAGER: [&str; 4] = ["--holder-grace", "0", "-s", "KILL"];

/// Computes for as long as it may: a minute, if nobody ends it.
const SPIN: &str = "ulimit -t 60; while :; do :; done";

fn eager(fixture: &'static str) -> Row {
    row(fixture).options(&EAGER).exits(3)
}

rows! {
    /// The reader waited for the grandchild's whole life, and a force-close lost the result line.
    the_result_line_reaches_the_reader: eager("hold_setsid").bytes(200_000).ends_escapee(HOLDER, Action::Kill);
    /// A scan without the write check killed innocent readers.
    only_the_write_end_counts: eager("hold_read_end").leaves_alone(HOLDER);
    /// Orphans that drop the pipe leaked; the tags in their environment were stripped by `env -i`.
    the_environment_is_no_boundary: eager("hold_without_environment").ends_escapee(HOLDER, Action::Kill);
    /// People needed some daemons to live.
    some_daemons_are_to_live: eager("postgres_daemon").options(&["--keep", "postgres*"])
        .spares(HOLDER, Relation::Lineage, true, Kept);
    /// `/proc/PID/fd` is empty when the leader has exited ...
    the_leader_has_exited: eager("hold_in_second_thread").ends_escapee(HOLDER, Action::Kill);
    /// ... or when a thread unshared its table.
    a_thread_unshared_its_table: eager("hold_unshared_table").ends_escapee(HOLDER, Action::Kill);
    /// No descriptor listing shows what is in flight ...
    in_flight: eager("hold_in_flight").ends_suspect(HOLDER, Action::Kill);
    /// ... or registered with an io_uring.
    in_an_io_uring: eager("hold_io_uring").needs(Need::IoUring).ends_registered(HOLDER, Action::Kill);
    /// A process in another session is no member of the group that was signalled.
    a_group_is_not_the_lineage: eager("adb_daemon").ends_escapee(HOLDER, Action::Kill).ends_escapee("worker", Action::Kill);
}

/// "30 s grace, then force-close" took 75 s, because closing waits for whoever is blocked reading.
#[test]
fn nothing_outlasts_the_one_bound() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--on-holder", "report", "--max-drain", "500ms"]);
    let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof && ended.stdout.bytes == LAST_LINE, "{stderr}");
    assert_eq!((ended.code(), ended.report().outcome), (3, Outcome::Closed), "{stderr}");
    assert!(stage.wait(HOLDER).lives());
}

/// The grace was counted per stream, so that two streams took twice as long. The bound has room
/// for a whole second ending before this fails by being slow.
#[test]
fn one_deadline_whatever_the_number_of_streams() {
    let stage = Stage::new();
    let bound = Duration::from_secs(4);
    let run = Run::on(&stage).options(["--on-holder", "report", "--max-drain", "4s"]);
    let run = run.fixture("hold_setsid", ["--exit", "3"]).start();
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
    let exited = Instant::now();
    let ended = run.end();
    assert!(exited.elapsed() < bound * 2, "{:?} for one bound of {bound:?}", exited.elapsed());
    assert_eq!(ended.report().outcome, Outcome::Closed);
}

/// A scan called stat() through descriptor links, and blocked on a file system that was gone.
#[test]
fn a_dead_file_system_in_a_holders_table() {
    if skip("a_dead_file_system_in_a_holders_table", &[Need::Fuse]) {
        return;
    }
    let stage = Stage::new();
    let folder = stage.path("dead");
    std::fs::create_dir(&folder).unwrap();
    let _dead = DeadMount::on(&folder);
    for options in [&["--stdio", "pump"][..], &["--stdio", "inherit"]] {
        let role = options.concat();
        let run = Run::on(&stage).options(options).fixture("hold_dead_mount", ["--exit", "3", "--as", &role]);
        let ended = run.command([&folder]).end();
        let stderr = ended.stderr.text();
        assert!(ended.stdout.eof && ended.stderr.eof && ended.code() == 3, "{stderr}");
        assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{stderr}");
        assert!(stage.wait(&role).dies(Deadline::patient()), "{stderr}");
    }
}

/// The same where a FIFO is watched: its device is not in the link's text.
#[test]
fn a_dead_file_system_beside_a_fifo() {
    if skip("a_dead_file_system_beside_a_fifo", &[Need::Fuse]) {
        return;
    }
    let stage = Stage::new();
    let (folder, fifo) = (stage.path("dead"), stage.path("fifo"));
    std::fs::create_dir(&folder).unwrap();
    let _dead = DeadMount::on(&folder);
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = std::fs::OpenOptions::new().read(true).write(true).open(fifo).unwrap();
    let run = Run::on(&stage).options(["--stdio", "inherit"]).stdout(fifo.try_clone().unwrap());
    let ended = run.fixture("hold_dead_mount", ["--exit", "3"]).command([&folder]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{}", ended.stderr.text());
}

/// A scan spun at 100% of a core for as long as there was a holder. (To attach a live map takes some time, once: a run
/// that waits 3 s does it before them only where that is asked for.)
#[test]
fn waiting_is_not_computing() {
    let stage = Stage::new();
    let bound = |options: &[&str]| if options.is_empty() && backend_is("bpf") { 1500 } else { 750 };
    for options in [&["--backend", "proc"][..], &[]] {
        let run = Run::on(&stage).options(["--on-holder", "report", "--max-drain", "3s"]).options(options);
        let ended = run.fixture("hold_setsid", [""; 0]).end();
        assert_eq!(ended.report().outcome, Outcome::Closed);
        assert!(ended.cpu < Duration::from_millis(bound(options)), "{:?} of computing in 3 s of waiting", ended.cpu);
    }
}

/// ... and so did a run whose command was quiet.
#[test]
fn watching_is_not_computing() {
    let stage = Stage::new();
    for (options, bound) in [(&["--backend", "proc"][..], 300), (&[], 1500)] {
        let ended = Run::on(&stage).options(options).command(["sleep", "3"]).end();
        assert!(ended.cpu < Duration::from_millis(bound), "{:?} of computing in 3 s of watching", ended.cpu);
    }
}

/// An orphan at 180% of a core starved the timeouts.
#[test]
fn a_busy_lineage_does_not_starve_the_deadlines() {
    let stage = Stage::new();
    let line = format!("(setsid bash -c '{SPIN}' & setsid bash -c '{SPIN}' & setsid bash -c '{SPIN}' &); {SPIN}");
    let ended = Run::on(&stage).options(["--timeout", "1s"]).bash(&line).end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert!(ended.stdout.eof, "the spinning orphans held stdout: {}", ended.stderr.text());
}

/// An escapee that computes gets no credit for it: only members of the group are at work for us.
#[test]
fn a_busy_escapee_is_stale() {
    let stage = Stage::new();
    let ended = Run::on(&stage).bash(&format!("(setsid bash -c '{SPIN}' &); exit 3")).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.code() == 3, "{stderr}");
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::HoldersEnded, "{stderr}");
    assert!(report.holders.iter().any(|holder| holder.escaped && holder.action == Term), "{stderr}");
}

/// Only a count was logged: the report says who.
#[test]
fn the_report_names_the_holder() {
    let stage = Stage::new();
    let ended = Run::on(&stage).fixture("hold_setsid", ["--exit", "3"]).end();
    let report = ended.report();
    let holder = report.holder(stage.wait(HOLDER).pid).unwrap();
    assert_eq!(holder.comm, "hold_setsid");
    assert_eq!(holder.streams, ["stdout", "stderr"]);
    assert!(ended.stderr.text().contains("hold_setsid --exit 3"), "its command line: {}", ended.stderr.text());
    assert!(report.exit_to_eof_us.is_some_and(|us| us > 0), "and when EOF came: {}", ended.stderr.text());
}

/// Environment tags found what was no longer ours; `--reap all` ends the lineage on demand.
#[test]
fn a_leaked_daemon_is_ended_on_demand() {
    let stage = Stage::new();
    let ended =
        Run::on(&stage).options(EAGER).options(["--reap", "all"]).fixture("hold_nothing", ["--exit", "3"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{}", ended.stderr.text());
}

/// A sweep by cgroup killed sibling runs and operators' sessions.
#[test]
fn scope_is_the_lineage_and_not_everything_else_here() {
    let stage = Stage::new();
    let mut operator = stage.fixture("hold_nothing").args(["--as", "operator"]).spawn().unwrap();
    operator.wait().unwrap();
    let operator = stage.wait("operator");
    let ended = Run::on(&stage).options(EAGER).options(["--reap", "all"]).fixture("hold_setsid", [""; 0]).end();
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{}", ended.stderr.text());
    assert!(operator.lives(), "{}", ended.stderr.text());
}

/// The orphan forked while it was being scanned, and survived in 4 to 8 of 12 tries.
#[test]
fn a_snapshot_is_never_the_last_word() {
    for _ in 0..12 {
        let stage = Stage::new();
        let ended = Run::on(&stage).options(EAGER).fixture("refork", ["0", "setsid"]).end();
        assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{}", ended.stderr.text());
        assert!(stage.line_ends(HOLDER, Deadline::patient()), "{}", ended.stderr.text());
    }
}

/// A leaked reader hung for hours because its exception was swallowed: there is always an outcome.
#[test]
fn there_is_always_an_outcome() {
    for (options, outcome) in [
        (&["--on-holder", "end"][..], Outcome::HoldersEnded),
        (&["--on-holder", "close"], Outcome::HoldersSpared),
        (&["--on-holder", "drain"], Outcome::HoldersSpared),
        (&["--on-holder", "report", "--max-drain", "3s"], Outcome::Closed),
    ] {
        let stage = Stage::new();
        let ended = Run::on(&stage).options(options).fixture("hold_setsid", [""; 0]).end();
        let report = ended.report();
        assert_eq!((report.outcome, report.holders.len()), (outcome, 1), "{options:?}: {}", ended.stderr.text());
    }
}

/// A nested supervisor was SIGKILLed, and its own command survived.
#[test]
fn a_nested_supervisor_takes_its_command_with_it() {
    let stage = Stage::new();
    stage.hold(GATE);
    let inner = Run::on(&stage).report("none").fixture("hold_setsid", ["--gate"]).words();
    let run = Run::on(&stage).options(["-s", "KILL"]).command(inner).start();
    let _ = stage.wait(GATE);
    run.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = run.end();
    for role in [COMMAND, HOLDER] {
        assert!(stage.wait(role).dies(Deadline::patient()), "{role}: {}", ended.stderr.text());
    }
    assert!(ended.stdout.eof, "{}", ended.stderr.text());
}

/// The first signal goes to the whole group, and SIGKILL too.
#[test]
fn the_group_is_terminated_then_killed() {
    for (fixture, options, signal) in
        [("hold_same_group", &["--kill-after", "10m"][..], 15), ("ignore_term", &["-k", "100ms"], 9)]
    {
        let stage = Stage::new();
        stage.hold(GATE);
        let words: &[&str] = if fixture == "ignore_term" { &[] } else { &["--gate"] };
        let run = Run::on(&stage).options(options).fixture(fixture, words).start();
        let _ = stage.wait(if fixture == "ignore_term" { "ready" } else { GATE });
        run.signal(nix::sys::signal::Signal::SIGTERM);
        let ended = run.end();
        assert_eq!(ended.code(), 128 + signal, "{}", ended.stderr.text());
        assert!(stage.present(HOLDER).is_none_or(|member| member.dies(Deadline::patient())), "{}", ended.stderr.text());
    }
}

/// Kill was reported as done when it was only sent: who is named as ended has ended.
#[test]
fn who_is_reported_as_ended_has_ended() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "100ms"]).fixture("hold_ignoring_term", [""; 0]);
    let ended = run.end();
    let holder = stage.wait(HOLDER);
    assert_eq!(ended.report().holder(holder.pid).map(|holder| holder.action), Some(Kill));
    assert!(holder.dies(Deadline::patient()), "{}", ended.stderr.text());
}
