//! What a node says by HTTP, and to whom.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use pipewarden::node::http::{Board, Limits, Listener};
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::hang::{Hang, name};
use pipewarden_tests::http::{Events, ask, get, send};
use pipewarden_tests::node::Node;
use pipewarden_tests::packages::debian;
use pipewarden_tests::skip::skipped;

/// The value of a sample in the older text.
fn sample(address: SocketAddr, name: &str) -> f64 {
    let body = get(address, "/metrics").body;
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {body}")).parse().unwrap()
}

/// The reasons why a node says that it is not ready; none if it does not say so.
fn reasons(address: SocketAddr) -> Vec<String> {
    let answer = get(address, "/readyz");
    let json = answer.json();
    let reasons: Vec<_> = json["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| reason["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        (answer.status, json["ready"].as_bool()),
        if reasons.is_empty() { (200, Some(true)) } else { (503, Some(false)) }
    );
    reasons
}

#[test]
fn a_node_tells_of_a_withheld_pipe_in_every_way_that_it_has() {
    let name = name("h");
    let mut hang = Hang::new(&name);
    let test = "a_node_tells_of_a_withheld_pipe_in_every_way_that_it_has";
    let policies = format!("[[policy]]\nmatch = {{ comm = \"{name}\" }}\non_withheld = \"end\"\ngrace = \"1h\"\n");
    let Some(node) = Node::with_http(test, "", &policies) else { return };
    let here = node.http();
    assert_eq!(get(here, "/healthz").status, 200);
    // Others on the machine may make it lose something now and then.
    assert!(Deadline::patient().until(|| reasons(here).is_empty()), "{:?}", get(here, "/readyz"));
    let mut events = Events::of(here, "/v1/events");
    hang.begin();

    let pid = hang.helper();
    let its_pipe = || {
        let pipes = get(here, "/v1/pipes").json();
        let holds = |pipe: &&serde_json::Value| {
            pipe["holders"].as_array().unwrap().iter().any(|holder| holder["process"]["pid"] == pid)
        };
        pipes["pipes"].as_array().unwrap().iter().find(|pipe| pipe["state"] == "withheld" && holds(pipe)).cloned()
    };
    assert!(Deadline::patient().until(|| its_pipe().is_some()), "{:?}", get(here, "/v1/pipes"));
    let pipe = its_pipe().unwrap();
    let holder = &pipe["holders"][0];
    assert_eq!((&holder["process"]["comm"], &holder["state"]), (&name.as_str().into(), &"waiting".into()), "{pipe}");
    assert_eq!(pipe["pipe"]["kind"], "pipe");
    assert!(sample(here, "pipewarden_pipes{state=\"withheld\"}") >= 1.0);
    assert!(sample(here, "pipewarden_withheld_total") >= 1.0);
    assert!(sample(here, "pipewarden_event_to_look_seconds_count") >= 1.0);
    assert!(sample(here, "pipewarden_map_entries{map=\"processes\"}") >= 1.0);

    let mut told = || events.next_event().unwrap();
    let of_it =
        |record: &serde_json::Value| record["event"] == "pipe.withheld" && record["pipe"]["ino"] == pipe["pipe"]["ino"];
    while !matches!(told(), (event, record) if event == "record" && of_it(&record)) {}

    // The policy's grace is over at once with the next file.
    let text = fs::read_to_string(node.config()).unwrap().replace("\"1h\"", "0");
    fs::write(node.config(), text).unwrap();
    node.signal(Signal::SIGHUP);
    assert!(Deadline::patient().until(|| hang.is_over()), "the shell waits: {}", node.said());
    let ended = |record: &serde_json::Value| record["event"] == "holder.ended" && record["process"]["pid"] == pid;
    while !ended(&told().1) {}
    assert!(sample(here, "pipewarden_acts_total{outcome=\"term\"}") >= 1.0);
    assert!(sample(here, "pipewarden_withheld_to_act_seconds_count") >= 1.0);
    assert!(Deadline::patient().until(|| its_pipe().is_none()), "it is not withheld any more");

    let open = ask(here, "GET", "/metrics", &[("Accept", "application/openmetrics-text")]);
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text;"));
    assert!(open.body.ends_with("# EOF\n") && open.body.contains("# UNIT pipewarden_event_to_look_seconds seconds\n"));
    promtool(test, &get(here, "/metrics").body);
}

