//! The audit log: whole, in order, tamper-evident, and never in the way of an ending.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use nix::poll::PollFlags;
use pipewarden::audit::chain::Chain;
use pipewarden::audit::detail::{Finished, Reseeded};
use pipewarden::audit::record::Time;
use pipewarden::audit::verify::{Fault, KEPT, Oddity, Verdict, Verifier};
use pipewarden::audit::{Event, RunId};
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::skip::{Need, skip};

fn pipewarden() -> Command {
    let mut command = Command::new(binary(UNDER_TEST));
    command.arg("audit");
    command
}

fn verify(arguments: &[&Path]) -> Output {
    pipewarden().arg("verify").args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A process that writes a log as it is told.
struct Writer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    fn start(target: &Path) -> Writer {
        Writer::spawn(Command::new(binary("write_audit")).arg(target))
    }

    fn spawn(command: &mut Command) -> Writer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Writer { child, orders, answers }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn answer(&mut self) -> String {
        if self.answers.buffer().is_empty() {
            self.wait();
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits until it says something, or ends. If it does neither it is killed, and the test failed.
    fn wait(&mut self) {
        if !Deadline::patient().wait(self.answers.get_ref().as_fd(), PollFlags::POLLIN) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
            panic!("the writer neither answers nor ends");
        }
    }

    fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }

    fn end(mut self) {
        assert_eq!(self.answer(), "", "it has nothing more to say");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn fifty_runs_share_a_file_without_a_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut writers: Vec<Writer> = (0..50).map(|_| Writer::start(&path)).collect();
    for writer in &mut writers {
        writer.order("record 40");
    }
    for mut writer in writers {
        assert_eq!(writer.answer(), "Some(Written)");
        assert!(writer.ask("finish 60000").starts_with("Written Account { records: 41, dropped: 0, lost: 0, "));
        writer.end();
    }
    let output = pipewarden().args(["verify", "--json"]).arg(&path).output().unwrap();
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(verdict["intact"], true);
    assert_eq!(verdict["runs"], serde_json::json!({"closed": 50, "open": 0, "broken": 0}));
    assert_eq!((&verdict["records"], &verdict["lines"]), (&2050.into(), &2050.into()));
}

/// Three runs, one record each in turn; the last of them is still open.
fn log() -> Vec<String> {
    let mut chains: Vec<Chain> = (0..3).map(|_| Chain::new(RunId::new(), "host".into())).collect();
    let mut lines = Vec::new();
    for missed in 0..4 {
        for (index, chain) in chains.iter_mut().enumerate() {
            let event = match (missed, index) {
                (3, 0 | 1) => Event::RunFinished { detail: Box::new(Finished::new(None, 0, 1)) },
                _ => Event::TrackerReseeded { detail: Reseeded { rung: "r".into(), why: "w".into(), missed } },
            };
            let (line, hash) = chain.seal(Time::now(), event, false).unwrap();
            chain.advance(hash);
            lines.push(String::from_utf8(line).unwrap());
        }
    }
    lines
}

fn judge(log: &[u8]) -> Verdict {
    let mut verifier = Verifier::default();
    verifier.read("log", log).unwrap();
    verifier.verdict()
}

fn faults(lines: &[String]) -> Vec<Fault> {
    judge(lines.concat().as_bytes()).faults.first.iter().map(|finding| finding.kind).collect()
}

#[test]
fn a_log_that_nobody_touched_is_intact() {
    let verdict = judge(log().concat().as_bytes());
    assert!(verdict.intact && verdict.oddities.count == 0, "{verdict:?}");
    assert_eq!((verdict.runs.closed, verdict.runs.open, verdict.runs.broken), (2, 1, 0));
    assert_eq!(verdict.open[0].records, 4);
}

#[test]
fn every_changed_byte_is_found() {
    let log = log().concat().into_bytes();
    for at in 0..log.len() {
        for changed in [log[at] ^ 1, b'\n'] {
            if changed != log[at] {
                let mut tampered = log.clone();
                tampered[at] = changed;
                assert!(!judge(&tampered).intact, "byte {at} changed from {} to {changed}", log[at]);
            }
        }
    }
}

#[test]
fn a_deleted_record_is_missed_and_a_deleted_end_leaves_the_run_open() {
    let log = log();
    for at in 0..log.len() {
        let mut tampered = log.clone();
        tampered.remove(at);
        let verdict = judge(tampered.concat().as_bytes());
        if at >= log.len() - 3 {
            let left_open = if at == log.len() - 1 { 1 } else { 2 };
            assert_eq!((verdict.intact, verdict.runs.open), (true, left_open), "line {at}: {verdict:?}");
        } else {
            assert_eq!(faults(&tampered), [Fault::Missing], "line {at}");
        }
    }
}

#[test]
fn records_in_another_order_are_found_and_runs_may_interleave_as_they_like() {
    let log = log();
    for at in 0..log.len() - 3 {
        let mut tampered = log.clone();
        tampered.swap(at, at + 3); // the same run's next record
        assert!(!judge(tampered.concat().as_bytes()).intact, "line {at}");
        let mut other_order = log.clone();
        other_order.swap(at, at + 1); // another run's record
        assert_eq!(faults(&other_order), [], "line {at}");
    }
}

#[test]
fn a_repeated_record_is_found_wherever_it_is_put() {
    let log = log();
    for at in 0..log.len() {
        for to in at + 1..=log.len() {
            let mut tampered = log.clone();
            tampered.insert(to, log[at].clone());
            let found = faults(&tampered);
            assert!(matches!(found[..], [Fault::Repeated | Fault::AfterFinished]), "{at} to {to}: {found:?}");
        }
    }
}

#[test]
fn a_record_that_is_forged_with_a_hash_of_its_own_has_no_place_in_the_chain() {
    let log = log();
    let forge = |line: &str, from: &str, to: &str| {
        let content = line.rsplit_once(",\"hash\"").unwrap().0.replace(from, to) + "}";
        let hash = sha256(&content);
        format!("{},\"hash\":\"{hash}\"}}\n", content.strip_suffix('}').unwrap())
    };
    // The forger knows the format: as the log's own line, the result is accepted.
    assert_eq!(forge(&log[3], "", ""), log[3]);

    let mut changed = log.clone();
    changed[3] = forge(&log[3], "\"missed\":1", "\"missed\":7");
    assert_eq!(faults(&changed), [Fault::Unchained], "the record after it knows the one that stood there");

    let mut inserted = log.clone();
    inserted.insert(4, forge(&log[3], "\"missed\":1", "\"missed\":7"));
    assert_eq!(faults(&inserted), [Fault::Repeated]);

    let run_of = |line: &str| line.split('"').nth(7).unwrap().to_owned();
    let mut moved = log.clone();
    moved[4] = forge(&log[3], &run_of(&log[3]), &run_of(&log[4]));
    assert!(!faults(&moved).is_empty(), "a record of one run in the place of another's");
    let mut moved_with_its_hash = log.clone();
    moved_with_its_hash[4] = log[3].replace(&run_of(&log[3]), &run_of(&log[4]));
    assert!(faults(&moved_with_its_hash).contains(&Fault::Changed));
}

/// By another program than the one under test.
fn sha256(content: &str) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn a_log_that_was_cut_anywhere_is_as_good_as_what_is_left_of_it() {
    let lines = log();
    let log = lines.concat();
    let ends = |line: &&String| line.contains("run.finished");
    for at in 0..log.len() {
        let verdict = judge(&log.as_bytes()[..at]);
        assert!(verdict.intact, "cut at {at}: {verdict:?}");
        // Only the newline may be missing from a whole record.
        let whole: usize = lines
            .iter()
            .scan(0, |end, line| {
                *end += line.len();
                Some((*end, line))
            })
            .filter(|(end, line)| *end <= at + 1 && ends(line))
            .count();
        assert_eq!(verdict.runs.closed, whole as u64, "cut at {at}");
    }
}

#[test]
fn a_run_goes_on_in_the_next_file_of_a_rotated_log_and_a_torn_end_does_not() {
    let lines = log();
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("log.1"), folder.path().join("log"));
    fs::write(&old, lines[..5].concat()).unwrap();
    fs::write(&new, lines[5..].concat()).unwrap();
    assert_eq!(verify(&[&old, &new]).status.code(), Some(0));
    assert_eq!(verify(&[&new]).status.code(), Some(1), "its beginning is missing");
    fs::write(&old, lines[..5].concat() + &lines[5][..200]).unwrap();
    assert_eq!(verify(&[&old, &new]).status.code(), Some(1), "something follows the torn record");
}

