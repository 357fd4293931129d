//! Who holds it: everything that lsof, fuser and lsfd find, and what they miss.

use std::collections::BTreeSet;
use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::fstat;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::explain::{blocks_in, holders, mkfifo, numbers, pipewarden, started};
use pipewarden_tests::fixture::HOLDER;
use pipewarden_tests::kernel;
use pipewarden_tests::process::Process;
use pipewarden_tests::skip::{Need, skip, skipped};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

fn us() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

/// Leaves what a fixture leaves, with the only write end as its stdout. We keep the read end.
fn leave(stage: &Stage, fixture: &str) -> (PipeReader, Process) {
    let (read, write) = std::io::pipe().unwrap();
    let mut command = stage.fixture(fixture);
    assert!(command.stdin(Stdio::null()).stdout(write).status().unwrap().success());
    drop(command);
    (read, stage.wait(HOLDER))
}

fn target(pipe: &PipeReader) -> String {
    format!("pipe:[{}]", fstat(pipe).unwrap().st_ino)
}

/// The row about a process and an end, or by a way.
fn row(report: &Value, pid: i32, end: &str) -> Value {
    let rows = report["holders"].as_array().unwrap();
    let found = rows.iter().find(|row| row["pid"] == pid && row["end"] == end);
    found.unwrap_or_else(|| panic!("no row about {pid}, {end}: {report:#}")).clone()
}

fn pids(report: &Value) -> BTreeSet<i32> {
    let rows = report["holders"].as_array().unwrap();
    rows.iter().map(|row| i32::try_from(row["pid"].as_i64().unwrap()).unwrap()).collect()
}

#[test]
fn a_pipe_with_its_ends_and_their_parents() {
    let stage = Stage::new();
    let (read, holder) = leave(&stage, "hold_same_group");
    let report = holders(&target(&read));
    let stat = fstat(&read).unwrap();
    assert_eq!(report["pipe"]["ino"].as_u64(), Some(stat.st_ino));
    assert_eq!(report["pipe"]["dev"].as_u64(), Some(stat.st_dev));
    assert_eq!((report["pipe"]["kind"].as_str(), report["source"].as_str()), (Some("pipe"), Some("proc")));
    let ours = row(&report, us(), "read");
    assert_eq!(numbers(&ours["fds"]), [read.as_raw_fd()]);
    let theirs = row(&report, holder.pid, "write");
    assert_eq!(numbers(&theirs["fds"]), [1]);
    assert_eq!((theirs["since"].as_str(), theirs["via"].as_str()), (Some("before we looked"), Some("unknown")));
    let parents: Vec<i64> = theirs["lineage"].as_array().unwrap().iter().filter_map(|p| p["pid"].as_i64()).collect();
    let parent = kernel::stat(holder.pid, 4).unwrap().parse::<i64>().unwrap();
    assert_eq!(parents.first(), Some(&parent), "{theirs}");
    assert!(theirs["cmdline"].as_str().unwrap().contains("hold_same_group"), "{theirs}");
    // The line that the fixture wrote is still inside.
    let inside = report["waiting"][0]["bytes"].as_u64().unwrap();
    assert_eq!(inside, u64::try_from(pipewarden_tests::fixture::LAST_LINE.len()).unwrap());
    assert_eq!(pids(&report), BTreeSet::from([us(), holder.pid]), "nobody else");
}

#[test]
fn a_target_is_a_pipe_a_process_or_its_descriptor() {
    let stage = Stage::new();
    let (read, holder) = leave(&stage, "hold_setsid");
    let by_pipe = holders(&target(&read));
    let by_fd = holders(&format!("{}:1", holder.pid));
    assert_eq!(by_pipe["pipe"], by_fd["pipe"]);
    assert_eq!(pids(&by_pipe), pids(&by_fd));
    let by_process = holders(&holder.pid.to_string());
    let all = by_process["pipes"].as_array().unwrap();
    assert!(all.iter().any(|report| report["pipe"] == by_pipe["pipe"]), "{by_process}");
}

