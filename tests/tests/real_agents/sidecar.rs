//! A sidecar whose agent is the claude CLI: an HTTP endpoint writes messages into the FIFO that it reads,
//! and a shipper sends away what it says.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden::supervise::control::Request;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::process::Process;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, Supervised, nobody_is_left};

use crate::claude::{Claude, lines, message, stands_in};

/// Where the endpoint listens: there is nobody else on this loopback.
const PORT: u16 = 8080;

fn config(claude: &Claude, stage: &Stage) -> String {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/supervise/sidecar");
    let home = Claude::environment(stage).map(|(name, value)| format!("{name} = \"{value}\"")).join(", ");
    format!(
        r#"
        [command.endpoint]
        run = ["python3", "-S", "{scripts}/endpoint.py", "{PORT}", "{folder}/fifo"]
        after = ["agent"]
        ready = {{ socket = "127.0.0.1:{PORT}" }}

        [command.agent]
        run = ["{claude}", "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
        env = {{ {home} }}
        cwd = "{folder}"
        stdin = "fifo:{folder}/fifo"
        stdout = "file:{folder}/said"
        after = ["shipper"]
        backoff = 0

        [command.shipper]
        run = ["python3", "-S", "{scripts}/shipper.py", "{folder}/said", "{folder}/shipped"]
        ready = {{ line = "re:^ready$" }}
        "#,
        scripts = scripts.display(),
        folder = stage.folder().display(),
        claude = claude.program().display(),
    )
}

/// Posts a message to the endpoint, from inside its network.
fn post(supervised: &Supervised, text: &str) {
    let program = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], sys.stdin.buffer.read()).read()";
    let mut client = Command::new("nsenter");
    client.arg(format!("--net=/proc/{}/ns/net", supervised.process.pid)).args(["python3", "-c", program]);
    let mut client = client.arg(format!("http://127.0.0.1:{PORT}/")).stdin(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(message(text).as_bytes()).unwrap();
    assert!(client.wait().unwrap().success(), "log:\n{}", supervised.log.so_far());
}

/// Each message is answered, in order and once, and its answer shipped: also one that comes while the
/// agent is being started anew. At the end the endpoint goes first and the shipper last.
#[test]
fn a_sidecar_with_claude_loses_nothing_and_ends_in_order() {
    let Some(claude) = Claude::to_test("a_sidecar_with_claude_loses_nothing_and_ends_in_order") else { return };
    let stage = Stage::new();
    let audit = stage.path("audit.jsonl");
    let supervise = Supervise::on(&stage, &config(&claude, &stage)).wrapped_in(stands_in(&stage));
    let supervised = supervise.options(["--audit".as_ref(), audit.as_os_str()]).start();
    supervised.says("endpoint: ready");
    let manager = Process::open(supervised.status().pid).unwrap();
    let shipped = || fs::read_to_string(stage.path("shipped")).unwrap_or_default();
    let mut expected = Vec::new();
    for number in 0..6 {
        if number % 2 == 1 {
            supervised.does(&Request::Restart("agent".into()));
        }
        let text = format!("message {number}");
        post(&supervised, &text);
        expected.push(format!("All is done: {text}"));
        // Answered before the next restart: what an agent has read when it is killed it has read.
        let answered = Deadline::patient().until(|| shipped().contains(&format!("\"result\":\"All is done: {text}\"")));
        assert!(answered, "{text}: {}\nlog:\n{}", shipped(), supervised.log.so_far());
    }
    assert_eq!(supervised.status_of("agent").restarts, 3);
    manager.signal(Signal::SIGTERM);
    let ended = supervised.end();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    nobody_is_left(&stage);

    let said = lines(&shipped());
    let results: Vec<&str> = said.iter().filter_map(|line| line["result"].as_str()).collect();
    assert_eq!(results, expected, "{}", ended.log);
    assert_eq!(shipped(), fs::read_to_string(stage.path("said")).unwrap(), "the shipper went last");
    let at = |text: &str| ended.log.rfind(text).unwrap_or_else(|| panic!("{text}: {}", ended.log));
    assert!(at("endpoint: exited with 0") < at("agent: stopping"), "{}", ended.log);
    assert!(at("agent: stopping") < at("shipper: stopping"), "{}", ended.log);
    assert!(!ended.log.contains("takes too long"), "each inside its bound: {}", ended.log);
    assert!(!stage.path("fifo").exists(), "the FIFO goes with the sidecar");
    let log = lines(&fs::read_to_string(&audit).unwrap());
    let count = |event: &str| log.iter().filter(|one| one["event"] == event && one["name"] == "agent").count();
    assert!(count("fifo.opened") > expected.len(), "the manager, and the endpoint for each message: {log:#?}");
    assert!(count("fifo.closed") > 0, "{log:#?}");
}
