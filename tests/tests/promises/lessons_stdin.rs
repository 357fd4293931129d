//! What earlier systems got wrong with an agent whose stdin is a FIFO, line by line.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::process::Process;
use pipewarden_tests::row::assert_same_bytes;
use serde_json::Value;

use crate::stdin_fifo::Scene;

fn records(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == event).collect()
}

/// Opened and closed for each message, the agent saw EOF too early; beside one who holds it open for good,
/// it never saw one.
#[test]
fn opened_and_closed_for_each_message_it_is_no_eof() {
    let scene = Scene::new();
    let run = scene.agent(&["at:ready", "input", "exit:3"]).start();
    let _ = scene.stage.wait("ready");
    let stays = scene.writer();
    let mut expected = Vec::new();
    for number in 0..200 {
        let message = format!("message {number}\n");
        scene.writer().write_all(message.as_bytes()).unwrap();
        expected.extend_from_slice(message.as_bytes());
    }
    assert_eq!(scene.status()["open"], true);
    scene.close();
    let _ = scene.stage.wait("eof");
    let ended = run.end();
    assert_same_bytes(&ended.stdout.bytes, &expected);
    assert_eq!((ended.code(), ended.report().ended_for()), (3, "exit".into()), "{}", ended.stderr.text());
    drop(stays);
}

/// A job's script holds the FIFO open across `wait`, and the agent waits for its EOF: both would wait
/// for ever, and to kill the holder would kill the job. The agent says that it is done, and so the run
/// ends; the script goes on untouched.
#[test]
fn held_across_wait_by_an_innocent_it_ends_all_the_same() {
    let scene = Scene::with_fifo();
    let log = scene.stage.path("audit.jsonl");
    let options = ["--done-when", "json:$.subtype", "--done-grace", "25s"];
    scene.stage.hold("asked");
    let run = scene.agent(&["line", "at:asked", r#"say:{"subtype":"success"}"#, "input"]);
    let run =
        run.options(options).options(["--audit".as_ref(), log.as_os_str()]).env("XDG_RUNTIME_DIR", scene.runtime());
    let words: Vec<String> = run.words().into_iter().map(|word| word.into_string().unwrap()).collect();
    let script =
        "fifo=$1; shift; \"$@\" & exec 9> \"$fifo\"; echo question >&9; wait $!; code=$?; echo \"job goes on: $code\"";
    let mut job = Command::new("bash");
    job.args(["-c", script, "job"]).arg(&scene.fifo).args(&words).env("XDG_RUNTIME_DIR", scene.runtime());
    job.stdout(Stdio::piped()).stderr(Stdio::piped());
    let job = scene.stage.announced(&mut job).spawn().unwrap();
    let _ = scene.stage.wait("asked");
    // Whoever has it open is found a little later than he opens it.
    let named = || scene.status()["writers"].as_array().is_some_and(|all| all.iter().any(|one| one["comm"] == "bash"));
    assert!(Deadline::patient().until(named), "{}", scene.status());
    scene.stage.release("asked");
    let output = job.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed, "question\n{\"subtype\":\"success\"}\njob goes on: 0\n", "{said}");
    let records = records(&log);
    let of = |event: &str| -> Vec<&Value> { records.iter().filter(|record| record["event"] == event).collect() };
    let opened = of("fifo.opened");
    assert!(opened.iter().any(|record| record["process"]["comm"] == "bash"), "who: {opened:#?}");
    let closed = of("fifo.closed");
    let ours: Vec<&&Value> = closed.iter().filter(|record| record["detail"]["why"].is_string()).collect();
    assert_eq!(ours.len(), 1, "closed once: {closed:#?}");
    assert_eq!(ours[0]["detail"]["why"], "completion marker");
    assert_eq!(of("holder.signalled").len(), 0, "the script was left alone, and the agent exited by itself");
}

/// Closed exactly once, when it is told: by the completion marker, by a control message, by the command's end.
#[test]
fn it_is_closed_once_whoever_tells_it() {
    for (steps, asked, why) in [
        (&["at:ready", "say:done", "input"][..], false, &["completion marker"][..]),
        (&["at:ready", "input"], true, &["fifo close"]),
        // That its stdin has no reader may be seen before its exit.
        (&["at:ready", "exit:0"], false, &["command exited", "the command closed its stdin"]),
    ] {
        let scene = Scene::with_fifo();
        scene.stage.hold("ready");
        let log = scene.stage.path("audit.jsonl");
        let run = scene.agent(steps).options(["--done-when", "re:^done$", "--done-grace", "25s"]);
        let run = run.options(["--audit".as_ref(), log.as_os_str()]).start();
        let _ = scene.stage.wait("ready");
        let holds_on = scene.writer();
        scene.stage.release("ready");
        if asked {
            scene.close();
        }
        assert_eq!(run.end().code(), 0, "{why:?}");
        drop(holds_on);
        let records = records(&log);
        let ours: Vec<&str> =
            of(&records, "fifo.closed").iter().filter_map(|record| record["detail"]["why"].as_str()).collect();
        assert!(ours.len() == 1 && why.contains(&ours[0]), "{ours:?}: {records:#?}");
    }
}

/// Who comes first waits in open(2) for the other end, and who comes too late as well: both are let go,
/// readers and writers.
#[test]
fn nobody_is_left_waiting_in_open() {
    let waits = |process: &Process| {
        let place = || std::fs::read_to_string(format!("/proc/{}/wchan", process.pid));
        Deadline::patient().until(|| place().is_ok_and(|place| place == "wait_for_partner"))
    };
    for script in ["exec 9> \"$0\"", "exec 9< \"$0\""] {
        let scene = Scene::with_fifo();
        let opener = || {
            let mut shell = Command::new("bash");
            let child = scene.stage.announced(shell.args(["-c", script]).arg(&scene.fifo)).spawn().unwrap();
            let process = Process::open(child.id().try_into().unwrap()).unwrap();
            scene.stage.adopt(&process);
            (child, process)
        };
        let (mut early, waiting) = opener();
        assert!(waits(&waiting), "{script}");
        scene.stage.hold("late");
        let run = scene.agent(&["at:ready", "input", "at:late"]).start();
        let _ = scene.stage.wait("ready");
        assert!(waiting.dies(Deadline::patient()), "{script}: the run has both ends open");
        scene.close();
        let _ = scene.stage.wait("late");
        let (mut late, waiting) = opener();
        assert!(waits(&waiting), "{script}: nobody has it open now");
        scene.stage.release("late");
        assert_eq!(run.end().code(), 0);
        assert!(waiting.dies(Deadline::patient()), "{script}: the end of the run lets it go");
        let _ = (early.wait(), late.wait());
    }
}

/// When it hung nobody knew who had the FIFO open: one command says it while it hangs.
#[test]
fn one_command_says_who_holds_it() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["at:ready", "input"]).start();
    let agent = scene.stage.wait("ready");
    let script = "exec 9> \"$0\"; echo up; read -r";
    let mut shell = Command::new("bash");
    let shell = shell.args(["-c", script]).arg(&scene.fifo).stdin(Stdio::piped());
    let mut shell = shell.stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut up).unwrap();
    let why = || {
        let asked = Command::new(binary(UNDER_TEST)).args(["why", "--json", &agent.pid.to_string()]).output().unwrap();
        String::from_utf8_lossy(&asked.stdout).into_owned()
    };
    // Whoever is just running is slow, not stuck: once all of them wait, it goes all the way.
    let mut said = String::new();
    let shell_pid = i32::try_from(shell.id()).unwrap();
    let names_them = Deadline::patient().until(|| {
        said = why();
        let named = |pid: i32| said.contains(&format!("\"pid\":{pid},"));
        [agent.pid, run.process.pid, shell_pid].into_iter().all(named)
    });
    assert!(names_them, "{shell_pid} is at the end of the way from the agent: {said}");
    assert!(said.contains(&scene.fifo.display().to_string()), "{said}");
    scene.close();
    assert_eq!(run.end().code(), 0);
    drop(shell.stdin.take());
    let _ = shell.wait();
}

