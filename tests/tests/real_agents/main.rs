//! Real agents and their parents, as they are installed from their registries. They run where
//! `PIPEWARDEN_REAL_AGENTS=1` asks for it, because they take minutes to install the first time; the
//! packages go into `target/real-agents`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use pipewarden::pipe::Outcome;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::kernel;
use pipewarden_tests::packages::target;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;

mod claude;
mod lifecycle;
mod sidecar;

use claude::Claude;

const ASKED_FOR: &str = "PIPEWARDEN_REAL_AGENTS";

fn unwanted(test: &str) -> bool {
    let unwanted = std::env::var_os(ASKED_FOR).is_none_or(|value| value != "1");
    if unwanted {
        skipped(test, "it runs where PIPEWARDEN_REAL_AGENTS=1 asks for it");
    }
    unwanted
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Installs something once, in a folder of its own; where it is, unless it cannot be had here.
fn installed(name: &str, proof: &str, install: impl FnOnce(&Path) -> bool) -> Option<PathBuf> {
    let folder = target().join("real-agents").join(name);
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::create(folder.with_extension("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let proof = folder.join(proof);
    (proof.exists() || (install(&folder) && proof.exists())).then_some(proof)
}

/// A Python that has the MCP SDK.
fn python_with_mcp() -> Option<PathBuf> {
    installed("python", "bin/mcp", |folder| {
        succeeds(Command::new("python3").args(["-m", "venv"]).arg(folder))
            && succeeds(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "mcp[cli]"]))
    })
    .map(|mcp| mcp.with_file_name("python"))
}

fn npm(folder: &str, package: &str, proof: &str) -> Option<PathBuf> {
    installed(folder, &format!("node_modules/.bin/{proof}"), |folder| {
        succeeds(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder).arg(package))
    })
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("real_agents").join(name)
}

/// The process with this argument, which no other process on the machine has.
fn with_argument(argument: &str) -> Option<Process> {
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()) && kernel::name(*pid) == "sleep"
    };
    kernel::everybody().into_iter().find(has).and_then(|pid| Process::open(pid).ok())
}

/// A time to sleep that tells one test's process from all others.
fn unmistakable() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("300.{}{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The SDK starts servers in a session of their own, and they inherit stderr: with `2>&1 | cat` a server
/// that outlives its client keeps the pipe. The client is killed in the middle of a call.
#[test]
fn an_mcp_client_is_killed_in_the_middle_of_a_call() {
    const TEST: &str = "an_mcp_client_is_killed_in_the_middle_of_a_call";
    if unwanted(TEST) {
        return;
    }
    let Some(python) = python_with_mcp() else { return skipped(TEST, "the MCP SDK cannot be installed") };
    let server = npm("server-everything", "@modelcontextprotocol/server-everything", "mcp-server-everything");
    let Some(server) = server else { return skipped(TEST, "the npm server cannot be installed") };
    let stage = Stage::new();
    let report = stage.path("report");
    let run = Run::on(&stage).command([python.as_os_str(), script("mcp_client.py").as_os_str()]);
    let words: Vec<_> = run.command([server.as_os_str(), "stdio".as_ref()]).words();
    let line = "\"$@\" 2>&1 | tee report | cat; echo code ${PIPESTATUS[0]}";
    let mut shell = Command::new("bash");
    shell.args(["-c", line, "bash"]).args(&words).current_dir(stage.folder()).stdin(Stdio::null());
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("calling\nthe call is under way\n"), "{said}");
    assert!(said.ends_with("code 137\n"), "{said}");
    let report = pipewarden_tests::report::Report::find(&fs::read_to_string(report).unwrap());
    assert!([Outcome::HoldersEnded, Outcome::Natural].contains(&report.outcome), "{said}");
    for holder in report.holders {
        assert!(holder.escaped, "a session of its own: {said}");
        assert!(Deadline::patient().until(|| kernel::stat(holder.pid, 3).is_none_or(|state| state == "Z")), "{said}");
    }
}

/// What a tool call leaves behind has a file as its stdout: it keeps no reader waiting, so it is spared;
/// `--reap all` ends it.
#[test]
fn what_a_claude_tool_call_leaves_behind() {
    const TEST: &str = "what_a_claude_tool_call_leaves_behind";
    let Some(claude) = Claude::to_test(TEST) else { return };
    for (options, lives) in [(&[][..], true), (&["--reap", "all"], false)] {
        let stage = Stage::new();
        let sleep = unmistakable();
        let tool = format!("setsid sleep {sleep} >/dev/null 2>&1 & echo left");
        let run = claude.answered(Run::on(&stage), &stage, ["--tool", &tool]).options(options);
        let run = run.command([claude.program()]).command(["-p", "leave a process", "--allowedTools", "Bash"]);
        let ended = run.end();
        let said = format!("{}{}", ended.stdout.text(), ended.stderr.text());
        assert_eq!((ended.code(), ended.stdout.text().trim()), (0, "All is done: leave a process"), "{said}");
        assert!(ended.stdout.eof);
        let left = with_argument(&sleep);
        assert_eq!(left.as_ref().is_some_and(Process::lives), lives, "{options:?}: {said}");
        if let Some(left) = left {
            left.signal(Signal::SIGKILL);
        }
    }
}

/// Node gives its children socket pairs, and says `close` when both streams have ended.
#[test]
fn a_node_parent_gets_its_close() {
    const TEST: &str = "a_node_parent_gets_its_close";
    if unwanted(TEST) {
        return;
    }
    if !succeeds(Command::new("node").arg("--version")) {
        return skipped(TEST, "it needs node");
    }
    let sleep = unmistakable();
    let line = format!("echo out; echo err >&2; setsid sleep {sleep} & exit 3");
    let mut command = Command::new("node");
    command.arg(script("node_parent.js")).arg(binary(UNDER_TEST));
    let output = command.args(["run", "--report", "none", "--", "bash", "-c", &line]).output().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({"code": 3, "signal": null, "stdout": "out\n", "stderr": "err\n"});
    assert_eq!(seen, expected);
    assert!(with_argument(&sleep).is_none());
}

/// A step of a CI runner: `bash -e` on a script, its output to a pipe that the runner reads to the end.
#[test]
fn a_ci_step_ends() {
    const TEST: &str = "a_ci_step_ends";
    if unwanted(TEST) {
        return;
    }
    let (stage, sleep) = (Stage::new(), unmistakable());
    let us = binary(UNDER_TEST);
    let step = format!(
        "{us} run -- bash -c 'echo building; setsid sleep {sleep} &'\necho next\n{us} run -- sh -c 'exit 4'\necho never\n",
        us = us.display()
    );
    fs::write(stage.path("step.sh"), step).unwrap();
    let mut runner = Command::new("bash");
    runner.args(["--noprofile", "--norc", "-e", "-o", "pipefail"]).arg(stage.path("step.sh")).stdin(Stdio::null());
    let output = runner.output().unwrap();
    assert_eq!(output.status.code(), Some(4), "bash -e ends at the first that fails");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "building\nnext\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("pipewarden: ended sleep ("), "{said}");
    assert!(with_argument(&sleep).is_none());
}