#[test]
fn a_reader_that_reads_now_is_said_to() {
    let stage = Stage::new();
    let (read, write) = std::io::pipe().unwrap();
    let target = target(&read);
    let (_child, reader) = started(&stage, stage.fixture("read_to_eof").args(["--as", "reader"]).stdin(read));
    let _ = stage.wait("reader");
    blocks_in(reader.pid, libc::SYS_read);
    let report = holders(&target);
    assert_eq!(row(&report, reader.pid, "read")["now"], "read");
    assert_eq!(row(&report, us(), "write")["now"], Value::Null, "we write nothing");
    drop(write);
}

/// The report in which only this test process holds it: another test's child has a copy of all our
/// descriptors between its fork and its exec.
fn alone(target: &str) -> Value {
    let mut report = Value::Null;
    let alone = Deadline::patient().until(|| {
        report = holders(target);
        pids(&report) == BTreeSet::from([us()])
    });
    assert!(alone, "no table of another process shows it: {report:#}");
    report
}

#[test]
fn a_fifo_with_both_ends_in_one_descriptor() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let mut both = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    both.write_all(b"12345").unwrap();
    let report = holders(path.to_str().unwrap());
    assert_eq!(report["pipe"]["kind"], "fifo");
    assert_eq!(numbers(&row(&report, us(), "both")["fds"]), [both.as_raw_fd()]);
    assert_eq!(report["waiting"][0]["bytes"], 5);
    // By another path the same FIFO, on another inode another one.
    let link = stage.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    alone(link.to_str().unwrap());
    let other = stage.path("other");
    mkfifo(&other);
    assert_eq!(pids(&holders(other.to_str().unwrap())), BTreeSet::new());
}

#[test]
fn both_sides_of_a_socketpair() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"1234567").unwrap();
    let stage = Stage::new();
    let (_child, child) = started(&stage, Command::new("sleep").arg("60").stdin(OwnedFd::from(theirs)));
    assert!(Deadline::patient().until(|| kernel::stat(child.pid, 3).as_deref() == Some("S")));
    let report = holders(&format!("{}:{}", us(), ours.as_raw_fd()));
    assert_eq!(report["pipe"]["kind"], "socket");
    let (here, there) = (row(&report, us(), "both"), row(&report, child.pid, "both"));
    assert_ne!(here["side"], there["side"]);
    assert_eq!(there["side"], format!("socket:[{}]", report["pipe"]["peer"]));
    let waiting = report["waiting"].as_array().unwrap();
    let to_child = waiting.iter().find(|waiting| waiting["side"] == there["side"]).unwrap();
    assert_eq!(to_child["bytes"], 7);
}

#[test]
fn both_sides_of_a_terminal() {
    let pair = nix::pty::openpty(None, None).unwrap();
    let stage = Stage::new();
    let slave = pair.slave.try_clone().unwrap();
    let (_child, child) = started(&stage, Command::new("sleep").arg("60").stdin(slave));
    let path = nix::unistd::ttyname(&pair.slave).unwrap();
    for target in [path.to_str().unwrap().to_owned(), format!("{}:{}", us(), pair.master.as_raw_fd())] {
        let report = holders(&target);
        assert_eq!((&report["pipe"]["kind"], report["pipe"]["path"].as_str()), (&"pty".into(), path.to_str()));
        let rows = report["holders"].as_array().unwrap();
        let side = |pid: i32, side: &str| rows.iter().any(|row| row["pid"] == pid && row["side"] == side);
        assert!(side(us(), "master") && side(us(), "slave") && side(child.pid, "slave"), "{report:#}");
        assert!(!side(child.pid, "master"), "{report:#}");
    }
}

/// What other tools find of a pipe, by the pids that they print.
struct Tool {
    name: &'static str,
    pids: BTreeSet<i32>,
}