#[test]
fn a_torn_record_is_a_fault_unless_its_run_counted_it_as_lost() {
    let lines = log();
    for length in [2, 30, 60, 200, lines[0].len() - 2] {
        let torn = lines[0][..length].to_owned();
        for at in 0..lines.len() {
            let mut tampered = lines.clone();
            tampered.insert(at, torn.clone() + "\n");
            assert_eq!(faults(&tampered), [Fault::Torn], "{length} bytes before line {at}");
            // Another run has written right behind it.
            tampered[at] = torn.clone();
            assert_eq!(faults(&tampered), [Fault::Torn], "{length} bytes within line {at}");
        }
    }
}

#[test]
fn foreign_lines_are_named_and_harm_nobody() {
    let mut lines = log();
    lines.insert(0, "{\n".into());
    lines.insert(3, "warning: 50%".into()); // and the next record goes on in this line
    lines.insert(6, "\u{fffd}\0 noise\n\n".into());
    let verdict = judge(lines.concat().as_bytes());
    assert!(verdict.intact, "{verdict:?}");
    let odd: Vec<_> = verdict.oddities.first.iter().map(|finding| (finding.kind, finding.line)).collect();
    assert_eq!(odd, [(Oddity::Foreign, 1), (Oddity::Foreign, 4), (Oddity::Foreign, 6)]);
    assert_eq!(verdict.records, 12);
}

