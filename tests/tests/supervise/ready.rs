//! When a command is ready, and that those after it wait for that.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, bash, nobody_is_left};

/// `a` has not what makes it ready until the test gives it; until then `b` waits.
fn waits_until(stage: &Stage, ready: &str, give: impl FnOnce()) {
    let config = bash("a", "sleep 1000", &format!("ready = {ready}")) + &bash("b", "sleep 1000", "after = [\"a\"]");
    let supervised = Supervise::on(stage, &config).start();
    supervised.says("a: started");
    assert_eq!(supervised.status_of("a").state, "starting");
    assert_eq!(supervised.status_of("b").state, "waiting");
    give();
    supervised.says("b: started");
    let log = supervised.log.so_far();
    assert!(log.find("a: ready after").unwrap() < log.find("b: started").unwrap(), "{log}");
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(stage);
}

#[test]
fn by_a_file_that_appears() {
    let stage = Stage::new();
    let file = stage.path("file");
    waits_until(&stage, &format!("{{ file = \"{}\" }}", file.display()), || fs::write(&file, "").unwrap());
}

/// One that an earlier start has left behind says nothing about this one.
#[test]
fn by_a_file_that_changes() {
    let stage = Stage::new();
    let file = stage.path("file");
    fs::write(&file, "old").unwrap();
    waits_until(&stage, &format!("{{ file = \"{}\" }}", file.display()), || fs::write(&file, "new one").unwrap());
}

#[test]
fn by_a_unix_socket() {
    let stage = Stage::new();
    let path = stage.path("socket");
    let mut listener = None;
    waits_until(&stage, &format!("{{ socket = \"{}\" }}", path.display()), || {
        listener = Some(UnixListener::bind(&path).unwrap());
    });
}

#[test]
fn by_a_port() {
    let stage = Stage::new();
    // Bound and not yet listening would be the same to who connects: nobody is there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut listener = None;
    waits_until(&stage, &format!("{{ socket = \"{port}\" }}"), || listener = Some(TcpListener::bind(port).unwrap()));
}

#[test]
fn by_a_line() {
    let stage = Stage::new();
    let gate = stage.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let line = format!("echo not up; read x < {}; echo it is up >&2; sleep 1000", gate.display());
    let config = bash("a", &line, "ready = { line = \"re:^it is up$\" }") + &bash("b", "sleep 1000", "after = [\"a\"]");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.stdout.wait_for(1, "a | not up\n");
    assert_eq!(supervised.status_of("b").state, "waiting");
    fs::write(&gate, "go\n").unwrap();
    supervised.says("b: started");
    assert_eq!(supervised.terminate().code(), 0);
}

#[test]
fn by_a_delay_and_by_the_end() {
    let stage = Stage::new();
    let config = bash("a", "sleep 1000", "ready = { delay = \"50ms\" }")
        + &bash("init", "echo done", "after = [\"a\"]\nready = \"finished\"\nrestart = \"never\"\nessential = true")
        + &bash("b", "sleep 1000", "after = [\"init\"]");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says("b: started");
    let log = supervised.log.so_far();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(at("a: ready after") < at("init: started"));
    assert!(at("init: exited with 0") < at("b: started"));
    assert_eq!(supervised.terminate().code(), 0);
}

/// One that does not become ready is ended, and counts as failed.
#[test]
fn who_is_not_ready_in_time_has_failed() {
    let stage = Stage::new();
    let more = "ready = { delay = \"1h\" }\nready_timeout = \"20ms\"\nessential = true\nrestart_limit = \"1/1h\"";
    let config = bash("a", "trap 'exit 0' TERM; sleep 1000 & wait", more);
    let ended = Supervise::on(&stage, &config).start().end();
    assert_eq!(ended.code(), 124, "{}", ended.log);
    assert_eq!(ended.log.matches("a: not ready after 20 ms; it is ended").count(), 2, "{}", ended.log);
    nobody_is_left(&stage);
}
