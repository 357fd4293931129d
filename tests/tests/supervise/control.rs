//! The command line and the control socket.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use pipewarden::supervise::control::{Request, Status};
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, bash, fixture, nobody_is_left};

fn supervise(words: &[&str]) -> Output {
    Command::new(binary(UNDER_TEST)).arg("supervise").args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A configuration of so many commands, each after the one before it.
fn many(number: usize) -> String {
    let mut config = String::new();
    for n in 0..number {
        let after = if n == 0 { String::new() } else { format!("after = [\"c{}\"]", n - 1) };
        let _ = writeln!(config, "[command.c{n}]\nrun = [\"sleep\", \"1000\"]\n{after}");
    }
    config
}

#[test]
fn check_says_whether_a_file_is_right() {
    let stage = Stage::new();
    let file = stage.path("f.toml");
    let check = |config: &str| {
        fs::write(&file, config).unwrap();
        supervise(&["--check", file.to_str().unwrap()])
    };
    for (number, said) in
        [(1, "1 command, started in this order: c0\n"), (200, "200 commands, started in this order: c0, c1, ")]
    {
        let output = check(&many(number));
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).starts_with(said), "{output:?}");
    }
    let output = check("[command.a]\nrun = [\"x\"]\nrestart = 3\n");
    assert_eq!(output.status.code(), Some(125));
    let wanted =
        format!("pipewarden: {}:3: command.a.restart: this is an integer; use a text in quotes\n", file.display());
    assert_eq!(text(&output.stderr), wanted);
    let output = supervise(&["--check", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).starts_with("pipewarden: /no/such/file:1: it cannot be read: "), "{output:?}");
}

/// Nothing is started where something is wrong before.
#[test]
fn what_is_wrong_before_is_one_line_and_starts_nothing() {
    let stage = Stage::new();
    let proof = stage.path("started");
    let (good, bad) = (stage.path("good.toml"), stage.path("bad.toml"));
    let config = bash("a", &format!("touch {}", proof.display()), "");
    fs::write(&good, &config).unwrap();
    fs::write(&bad, config.clone() + &bash("b", "true", "no_such_key = 1")).unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for words in [
        vec!["--config", bad],
        vec!["--config", "/no/such/file"],
        vec!["--config", good, "--audit", "/no/such/folder/log"],
        vec!["--config", good, "--audit", "-"],
        vec!["--config", good, "--socket", "/proc/no/such/socket"],
        vec![],
        vec!["--config"],
        vec!["--config", good, "--check", good],
        vec!["start"],
        vec!["status", "--socket", "/no/such/socket"],
    ] {
        let output = supervise(&words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {said}");
        assert_eq!((said.lines().count(), output.stdout.len()), (1, 0), "{words:?}: {said}");
        assert!(!proof.exists(), "{words:?}");
    }
}

#[test]
fn the_status_is_told_in_text_and_in_json() {
    let stage = Stage::new();
    let config = bash("runs", "sleep 1000", "essential = true")
        + &bash("leaks", "setsid sleep 1000 & exit 3", "restart = \"never\"")
        + &bash("waits", "true", "after = [\"runs\"]\nready = { delay = \"1h\" }")
            .replace("\"true\"", "\"sleep 1000\"");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.comes_to("leaks", "failed");
    supervised.comes_to("waits", "starting");
    let socket = supervised.socket.to_str().unwrap();
    let output = supervise(&["status", "--socket", socket, "--json"]);
    let status: Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status.pid, supervised.process.pid);
    let [runs, leaks, waits] = &status.commands[..] else { panic!("{status:?}") };
    assert_eq!((runs.state.as_str(), runs.essential, runs.restarts, runs.last_exit), ("running", true, 0, None));
    assert!(runs.pid.is_some() && runs.run_pid.is_some() && runs.uptime_ms.is_some());
    assert_eq!((leaks.state.as_str(), leaks.pid, leaks.holders_ended), ("failed", None, 1));
    assert_eq!(leaks.last_exit, Some(pipewarden::pipe::ExitStatus::Code(3)));
    assert_eq!(waits.state, "starting");
    let output = text(&supervise(&["status", "--socket", socket]).stdout);
    let lines: Vec<Vec<&str>> = output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "PID", "UPTIME", "RESTARTS", "LAST", "EXIT", "HOLDERS", "ENDED"]);
    assert_eq!(lines[1][..3], ["runs", "running", &runs.pid.unwrap().to_string()]);
    assert_eq!(lines[2], ["leaks", "failed", "-", "-", "0", "3", "1"]);
    assert_eq!(supervised.terminate().code(), 0);
}

