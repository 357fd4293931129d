//! Nothing is lost: every byte that was written before its writer was ended or let go arrives, in
//! order, and a writer that is still working is slow, not stale.

use std::io::Read as _;
use std::time::Duration;

use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{HOLDER, LAST_LINE, pattern};
use pipewarden_tests::reader::{Pace, read_to_end};
use pipewarden_tests::row::assert_same_bytes;
use pipewarden_tests::run::{Ended, Run};
use pipewarden_tests::stage::Stage;

/// What `seq 1 LAST` prints.
fn seq(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

fn sorted(bytes: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines.concat()
}

/// Nobody was signalled, and nobody had to be.
fn assert_natural(ended: &Ended) {
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "EOF arrives: {stderr}");
    let report = ended.report();
    assert!(report.outcome == Outcome::Natural && report.holders.is_empty(), "{stderr}");
    assert_eq!(report.undelivered_bytes, 0);
}

/// The shell is gone long before its last pipeline has sorted; three processes hold stdout by then,
/// and print nothing for longer than any grace. On a machine with little time for us that takes
/// longer than the default bound, which counts whatever holders do: hence another bound here.
#[test]
fn a_pipeline_that_sorts_after_its_shell_is_gone() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--max-drain", "10m"]).patience(Duration::from_secs(150));
    let ended = run.bash("exec > >(LC_ALL=C sort -R | LC_ALL=C sort); seq 1 1500000").end();
    assert_natural(&ended);
    assert_eq!(ended.code(), 0);
    assert_eq!(ended.stdout.bytes.len(), 10_888_896);
    assert_same_bytes(&ended.stdout.bytes, &sorted(&seq(1_500_000)));
}

/// `tee` waits for us, and we for a reader that takes its time, longer than the bound: nobody is stale.
#[test]
fn a_tee_behind_a_slow_reader() {
    let stage = Stage::new();
    let log = stage.path("log");
    let pace = Pace::Slow { bytes: 64 << 10, pause: Duration::from_millis(500) };
    let line = format!("exec > >(tee {}); seq 1 150000", log.display());
    let ended = Run::on(&stage).options(["--max-drain", "4s"]).pace(pace).bash(&line).end();
    assert_natural(&ended);
    assert_same_bytes(&ended.stdout.bytes, &seq(150_000));
    assert_same_bytes(&std::fs::read(log).unwrap(), &seq(150_000));
}

