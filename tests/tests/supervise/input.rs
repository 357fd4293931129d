//! The FIFO that a command reads: it outlasts the command's restarts, is closed once, and the log says
//! who opened and closed it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use pipewarden::supervise::control::Request;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, bash, nobody_is_left};
use serde_json::Value;

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be half written.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn writer(fifo: &Path) -> File {
    OpenOptions::new().write(true).open(fifo).unwrap()
}

/// One writer who holds it open all the time, and one for each message, across a restart.
#[test]
fn the_log_says_who_opened_and_closed_a_commands_fifo() {
    let stage = Stage::new();
    let (fifo, log) = (stage.path("fifo"), stage.path("audit"));
    let line = "while read -r line; do echo \"got $line\"; done; echo end";
    let config =
        bash("agent", line, &format!("stdin = \"fifo:{}\"", fifo.display())) + &bash("other", "sleep 1000", "");
    let supervised = Supervise::on(&stage, &config).options(["--audit".as_ref(), log.as_os_str()]).start();
    supervised.says("agent: started");
    let mut stays = writer(&fifo);
    let of_the_fifo = || -> Vec<Value> {
        let ours = |record: &Value| record["event"].as_str().is_some_and(|event| event.starts_with("fifo."));
        records(&log).into_iter().filter(ours).collect()
    };
    let us = i64::from(std::process::id());
    let named = |event: &str| of_the_fifo().iter().any(|one| one["event"] == event && one["process"]["pid"] == us);
    assert!(Deadline::patient().until(|| named("fifo.opened")), "{:#?}", of_the_fifo());
    writer(&fifo).write_all(b"one\n").unwrap();
    supervised.stdout.wait_for(1, "got one\n");
    supervised.does(&Request::Restart("agent".into()));
    stays.write_all(b"two\n").unwrap();
    supervised.stdout.wait_for(1, "got two\n");
    drop(stays);
    assert!(Deadline::patient().until(|| named("fifo.closed")), "{:#?}", of_the_fifo());
    supervised.does(&Request::Stop("agent".into()));
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);

    let records = of_the_fifo();
    assert!(records.iter().all(|record| record["name"] == "agent" && record["pipe"]["kind"] == "fifo"), "{records:#?}");
    let reasons: Vec<(&str, &str)> = records
        .iter()
        .filter_map(|record| Some((record["event"].as_str()?, record["detail"]["why"].as_str()?)))
        .collect();
    assert_eq!(reasons, [("fifo.opened", "--stdin"), ("fifo.closed", "command exited")], "closed once: {records:#?}");
    let verdict =
        std::process::Command::new(pipewarden_tests::binaries::binary(pipewarden_tests::binaries::UNDER_TEST))
            .args(["audit", "verify"])
            .arg(&log)
            .output()
            .unwrap();
    assert!(verdict.status.success(), "every chain is whole and closed: {verdict:?}");
}