/// ... and one timeline says it afterwards: who opened and closed it when, and how that lies to the agent's
/// start and to its last output.
#[test]
fn one_timeline_says_who_opened_and_closed_it_when() {
    let scene = Scene::with_fifo();
    let log = scene.stage.path("audit.jsonl");
    scene.stage.hold("answered");
    let run = scene.agent(&["line", "at:answered", "input"]).options(["--audit".as_ref(), log.as_os_str()]).start();
    let us = i64::from(std::process::id());
    let named = |status: &Value| status["writers"].as_array().is_some_and(|all| all.iter().any(|one| one["pid"] == us));
    let mut first = scene.writer();
    first.write_all(b"a question\n").unwrap();
    let _ = scene.stage.wait("answered");
    assert!(Deadline::patient().until(|| named(&scene.status())));
    drop(first);
    assert!(Deadline::patient().until(|| !named(&scene.status())));
    scene.stage.release("answered");
    scene.close();
    assert_eq!(run.end().code(), 0);
    let records = records(&log);
    let place = |event: &str, pid: i64| {
        records.iter().position(|one| one["event"] == event && one["process"]["pid"] == pid).unwrap_or_else(|| {
            panic!("{event} by {pid}: {records:#?}");
        })
    };
    let run = records[0]["detail"]["pid"].as_i64().unwrap();
    let timeline =
        [place("fifo.opened", run), place("fifo.opened", us), place("fifo.closed", us), place("fifo.closed", run)];
    assert!(timeline.is_sorted(), "{timeline:?}: {records:#?}");
    let times: Vec<&str> = timeline.iter().map(|at| records[*at]["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let [_, opened, closed, last] = timeline.map(|at| &records[at]["detail"]);
    let since_start = |detail: &Value| detail["since_start_us"].as_u64();
    assert!(since_start(opened).is_some() && since_start(opened) <= since_start(closed), "{records:#?}");
    assert!(since_start(closed) <= since_start(last), "{records:#?}");
    assert!(closed["quiet_us"].is_u64(), "it had answered by then: {closed}");
    assert!(closed["quiet_us"].as_u64() < since_start(closed), "{closed}");
}
