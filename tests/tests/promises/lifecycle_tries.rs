//! An agent that went silent is tried again: where it left off, or from the start, or not at all.

use std::path::Path;

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::run::{Ended, Run};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

const SESSION: [&str; 2] = ["--session-id", r"re:^session (?<id>\S+)"];
const IDLE: [&str; 4] = ["--idle-timeout", "3s", "--retries", "2"];
const AT_ONCE: [&str; 2] = ["--retry-backoff", "0"];
const LATER: [&str; 2] = ["--retry-backoff", "10m"];

fn resuming(steps: &str) -> Vec<String> {
    let command = format!("{} {steps}", binary("fake_agent").display());
    ["--resume-command".to_owned(), command].into_iter().chain(SESSION.map(str::to_owned)).collect()
}

/// An agent whose n-th start takes the n-th of these scripts.
pub(crate) fn tries<'a>(stage: &'a Stage, scripts: &[&[&str]]) -> Run<'a> {
    tries_with(stage, AT_ONCE, scripts)
}

pub(crate) fn tries_with<'a>(stage: &'a Stage, pauses: [&str; 2], scripts: &[&[&str]]) -> Run<'a> {
    let mut steps = vec![format!("count:{}", stage.path("starts").display())];
    for script in scripts {
        steps.push("try".into());
        steps.extend(script.iter().map(ToString::to_string));
    }
    Run::on(stage).options(IDLE).options(pauses).fixture("fake_agent", steps)
}

pub(crate) fn starts(stage: &Stage) -> usize {
    std::fs::read_to_string(stage.path("starts")).unwrap_or_default().len()
}

/// What each try was ended for, and how it began.
pub(crate) fn told(ended: &Ended) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    ended.report().tries.iter().map(|one| (text(&one["ended_for"]).unwrap(), text(&one["start"]))).collect()
}

pub(crate) fn row(ended_for: &str, start: Option<&str>) -> (String, Option<String>) {
    (ended_for.to_owned(), start.map(str::to_owned))
}

#[test]
fn without_session_and_side_effects_it_begins_afresh() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["say:one", "half:tw", "hang"], &["say:three", "exit:3"]]);
    let ended = run.options(["--side-effect", "re:^wrote"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "one\ntwthree\n", "the output of every try, in order");
    assert_eq!(told(&ended), [row("idle", None), row("exit", Some("afresh"))]);
    assert!(ended.stdout.eof);
}

#[test]
fn with_a_session_it_is_resumed() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["say:session s-1", "say:wrote x", "hang"]]);
    let run = run.options(["--side-effect", "re:^wrote"]).options(resuming("say:'resumed {session_id}' exit:0"));
    let ended = run.end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "session s-1\nwrote x\nresumed s-1\n");
    assert_eq!(told(&ended), [row("idle", None), row("exit", Some("resumed"))]);
    assert_eq!(ended.report().tries[0]["session_id"], "s-1");
    let said = ended.stderr.text();
    let line = said.lines().find(|line| line.contains("try 2")).unwrap_or_else(|| panic!("announced: {said}"));
    assert!(line.contains("3.0 s") && line.contains("resuming session s-1"), "{line}");
}

/// A session that is told in a line without an end is a session.
#[test]
fn a_session_in_the_last_half_line_counts() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["half:session s-1", "hang"]]).options(resuming("say: say:'resumed {session_id}'"));
    let ended = run.end();
    assert_eq!(
        (ended.code(), ended.stdout.text()),
        (0, "session s-1\nresumed s-1\n".into()),
        "{}",
        ended.stderr.text()
    );
}

#[test]
fn side_effects_without_a_session_fail_at_once() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["say:wrote x", "hang"], &["say:wrote x again"]]);
    let ended = run.options(["--side-effect", "re:^wrote"]).end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), starts(&stage)), (124, 1), "{stderr}");
    assert!(stderr.contains("side effects") && stderr.contains("session"), "it says why: {stderr}");
    assert_eq!(ended.stdout.text(), "wrote x\n");
}

/// What a program prints becomes neither an option nor a command.
#[test]
fn a_session_id_that_is_an_option_is_none() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["say:session --yes", "hang"], &["say:from the start"]]);
    let ended = run.options(resuming("say:{session_id}")).end();
    assert_eq!(ended.stdout.text(), "session --yes\nfrom the start\n", "{}", ended.stderr.text());
}

#[test]
fn retries_come_to_an_end() {
    let stage = Stage::new();
    let ended = tries(&stage, &[&["say:1", "hang"], &["say:2", "hang"], &["say:3", "hang"], &["say:4"]]).end();
    assert_eq!((ended.code(), starts(&stage)), (124, 3), "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "1\n2\n3\n");
    assert_eq!(told(&ended).len(), 3);
    assert_eq!(ended.report().ended_for(), "idle");
}

/// The helper of the first try holds stdout in a session of its own, and ignores nothing but us.
#[test]
fn no_orphan_of_one_try_lives_in_the_next() {
    let stage = Stage::new();
    stage.hold("second");
    let script: [&[&str]; 2] = [&["leave:helper", "say:1", "hang"], &["at:second", "say:2", "exit:0"]];
    let run = tries(&stage, &script).start();
    let helper = stage.wait("helper");
    let _ = stage.wait("second");
    assert!(helper.is_dead(), "gone before the next try began");
    stage.release("second");
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.text()), (0, "1\n2\n".into()), "{}", ended.stderr.text());
}

