//! A FIFO that the run owns: any number of writers come and go, and it ends exactly once.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::pattern;
use pipewarden_tests::row::assert_same_bytes;
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

/// A stage with a place for a FIFO and for its control socket.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) fifo: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let stage = Stage::new();
        let fifo = stage.path("fifo");
        Scene { stage, fifo }
    }

    /// On a FIFO that is there already.
    pub(crate) fn with_fifo() -> Scene {
        let scene = Scene::new();
        mkfifo(&scene.fifo, Mode::from_bits_truncate(0o600)).unwrap();
        scene
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.stage.path("runtime")
    }

    pub(crate) fn run(&self) -> Run<'_> {
        let from = format!("fifo:{}", self.fifo.display());
        std::fs::create_dir_all(self.runtime()).unwrap();
        Run::on(&self.stage).options(["--stdin", &from]).env("XDG_RUNTIME_DIR", self.runtime())
    }

    /// An agent with these steps.
    pub(crate) fn agent(&self, steps: &[&str]) -> Run<'_> {
        self.run().fixture("fake_agent", steps)
    }

    pub(crate) fn fifo(&self, verb: &str) -> Output {
        let mut command = Command::new(binary(UNDER_TEST));
        command.args(["fifo", verb, "--json"]).arg(&self.fifo).env("XDG_RUNTIME_DIR", self.runtime());
        command.output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.fifo("status");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        value.get("owner").cloned().unwrap_or(value)
    }

    pub(crate) fn close(&self) {
        let output = self.fifo("close");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn writer(&self) -> File {
        OpenOptions::new().write(true).open(&self.fifo).unwrap()
    }
}

#[test]
fn what_is_made_is_for_us_alone_and_goes_with_us() {
    let scene = Scene::new();
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    let made = std::fs::metadata(&scene.fifo).unwrap();
    assert!(made.file_type().is_fifo());
    assert_eq!(made.permissions().mode() & 0o777, 0o600);
    let socket = scene.runtime().join(format!("pipewarden/fifo-{}-{}.sock", made.dev(), made.ino()));
    let control = std::fs::metadata(&socket).unwrap();
    assert!(control.file_type().is_socket());
    assert_eq!(control.permissions().mode() & 0o777, 0o600);
    scene.close();
    assert_eq!(run.end().code(), 0);
    assert!(!scene.fifo.exists() && !socket.exists());
}

#[test]
fn what_was_there_stays() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    scene.close();
    assert_eq!(run.end().code(), 0);
    assert!(scene.fifo.exists());
}

/// More than all buffers on the way can hold, byte for byte.
#[test]
fn input_is_carried_whole() {
    let scene = Scene::with_fifo();
    let run = scene.run().command(["cat"]).start();
    scene.writer().write_all(&pattern(3_000_000)).unwrap();
    scene.close();
    assert_same_bytes(&run.end().stdout.bytes, &pattern(3_000_000));
}

/// A command that does not read makes its writers wait; it does not make us grow.
#[test]
fn writers_wait_for_a_command_that_does_not_read() {
    let scene = Scene::with_fifo();
    scene.stage.hold("ready");
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    let mut writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&scene.fifo).unwrap();
    let mut written = 0;
    let full = Deadline::patient().until(|| match writer.write(&pattern(4096)) {
        Ok(count) => {
            written += count;
            false
        }
        // Full now; once nothing has moved on for a while it is full all the way.
        Err(_) => {
            u64::try_from(written).unwrap() == scene.status()["bytes_waiting"].as_u64().unwrap_or(0)
                && written >= 2 << 16
        }
    });
    assert!(full && written < 400_000, "three buffers on the way, not {written} bytes");
    scene.stage.release("ready");
    drop(writer);
    let _ = Deadline::patient().until(|| scene.status()["bytes_waiting"] == 0);
    scene.close();
    assert_eq!(run.end().stdout.bytes.len(), written);
}