/// Has Prometheus' own tool read the metrics, where it is to be had.
fn promtool(test: &str, metrics: &str) {
    let Some(promtool) = debian("prometheus", "usr/bin/promtool") else {
        return skipped(test, "it needs promtool, and apt to get it: its part is left out");
    };
    let mut command = Command::new(promtool);
    let command =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}\n{metrics}");
}

#[test]
fn who_shows_no_token_learns_nothing_and_another_token_is_read_by_sighup() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "a-token-of-some-length\n").unwrap();
    let http = format!("token_file = \"{}\"\n", file.display());
    let test = "who_shows_no_token_learns_nothing_and_another_token_is_read_by_sighup";
    let Some(node) = Node::with_http(test, &http, "") else { return };
    let here = node.http();
    let show = |path: &str, token: &str| ask(here, "GET", path, &[("Authorization", &format!("Bearer {token}"))]);
    for path in ["/metrics", "/healthz", "/readyz", "/v1/pipes", "/v1/events", "/"] {
        for answer in [get(here, path), show(path, "a-token-of-some-lengtH")] {
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{path}: {answer:?}");
        }
    }
    assert_eq!(show("/healthz", "a-token-of-some-length").status, 200);
    fs::write(&file, "another-token-of-some-length\n").unwrap();
    node.signal(Signal::SIGHUP);
    assert!(Deadline::patient().until(|| show("/healthz", "another-token-of-some-length").status == 200));
    assert_eq!(show("/healthz", "a-token-of-some-length").status, 401);
    fs::write(&file, "short\n").unwrap();
    node.signal(Signal::SIGHUP);
    assert!(Deadline::patient().until(|| node.said().contains("the token stays as it was")), "{}", node.said());
    assert_eq!(show("/healthz", "another-token-of-some-length").status, 200);
}