/// An orphan that holds nothing at all is one too.
#[test]
fn no_leaked_daemon_of_one_try_lives_in_the_next() {
    let stage = Stage::new();
    stage.hold("second");
    let daemon = format!("{} >/dev/null 2>&1 leave:daemon hang &", binary("fake_agent").display());
    let count = stage.path("starts");
    let line = format!(
        "echo x >> {count}; if [ $(wc -l < {count}) = 1 ]; then {daemon} sleep 1000; else exec {} at:second; fi",
        binary("fake_agent").display(),
        count = count.display()
    );
    let run = Run::on(&stage).options(IDLE).options(AT_ONCE).bash(&line).start();
    let daemon = stage.wait("daemon");
    let _ = stage.wait("second");
    assert!(daemon.is_dead(), "gone before the next try began");
    stage.release("second");
    assert_eq!(run.end().code(), 0);
}

/// The original input, from wherever it came.
#[test]
fn a_fresh_start_gets_the_original_input() {
    let script: [&[&str]; 2] = [&["line", "hang"], &["input"]];
    let stage = Stage::new();
    let file = stage.path("input");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let ended = tries(&stage, &script).stdin(std::fs::File::open(&file).unwrap()).end();
    assert_eq!(ended.stdout.text(), "one\none\ntwo\n", "{}", ended.stderr.text());
    let stage = Stage::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"one\ntwo\n").unwrap();
    drop(writer);
    let ended = tries(&stage, &script).stdin(reader).end();
    assert_eq!(ended.stdout.text(), "one\none\ntwo\n", "{}", ended.stderr.text());
}

#[test]
fn the_timeout_covers_all_tries_and_the_pauses() {
    let stage = Stage::new();
    let run = tries_with(&stage, LATER, &[&["hang"], &["say:too late"]]);
    let ended = run.options(["--timeout", "8s"]).end();
    assert_eq!((ended.code(), starts(&stage)), (124, 1), "{}", ended.stderr.text());
    assert!(ended.stderr.text().contains("--timeout") || ended.stderr.text().contains("\"timeout\""));
}

#[test]
fn a_pause_is_announced_and_ends_with_a_signal() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let run = tries_with(&stage, LATER, &[&["hang"], &["say:never"]]).stderr(writer).start();
    let mut said = std::io::BufReader::new(reader);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("try 2 begins in 600.0 s"), "{line}");
    run.signal(Signal::SIGINT);
    let ended = run.end();
    assert_eq!((ended.code(), starts(&stage)), (128 + 2, 1));
}

/// Who asks to end while a silent try is being ended has asked for the end of the run.
#[test]
fn a_signal_while_a_silent_try_ends_is_the_end() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(IDLE).options(AT_ONCE).options(["--kill-after", "10m", "--max-drain", "20m"]);
    let run = run.fixture("tell_signals", ["SIGUSR1"]).start();
    let _ = stage.wait("SIGTERM"); // from us, because it was silent
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert_eq!((ended.code(), told(&ended)), (124, vec![row("idle", None)]), "{}", ended.stderr.text());
}

/// Another failure than silence, off by default.
#[test]
fn a_failure_is_tried_again_only_when_asked() {
    let script: [&[&str]; 2] = [&["say:1", "exit:3"], &["say:2", "exit:0"]];
    let stage = Stage::new();
    assert_eq!(tries(&stage, &script).end().code(), 3);
    let stage = Stage::new();
    let ended = tries(&stage, &script).options(["--retries-after-failure", "1"]).end();
    assert_eq!((ended.code(), ended.stdout.text()), (0, "1\n2\n".into()), "{}", ended.stderr.text());
    assert_eq!(told(&ended), [row("exit", None), row("exit", Some("afresh"))]);
}

#[test]
fn a_resume_command_that_is_not_there_is_said() {
    let stage = Stage::new();
    let run = tries(&stage, &[&["say:session s-1", "hang"]]).options(SESSION);
    let ended = run.options(["--resume-command", "/no/such/agent {session_id}"]).end();
    assert_eq!(ended.code(), 127, "{}", ended.stderr.text());
    assert!(ended.stderr.text().contains("/no/such/agent"), "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "session s-1\n");
}

fn records(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_log_tells_of_every_try() {
    let stage = Stage::new();
    let log = stage.path("audit.jsonl");
    let run = tries(&stage, &[&["say:session s-1", "hang"]]).options(["--audit".as_ref(), log.as_os_str()]);
    let ended = run.options(resuming("say:{session_id}")).end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    let records = records(&log);
    let of = |event: &str| -> Vec<&Value> { records.iter().filter(|record| record["event"] == event).collect() };
    let idle = of("run.output_idle");
    assert_eq!((idle.len(), &idle[0]["detail"]["attempt"]), (1, &1.into()));
    assert_eq!(idle[0]["detail"]["limit_us"], 3_000_000);
    assert!(idle[0]["detail"]["quiet_us"].as_u64() >= Some(3_000_000));
    let retried = of("run.retried");
    assert_eq!((retried.len(), &retried[0]["detail"]["start"]), (1, &"resumed".into()));
    assert_eq!(retried[0]["detail"]["attempt"], 2);
    assert!(retried[0]["detail"]["command"].as_str().unwrap().contains("say:s-1"));
    let attempts: Vec<&Value> = of("run.exited").iter().map(|record| &record["detail"]["attempt"]).collect();
    assert_eq!(attempts, [&Value::from(1), &Value::from(2)]);
    assert_eq!(of("run.finished")[0]["detail"]["attempts"], 2);
    // The record of the silence comes before the signal that it is the reason for.
    let place = |event: &str| records.iter().position(|record| record["event"] == event).unwrap();
    assert!(place("run.output_idle") < place("holder.signalled"));
}
