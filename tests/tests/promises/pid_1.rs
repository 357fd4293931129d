//! As the first process of a pid namespace: a container's entrypoint.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden::pipe::{Action, Outcome, Relation};
use pipewarden_tests::binaries::binary;
use pipewarden_tests::container::Container;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER, LAST_LINE};
use pipewarden_tests::kernel::stat;
use pipewarden_tests::process::Process;
use pipewarden_tests::report::Report;
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::skip::{Need, skip, skipped};
use pipewarden_tests::stage::Stage;

/// Makes its argument the first process of a pid namespace; that is the only child of this program.
const FIRST: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The first process of the namespace that this one made.
fn first_process(run: &Running) -> Process {
    let children = format!("/proc/{0}/task/{0}/children", run.process.pid);
    let mut pid = None;
    let born = Deadline::patient().until(|| {
        pid = std::fs::read_to_string(&children).ok().and_then(|list| list.trim().parse().ok());
        pid.is_some()
    });
    assert!(born, "unshare started nothing");
    Process::open(pid.unwrap()).unwrap()
}

#[test]
fn the_exit_code_is_the_commands() {
    if skip("the_exit_code_is_the_commands", &[Need::Root]) {
        return;
    }
    for (line, code) in [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -6 $$", 134)] {
        let stage = Stage::new();
        let ended = Run::on(&stage).wrapped_in(FIRST).bash(line).end();
        assert_eq!(ended.code(), code, "{line}: {}", ended.stderr.text());
    }
    let stage = Stage::new();
    assert_eq!(Run::on(&stage).wrapped_in(FIRST).command(["no-such-program"]).end().code(), 127);
}

/// The kernel lets pid 1 ignore what it does not handle; the command is not pid 1, and dies of it.
#[test]
fn the_command_has_default_dispositions() {
    if skip("the_command_has_default_dispositions", &[Need::Root]) {
        return;
    }
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGALRM] {
        let stage = Stage::new();
        stage.hold(GATE);
        let run = Run::on(&stage).wrapped_in(FIRST).fixture("just_exit", ["--gate"]).start();
        let _ = stage.wait(GATE);
        first_process(&run).signal(signal);
        assert_eq!(run.end().code(), 128 + signal as i32, "{signal}");
    }
}

#[test]
fn signals_are_forwarded_once() {
    if skip("signals_are_forwarded_once", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let options = ["--kill-after", "10m", "--max-drain", "20m"];
    let run = Run::on(&stage).options(options).wrapped_in(FIRST);
    let run = run.fixture("tell_signals", ["SIGUSR2", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    let first = first_process(&run);
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGWINCH, Signal::SIGUSR2] {
        first.signal(signal);
        let _ = stage.wait(signal.as_str());
    }
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.text().as_str()), (7, "SIGHUP\nSIGUSR1\nSIGWINCH\nSIGUSR2\n"));
}

