//! An agent that is silent, or done and does not exit, comes to an end.

use std::time::Duration;

use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::pattern;
use pipewarden_tests::reader::Pace;
use pipewarden_tests::row::assert_same_bytes;
use pipewarden_tests::run::{Ended, Run};
use pipewarden_tests::stage::Stage;

const DONE: [&str; 4] = ["--done-when", r"re:^done(?: (?<status>\S+))?$", "--done-grace", "200ms"];

fn agent<'a>(stage: &'a Stage, options: &[&str], steps: &[&str]) -> Run<'a> {
    Run::on(stage).options(options).fixture("fake_agent", steps)
}

fn ran(options: &[&str], steps: &[&str]) -> Ended {
    let stage = Stage::new();
    agent(&stage, options, steps).end()
}

/// The agent works for longer than the limit, but it said that a tool runs.
#[test]
fn the_idle_clock_stands_still_while_a_tool_runs() {
    let options = ["--idle-timeout", "3s", "--tool-running", "re:^start (?<id>.*)", "--tool-done", "re:^end (?<id>.*)"];
    let steps = ["say:start a", "say:start b", "say:end b", "work:5000", "say:still here", "say:end a", "hang"];
    let ended = ran(&options, &steps);
    assert_eq!(ended.stdout.text(), "start a\nstart b\nend b\nstill here\nend a\n");
    assert_eq!((ended.code(), ended.report().ended_for()), (124, "idle".into()), "{}", ended.stderr.text());
}

/// What a reader does not take is not the command's silence.
#[test]
fn a_slow_reader_is_not_the_commands_silence() {
    let stage = Stage::new();
    let pace = Pace::Slow { bytes: 64 << 10, pause: Duration::from_millis(3500) };
    let run = Run::on(&stage).options(["--idle-timeout", "3s"]).pace(pace);
    let ended = run.fixture("just_exit", ["--bytes", "350000", "--exit", "3"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert!(ended.stdout.bytes.starts_with(&pattern(350_000)));
}

/// A terminal, a file or /dev/null has no pipe, and silence is silence all the same.
#[test]
fn silence_is_seen_behind_a_file() {
    let stage = Stage::new();
    let file = stage.path("log");
    let run = agent(&stage, &["--idle-timeout", "3s"], &["say:one", "work:100", "say:two", "hang"]);
    let ended = run.stdout(std::fs::File::create(&file).unwrap()).end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "one\ntwo\n");
}

/// Printed its last line and never exited: a normal end.
#[test]
fn done_is_a_normal_end() {
    for (line, code) in [("done", 0), ("done success", 0), ("done true", 0), ("done 0", 0), ("done failure", 1)] {
        let ended = ran(&DONE, &["say:working", &format!("say:{line}"), "hang"]);
        let stderr = ended.stderr.text();
        assert_eq!((ended.code(), ended.report().ended_for()), (code, "done".into()), "{line}: {stderr}");
        assert_eq!(ended.stdout.text(), format!("working\n{line}\n"));
    }
}

#[test]
fn done_ends_also_who_ignores_it() {
    let options = [&DONE[..], &["--kill-after", "100ms"]].concat();
    let ended = ran(&options, &["deaf", "say:done", "hang"]);
    assert_eq!((ended.code(), ended.report().signal), (0, Some(9)), "{}", ended.stderr.text());
}

/// Whoever exits within the grace is not ended, and its own code says more than the marker.
#[test]
fn done_and_exited_is_an_exit() {
    for (line, own, code) in [("done", 0, 0), ("done", 3, 3), ("done failure", 0, 1), ("done failure", 3, 3)] {
        let options = ["--done-when", DONE[1], "--done-grace", "25s"];
        let ended = ran(&options, &[&format!("say:{line}"), "work:50", &format!("exit:{own}")]);
        let stderr = ended.stderr.text();
        assert_eq!((ended.code(), ended.report().ended_for()), (code, "exit".into()), "{line}, {own}: {stderr}");
    }
}

/// A failure's own code is told when it comes with our signal too.
#[test]
fn done_with_a_failure_keeps_the_commands_code() {
    let stage = Stage::new();
    let line = "trap 'exit 7' TERM; echo done failure; while :; do sleep 0.05; done";
    let ended = Run::on(&stage).options(DONE).bash(line).end();
    assert_eq!((ended.code(), ended.report().ended_for()), (7, "done".into()), "{}", ended.stderr.text());
}

/// What an agent waits for when it is done is often an EOF that nobody sends.
#[test]
fn done_closes_stdin() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let options = ["--done-when", DONE[1], "--done-grace", "25s"];
    let run = agent(&stage, &options, &["line", "say:done", "input", "exit:0"]).stdin(reader).start();
    (&writer).write_all_bytes(b"a question\n");
    let ended = run.end();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "exit".into()), "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "a question\ndone\n");
    drop(writer);
}

/// The helpers of an agent that is done go with it.
#[test]
fn done_ends_the_whole_lineage() {
    let stage = Stage::new();
    let ended = agent(&stage, &DONE, &["leave:helper", "say:done", "hang"]).end();
    assert!(stage.wait("helper").dies(Deadline::patient()), "{}", ended.stderr.text());
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    assert!(ended.stdout.eof);
}

/// The marker comes at once with more output than anybody takes at once: all of it arrives.
#[test]
fn nothing_is_lost_after_done() {
    let stage = Stage::new();
    let pace = Pace::Slow { bytes: 64 << 10, pause: Duration::from_millis(100) };
    // However long a busy machine lets the rest of it wait for a core.
    let run = Run::on(&stage).options(["--done-when", DONE[1], "--done-grace", "4s"]).pace(pace);
    let ended = run.bash("echo done; seq 1 200000; sleep 1000").end();
    let expected: String =
        std::iter::once("done\n".to_owned()).chain((1..=200_000).map(|n| format!("{n}\n"))).collect();
    assert_same_bytes(&ended.stdout.bytes, expected.as_bytes());
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
}

#[test]
fn a_timeout_is_stronger_than_the_grace() {
    let options = ["--done-when", DONE[1], "--done-grace", "10m", "--timeout", "500ms"];
    let ended = ran(&options, &["say:done", "hang"]);
    assert_eq!((ended.code(), ended.report().ended_for()), (124, "timeout".into()), "{}", ended.stderr.text());
}

/// Writing to a pipe that somebody reads.
trait WriteAll {
    fn write_all_bytes(self, bytes: &[u8]);
}

impl WriteAll for &std::io::PipeWriter {
    fn write_all_bytes(mut self, bytes: &[u8]) {
        std::io::Write::write_all(&mut self, bytes).unwrap();
    }
}