/// A writer that came first waits in open(2) for a reader: we are one.
#[test]
fn a_writer_blocked_in_open_is_released() {
    let scene = Scene::with_fifo();
    let fifo = scene.fifo.clone();
    let writer = std::thread::spawn(move || std::fs::write(fifo, "early\n"));
    let run = scene.agent(&["line", "exit:0"]).start();
    writer.join().unwrap().unwrap();
    assert_eq!(run.end().stdout.text(), "early\n");
}

/// A writer that comes after the closing would wait for a reader that never comes.
#[test]
fn a_writer_that_comes_too_late_is_released() {
    let scene = Scene::with_fifo();
    scene.stage.hold("late");
    let run = scene.agent(&["at:ready", "input", "at:late"]).start();
    let _ = scene.stage.wait("ready");
    scene.close();
    let _ = scene.stage.wait("late");
    let mut writer = scene
        .stage
        .announced(Command::new("bash").args(["-c", "echo late > \"$0\"; exit 0"]).arg(&scene.fifo))
        .spawn()
        .unwrap();
    let process = pipewarden_tests::process::Process::open(writer.id().try_into().unwrap()).unwrap();
    let waits =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place == "wait_for_partner");
    assert!(Deadline::patient().until(|| waits(writer.id())));
    scene.stage.release("late");
    assert_eq!(run.end().code(), 0);
    assert!(process.dies(Deadline::patient()), "the writer hangs in open");
    let _ = writer.wait();
}

/// A reader that opens the FIFO beside us waits for nobody, and gets its EOF with the closing.
#[test]
fn a_reader_beside_us_gets_its_end() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    let fifo = scene.fifo.clone();
    let reader = std::thread::spawn(move || std::fs::read(fifo));
    let seen = Deadline::patient().until(|| {
        let status = scene.status();
        status["readers"].as_array().is_some_and(|readers| !readers.is_empty())
    });
    assert!(seen, "{}", scene.status());
    scene.close();
    reader.join().unwrap().unwrap();
    assert_eq!(run.end().code(), 0);
}

/// Whatever is closed first, it is closed once, and the command that ends closes it too.
#[test]
fn a_writer_that_goes_on_is_told() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["line", "exit:0"]).start();
    let mut writer = scene.writer();
    writer.write_all(b"a question\n").unwrap();
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.text()), (0, "a question\n".into()), "{}", ended.stderr.text());
    let error = writer.write_all(b"another\n").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "its reader is gone, and it knows");
}

#[test]
fn done_closes_the_fifo() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["line", "say:done", "input", "exit:0"]);
    let run = run.options(["--done-when", "re:^done$", "--done-grace", "25s"]).start();
    let mut holds_on = scene.writer();
    holds_on.write_all(b"a question\n").unwrap();
    let ended = run.end();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "exit".into()), "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "a question\ndone\n");
    drop(holds_on);
}

/// Bytes that were written before `fifo close` was asked for still arrive.
#[test]
fn closing_loses_nothing() {
    let scene = Scene::with_fifo();
    scene.stage.hold("ready");
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    scene.writer().write_all(&pattern(190_000)).unwrap();
    scene.close();
    assert_eq!(scene.status()["open"], false);
    scene.stage.release("ready");
    assert_same_bytes(&run.end().stdout.bytes, &pattern(190_000));
}

#[test]
fn the_status_says_who_and_since_when() {
    let scene = Scene::with_fifo();
    scene.stage.hold("ready");
    let run = scene.agent(&["at:ready", "input"]).start();
    let agent = scene.stage.wait("ready");
    let mut writer = scene.writer();
    writer.write_all(b"12345").unwrap();
    let us = i64::from(std::process::id());
    let named = |status: &Value| status["writers"].as_array().is_some_and(|all| all.iter().any(|one| one["pid"] == us));
    assert!(Deadline::patient().until(|| named(&scene.status())), "{}", scene.status());
    let status = scene.status();
    assert_eq!((&status["pid"], &status["command"]), (&run.process.pid.into(), &agent.pid.into()), "{status}");
    assert_eq!((&status["bytes_waiting"], &status["bytes_taken"]), (&5.into(), &5.into()), "{status}");
    assert!(status["writers"][0]["since"].is_string() && status["opened_at"].is_string(), "{status}");
    drop(writer);
    assert!(Deadline::patient().until(|| !named(&scene.status())), "{}", scene.status());
    scene.stage.release("ready");
    scene.close();
    assert_eq!(run.end().code(), 0);
}

