//! Where there is no node: who asked for one by name is told, and nothing is started; `auto` goes on without.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pipewarden::ownership::node::protocol::Tell;
use pipewarden::pipe::Outcome;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::log::Log;
use pipewarden_tests::run::copied;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;
use pipewarden_tests::stand_in::{Reply, StandIn};

use crate::{asking, may_ask};

/// One line that names the socket and what to do; nothing was started.
fn is_refused(stage: &Stage, socket: &Path, why: &str) {
    let proof = stage.path("started");
    let ended = asking(stage, socket).report("text").command(["touch"]).command([&proof]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    for part in ["--backend node", why, &socket.display().to_string(), "PIPEWARDEN_NODE_SOCKET", "--backend auto"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!proof.exists(), "nothing was started");
}

/// The command runs as if nobody had been asked.
fn goes_on(stage: &Stage, socket: &Path) -> Log {
    let log = Log::on(stage);
    let ended = may_ask(stage, socket).options(log.options()).fixture("hold_setsid", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.stdout.eof), (3, true), "{stderr}");
    let report = ended.report();
    assert_eq!((report.outcome, report.backend.as_str()), (Outcome::HoldersEnded, "proc"), "{stderr}");
    log
}

/// What the log says of the node, where it says anything.
fn missed(log: &Log) -> Vec<String> {
    let degraded = log.of("tracker.degraded").into_iter().filter(|record| record["detail"]["from"] == "node");
    degraded.map(|record| record["detail"]["why"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn no_socket() {
    let stage = Stage::new();
    let socket = stage.path("nobody.sock");
    is_refused(&stage, &socket, "there is no such socket");
    assert!(missed(&goes_on(&stage, &socket)).is_empty(), "most machines have no node, and nobody need hear of it");
}

#[test]
fn a_socket_that_nobody_listens_at() {
    let stage = Stage::new();
    let socket = stage.path("left.sock");
    drop(UnixListener::bind(&socket).unwrap());
    is_refused(&stage, &socket, "no node can be reached");
    assert_eq!(missed(&goes_on(&stage, &socket)).len(), 1);
}

#[test]
fn a_file_that_is_no_socket() {
    let stage = Stage::new();
    let socket = stage.path("file");
    drop(File::create(&socket).unwrap());
    is_refused(&stage, &socket, "no node can be reached");
}

#[test]
fn a_path_that_no_socket_can_have() {
    let stage = Stage::new();
    is_refused(&stage, &PathBuf::from(format!("/{}", "x".repeat(200))), "at most 107 bytes");
}

/// Another user's socket is no node's: who listens there would see what is written.
#[test]
fn a_socket_of_a_stranger() {
    if skip("a_socket_of_a_stranger", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let (socket, listener) = (stage.path("stranger.sock"), stage.path("foreign_daemon"));
    copied(&binary("foreign_daemon"), &listener);
    let mut command = Command::new(listener);
    let mut stranger = stage.announced(&mut command).arg(&socket).uid(7).gid(7).spawn().unwrap();
    let _ = stage.wait("daemon");
    is_refused(&stage, &socket, "is user 7 and no node");
    let _ = stranger.kill();
    let _ = stranger.wait();
}

/// Whoever listens is stopped: the kernel takes connections for it, until its queue is full.
#[test]
fn who_never_answers() {
    let stage = Stage::new();
    let socket = stage.path("stopped.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    is_refused(&stage, &socket, "does not answer");
    goes_on(&stage, &socket);
}

#[test]
fn a_queue_that_is_full() {
    let stage = Stage::new();
    let socket = stage.path("full.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // SAFETY: listen(2) takes two integers.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
    let _first = UnixStream::connect(&socket).unwrap();
    let why = missed(&goes_on(&stage, &socket));
    assert!(why.len() == 1 && why[0].contains("no node can be reached"), "{why:?}");
}

#[test]
fn who_answers_with_garbage() {
    let stage = Stage::new();
    let listener = StandIn::new(&stage, |_, _| Reply::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    is_refused(&stage, listener.socket(), "what is no message");
    let stage = Stage::new();
    let listener = StandIn::new(&stage, |_, _| Reply::Bytes(vec![b'x'; 100_000]));
    is_refused(&stage, listener.socket(), "a line is longer than");
}

#[test]
fn who_hangs_up() {
    let stage = Stage::new();
    let listener = StandIn::new(&stage, |_, _| Reply::Close);
    is_refused(&stage, listener.socket(), "is gone");
}

#[test]
fn another_machines_node() {
    let stage = Stage::new();
    let listener = StandIn::new(&stage, |_, _| {
        Reply::Tell(Tell::Hello { version: "0".into(), rung: "bpf-fentry".into(), boot: "another".into() })
    });
    is_refused(&stage, listener.socket(), "another machine's");
}