/// lsof, fuser and lsfd about one pipe; a missing tool is said to be missing.
fn others(test: &str, read: &impl AsFd) -> Vec<Tool> {
    let ino = fstat(read).unwrap().st_ino;
    let mut found = Vec::new();
    let mut ask = |name: &'static str, words: &[&str], pid_of: &dyn Fn(&str) -> Option<i32>| {
        let Ok(output) = Command::new(name).args(words).stderr(Stdio::null()).output() else {
            return skipped(&format!("{test} against {name}"), "it is not installed");
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.push(Tool { name, pids: text.split('\n').filter_map(pid_of).collect() });
    };
    let number = format!(" {ino} pipe");
    ask("lsof", &["-n", "-P", "-w"], &|line| {
        line.contains(&number).then(|| line.split_whitespace().nth(1)?.parse().ok()).flatten()
    });
    ask("lsfd", &["-n", "-r", "-o", "PID,INODE,TYPE", "-Q", &format!("INODE == {ino}")], &|line| {
        line.split_whitespace().next()?.parse().ok()
    });
    // fuser(1) takes a path, of our own end, and prints all pids in one line.
    let path = format!("/proc/{}/fd/{}", us(), read.as_fd().as_raw_fd());
    match Command::new("fuser").arg(path).stderr(Stdio::null()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let pids = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            found.push(Tool { name: "fuser", pids });
        }
        Err(_) => skipped(&format!("{test} against fuser"), "it is not installed"),
    }
    found
}

/// Whether a process has the pipe open for longer than a moment: a child of another test is a copy of us, with
/// all that we have, until it executes its program.
fn still_holds(pid: i32, pipe: &impl AsFd) -> bool {
    let name = format!("pipe:[{}]", fstat(pipe).unwrap().st_ino);
    let holds = || {
        let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == name.as_str()))
    };
    !Deadline::after(Duration::from_secs(10)).until(|| !holds())
}

#[test]
fn everything_that_lsof_fuser_and_lsfd_find() {
    let stage = Stage::new();
    for fixture in ["hold_setsid", "hold_double_fork", "hold_reopened", "hold_ignoring_term"] {
        let stage_of_one = Stage::new();
        let (read, holder) = leave(&stage_of_one, fixture);
        let ours = pids(&holders(&target(&read)));
        assert!(ours.contains(&holder.pid), "{fixture}");
        for tool in others("everything_that_lsof_fuser_and_lsfd_find", &read) {
            assert!(!tool.pids.is_empty(), "{} finds somebody: the comparison is one", tool.name);
            let missed: Vec<_> = tool.pids.difference(&ours).filter(|pid| still_holds(**pid, &read)).collect();
            assert!(missed.is_empty(), "{fixture}: {} finds {missed:?}, and we do not: {ours:?}", tool.name);
        }
    }
    drop(stage);
}

/// The rows that they miss. Whether they do is printed, not asserted: other versions may learn.
fn they_miss(test: &str, read: &PipeReader, holder: i32) {
    for tool in others(test, read) {
        let word = if tool.pids.contains(&holder) { "finds" } else { "misses" };
        eprintln!("{} {word} it", tool.name);
    }
}

#[test]
fn a_process_whose_first_thread_has_exited() {
    let stage = Stage::new();
    let (read, holder) = leave(&stage, "hold_in_second_thread");
    let row = row(&holders(&target(&read)), holder.pid, "write");
    assert_eq!(numbers(&row["fds"]), [1]);
    assert_ne!(row["tid"], Value::Null, "the thread is named: {row}");
    they_miss("a_process_whose_first_thread_has_exited", &read, holder.pid);
}

#[test]
fn a_thread_with_a_table_of_its_own() {
    let stage = Stage::new();
    let (read, holder) = leave(&stage, "hold_unshared_table");
    let row = row(&holders(&target(&read)), holder.pid, "write");
    assert_eq!(numbers(&row["fds"]), [1]);
    assert_ne!(row["tid"], Value::Null, "the thread is named: {row}");
    they_miss("a_thread_with_a_table_of_its_own", &read, holder.pid);
}