#[test]
fn findings_beyond_what_is_kept_are_counted() {
    let verdict = judge("noise\n".repeat(KEPT + 7).as_bytes());
    assert_eq!((verdict.oddities.count, verdict.oddities.first.len()), (KEPT as u64 + 7, KEPT));
}

#[test]
fn verify_says_what_is_wrong_where_and_by_its_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut lines = log();
    fs::write(&path, lines.concat()).unwrap();
    let output = verify(&[&path]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).contains("intact: 12 records in 12 lines; runs: 2 closed, 1 open, 0 broken"));

    lines[6] = lines[6].replace("\"missed\":2", "\"missed\":3");
    fs::write(&path, lines.concat()).unwrap();
    let output = verify(&[&path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains(&format!("broken: {}:7: run ", path.display())), "{}", text(&output));

    let child = pipewarden().arg("verify").stdin(File::open(&path).unwrap()).output().unwrap();
    assert_eq!(child.status.code(), Some(1));
    assert!(text(&child).contains("broken: stdin:7: run "));

    let missing = folder.path().join("none");
    let output = verify(&[&missing]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
    assert!(text(&output).contains(&missing.display().to_string()));
    let output = pipewarden().arg("verify").arg("--no-such").output().unwrap();
    assert_eq!((output.status.code(), text(&output).lines().count()), (Some(125), 1));
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(pipewarden().arg("schema").stdout(full).status().unwrap().code(), Some(125));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = pipewarden().arg("schema").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_line_without_an_end_costs_no_memory() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 65536; head -c 134217728 /dev/zero | \"$0\" audit verify"]);
    let output = command.arg(pipewarden().get_program()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("note: stdin:1: this is no audit record"));
}

#[test]
fn a_full_device_costs_the_records_and_not_the_run() {
    let mut writer = Writer::start("/dev/full".as_ref());
    assert_eq!(writer.ask("record 10"), "Some(Lost)");
    assert_eq!(writer.ask("finish 60000"), "Lost Account { records: 0, dropped: 0, lost: 11, late: 0 }");
    writer.end();
}

#[test]
fn a_disk_that_fills_up_and_gets_room_again_leaves_a_log_that_verifies() {
    if skip("a_disk_that_fills_up_and_gets_room_again_leaves_a_log_that_verifies", &[Need::Root]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount =
        "mount -t tmpfs -o size=64k none \"$0\" && head -c 40000 /dev/zero > \"$0/other\" && exec \"$1\" \"$0/log\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", mount]).arg(folder.path());
    let mut writer = Writer::spawn(command.arg(binary("write_audit")));
    assert_eq!(writer.ask("record 200"), "Some(Lost)");
    // The mount is its own; this is the way in from here.
    let inside = PathBuf::from(format!("/proc/{}/root{}", writer.child.id(), folder.path().display()));
    fs::remove_file(inside.join("other")).unwrap();
    assert_eq!(writer.ask("record 5"), "Some(Written)");
    let mut log = File::open(inside.join("log")).unwrap();
    let closing = writer.ask("finish 60000");
    assert!(closing.starts_with("Written ") && !closing.contains("lost: 0"), "{closing}");
    writer.end();
    let mut all = String::new();
    log.read_to_string(&mut all).unwrap();
    let lines: Vec<serde_json::Value> = all.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.last().unwrap()["detail"]["log"]["records"], lines.len(), "each on a line of its own");
    assert_eq!(all.lines().count(), lines.len() + 1, "and the torn one");
    log.rewind().unwrap();

    let output = pipewarden().arg("verify").stdin(log).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("a part of a record that the run counted as lost"), "{said}");
    assert!(said.contains("runs: 1 closed, 0 open, 0 broken"), "{said}");
}