#[test]
fn a_node_whose_map_is_nearly_full_is_not_ready_and_one_that_is_full_says_so_once() {
    let test = "a_node_whose_map_is_nearly_full_is_not_ready_and_one_that_is_full_says_so_once";
    let Some(node) = Node::with_http(test, "", "[map]\ndescriptors = 65536\n") else { return };
    let here = node.http();
    let is_full = || reasons(here).contains(&"map_full".to_owned());
    let hold = |processes: u32| {
        let mut command = Command::new(binary("hold_many_descriptors"));
        let processes = processes.to_string();
        let mut child = command.args(["900", &processes]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "held\n");
        child
    };
    assert!(
        Deadline::patient().until(|| !is_full()),
        "others hold tens of thousands of pipes: {:?}",
        get(here, "/readyz")
    );
    // What the maps hold is known once the first look is over.
    let looked = || get(here, "/metrics").body.contains("pipewarden_map_entries{map=\"descriptors\"}");
    assert!(Deadline::patient().until(looked), "{}", node.said());
    let there = sample(here, "pipewarden_map_entries{map=\"descriptors\"}");
    let mut nearly = hold((1..).find(|processes| there + f64::from(*processes) * 900.0 > 0.92 * 65536.0).unwrap());
    assert!(Deadline::patient().until(is_full), "{}", get(here, "/metrics").body);

    // What has no room is said once, however often everything is read anew because of it.
    let mut more = hold(40);
    let reseeds = || sample(here, "pipewarden_reseeds_total{reason=\"descriptors\"}");
    assert!(Deadline::patient().until(|| reseeds() >= 2.0), "{}", get(here, "/metrics").body);
    let said = node.said();
    assert_eq!(said.matches("the map of descriptors was full: what has no room is not seen").count(), 1, "{said}");
    for child in [&mut more, &mut nearly] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    assert!(Deadline::after(Duration::from_secs(90)).until(|| !is_full()), "{:?}", get(here, "/readyz"));
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key() {
    let taken = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    fs::write(&path, format!("[http]\nlisten = \"{}\"\n", taken.here())).unwrap();
    let output = Command::new(binary(UNDER_TEST)).args(["node", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let wanted = format!("pipewarden: node: [http] listen = \"{}\": Address already in use", taken.here());
    assert!(output.status.code() == Some(125) && said.starts_with(&wanted) && said.lines().count() == 1, "{said}");
}

/// A server without a node: what it says is put up by the test.
fn serve(limits: Limits) -> (Arc<Board>, SocketAddr) {
    let board = Arc::new(Board::new(prometheus(), None));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let here = listener.here();
    listener.serve(Arc::clone(&board), limits, || ()).unwrap();
    (board, here)
}

fn prometheus() -> pipewarden::node::metrics::Registry {
    pipewarden::node::metrics::Metrics::new("none").1
}

#[test]
fn what_is_not_there_or_not_meant_for_others_is_refused() {
    let (_board, here) = serve(Limits::default());
    assert_eq!(get(here, "/").status, 404);
    assert_eq!(ask(here, "POST", "/metrics", &[("Content-Length", "0")]).status, 405);
    assert_eq!(ask(here, "HEAD", "/metrics", &[]).body, "");
    assert_eq!(get(here, "/healthz").status, 200);
    for host in ["evil.example", "evil.example:80", ""] {
        let answer = ask(here, "GET", "/v1/pipes", &[("Host", host)]);
        assert_eq!(answer.status, 421, "{host}: {answer:?}");
    }
    let answer = ask(here, "GET", "http://evil.example/v1/pipes", &[("Host", "localhost")]);
    assert_eq!(answer.status, 421, "the target names a host too");
}

#[test]
fn who_reads_records_too_slowly_is_told_and_let_go_and_others_read_on() {
    let limits = Limits { takes_nothing: Duration::from_secs(600), ..Limits::default() };
    let (board, here) = serve(limits);
    let mut slow = Events::of(here, "/v1/events");
    let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(4000));
    // More than what the kernel and the server keep for it together.
    for _ in 0..20_000 {
        board.wrote(line.as_bytes());
    }
    let mut fast = Events::of(here, "/v1/events");
    board.wrote(b"{\"for\":\"all\"}\n");
    assert_eq!(fast.next_event().unwrap().1["for"], "all");
    let last = std::iter::from_fn(|| slow.next_event()).last().unwrap();
    assert!(last.0 == "lost" && last.1["records"].as_u64().unwrap() > 0, "{last:?}");
}

#[test]
fn who_takes_nothing_or_asks_nothing_is_given_up() {
    let short = Duration::from_millis(100);
    let limits = Limits { connections: 2, readers: 1, head: short, takes_nothing: short };
    let (board, here) = serve(limits);
    let _silent = [std::net::TcpStream::connect(here).unwrap(), std::net::TcpStream::connect(here).unwrap()];
    assert_eq!(get(here, "/healthz").status, 200, "the third has its turn");

    let _takes_nothing = send(here, "GET", "/v1/events", &[]);
    assert!(Deadline::patient().until(|| board.readers() == 1), "it is not read to");
    assert_eq!(get(here, "/v1/events").status, 503, "there is one place");
    let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(4000));
    // Its place is another's once it is full and takes nothing.
    let freed = Deadline::patient().until(|| {
        for _ in 0..2000 {
            board.wrote(line.as_bytes());
        }
        board.readers() == 0
    });
    assert!(freed, "it keeps its place");
    let mut another = Events::of(here, "/v1/events");
    board.wrote(b"{\"for\":\"it\"}\n");
    assert_eq!(another.next_event().unwrap().1["for"], "it");
}

/// Its map says nothing new any more then, and nothing is counted as lost.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_node_whose_programs_are_detached_is_not_ready_and_says_why() {
    let test = "a_node_whose_programs_are_detached_is_not_ready_and_says_why";
    let Some(node) = Node::with_http(test, "", "") else { return };
    let here = node.http();
    assert!(Deadline::patient().until(|| reasons(here).is_empty()), "{:?}", get(here, "/readyz"));
    pipewarden_tests::detach::detach_programs(node.pid());
    let is_told = || reasons(here).contains(&"tracker".to_owned());
    assert!(Deadline::patient().until(is_told), "{:?}", get(here, "/readyz"));
    assert!(node.said().contains("somebody took them off their hooks"), "{}", node.said());
    assert!(sample(here, "pipewarden_failed_looks_total") > 0.0);
}
