//! EOF arrives: whoever holds the command's stdout when it has ended, and however.

use pipewarden::pipe::Action::{Drained, Kill, Term};
use pipewarden::pipe::{Outcome, Relation};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER, LAST_LINE};
use pipewarden_tests::kernel::Frozen;
use pipewarden_tests::row::{Row, row};
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

/// The same promises, whichever source knows the holders and however the streams are carried.
macro_rules! table {
    ($($(#[$doc:meta])* $name:ident: $row:expr;)*) => {
        mod by_default { use super::*; $($(#[$doc])* #[test] fn $name() { $row.check(concat!("by_default::", stringify!($name))); })* }
        mod by_proc { use super::*; $($(#[$doc])* #[test] fn $name() {
            $row.options(&["--backend", "proc"]).check(concat!("by_proc::", stringify!($name)));
        })* }
        mod inherited { use super::*; $($(#[$doc])* #[test] fn $name() {
            $row.options(&["--stdio", "inherit"]).check(concat!("inherited::", stringify!($name)));
        })* }
        mod without_privileges { use super::*; $($(#[$doc])* #[test] fn $name() {
            $row.as_user(65534).check(concat!("without_privileges::", stringify!($name)));
        })* }
    };
}

table! {
    nobody_holds: row("just_exit").exits(3);
    a_member_of_the_group: row("hold_same_group").exits(3).ends_member(HOLDER, Term);
    a_session_of_its_own: row("hold_setsid").exits(3).ends_escapee(HOLDER, Term);
    a_daemon_by_double_fork: row("hold_double_fork").exits(3).ends_escapee(HOLDER, Term);
    a_group_of_its_own: row("hold_setpgid").exits(3).ends_escapee(HOLDER, Term);
    one_that_ignores_term: row("hold_ignoring_term").exits(3).options(&["--kill-after", "200ms"]).ends_escapee(HOLDER, Kill);
    one_that_opened_it_again: row("hold_reopened").exits(3).ends_escapee(HOLDER, Term);
    one_whose_first_thread_ended: row("hold_in_second_thread").exits(3).ends_escapee(HOLDER, Term);
    one_thread_with_a_table_of_its_own: row("hold_unshared_table").exits(3).ends_escapee(HOLDER, Term);
    one_without_environment: row("hold_without_environment").exits(3).ends_escapee(HOLDER, Term);
    one_that_is_stopped: row("hold_stopped").exits(3).ends_escapee(HOLDER, Term);
    a_sibling_by_clone_parent: row("hold_clone_parent").exits(3).ends_escapee(HOLDER, Term);
    registered_with_an_io_uring: row("hold_io_uring").exits(3).needs(Need::IoUring).ends_registered(HOLDER, Term);
    in_flight_between_processes: row("hold_in_flight").exits(3).ends_suspect(HOLDER, Term);
    as_postgres_does: row("postgres_daemon").ends_escapee(HOLDER, Term);
    as_adb_does: row("adb_daemon").ends_escapee(HOLDER, Term).ends_escapee("worker", Term);
    after_twenty_megabytes: row("hold_setsid").bytes(20_000_000).ends_escapee(HOLDER, Term);
    exit_code_zero_is_kept: row("hold_setsid").ends_escapee(HOLDER, Term);
    exit_code_200_is_kept: row("hold_setsid").exits(200).ends_escapee(HOLDER, Term);
    a_killed_command_is_told: row("hold_setsid").dies_by(9).ends_escapee(HOLDER, Term);
    a_terminated_command_is_told: row("hold_same_group").dies_by(15).ends_member(HOLDER, Term);
}

/// Its tables belong to root, and so do we.
#[test]
fn one_that_is_not_dumpable() {
    row("hold_undumpable").needs(Need::Root).ends_escapee(HOLDER, Term).check("one_that_is_not_dumpable");
}

/// Whom we may not look into is never ended on suspicion, and the bound holds all the same.
#[test]
fn one_that_we_may_not_look_into_is_let_go() {
    opaque().spares(HOLDER, Relation::Opaque, true, Drained).check("opaque");
}

#[test]
fn one_that_we_may_not_look_into_is_ended_when_asked() {
    let stage = Stage::new();
    let run = Run::on(&stage).as_user(65534).options(["--on-opaque", "end"]).fixture("hold_undumpable", [""; 0]);
    let ended = run.end();
    assert!(ended.stdout.eof && ended.stdout.bytes == LAST_LINE, "{}", ended.stderr.text());
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{}", ended.stderr.text());
    assert_eq!(ended.report().outcome, Outcome::HoldersEnded);
}

fn opaque() -> Row {
    row("hold_undumpable").as_user(65534)
}

/// Every generation forks the next and exits, so that whoever is found is gone already.
fn ends_a_reforker(words: &[&str], options: &[&str]) {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(options).fixture("refork", words).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!(ended.stdout.bytes, LAST_LINE, "{stderr}");
    assert_eq!(ended.code(), 0, "{stderr}");
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::HoldersEnded, "{stderr}");
    assert!(report.holders.iter().all(|holder| holder.relation == Relation::Lineage), "{stderr}");
    assert!(stage.line_ends(HOLDER, Deadline::patient()), "no generation is left: {stderr}");
}

macro_rules! reforkers {
    ($($name:ident: $($word:literal)*;)*) => {$(
        #[test]
        fn $name() {
            ends_a_reforker(&[$($word),*], &[]);
            ends_a_reforker(&[$($word),*], &["--holder-grace", "0", "-s", "KILL", "--backend", "proc"]);
        }
    )*};
}

reforkers! {
    a_reforker_without_a_pause: "0";
    a_reforker_at_200_us: "200";
    a_reforker_at_1_ms: "1000";
    a_reforker_without_a_pause_in_new_sessions: "0" "setsid";
    a_reforker_at_200_us_in_new_sessions: "200" "setsid";
    a_reforker_at_1_ms_in_new_sessions: "1000" "setsid";
}

/// No signal ends a process in D state: the bound does, and the code is kept.
#[test]
fn one_in_uninterruptible_sleep() {
    if skip("one_in_uninterruptible_sleep", &[Need::Freezer]) {
        return;
    }
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--kill-after", "100ms", "--max-drain", "1s"]);
    let run = run.fixture("hold_setsid", ["--gate", "--exit", "3"]).start();
    let holder = stage.wait(HOLDER);
    let _ = stage.wait(GATE);
    let frozen = Frozen::new(&holder);
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!((ended.code(), ended.stdout.text()), (3, String::from_utf8_lossy(LAST_LINE).into_owned()), "{stderr}");
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::Closed, "{stderr}");
    assert!(report.holder(holder.pid).is_some(), "what is left is named: {stderr}");
    drop(frozen);
    assert!(holder.dies(Deadline::patient()), "it was sent SIGKILL: {stderr}");
}

/// EOF is the command's own doing here, and must not wait for its exit.
#[test]
fn a_command_that_closes_stdout_and_lives_on() {
    let stage = Stage::new();
    stage.hold(GATE);
    let mut run = Run::on(&stage).fixture("close_stdout", ["--exit", "3"]).start();
    let read = run.read_stdout();
    assert!(read.eof);
    assert_eq!(read.bytes, LAST_LINE);
    assert!(stage.wait(COMMAND).lives(), "EOF came while the command lives");
    stage.release(GATE);
    let ended = run.end();
    assert_eq!(ended.code(), 3);
    assert_eq!(ended.report().outcome, Outcome::Natural);
}

/// A supervisor under a supervisor: the inner one ends the holder, the outer one has nothing to do.
#[test]
fn a_run_inside_a_run() {
    let stage = Stage::new();
    let inner = Run::on(&stage).report("none").fixture("hold_setsid", ["--exit", "3"]).words();
    let ended = Run::on(&stage).command(inner).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stdout.bytes == LAST_LINE, "{stderr}");
    assert_eq!(ended.code(), 3, "{stderr}");
    assert_eq!(ended.report().outcome, Outcome::Natural, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{stderr}");
}

/// Node gives its children socketpairs, not pipes.
#[test]
fn downstream_is_a_socket() {
    let stage = Stage::new();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let run = Run::on(&stage).stdout(std::os::fd::OwnedFd::from(theirs));
    let run = run.fixture("hold_setsid", ["--bytes", "3000000", "--exit", "3"]).start();
    let mut bytes = Vec::new();
    ours.set_read_timeout(Some(pipewarden_tests::deadline::PATIENCE)).unwrap();
    std::io::Read::read_to_end(&mut &ours, &mut bytes).expect("EOF arrives on a socket");
    let expected = [pipewarden_tests::fixture::pattern(3_000_000), LAST_LINE.to_vec()].concat();
    pipewarden_tests::row::assert_same_bytes(&bytes, &expected);
    let ended = run.end();
    assert_eq!(ended.code(), 3);
    assert!(stage.wait(HOLDER).dies(Deadline::patient()));
}

/// A FIFO downstream is pumped like a pipe, and its reader gets EOF.
#[test]
fn downstream_is_a_fifo() {
    let stage = Stage::new();
    let fifo = stage.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || std::fs::read(fifo).unwrap()
    });
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let ended = Run::on(&stage).stdout(writer).fixture("hold_setsid", ["--bytes", "300000", "--exit", "3"]).end();
    let expected = [pipewarden_tests::fixture::pattern(300_000), LAST_LINE.to_vec()].concat();
    pipewarden_tests::row::assert_same_bytes(&reader.join().unwrap(), &expected);
    assert_eq!((ended.code(), ended.report().outcome), (3, Outcome::HoldersEnded), "{}", ended.stderr.text());
    assert!(stage.wait(HOLDER).dies(Deadline::patient()));
}