#[test]
fn a_pipe_registered_with_an_io_uring() {
    if skip("a_pipe_registered_with_an_io_uring", &[Need::IoUring]) {
        return;
    }
    let stage = Stage::new();
    let (read, holder) = leave(&stage, "hold_io_uring");
    let row = row(&holders(&target(&read)), holder.pid, "both");
    assert_eq!(row["via"], "io_uring");
    they_miss("a_pipe_registered_with_an_io_uring", &read, holder.pid);
}

#[test]
fn a_pipe_in_flight_between_processes() {
    let stage = Stage::new();
    let (read, receiver) = leave(&stage, "hold_in_flight");
    let report = alone(&target(&read));
    let flights = report["in_flight"].as_array().unwrap();
    let flight = flights.iter().find(|flight| flight["pid"] == receiver.pid);
    let flight = flight.unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!((&flight["count"], &flight["certain"]), (&1.into(), &true.into()));
    assert_eq!(flights.len(), 1, "nobody else's flight is blamed: {report:#}");
    // The message was looked at, and is still there.
    assert!(kernel::fdinfo_says(receiver.pid, "scm_fds: 1"));
    // Another pipe is not said to be in flight there.
    let (other, _write) = std::io::pipe().unwrap();
    let flights = holders(&target(&other))["in_flight"].clone();
    assert!(!flights.to_string().contains(&format!("\"pid\":{}", receiver.pid)), "{flights}");
    they_miss("a_pipe_in_flight_between_processes", &read, receiver.pid);
}

/// Without privilege: one's own processes, and how many others there are.
#[test]
fn a_user_sees_the_own_and_is_told_what_is_hidden() {
    if skip("a_user_sees_the_own_and_is_told_what_is_hidden", &[Need::Root]) {
        return;
    }
    let nobody = 65534;
    let stage = Stage::new();
    let folder = stage.path("public");
    std::fs::create_dir(&folder).unwrap();
    let copy = |name: &str| {
        let to = folder.join(name);
        // By another process: a test that forks while we write would keep it "busy".
        assert!(Command::new("cp").arg(binary(name)).arg(&to).status().unwrap().success());
        to
    };
    let (read, write) = std::io::pipe().unwrap();
    let mut command = Command::new(copy("hold_setsid"));
    let status = stage.announced(&mut command).uid(nobody).stdout(write).status().unwrap();
    assert!(status.success());
    drop(command);
    let holder = stage.wait(HOLDER);
    let output =
        Command::new(copy(UNDER_TEST)).args(["holders", &target(&read), "--json"]).uid(nobody).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pids(&report), BTreeSet::from([holder.pid]), "ours, which is root's, is hidden: {report}");
    let unseen = report["unseen"].to_string();
    assert!(unseen.contains("opaque: ") && unseen.contains(" of uid 0"), "{unseen}");
}

#[test]
fn what_is_no_target_is_one_line() {
    let stage = Stage::new();
    let file = stage.path("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let absent = stage.path("absent");
    let absent = absent.to_str().unwrap();
    for (target, part) in [
        ("pipe:[x]", "use pipe:[INO]"),
        ("nonsense", "use pipe:[INO]"),
        (file, "is a regular file"),
        (absent, "no such file"),
        ("2147483647", "there is no process"),
        (&format!("{}:99999", us()), "has no descriptor 99999"),
    ] {
        let output = pipewarden(&["holders", target]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{target}: {text}");
        assert!(text.starts_with("pipewarden: ") && text.contains(part), "{target}: {text}");
        assert_eq!((text.matches('\n').count(), output.stdout.len()), (1, 0), "{target}: {text}");
    }
}

#[test]
fn a_pipe_that_nobody_holds_is_an_answer() {
    let (read, write) = std::io::pipe().unwrap();
    let target = target(&read);
    drop((read, write));
    assert_eq!(pids(&holders(&target)), BTreeSet::new());
    let output = pipewarden(&["holders", &target]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("nobody whom we see holds it"));
}
