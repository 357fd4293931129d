//! The options of an ending: each does what its help says.

use std::io::Read;

use nix::sys::signal::Signal;
use pipewarden::pipe::{Action, Outcome};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, HOLDER, LAST_LINE};
use pipewarden_tests::row::row;
use pipewarden_tests::rows;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

rows! {
    at_once: row("hold_setsid").exits(3).options(&["--holder-grace", "0", "-s", "INT"]).ends_escapee(HOLDER, Action::Term);
    kill_at_once: row("hold_ignoring_term").exits(3).options(&["--holder-grace", "0", "--kill-after", "0"])
        .ends_escapee(HOLDER, Action::Kill);
    the_signal_that_was_asked_for: row("hold_ignoring_term").exits(3)
        .options(&["-s", "INT", "--kill-after", "10m", "--max-drain", "20m"]).ends_escapee(HOLDER, Action::Term);
    the_signal_with_its_prefix: row("hold_ignoring_term").exits(3)
        .options(&["--signal", "SIGHUP", "--kill-after", "10m", "--max-drain", "20m"]).ends_escapee(HOLDER, Action::Term);
    the_signal_by_its_number: row("hold_ignoring_term").exits(3)
        .options(&["-s", "2", "--kill-after", "10m", "--max-drain", "20m"]).ends_escapee(HOLDER, Action::Term);

    a_leak_passes_unless_told: row("hold_setsid").ends_escapee(HOLDER, Action::Term);
    a_leak_fails_when_told: row("hold_setsid").options(&["--leak", "fail"]).code(123).ends_escapee(HOLDER, Action::Term);
    a_leak_does_not_hide_a_failure: row("hold_setsid").exits(3).options(&["--leak", "fail"]).ends_escapee(HOLDER, Action::Term);
    no_leak_is_no_failure: row("hold_nothing").options(&["--leak", "fail"]).leaves_alone(HOLDER);
}

/// `--max-drain 0`: whoever holds on, we are gone at once, with what was written so far.
#[test]
fn no_drain_at_all() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--max-drain", "0"]);
    let ended = run.fixture("hold_ignoring_term", ["--bytes", "30000", "--exit", "3"]).end();
    let stderr = ended.stderr.text();
    let expected = [pipewarden_tests::fixture::pattern(30_000), LAST_LINE.to_vec()].concat();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    pipewarden_tests::row::assert_same_bytes(&ended.stdout.bytes, &expected);
    assert_eq!(ended.code(), 3, "{stderr}");
    assert!(matches!(ended.report().outcome, Outcome::Closed | Outcome::HoldersEnded), "{stderr}");
}

/// `--on-holder wait`: nobody is ended; the holder's own exit is the end, and its output arrives.
#[test]
fn waiting_for_holders() {
    let stage = Stage::new();
    stage.hold("may write");
    let run = Run::on(&stage).options(["--on-holder", "wait", "--max-drain", "20m"]);
    let run = run.fixture("hold_and_write", ["--exit", "3"]).start();
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
    stage.release("may write");
    let _ = stage.wait("wrote");
    let holder = stage.wait(HOLDER);
    assert!(holder.lives());
    holder.signal(Signal::SIGUSR1);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert_eq!(ended.stdout.bytes, [LAST_LINE, pipewarden_tests::fixture::LATE_LINE].concat(), "{stderr}");
    assert_eq!((ended.code(), ended.stdout.eof), (3, true), "{stderr}");
    assert!(ended.report().holders.iter().all(|holder| holder.action == Action::None), "{stderr}");
}

/// Daemons that hold nothing are ended on demand, and only then.
#[test]
fn reaping_all() {
    for fixture in ["hold_nothing", "hold_stdin_only", "ssh_agent_daemon", "hold_read_end"] {
        let stage = Stage::new();
        let ended = Run::on(&stage).options(["--reap", "all"]).fixture(fixture, ["--exit", "3"]).end();
        let stderr = ended.stderr.text();
        assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{fixture}: {stderr}");
        assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{fixture}: {stderr}");
    }
}

/// ... and `--keep` is about them too.
#[test]
fn reaping_all_but_the_kept() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--reap", "all", "--keep", "hold_nothing"]);
    let ended = run.fixture("hold_nothing", ["--exit", "3"]).end();
    assert!(stage.wait(HOLDER).lives(), "{}", ended.stderr.text());
}

