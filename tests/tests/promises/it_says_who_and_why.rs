//! It says who and why: every signal, sparing and end is one record, written before the act.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{HOLDER, LAST_LINE};
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

fn records(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_event<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == event).collect()
}

fn verifies(path: &Path) -> bool {
    Command::new(binary(UNDER_TEST)).args(["audit", "verify"]).arg(path).output().unwrap().status.success()
}

/// Who was signalled can be told from the log alone.
#[test]
fn an_ended_holder_is_described() {
    let stage = Stage::new();
    let log = stage.path("audit.jsonl");
    let run = Run::on(&stage).options(["--audit".as_ref(), log.as_os_str()]);
    let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    let (records, pid) = (records(&log), stage.wait(HOLDER).pid);
    let signalled = of_event(&records, "holder.signalled");
    assert_eq!(signalled.len(), 1, "{records:#?}");
    let (who, which) = (&signalled[0]["process"], &signalled[0]["pipe"]);
    assert_eq!(who["pid"], pid);
    for field in ["start_time", "ppid", "pgid", "sid", "uid", "comm", "exe", "cmdline"] {
        assert!(!who[field].is_null(), "{field} in {who}");
    }
    assert_eq!((&who["comm"], &who["sid"]), (&"hold_setsid".into(), &pid.into()));
    assert!(which["dev"].is_u64() && which["ino"].is_u64(), "{which}");
    assert_eq!((&which["end"], &which["kind"]), (&"write".into(), &"pipe".into()));
    assert!(which["fds"].as_array().is_some_and(|fds| fds.iter().all(|fd| fd == 1 || fd == 2) && !fds.is_empty()));
    assert_eq!(of_event(&records, "holder.ended")[0]["process"]["pid"], pid);
    assert!(of_event(&records, "pipe.escape").iter().any(|record| record["process"]["pid"] == pid));
}

/// One chain from `run.started` to `run.finished`, which nobody can cut or reorder unseen.
#[test]
fn a_run_is_one_chain() {
    let stage = Stage::new();
    let log = stage.path("audit.jsonl");
    let run = Run::on(&stage).options(["--audit".as_ref(), log.as_os_str()]);
    assert_eq!(run.fixture("hold_setsid", [""; 0]).end().code(), 0);
    let records = records(&log);
    assert_eq!(records.first().unwrap()["event"], "run.started");
    assert_eq!(records.last().unwrap()["event"], "run.finished");
    for (number, pair) in records.windows(2).enumerate() {
        assert_eq!(pair[1]["prev"], pair[0]["hash"]);
        assert_eq!(pair[1]["seq"].as_u64(), Some(number as u64 + 1));
        assert_eq!(pair[1]["run"], pair[0]["run"]);
        assert_eq!(pair[1]["schema"], "pipewarden.audit/1");
    }
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(verifies(&log));
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replacen("hold_setsid", "someone_else", 1)).unwrap();
    assert!(!verifies(&log), "a changed record is found");
    let cut: Vec<&str> = text.lines().enumerate().filter(|(number, _)| *number != 2).map(|(_, line)| line).collect();
    std::fs::write(&log, cut.join("\n") + "\n").unwrap();
    assert!(!verifies(&log), "a missing record is found");
}

#[test]
fn a_spared_holder_is_on_record_too() {
    let stage = Stage::new();
    let log = stage.path("audit.jsonl");
    let run = Run::on(&stage).options(["--audit".as_ref(), log.as_os_str()]).options(["--keep", "hold_setsid"]);
    assert_eq!(run.fixture("hold_setsid", [""; 0]).end().code(), 0);
    let (records, pid) = (records(&log), stage.wait(HOLDER).pid);
    let spared = of_event(&records, "holder.spared");
    assert!(!spared.is_empty() && spared.iter().all(|record| record["process"]["pid"] == pid), "{records:#?}");
    assert_eq!(spared[0]["decision"]["action"], "kept");
    assert!(of_event(&records, "holder.signalled").is_empty());
}