#[test]
fn zombies_are_reaped_by_the_thousand() {
    if skip("zombies_are_reaped_by_the_thousand", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let ended = Run::on(&stage).wrapped_in(FIRST).fixture("orphans", ["2000", "--exit", "3"]).end();
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{}", ended.stderr.text());
}

/// ... also those that become children of pid 1 itself, and not of the supervisor.
#[test]
fn zombies_from_beside_the_run_are_reaped() {
    if skip("zombies_from_beside_the_run_are_reaped", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).wrapped_in(FIRST).fixture("just_exit", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE);
    let first = first_process(&run).pid.to_string();
    let mut beside = Command::new("nsenter");
    beside.args(["--target", &first, "--pid", "--mount"]).arg(binary("orphans")).arg("500");
    let ended = beside.stdout(Stdio::null()).status().unwrap();
    assert!(ended.success(), "zombies are left");
    stage.release(GATE);
    assert_eq!(run.end().code(), 3);
}

/// `docker stop`: SIGTERM, and SIGKILL for all ten seconds later, which our own clocks come before.
#[test]
fn a_stop_is_over_before_the_kill() {
    if skip("a_stop_is_over_before_the_kill", &[Need::Root]) {
        return;
    }
    for fixture in ["ignore_term", "hold_ignoring_term"] {
        let stage = Stage::new();
        stage.hold(GATE);
        let arguments: &[&str] = if fixture == "ignore_term" { &[] } else { &["--gate"] };
        let run = Run::on(&stage).wrapped_in(FIRST).options(["--kill-after", "1s", "--max-drain", "5s"]);
        let run = run.fixture(fixture, arguments).start();
        let _ = stage.wait(if fixture == "ignore_term" { "ready" } else { GATE });
        first_process(&run).signal(Signal::SIGTERM);
        let ended = run.end();
        assert!(ended.stdout.eof);
        assert!([137, 143].contains(&ended.code()), "{fixture}: {}", ended.code());
    }
}

/// Who was adopted by pid 1 is not lineage: it is spared as a stranger, and told as what it is.
#[test]
fn an_adopted_holder_is_spared() {
    if skip("an_adopted_holder_is_spared", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).wrapped_in(FIRST).fixture("just_exit", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE);
    let first = first_process(&run).pid;
    // The pipe that the command writes to, entered from outside.
    let command = stage.wait(COMMAND).pid;
    let mut beside = Command::new("nsenter");
    beside.args(["--target", &first.to_string(), "--pid"]).arg(binary("adopted_holder"));
    let status = stage.announced(beside.arg(format!("/proc/{command}/fd/1"))).status().unwrap();
    assert!(status.success());
    let holder = stage.wait(HOLDER);
    let adopted = Deadline::patient().until(|| stat(holder.pid, 4) == Some(first.to_string()));
    assert!(adopted, "its parent is pid 1");
    stage.release(GATE);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{}", ended.stderr.text());
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::HoldersSpared);
    let seen: Vec<_> = report.holders.iter().map(|holder| (holder.relation, holder.action)).collect();
    assert_eq!(seen, [(Relation::Adopted, Action::Drained)]);
}

/// Nothing outlives pid 1: who asks for that is told at the start.
#[test]
fn keep_is_a_promise_that_pid_1_cannot_give() {
    if skip("keep_is_a_promise_that_pid_1_cannot_give", &[Need::Root]) {
        return;
    }
    let run = |keep: &[&str], wrapper: &[&str]| {
        let stage = Stage::new();
        let ended = Run::on(&stage).report("none").options(keep).wrapped_in(wrapper).command(["true"]).end();
        assert_eq!(ended.code(), 0);
        ended.stderr.text()
    };
    let said = run(&["--keep", "ssh-agent"], &FIRST);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("pipewarden: ") && said.contains("--keep") && said.contains("pid 1"), "{said}");
    assert_eq!(run(&[], &FIRST), "");
    assert_eq!(run(&["--keep", "ssh-agent"], &[]), "");
}

/// In a real container: the code, every byte, the report; and a stop that comes while it runs.
#[test]
fn as_the_entrypoint_of_a_container() {
    const TEST: &str = "as_the_entrypoint_of_a_container";
    let stage = Stage::new();
    let words = Run::on(&stage).in_a_container().fixture("hold_setsid", ["--bytes", "100000", "--exit", "3"]).words();
    let container = match Container::new(&stage, &words) {
        Ok(container) => container,
        Err(why) => return skipped(TEST, why),
    };
    let output = container.run().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(output.stdout.len() == 100_000 + LAST_LINE.len() && output.stdout.ends_with(LAST_LINE), "{said}");
    let report = Report::find(&said);
    assert_eq!(report.outcome, Outcome::HoldersEnded);
    assert_eq!(report.holders[0].relation, Relation::Lineage);
}

#[test]
fn a_container_is_stopped() {
    const TEST: &str = "a_container_is_stopped";
    let stage = Stage::new();
    let words = Run::on(&stage).in_a_container().fixture("tell_signals", ["SIGTERM", "--exit", "7"]).words();
    let container = match Container::new(&stage, &words) {
        Ok(container) => container,
        Err(why) => return skipped(TEST, why),
    };
    let mut running = container.run().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _ = stage.wait("ready");
    assert!(container.exec().args(["sh", "-c", "(sleep 0.01 &)"]).status().unwrap().success());
    container.kill("USR1");
    let _ = stage.wait("SIGUSR1");
    container.kill("TERM");
    let process = Process::open(running.id().try_into().unwrap()).unwrap();
    let stopped = process.dies(Deadline::patient());
    if !stopped {
        let _ = running.kill();
    }
    assert_eq!((stopped, running.wait().unwrap().code()), (true, Some(7)));
}