/// The line that people meet first: who was ended, why, and how to keep it next time.
#[test]
fn the_report_teaches() {
    let stage = Stage::new();
    let ended = Run::on(&stage).report("text").fixture("hold_setsid", [""; 0]).end();
    let (said, pid) = (ended.stderr.text(), stage.wait(HOLDER).pid);
    assert_eq!(said.lines().count(), 1, "{said}");
    let line = said.trim_end();
    assert!(line.contains(&format!("ended hold_setsid ({pid}), which held stdout")), "{line}");
    assert!(line.contains("after the command's exit"), "{line}");
    assert!(line.ends_with("to let such a process live: --keep hold_setsid"), "{line}");
}

#[test]
fn the_text_report_is_silent_when_there_is_nothing_to_say() {
    let stage = Stage::new();
    for fixture in ["just_exit", "hold_nothing"] {
        assert_eq!(Run::on(&stage).report("text").fixture(fixture, ["--exit", "3"]).end().stderr.text(), "");
    }
}

#[test]
fn no_report_says_nothing() {
    let stage = Stage::new();
    assert_eq!(Run::on(&stage).report("none").fixture("hold_setsid", [""; 0]).end().stderr.text(), "");
}

/// A storm of holders is a count, not a storm of lines.
#[test]
fn the_report_of_a_storm_is_short() {
    let stage = Stage::new();
    let ended = Run::on(&stage).report("text").fixture("refork", ["0"]).end();
    let said = ended.stderr.text();
    assert!((1..=30).contains(&said.lines().count()), "{} lines:\n{said}", said.lines().count());
    assert!(stage.line_ends(HOLDER, Deadline::patient()), "{said}");
}

#[test]
fn stdin_can_be_nothing() {
    let stage = Stage::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let ended = Run::on(&stage).options(["--stdin", "null"]).stdin(reader).command(["cat"]).end();
    assert_eq!((ended.code(), ended.stdout.bytes.len()), (0, 0));
}

/// What `--stdio pump` forces on a file: EOF is ours to give, so holders are ended.
#[test]
fn pumping_into_a_file() {
    let stage = Stage::new();
    let path = stage.path("log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let run = Run::on(&stage).options(["--stdio", "pump"]).stdout(log);
    let ended = run.fixture("hold_setsid", ["--exit", "3", "--bytes", "300000"]).end();
    assert_eq!(ended.report().outcome, Outcome::HoldersEnded);
    assert!(stage.wait(HOLDER).dies(Deadline::patient()));
    let mut written = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut written).unwrap();
    let expected = [pipewarden_tests::fixture::pattern(300_000), LAST_LINE.to_vec()].concat();
    pipewarden_tests::row::assert_same_bytes(&written, &expected);
}

/// A reader that does not read is waited for, unless that is bounded too; what it did not take is
/// counted.
#[test]
fn delivery_can_be_bounded() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).options(["--max-deliver", "300ms"]).stdout(writer);
    // More than our reader's pipe takes, and little enough that the command can end.
    let ended = run.fixture("just_exit", ["--bytes", "100000", "--exit", "3"]).end();
    let report = ended.report();
    assert_eq!((ended.code(), report.outcome), (3, Outcome::Undelivered), "{}", ended.stderr.text());
    let arrived = pipewarden_tests::reader::read_now(&reader);
    let written = [pipewarden_tests::fixture::pattern(100_000), LAST_LINE.to_vec()].concat();
    assert!(arrived.eof, "EOF comes after what was taken");
    pipewarden_tests::row::assert_same_bytes(&arrived.bytes, &written[..arrived.bytes.len()]);
    let missing = u64::try_from(written.len() - arrived.bytes.len()).unwrap();
    assert_eq!(report.undelivered_bytes, missing, "{}", ended.stderr.text());
    assert!(missing > 0);
}

/// What `-r` maps a signal to is what the command is sent.
#[test]
fn a_signal_can_be_rewritten() {
    for words in [&["-r", "10:12"][..], &["--rewrite", "USR1:USR2"]] {
        let stage = Stage::new();
        let run = Run::on(&stage).options(words).fixture("tell_signals", ["SIGUSR2", "--exit", "7"]).start();
        let _ = stage.wait("ready");
        run.signal(Signal::SIGUSR1);
        let _ = stage.wait("SIGUSR2");
        let ended = run.end();
        assert_eq!((ended.code(), ended.stdout.text()), (7, "SIGUSR2\n".to_owned()), "{}", ended.stderr.text());
    }
}