/// Many runs append to one file without a lock, and each has its own chain in it.
#[test]
fn many_runs_share_a_log() {
    let stage = Stage::new();
    let log = stage.path("audit.jsonl");
    let runs: Vec<Running> = (0..20)
        .map(|number| {
            let run = Run::on(&stage).options(["--audit".as_ref(), log.as_os_str()]);
            run.fixture("hold_setsid", ["--as", &format!("holder {number}")]).start()
        })
        .collect();
    for run in runs {
        assert_eq!(run.end().code(), 0);
    }
    let records = records(&log);
    assert_eq!(of_event(&records, "run.finished").len(), 20);
    assert_eq!(of_event(&records, "holder.ended").len(), 20);
    assert!(verifies(&log));
}

/// What a line of strace's output says was done, with whether it was done at that line.
fn finished_at(lines: &[&str], begins: usize) -> usize {
    if !lines[begins].ends_with("<unfinished ...>") {
        return begins;
    }
    let thread = lines[begins].split_whitespace().next().unwrap();
    let resumed = |line: &&str| line.starts_with(thread) && line.contains("resumed>");
    begins + lines[begins..].iter().position(resumed).unwrap()
}

/// The record is in the file before the signal is sent, by the kernel's own account, or says itself
/// that it is late; and no process is ever signalled by its number.
#[test]
fn the_record_precedes_the_act() {
    if skip("the_record_precedes_the_act", &[Need::Strace]) {
        return;
    }
    let stage = Stage::new();
    let (log, trace) = (stage.path("audit.jsonl"), stage.path("trace"));
    let calls = "trace=write,writev,pwritev2,pidfd_send_signal,kill,tkill,tgkill";
    let strace = ["strace", "-f", "-s", "8192", "-e", calls, "-o", trace.to_str().unwrap()];
    let run = Run::on(&stage).wrapped_in(strace).options(["--audit".as_ref(), log.as_os_str()]);
    let run = run.options(["--kill-after", "200ms"]);
    let ended = run.fixture("hold_ignoring_term", ["--exit", "3"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    let text = std::fs::read_to_string(trace).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // A machine that gives the log's writer no time delays no act for longer than 50 ms; then the
    // log itself says so.
    let records = records(&log);
    let late = records.last().is_some_and(|finished| finished["detail"]["log"]["late"] != 0);
    for (signal, name) in [("SIGTERM", "TERM"), ("SIGKILL", "KILL")] {
        let record = format!(r#"\"signal\":\"{name}\""#);
        let is_record = |line: &&str| line.contains("holder.signalled") && line.contains(&record);
        let is_act = |line: &&str| line.contains("pidfd_send_signal") && line.contains(signal);
        let record = lines.iter().position(is_record).unwrap_or_else(|| panic!("no record of {name}: {text}"));
        let act = lines.iter().position(is_act).unwrap_or_else(|| panic!("no {signal}: {text}"));
        assert!(late || finished_at(&lines, record) < act, "{name}: {text}");
    }
    let by_number = |line: &&&str| [" kill(", " tkill(", " tgkill("].iter().any(|call| line.contains(call));
    assert_eq!(lines.iter().find(by_number), None, "by a pidfd or not at all");
}

/// A log that takes nothing, or refuses everything, delays no ending and changes no code.
#[test]
fn nothing_about_logging_outlasts_an_ending() {
    let stage = Stage::new();
    let fifo = stage.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let full = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(&full, &[0; 4096]).is_ok() {}
    for log in [fifo.as_path(), Path::new("/dev/full")] {
        let role = format!("holder of {}", log.display());
        let run = Run::on(&stage).options(["--audit".as_ref(), log.as_os_str()]);
        let ended = run.fixture("hold_setsid", ["--exit", "3", "--as", &role]).end();
        let stderr = ended.stderr.text();
        assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{}: {stderr}", log.display());
        assert!(stage.wait(&role).dies(Deadline::patient()), "{}: {stderr}", log.display());
    }
}

/// `-` is stderr: one object a line, and the report after them.
#[test]
fn the_log_can_be_stderr() {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(["--audit", "-"]).fixture("hold_setsid", ["--exit", "3"]).end();
    let text = ended.stderr.text();
    assert_eq!(ended.code(), 3, "{text}");
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(of_event(&records, "holder.signalled").len(), 1, "{text}");
    assert_eq!(ended.report().holders.len(), 1, "{text}");
}
