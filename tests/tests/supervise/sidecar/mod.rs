//! A sidecar as people build them: an HTTP endpoint that writes messages into an agent's stdin FIFO,
//! the agent, and a log shipper; restarted at random under load. Nothing is lost on the way.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pipewarden::supervise::control::{self, Reply, Request};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, nobody_is_left};

const RESTARTS: usize = 200;
const CLIENTS: usize = 4;

fn config(stage: &Stage, python: &str, port: u16) -> String {
    for (name, text) in [
        ("endpoint.py", include_str!("endpoint.py")),
        ("agent.py", include_str!("agent.py")),
        ("shipper.py", include_str!("shipper.py")),
    ] {
        fs::write(stage.path(name), text).unwrap();
    }
    let path = |name: &str| stage.path(name).display().to_string();
    format!(
        r#"
        [command.endpoint]
        run = ["{python}", "-S", "{endpoint}", "{port}", "{fifo}"]
        after = ["agent"]
        ready = {{ socket = "127.0.0.1:{port}" }}

        [command.agent]
        run = ["{python}", "-S", "{agent}", "{got}"]
        stdin = "fifo:{fifo}"
        after = ["shipper"]
        ready = {{ line = "re:^ready$" }}
        holder_grace = 0

        [command.shipper]
        run = ["{python}", "-S", "{shipper}", "{got}", "{shipped}"]
        ready = {{ line = "re:^ready$" }}
        "#,
        endpoint = path("endpoint.py"),
        agent = path("agent.py"),
        shipper = path("shipper.py"),
        fifo = path("fifo"),
        got = path("got"),
        shipped = path("shipped"),
    )
}

/// Posts one message; whether it was acknowledged.
fn post(address: SocketAddr, message: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(pipewarden_tests::deadline::PATIENCE))?;
    let length = message.len();
    write!(stream, "POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{message}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.0 200"))
}

/// A client that posts one message after the other, each until it is acknowledged.
fn client(number: usize, address: SocketAddr, enough: &AtomicBool) -> usize {
    let mut sent = 0;
    while !enough.load(Ordering::Relaxed) {
        let message = format!("client {number} message {sent}");
        // Between two endpoints nobody listens.
        let acknowledged = Deadline::patient().until(|| post(address, &message).unwrap_or(false));
        assert!(acknowledged, "{message}");
        sent += 1;
        std::thread::sleep(Duration::from_millis(10)); // its pace: the load is not what is tested
    }
    sent
}

#[test]
fn a_sidecar_that_is_restarted_two_hundred_times_under_load_loses_nothing() {
    // What is found as python3 can be a script that looks for it first, which two hundred times takes its time.
    let asked =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).stderr(Stdio::null()).output();
    let Some(python) = asked.ok().filter(|output| output.status.success()) else {
        skipped("a_sidecar_that_is_restarted…", "it needs python3");
        return;
    };
    let python = String::from_utf8(python.stdout).unwrap().trim().to_owned();
    let stage = Stage::new();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let supervised = Supervise::on(&stage, &config(&stage, &python, port.port())).start();
    supervised.says("endpoint: ready");
    let enough = AtomicBool::new(false);
    let sent: Vec<usize> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn({
                    let enough = &enough;
                    move || client(number, port, enough)
                })
            })
            .collect();
        // One who restarts each of them, so that restarts meet in all ways.
        let names = ["endpoint", "agent", "shipper"];
        let socket = &supervised.socket;
        let restarts: Vec<_> = names
            .into_iter()
            .enumerate()
            .map(|(index, name)| {
                scope.spawn(move || {
                    for _ in (index..RESTARTS).step_by(names.len()) {
                        let reply = control::ask(socket, &Request::Restart(name.to_owned())).unwrap();
                        assert!(matches!(reply, Reply::Done(_)), "{reply:?}");
                    }
                })
            })
            .collect();
        let restarted = restarts.into_iter().all(|restart| restart.join().is_ok());
        enough.store(true, Ordering::Relaxed);
        assert!(restarted, "log:\n{}", supervised.log.so_far());
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let restarts: u64 = supervised.status().commands.iter().map(|command| command.restarts).sum();
    assert_eq!(restarts, RESTARTS as u64);
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    nobody_is_left(&stage);

    let got = fs::read_to_string(stage.path("got")).unwrap();
    for (number, count) in sent.iter().enumerate() {
        let prefix = format!("client {number} message ");
        let mut seen = HashSet::new();
        let numbers = got.lines().filter_map(|line| line.strip_prefix(&prefix)?.parse::<usize>().ok());
        // One whose acknowledgement was lost is sent once more: that is the client's doing.
        let first: Vec<usize> = numbers.filter(|number| seen.insert(*number)).collect();
        assert_eq!(first, (0..*count).collect::<Vec<_>>(), "client {number}: each, in its order");
    }
    assert!(got.lines().all(|line| line.starts_with("client ")), "no line is torn");
    assert_eq!(fs::read_to_string(stage.path("shipped")).unwrap(), got, "the shipper went last");
    let at = |text: &str| ended.log.rfind(text).unwrap_or_else(|| panic!("{text}: {}", ended.log));
    assert!(
        at("endpoint: exited with 0") < at("agent: stopping") && at("agent: exited with 0") < at("shipper: stopping")
    );
    println!("{} messages in {RESTARTS} restarts", sent.iter().sum::<usize>());
}