#[test]
fn commands_are_steered_by_name() {
    let stage = Stage::new();
    let supervised = Supervise::on(&stage, &bash("a", "sleep 1000", "")).start();
    supervised.says("a: started");
    let socket = supervised.socket.to_str().unwrap().to_owned();
    let steer = |verb: &str, name: &str| supervise(&[verb, name, "--socket", &socket]);
    let first = supervised.status_of("a").pid;
    for (verb, said) in [
        ("restart", "a: running\n"),
        ("stop", "a: stopped\n"),
        ("stop", "a: stopped\n"),
        ("start", "a: running\n"),
        ("start", "a: running\n"),
    ] {
        let output = steer(verb, "a");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), said.to_owned()), "{verb}");
    }
    assert_ne!(supervised.status_of("a").pid, first);
    let output = steer("stop", "b");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "pipewarden: there is no command b; the commands are a\n");
    assert_eq!(supervised.terminate().code(), 0);
    assert!(!Path::new(&socket).exists(), "the socket goes with it");
}

#[test]
fn the_socket_is_its_owners_and_a_stale_one_is_replaced() {
    let stage = Stage::new();
    let config = bash("a", "sleep 1000", "");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says(&format!("control socket: {}\n", supervised.socket.display()));
    supervised.says("a: started");
    assert_eq!(fs::metadata(&supervised.socket).unwrap().permissions().mode() & 0o777, 0o600);
    // A second one is turned away, and the first one keeps its socket.
    let second = Supervise::on(&stage, &config).start().end();
    assert_eq!(second.code(), 125, "{}", second.log);
    assert!(second.log.contains("another supervise listens here; name another with --socket"), "{}", second.log);
    assert!(supervised.status_of("a").pid.is_some());
    supervised.signal(nix::sys::signal::Signal::SIGKILL);
    let socket = supervised.socket.clone();
    let _ = supervised.end();
    assert!(socket.exists(), "nobody could remove it");
    let third = Supervise::on(&stage, &config).start();
    assert_eq!(third.status_of("a").restarts, 0);
    assert_eq!(third.terminate().code(), 0);
    nobody_is_left(&stage);
}

/// Clients that say nothing, nonsense, or go away in the middle hold up nobody and leave nothing.
#[test]
fn clients_that_misbehave_are_nobodys_problem() {
    let stage = Stage::new();
    let supervised = Supervise::on(&stage, &fixture("a", "ignore_term", &[], "kill_after = \"1m\"")).start();
    supervised.says("a: started");
    let _ = stage.wait("ready");
    let before = pipewarden_tests::kernel::descriptors(supervised.process.pid);
    let connect = || UnixStream::connect(&supervised.socket).unwrap();
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    for nonsense in [&b"\n"[..], b"{}\n", b"\"status\"", b"{\"stop\":7}\n", &[b'x'; 5000]] {
        let mut stream = connect();
        let _ = stream.write_all(nonsense);
        drop(stream);
    }
    // One that waits for a stop which takes its time, and leaves.
    drop(silent);
    // (It is not let in before those who left are noticed to have left: there is room for so many.)
    let mut waits = None;
    let let_in = Deadline::patient().until(|| {
        let mut stream = connect();
        stream.set_nonblocking(true).unwrap();
        let mut is_open = stream.write_all(b"{\"stop\":\"a\"}\n").is_ok();
        let is_taken = |is_open: &mut bool, stream: &mut UnixStream| {
            *is_open = matches!(stream.read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock);
            supervised.log.count("a: stopping") > 0
        };
        let _ = Deadline::patient().until(|| is_taken(&mut is_open, &mut stream) || !is_open);
        waits = is_open.then_some(stream);
        waits.is_some()
    });
    assert!(let_in, "{}", supervised.log.so_far());
    drop(waits);
    assert_eq!(supervised.status_of("a").state, "stopping");
    let gone = Deadline::patient().until(|| pipewarden_tests::kernel::descriptors(supervised.process.pid) <= before);
    assert!(gone, "their connections are closed");
    let mut stream = connect();
    stream.write_all(b"nonsense\n").unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "it is not answered");
    supervised.signal(nix::sys::signal::Signal::SIGTERM);
    supervised.says("shutting down");
    supervised.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(supervised.end().code(), 0);
}

/// Two hundred commands, each with its run: all come up in their order, and all go.
#[test]
fn two_hundred_commands() {
    let stage = Stage::new();
    let config = many(200).replace("after", "# after");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says_times(200, ": started (pid ");
    let status = supervised.status();
    assert!(status.commands.iter().all(|command| command.state == "running"), "{status:?}");
    supervised.does(&Request::Restart("c100".into()));
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0);
    assert_eq!(ended.log.matches("; stopped\n").count(), 200, "{}", ended.log);
    nobody_is_left(&stage);
}