/// The holder's death does not cut what it and the command wrote, however slowly it is taken.
#[test]
fn what_was_written_before_a_holder_was_ended_arrives_at_a_slow_reader() {
    let stage = Stage::new();
    let pace = Pace::Slow { bytes: 64 << 10, pause: Duration::from_millis(500) };
    let run = Run::on(&stage).options(["--holder-grace", "0", "--max-drain", "4s"]).pace(pace);
    let ended = run.fixture("hold_setsid", ["--bytes", "900000", "--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof, "{stderr}");
    assert_same_bytes(&ended.stdout.bytes, &[pattern(900_000), LAST_LINE.to_vec()].concat());
    assert_eq!(ended.code(), 3);
    assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{stderr}");
}

/// An escapee that never falls quiet is ended by the bound; what it printed before is there, whole
/// lines, none missing.
#[test]
fn an_escapee_that_never_falls_quiet() {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(["--max-drain", "6s"]).fixture("chatter", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!(ended.code(), 3, "{stderr}");
    let printed = ended.stdout.text();
    assert!(printed.ends_with('\n') && printed.starts_with("0\n"), "{printed}");
    for (number, line) in printed.lines().enumerate() {
        assert_eq!(line, number.to_string());
    }
    assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{stderr}");
}

/// `2>&1` in whoever started us is one pipe for both streams, and must stay one for the command.
#[test]
fn stdout_and_stderr_on_one_pipe_keep_their_order() {
    let stage = Stage::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).report("none").stdout(writer.try_clone().unwrap()).stderr(writer);
    let run = run.fixture("alternate", ["10000"]).start();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_same_bytes(&bytes, &(0..10_000).flat_map(|line| format!("{line}\n").into_bytes()).collect::<Vec<u8>>());
    assert_eq!(run.end().code(), 0);
}

/// The same for a log file, which two pipes and two offsets would destroy.
#[test]
fn stdout_and_stderr_on_one_file_keep_their_order() {
    for options in [&[][..], &["--stdio", "pump"]] {
        let stage = Stage::new();
        let path = stage.path("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let run = Run::on(&stage).report("none").options(options).stdout(log.try_clone().unwrap()).stderr(log);
        assert_eq!(run.fixture("alternate", ["10000"]).end().code(), 0);
        let expected: Vec<u8> = (0..10_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
        assert_same_bytes(&std::fs::read(path).unwrap(), &expected);
    }
}

/// One pipe for both streams is what keeps their order; `--split` gives the command two, and gives
/// up their order among each other but not a byte of either.
#[test]
fn split_streams_are_two_pipes_and_each_whole() {
    let line = "readlink /proc/self/fd/1; readlink /proc/self/fd/2; \
        { head -c 1000000 /dev/zero | tr '\\0' a; } & head -c 1000000 /dev/zero | tr '\\0' b >&2; wait";
    for (options, pipes) in [(&[][..], 1), (&["--split"], 2)] {
        let stage = Stage::new();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let run = Run::on(&stage).report("none").options(options).stdout(writer.try_clone().unwrap()).stderr(writer);
        let run = run.bash(line).start();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(run.end().code(), 0);
        for letter in ["a", "b"] {
            assert_eq!(text.matches(letter).count(), 1_000_000, "{letter} with {options:?}");
        }
        let mut names: Vec<&str> = text.lines().take(2).collect();
        names.dedup();
        assert_eq!(names.len(), pipes, "{names:?} with {options:?}");
    }
}

/// Two pipes downstream: what goes to one does not come out of the other.
#[test]
fn two_streams_stay_two_streams() {
    let stage = Stage::new();
    let ended = Run::on(&stage).report("none").fixture("alternate", ["10000"]).end();
    let lines = |first| (first..10_000).step_by(2).map(|line| format!("{line}\n")).collect::<String>();
    assert_same_bytes(&ended.stdout.bytes, lines(0).as_bytes());
    assert_same_bytes(&ended.stderr.bytes, lines(1).as_bytes());
}

/// A line without a newline is a line too, and so is a NUL.
#[test]
fn bytes_are_not_interpreted() {
    let stage = Stage::new();
    let ended = Run::on(&stage).bash(r"printf 'a\0b\377\r\n\n\ttail'").end();
    assert_same_bytes(&ended.stdout.bytes, b"a\0b\xff\r\n\n\ttail");
}

/// 200 MB through a pump, byte for byte (by its checksum: a mistake here is a lost chunk).
#[test]
fn a_large_stream_is_carried_whole() {
    let stage = Stage::new();
    let ended = Run::on(&stage).fixture("just_exit", ["--bytes", "100000000"]).end();
    assert_natural(&ended);
    assert_same_bytes(&ended.stdout.bytes, &[pattern(100_000_000), LAST_LINE.to_vec()].concat());
}

/// stdin reaches the command, whole and with its EOF.
#[test]
fn stdin_is_carried_whole() {
    let stage = Stage::new();
    let path = stage.path("input");
    std::fs::write(&path, pattern(3_000_000)).unwrap();
    let ended = Run::on(&stage).stdin(std::fs::File::open(path).unwrap()).command(["cat"]).end();
    assert_same_bytes(&ended.stdout.bytes, &pattern(3_000_000));
    let (reader, mut writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdin(reader).command(["cat"]).start();
    std::io::Write::write_all(&mut writer, &pattern(100_000)).unwrap();
    drop(writer);
    assert_same_bytes(&run.end().stdout.bytes, &pattern(100_000));
}

/// Once somebody spliced into a pipe, the kernel refuses to write through that description without
/// waiting, as kernels before 6.4 always do: then a thread writes, the refused bytes first.
#[test]
fn a_pipe_that_cannot_be_written_without_waiting() {
    use nix::fcntl::{SpliceFFlags, splice};
    use std::io::Write as _;
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let (source, mut mouth) = std::io::pipe().unwrap();
    mouth.write_all(b"spliced").unwrap();
    assert_eq!(splice(&source, None, &writer, None, 7, SpliceFFlags::empty()), Ok(7));
    // More than two pipes hold: a pump that waits for the wrong thing never sees the command's exit.
    let run = Run::on(&stage).stdout(writer).fixture("just_exit", ["--bytes", "1000000"]).start();
    let read = read_to_end(reader, Pace::Eager, Deadline::patient()).join().unwrap();
    assert!(read.eof, "EOF arrives after {} bytes", read.bytes.len());
    assert_same_bytes(&read.bytes, &[b"spliced".to_vec(), pattern(1_000_000), LAST_LINE.to_vec()].concat());
    assert_eq!(run.end().report().outcome, Outcome::Natural);
}
