//! Asking `holders`, `why` and `fifo` about a hang that is known to be one.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binaries::{UNDER_TEST, binary};
use crate::deadline::{Deadline, PATIENCE};
use crate::process::Process;
use crate::stage::Stage;

/// Waits until a thread of the process sleeps in this system call (`libc::SYS_...`).
///
/// # Panics
///
/// When it does not come to that.
pub fn blocks_in(pid: i32, number: libc::c_long) {
    let in_it = || {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
        tasks.flatten().any(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let sleeps = read("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'));
            sleeps && read("syscall").split(' ').next() == Some(&number.to_string())
        })
    };
    assert!(Deadline::patient().until(in_it), "{pid} never blocks in system call {number}");
}

/// Starts a command as a child of the test, known by a pidfd; it goes when the stage does.
///
/// # Panics
///
/// When it does not start.
pub fn started(stage: &Stage, command: &mut Command) -> (Child, Process) {
    let child = command.spawn().unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    stage.adopt(&process);
    (child, process)
}

/// Runs the program under test with these words.
///
/// # Panics
///
/// When it does not end in time: whatever it looks at, it must.
#[must_use]
pub fn pipewarden(words: &[&str]) -> Output {
    let mut command = Command::new(binary(UNDER_TEST));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    end.recv_timeout(PATIENCE).map_or_else(
        |_| {
            process.signal(Signal::SIGKILL);
            panic!("{words:?} does not end")
        },
        Result::unwrap,
    )
}

/// Its answer as JSON: one line, with nothing on stderr.
///
/// Until it executes its program, a child of a test beside this one is a copy of us, with every pipe that
/// we have. An answer that rightly names such a copy is about that moment, and is asked for again.
///
/// # Panics
///
/// When it fails or answers something else.
#[must_use]
pub fn asked(words: &[&str]) -> Value {
    let mut answer = Value::Null;
    let about_the_test = || {
        answer = asked_once(words);
        !names_a_copy_of_us(&answer)
    };
    assert!(Deadline::patient().until(about_the_test), "copies of us do not come to execute anything: {answer:#}");
    answer
}

fn asked_once(words: &[&str]) -> Value {
    // A busy machine may take its time; nothing here is about that.
    let output = pipewarden(&[words, &["--within", "25s"]].concat());
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    assert_eq!(stdout.matches('\n').count(), 1, "one line: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Whether there is the name of a test's thread in it: tests have paths, and no program here is called so.
fn names_a_copy_of_us(answer: &Value) -> bool {
    match answer {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            (key == "comm" && value.as_str().is_some_and(|comm| comm.contains("::"))) || names_a_copy_of_us(value)
        }),
        Value::Array(values) => values.iter().any(names_a_copy_of_us),
        _ => false,
    }
}

/// Asks why a process does not go on.
#[must_use]
pub fn why(pid: i32) -> Value {
    asked(&["why", &pid.to_string(), "--json"])
}

/// Asks who holds something.
#[must_use]
pub fn holders(target: &str) -> Value {
    asked(&["holders", target, "--json"])
}

/// The numbers in an array.
#[must_use]
pub fn numbers(value: &Value) -> Vec<i32> {
    let number = |value: &Value| i32::try_from(value.as_i64().unwrap()).unwrap();
    value.as_array().unwrap_or_else(|| panic!("no array: {value}")).iter().map(number).collect()
}

/// The wait of this kind that is about a channel.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn wait_for(explanation: &Value, kind: &str) -> Value {
    let waits = explanation["waits"].as_array().unwrap();
    let found = waits.iter().find(|wait| wait["for"] == kind);
    found.unwrap_or_else(|| panic!("no wait for {kind}: {explanation}")).clone()
}

/// The pids that hold the other end of what a wait is about.
#[must_use]
pub fn held_by(wait: &Value) -> Vec<i32> {
    let holders = wait["held_by"].as_array().unwrap_or_else(|| panic!("held by nobody: {wait}"));
    holders.iter().map(|holder| i32::try_from(holder["pid"].as_i64().unwrap()).unwrap()).collect()
}

/// Does what the remedy says, as somebody at a shell would, where `pipewarden` is the program under test.
///
/// # Panics
///
/// When there is no remedy, or the shell cannot do it.
pub fn apply(stage: &Stage, explanation: &Value) {
    let remedy = explanation["remedy"].as_str().unwrap_or_else(|| panic!("no remedy: {explanation}"));
    let folder = stage.path("bin");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(binary(UNDER_TEST), folder.join("pipewarden")).unwrap();
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh").args(["-c", remedy]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{remedy}: {output:?}");
}

/// Makes a FIFO.
pub fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}