#[test]
fn a_target_that_hangs_does_not_outlast_the_ending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _reader_that_never_reads = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
    let mut writer = Writer::start(&path);
    assert!(writer.ask("finish 60000").starts_with("Written "), "there is room for one record");
    writer.end();

    let mut fill = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
    while fill.write(&[b'-'; 4096]).is_ok() {}
    let mut writer = Writer::start(&path);
    assert!(writer.ask("finish 50").starts_with("Late "), "there is none");
    writer.end();
}

/// A run whose command leaves a holder behind, in a session of its own, and exits with 3. It was
/// given a secret.
fn run_with(audit: &Path) -> Output {
    const SCRIPT: &str = r#"mkfifo up; setsid sh -c "echo >up; exec sleep 300" & read line <up; exit 3"#;
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary(UNDER_TEST));
    command.current_dir(folder.path()).args(["run", "--holder-grace", "0", "--audit"]).arg(audit);
    command.args(["--", "sh", "-c", SCRIPT, "sh", "--password", "Hx7Qz"]).output().unwrap()
}

#[test]
fn a_run_tells_who_was_ended_and_why_and_keeps_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    assert_eq!(run_with(&path).status.code(), Some(3));
    assert_eq!(verify(&[&path]).status.code(), Some(0), "{}", text(&verify(&[&path])));
    let log = fs::read_to_string(&path).unwrap();
    assert!(!log.contains("Hx7Qz"), "{log}");
    let records: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let at = |event: &str| records.iter().position(|record| record["event"] == event);
    let signalled = at("holder.signalled").unwrap();
    assert_eq!(at("run.started"), Some(0));
    assert_eq!(at("run.finished"), Some(records.len() - 1));
    assert!(at("run.exited").unwrap() < signalled && signalled < at("holder.ended").unwrap());
    let act = &records[signalled];
    assert_eq!((&act["decision"]["action"], &act["decision"]["reason"]), (&"term".into(), &"stale".into()));
    assert!(act["process"]["cmdline"].as_str().unwrap().contains("sleep 300"), "{act}");
    assert_eq!((&act["evidence"]["relation"], &act["evidence"]["escaped"]), (&"lineage".into(), &true.into()));
    assert_eq!(act["evidence"]["verified"]["start_ticks"], act["process"]["start_ticks"]);
    assert!(records[0]["detail"]["command"].as_str().unwrap().ends_with("sh --password [redacted]"));
}

#[test]
fn a_log_on_stderr_verifies_between_what_the_command_says_there() {
    let mut command = Command::new(binary(UNDER_TEST));
    command.args(["run", "--audit", "-", "--", "sh", "-c", "printf half >&2; echo whole >&2; exit 3"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let verdict = judge(&output.stderr);
    assert!(verdict.intact && verdict.runs.closed == 1, "{verdict:?}\n{}", text(&output));
}

#[test]
fn a_run_ends_as_it_would_without_a_log_that_takes_nothing() {
    assert_eq!(run_with("/dev/full".as_ref()).status.code(), Some(3));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut fifo = File::options().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
    while fifo.write(&[b'-'; 4096]).is_ok() {}
    assert_eq!(run_with(&path).status.code(), Some(3));
}

#[test]
fn a_log_that_is_put_aside_while_it_is_written_is_one_chain() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let write = |files: &str, count: u32| {
        let mut command = Command::new(binary("write_audit"));
        let mut writer = Writer::spawn(command.arg(&path).args(["20000", files]));
        assert_eq!(writer.ask(&format!("record {count}")), "Some(Written)");
        assert!(writer.ask("finish 60000").starts_with("Written "));
        writer.end();
    };
    let verify = || pipewarden().args(["verify", "--rotated"]).arg(&path).output().unwrap();
    let aside = |number: u32| folder.path().join(format!("log.{number}"));

    write("99", 200);
    assert!(aside(3).exists(), "it takes several files");
    assert!(fs::read_dir(folder.path()).unwrap().all(|file| file.unwrap().metadata().unwrap().len() <= 20000));
    let output = verify();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(text(&output), "intact: 201 records in 201 lines; runs: 1 closed, 0 open, 0 broken\n");

    // A file is missing in the middle.
    fs::rename(aside(2), folder.path().join("elsewhere")).unwrap();
    let output = verify();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    fs::rename(folder.path().join("elsewhere"), aside(2)).unwrap();

    // The next run keeps two files: the beginning is gone, which is said, and is no fault.
    write("2", 400);
    let output = verify();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("records were in a file that is gone"), "{said}");
    // Read as a log of which nothing was dropped, it is not whole.
    let output = pipewarden().arg("verify").args([aside(2), aside(1), path.clone()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}