#[test]
fn a_symbolic_link_is_refused() {
    let scene = Scene::new();
    let real = scene.stage.path("real");
    mkfifo(&real, Mode::from_bits_truncate(0o600)).unwrap();
    std::os::unix::fs::symlink(&real, &scene.fifo).unwrap();
    refused(&scene, "a symbolic link");
}

#[test]
fn somebody_elses_fifo_is_refused() {
    if skip("somebody_elses_fifo_is_refused", &[Need::Root]) {
        return;
    }
    let scene = Scene::with_fifo();
    nix::unistd::chown(&scene.fifo, Some(1234.into()), None).unwrap();
    refused(&scene, "1234");
}

#[test]
fn a_fifo_that_a_run_owns_is_refused() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["at:ready", "input"]).start();
    let _ = scene.stage.wait("ready");
    refused(&scene, &run.process.pid.to_string());
    scene.close();
    assert_eq!(run.end().code(), 0);
}

fn refused(scene: &Scene, named: &str) {
    let proof = scene.stage.path("started");
    let ended = scene.run().report("text").command(["touch".into(), proof.clone()]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count(), proof.exists()), (125, 1, false), "{said}");
    assert!(said.contains("--stdin") && said.contains(named), "{said}");
}

/// The socket of a run that was killed is in nobody's way.
#[test]
fn a_socket_without_a_run_is_replaced() {
    let scene = Scene::with_fifo();
    let run = scene.agent(&["at:ready", "input"]).start();
    let killed = scene.stage.wait("ready");
    run.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(run.process.dies(Deadline::patient()));
    assert!(killed.dies(Deadline::patient()), "it got its EOF");
    drop(run);
    let run = scene.agent(&["at:again", "input"]).start();
    let _ = scene.stage.wait("again");
    scene.close();
    assert_eq!(run.end().code(), 0);
}

#[test]
fn a_fifo_of_nobody_is_no_run_to_ask() {
    let scene = Scene::with_fifo();
    std::fs::create_dir_all(scene.runtime()).unwrap();
    let output = Command::new(binary(UNDER_TEST)).args(["fifo", "close", "/nowhere/at/all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
}

/// A session goes on where it was, and the FIFO with it.
#[test]
fn the_fifo_outlasts_a_try() {
    let scene = Scene::with_fifo();
    let resume = format!("{} at:{{session_id}} say:'start b' line exit:0", binary("fake_agent").display());
    // Only the silence after the first tool is one.
    let run = scene.agent(&["say:session resumed", "say:start a", "line", "say:end a", "hang"]);
    let run = run.options(["--tool-running", r"re:^start (?<id>\w)", "--tool-done", r"re:^end (?<id>\w)"]);
    let run = run.options(["--idle-timeout", "3s", "--retries", "1", "--session-id", r"re:session (?<id>\S+)"]);
    let run = run.options(["--resume-command", &resume]).start();
    let mut writer = scene.writer();
    writer.write_all(b"one\n").unwrap();
    let _ = scene.stage.wait("resumed");
    writer.write_all(b"two\n").unwrap();
    let ended = run.end();
    let expected = "session resumed\nstart a\none\nend a\nstart b\ntwo\n";
    assert_eq!((ended.code(), ended.stdout.text()), (0, expected.into()), "{}", ended.stderr.text());
}

/// Nothing is left that a run could trip over: runs one after the other on one FIFO.
#[test]
fn run_after_run_on_one_fifo() {
    let scene = Scene::with_fifo();
    for number in 0..5 {
        let run: Running = scene.agent(&["line", "exit:0"]).start();
        scene.writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        assert_eq!(run.end().stdout.text(), format!("{number}\n"));
    }
}
