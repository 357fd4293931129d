//! `docs/replacing.md`: every line of its table of cases, run with the tool and with pipewarden.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::packages::debian;
use pipewarden_tests::process::Process;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;

const DOCUMENT: &str = include_str!("../../docs/replacing.md");

/// A line of the table.
#[derive(Debug)]
struct Case {
    before: &'static str,
    now: &'static str,
    sent: Option<Signal>,
    status: i32,
}

/// The lines with four columns.
fn cases() -> Vec<Case> {
    let rows = DOCUMENT.lines().filter_map(|line| {
        let columns: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::trim).collect();
        let [before, now, sent, status] = columns[..] else { return None };
        let code = |text: &'static str| text.trim_matches('`');
        let status = status.parse().ok()?; // the heading has none
        let sent = (!sent.is_empty()).then(|| sent.parse().unwrap());
        Some(Case { before: code(before), now: code(now), sent, status })
    });
    rows.collect()
}

/// Runs a line as a shell would, and gives the status as a shell would.
fn status(stage: &Stage, line: &str, sent: Option<Signal>) -> i32 {
    let path = format!("{}:{}", stage.folder().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {line}")]).env("PATH", path).process_group(0);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let process = Process::open(child.id().try_into().unwrap()).unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    if let Some(signal) = sent {
        stdout.read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "{line}");
        process.signal(signal);
    }
    let ended = process.dies(Deadline::patient());
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    assert!(ended, "it does not end: {line}");
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// The cases of one tool.
fn agrees_with(tool: &str, program: Option<&Path>) {
    let stage = Stage::new();
    std::os::unix::fs::symlink(binary(UNDER_TEST), stage.path("pipewarden")).unwrap();
    if let Some(program) = program {
        std::os::unix::fs::symlink(program, stage.path(tool)).unwrap();
    } else {
        skipped(
            &format!("agrees_with_{tool}"),
            "it needs the tool's package, and apt to get it; pipewarden alone is run",
        );
    }
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.before.starts_with(tool)).collect();
    assert!(cases.len() >= 12, "only {} cases", cases.len());
    for case in cases {
        assert_eq!(status(&stage, case.now, case.sent), case.status, "{}", case.now);
        if program.is_some() {
            assert_eq!(status(&stage, case.before, case.sent), case.status, "{}", case.before);
        }
    }
}

#[test]
fn agrees_with_tini() {
    agrees_with("tini", debian("tini", "usr/bin/tini").as_deref());
}

#[test]
fn agrees_with_dumb_init() {
    agrees_with("dumb-init", debian("dumb-init", "usr/bin/dumb-init").as_deref());
}

#[test]
fn agrees_with_timeout() {
    agrees_with("timeout", Some(Path::new("/usr/bin/timeout")));
}

#[test]
fn there_are_forty_cases() {
    assert_eq!(cases().len(), 40);
}

/// The shorter table above promises nothing that is not an option of ours.
#[test]
fn every_option_in_the_document_exists() {
    let help = Command::new(binary(UNDER_TEST)).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in DOCUMENT.split(|c: char| c.is_whitespace() || c == '`').filter(|word| word.starts_with("--")) {
        let option = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        assert!(option.len() < 3 || help.contains(option), "{option} is no option of run");
    }
}
