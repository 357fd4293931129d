//! The hang explained: who waits for whom, and what releases it. Every remedy is applied, and works.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::explain::{apply, blocks_in, held_by, mkfifo, numbers, pipewarden, started, wait_for, why};
use pipewarden_tests::fixture::HOLDER;
use pipewarden_tests::kernel::{self, Frozen};
use pipewarden_tests::process::Process;
use pipewarden_tests::skip::{NODE, Need, skip};
use pipewarden_tests::stage::Stage;
use serde_json::{Value, json};

/// A reader on a pipe, and the pipe's write end.
fn reader(stage: &Stage, words: &[&str]) -> (Child, Process, std::io::PipeWriter) {
    let (read, write) = std::io::pipe().unwrap();
    let mut command = stage.fixture("read_to_eof");
    let (child, process) = started(stage, command.args(["--as", "reader"]).args(words).stdin(read));
    let _ = stage.wait("reader");
    (child, process, write)
}

/// Leaves what a fixture leaves, with the only write end as its stdout.
fn leave(stage: &Stage, fixture: &str, role: &str, write: std::io::PipeWriter) -> Process {
    let mut command = stage.fixture(fixture);
    assert!(command.args(["--as", role]).stdin(Stdio::null()).stdout(write).status().unwrap().success());
    drop(command);
    stage.wait(role)
}

fn assert_verdict(explanation: &Value, verdict: &str, culprits: &[i32]) {
    assert_eq!(explanation["verdict"], verdict, "{explanation:#}");
    let mut found = numbers(&explanation["culprits"]);
    found.sort_unstable();
    let mut expected = culprits.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "{explanation:#}");
    assert_eq!(explanation["source"], "proc");
    let sentence = explanation["explanation"].as_str().unwrap();
    assert!(!sentence.contains('\n'));
    for pid in culprits {
        assert!(sentence.contains(&format!("({pid})")), "{pid} is named: {sentence}");
    }
}

#[test]
fn a_reader_whose_writers_all_escaped() {
    let stage = Stage::new();
    let (mut child, reader, write) = reader(&stage, &[]);
    let one = leave(&stage, "hold_setsid", "one", write.try_clone().unwrap());
    let two = leave(&stage, "hold_double_fork", "two", write);
    blocks_in(reader.pid, libc::SYS_read);
    let explanation = why(reader.pid);
    assert_verdict(&explanation, "withheld", &[one.pid, two.pid]);
    let wait = wait_for(&explanation, "read");
    assert_eq!((wait["tid"].as_i64(), wait["fd"].as_i64()), (Some(i64::from(reader.pid)), Some(0)));
    assert_eq!(wait["pipe"]["kind"], "pipe");
    assert_eq!(held_by(&wait), [one.pid.min(two.pid), one.pid.max(two.pid)]);
    assert!(wait["held_by"].as_array().unwrap().iter().all(|holder| holder["escaped"] == true), "{wait}");
    apply(&stage, &explanation);
    assert!(child.wait().unwrap().success(), "EOF came");
}

/// One who stays at home works for the command: then EOF is not withheld, the command goes on.
#[test]
fn a_reader_with_a_writer_at_home_is_not_withheld() {
    let stage = Stage::new();
    let (_child, reader, write) = reader(&stage, &[]);
    let escapee = leave(&stage, "hold_setsid", "escapee", write.try_clone().unwrap());
    let (_, home) = started(&stage, stage.fixture("stay").args(["--as", "home"]).stdout(write));
    let _ = stage.wait("home");
    assert!(Deadline::patient().until(|| kernel::stat(home.pid, 3).as_deref() == Some("S")), "it waits");
    blocks_in(reader.pid, libc::SYS_read);
    let explanation = why(reader.pid);
    assert_eq!(explanation["verdict"], "waiting", "{explanation:#}");
    let holders = held_by(&wait_for(&explanation, "read"));
    assert!(holders.contains(&escapee.pid) && holders.contains(&home.pid), "{explanation:#}");
}

#[test]
fn an_agent_whose_job_script_holds_its_stdin_fifo() {
    let stage = Stage::new();
    let fifo = stage.path("stdin");
    mkfifo(&fifo);
    let script = "\"$0\" --as agent <\"$1\" 9>&- & exec 9>\"$1\"; wait $!; exit 7";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(binary("read_to_eof")).arg(&fifo);
    let (mut child, job) = started(&stage, stage.announced(&mut command));
    let agent = stage.wait("agent");
    blocks_in(agent.pid, libc::SYS_read);
    blocks_in(job.pid, libc::SYS_wait4);
    let explanation = why(agent.pid);
    assert_verdict(&explanation, "deadlock", &[agent.pid, job.pid]);
    let wait = wait_for(&explanation, "read");
    assert_eq!(wait["pipe"]["kind"], "fifo");
    assert_eq!(wait["pipe"]["path"], fifo.to_str().unwrap());
    assert_eq!(held_by(&wait), [job.pid]);
    assert_eq!(numbers(&wait["held_by"][0]["fds"]), [9]);
    let note = explanation["remedy_note"].as_str().unwrap();
    assert!(note.contains(&format!("bash ({}) closes fd 9", job.pid)), "the job's own way out: {note}");
    // The job is innocent: the remedy must not end it.
    apply(&stage, &explanation);
    assert_eq!(child.wait().unwrap().code(), Some(7), "the job went on after its wait");
}

#[test]
fn a_writer_blocked_in_opening_a_fifo() {
    let stage = Stage::new();
    let fifo = stage.path("no one's");
    mkfifo(&fifo);
    let mut command = Command::new("sh");
    let (mut child, writer) = started(&stage, command.args(["-c", "exec 3>\"$0\"; exit 5"]).arg(&fifo));
    blocks_in(writer.pid, libc::SYS_openat);
    let explanation = why(writer.pid);
    assert_verdict(&explanation, "opening", &[writer.pid]);
    let wait = wait_for(&explanation, "open");
    assert_eq!((&wait["need"], &wait["pipe"]["path"]), (&json!("reader"), &json!(fifo.to_str().unwrap())));
    apply(&stage, &explanation);
    assert_eq!(child.wait().unwrap().code(), Some(5), "its open returned");
}

#[test]
fn two_processes_with_crossed_full_pipes() {
    let stage = Stage::new();
    let (mut child, parent) = started(&stage, &mut stage.fixture("cross_full_pipes"));
    let (left, right) = (stage.wait("left"), stage.wait("right"));
    for process in [&left, &right] {
        blocks_in(process.pid, libc::SYS_write);
    }
    blocks_in(parent.pid, libc::SYS_wait4);
    let explanation = why(left.pid);
    assert_verdict(&explanation, "deadlock", &[left.pid, right.pid]);
    assert_eq!(held_by(&wait_for(&explanation, "write")), [right.pid]);
    // Who waits for them waits for the same reason.
    let above = why(parent.pid);
    assert_eq!(above["verdict"], "deadlock", "{above:#}");
    apply(&stage, &explanation);
    assert!(left.dies(Deadline::patient()) && right.dies(Deadline::patient()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_parent_whose_child_is_stopped() {
    let stage = Stage::new();
    let (mut child, parent) =
        started(&stage, stage.fixture("wait_for_stopped_child").args(["--exit", "3"]).stdout(Stdio::null()));
    let stopped = stage.wait("stopped");
    assert!(Deadline::patient().until(|| kernel::stat(stopped.pid, 3).as_deref() == Some("T")));
    blocks_in(parent.pid, libc::SYS_wait4);
    let explanation = why(parent.pid);
    assert_verdict(&explanation, "stopped", &[stopped.pid]);
    assert_eq!(numbers(&wait_for(&explanation, "child")["children"]), [stopped.pid]);
    assert_eq!(explanation["remedy"], format!("kill -CONT {}", stopped.pid));
    apply(&stage, &explanation);
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// A pipeline whose first member reads the terminal from the background, and a reader behind it.
struct Background {
    master: std::fs::File,
    member: Process,
    reader: Process,
}

fn background(stage: &Stage) -> Background {
    let pair = nix::pty::openpty(None, None).unwrap();
    let slave = || Stdio::from(pair.slave.try_clone().unwrap());
    let fifo = stage.path("out");
    mkfifo(&fifo);
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-i"]).stdin(slave()).stdout(slave()).stderr(slave());
    // SAFETY: setsid and this ioctl are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    let (_, shell) = started(stage, stage.announced(&mut command));
    drop(command);
    let mut master = std::fs::File::from(pair.master);
    // The screen must be read, or the shell blocks; what it shows is none of this test's business.
    let mut screen = master.try_clone().unwrap();
    std::thread::spawn(move || while matches!(screen.read(&mut [0; 4096]), Ok(1..)) {});
    let mut reading = stage.fixture("read_to_eof");
    // Both ends first, so that no open waits.
    let both = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let (_, reader) = started(stage, reading.args(["--as", "reader"]).stdin(std::fs::File::open(&fifo).unwrap()));
    let _ = stage.wait("reader");
    let line = format!("cat >{} &\n", fifo.display());
    master.write_all(line.as_bytes()).unwrap();
    let mut member = None;
    let found = Deadline::patient().until(|| {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.pid)).unwrap_or_default();
        member = children.split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok());
        member.is_some_and(|pid| kernel::stat(pid, 3).as_deref() == Some("T"))
    });
    assert!(found, "the background member is never stopped");
    drop(both);
    let member = Process::open(member.unwrap()).unwrap();
    stage.adopt(&member);
    Background { master, member, reader }
}

#[test]
fn a_pipeline_with_a_member_stopped_for_reading_the_terminal() {
    let stage = Stage::new();
    let Background { member, reader, master, .. } = background(&stage);
    blocks_in(reader.pid, libc::SYS_read);
    let explanation = why(reader.pid);
    assert_verdict(&explanation, "stopped", &[member.pid]);
    assert!(explanation["explanation"].as_str().unwrap().contains("SIGTTIN"), "{explanation:#}");
    apply(&stage, &explanation);
    assert!(reader.dies(Deadline::patient()), "EOF came");
    drop(master);
}

/// The gentler way that the note names, and that only the shell can go.
#[test]
fn a_background_reader_of_the_terminal_goes_on_in_the_foreground() {
    let stage = Stage::new();
    let Background { member, reader, mut master, .. } = background(&stage);
    blocks_in(reader.pid, libc::SYS_read);
    let note = why(reader.pid)["remedy_note"].as_str().unwrap().to_owned();
    assert!(note.contains("type fg in bash"), "{note}");
    master.write_all(b"fg\n").unwrap();
    assert!(Deadline::patient().until(|| kernel::stat(member.pid, 3).as_deref() == Some("S")));
    master.write_all(b"a line\n\x04").unwrap();
    assert!(reader.dies(Deadline::patient()), "cat read, wrote, and ended by itself");
}

#[test]
fn a_node_parent_whose_childs_child_keeps_the_socket() {
    if skip("a_node_parent_whose_childs_child_keeps_the_socket", &[Need::Node]) {
        return;
    }
    let stage = Stage::new();
    let script = "require('child_process').spawn(process.argv[1], { stdio: ['ignore', 'pipe', 'inherit'] })\
                  .on('close', () => process.exit(9)).stdout.resume()";
    let mut command = Command::new(NODE);
    command.args(["-e", script]).arg(binary("hold_setsid"));
    let (mut child, node) = started(&stage, stage.announced(&mut command));
    let holder = stage.wait(HOLDER);
    blocks_in(node.pid, libc::SYS_epoll_pwait);
    let explanation = why(node.pid);
    assert_verdict(&explanation, "withheld", &[holder.pid]);
    let waits = explanation["waits"].as_array().unwrap();
    let wait = waits.iter().find(|wait| wait["pipe"]["kind"] == "socket").expect("Node gives its children socketpairs");
    assert_eq!(held_by(wait), [holder.pid]);
    apply(&stage, &explanation);
    assert_eq!(child.wait().unwrap().code(), Some(9), "Node saw `close`");
}

#[test]
fn a_reader_whose_writer_is_only_in_flight() {
    let stage = Stage::new();
    let (mut child, reader, write) = reader(&stage, &[]);
    let receiver = leave(&stage, "hold_in_flight", HOLDER, write);
    blocks_in(reader.pid, libc::SYS_read);
    let explanation = why(reader.pid);
    assert_verdict(&explanation, "in_flight", &[receiver.pid]);
    assert_eq!(held_by(&wait_for(&explanation, "read")), [0; 0]);
    assert!(explanation["remedy_note"].as_str().unwrap().contains("receive queue"), "{explanation:#}");
    apply(&stage, &explanation);
    assert!(child.wait().unwrap().success(), "EOF came");
}

#[test]
fn a_reader_thread_in_epoll() {
    let stage = Stage::new();
    let (mut child, reader, write) = reader(&stage, &["epoll"]);
    let holder = leave(&stage, "hold_setsid", HOLDER, write);
    // glibc's epoll_wait is one or the other.
    let number = if cfg!(target_arch = "x86_64") { libc::SYS_epoll_wait } else { libc::SYS_epoll_pwait };
    blocks_in(reader.pid, number);
    let explanation = why(reader.pid);
    assert_verdict(&explanation, "withheld", &[holder.pid]);
    let wait = wait_for(&explanation, "epoll");
    assert_ne!(wait["tid"].as_i64(), Some(i64::from(reader.pid)), "not the first thread, which waits for it");
    assert_eq!(held_by(&wait), [holder.pid]);
    let _ = wait_for(&explanation, "thread");
    apply(&stage, &explanation);
    assert!(child.wait().unwrap().success(), "EOF came");
}

#[test]
fn a_writer_frozen_in_d_state() {
    if skip("a_writer_frozen_in_d_state", &[Need::Freezer]) {
        return;
    }
    let stage = Stage::new();
    let (mut child, reader, write) = reader(&stage, &[]);
    let holder = leave(&stage, "hold_setsid", HOLDER, write);
    blocks_in(reader.pid, libc::SYS_read);
    let frozen = Frozen::new(&holder);
    for asked in [reader.pid, holder.pid] {
        let explanation = why(asked);
        assert_verdict(&explanation, "frozen", &[holder.pid]);
        assert_eq!(wait_for(&explanation_of(&explanation, holder.pid), "frozen")["tid"], holder.pid);
    }
    let explanation = why(reader.pid);
    apply(&stage, &explanation);
    assert!(Deadline::patient().until(|| kernel::stat(holder.pid, 3).as_deref() == Some("S")), "it thawed");
    // What is left is the hang beneath it.
    let explanation = why(reader.pid);
    assert_verdict(&explanation, "withheld", &[holder.pid]);
    apply(&stage, &explanation);
    assert!(child.wait().unwrap().success(), "EOF came");
    drop(frozen);
}

/// What an explanation says about one process, itself or another one.
fn explanation_of(explanation: &Value, pid: i32) -> Value {
    if explanation["pid"] == pid {
        return explanation.clone();
    }
    let others = explanation["others"].as_array().unwrap();
    others.iter().find(|other| other["pid"] == pid).unwrap_or_else(|| panic!("{pid}: {explanation}")).clone()
}

#[test]
fn a_holder_that_ignores_sigterm_is_not_asked_in_vain() {
    let stage = Stage::new();
    let (mut child, reader, write) = reader(&stage, &[]);
    let holder = leave(&stage, "hold_ignoring_term", HOLDER, write);
    blocks_in(reader.pid, libc::SYS_read);
    let explanation = why(reader.pid);
    assert_eq!(explanation["remedy"], format!("kill -KILL {}", holder.pid));
    apply(&stage, &explanation);
    assert!(child.wait().unwrap().success(), "EOF came");
}

/// A writer keeps the pipe's lock: whoever asks the pipe for its bytes waits for it, unkillably.
#[test]
fn a_target_that_nobody_may_touch_is_explained_in_time() {
    let stage = Stage::new();
    let (_child, reader, write) = reader(&stage, &[]);
    let mut command = stage.fixture("write_under_lock");
    let (mut writing, writer) = started(&stage, command.args(["--as", "writer"]).stdout(write));
    drop(command);
    let faults = || {
        let wchan = std::fs::read_to_string(format!("/proc/{}/wchan", writer.pid)).unwrap_or_default();
        wchan.contains("userfault") || writing.try_wait().is_ok_and(|status| status.is_some())
    };
    assert!(Deadline::patient().until(faults), "the writer never gets into its write");
    if writer.is_dead() {
        return pipewarden_tests::skip::skipped(
            "a_target_that_nobody_may_touch_is_explained_in_time",
            "it needs userfaultfd",
        );
    }
    let asked = |words: &[&str]| {
        let output = pipewarden(&[words, &["--within", "5s", "--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let explanation = asked(&["why", &reader.pid.to_string()]);
    assert_eq!(explanation["pid"], reader.pid);
    let found = asked(&["holders", &format!("{}:1", writer.pid)]);
    let pids: Vec<i64> = found["holders"].as_array().unwrap().iter().filter_map(|h| h["pid"].as_i64()).collect();
    assert!(pids.contains(&i64::from(writer.pid)) && pids.contains(&i64::from(reader.pid)), "{found}");
    assert!(found["unseen"].to_string().contains("late: "), "what was not read is named: {found}");
    writer.signal(Signal::SIGKILL);
    assert!(writer.dies(Deadline::patient()));
}

#[test]
fn the_picture_is_what_graphviz_reads() {
    let stage = Stage::new();
    let (_child, reader, write) = reader(&stage, &[]);
    let holder = leave(&stage, "hold_setsid", HOLDER, write);
    blocks_in(reader.pid, libc::SYS_read);
    let output = pipewarden(&["why", &reader.pid.to_string(), "--dot"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("digraph why {") && text.trim_end().ends_with('}'), "{text}");
    assert!(text.contains(&format!("p{} -> p{} [label=", reader.pid, holder.pid)), "{text}");
}

#[test]
fn the_text_for_people_has_the_verdict_and_the_release_first() {
    let stage = Stage::new();
    let (_child, reader, write) = reader(&stage, &[]);
    let holder = leave(&stage, "hold_setsid", HOLDER, write);
    blocks_in(reader.pid, libc::SYS_read);
    let output = pipewarden(&["why", &reader.pid.to_string()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("withheld: "), "{text}");
    assert_eq!(lines.next(), Some(&*format!("release: kill -TERM {}", holder.pid)), "{text}");
    assert!(text.contains("source: proc"), "{text}");
}

#[test]
fn what_is_no_process_is_one_line() {
    for (words, part) in [
        (&["why", "0"][..], "0"),
        (&["why", "x"], "x"),
        (&["why", "2147483647"], "there is no process 2147483647"),
        (&["why", "1", "--json", "--dot"], "--dot"),
    ] {
        let output = pipewarden(words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}: {text}");
        assert!(text.starts_with("pipewarden: ") && text.contains(part), "{words:?}: {text}");
        assert_eq!((text.matches('\n').count(), output.stdout.len()), (1, 0), "{words:?}: {text}");
    }
}

/// Our reader may go when it has read enough.
#[test]
fn a_reader_of_ours_that_goes_is_no_error() {
    let stage = Stage::new();
    let (_child, reader, _write) = reader(&stage, &[]);
    blocks_in(reader.pid, libc::SYS_read);
    let (read, write) = std::io::pipe().unwrap();
    let mut command = Command::new(binary("pipewarden-under-test"));
    command.args(["why", &reader.pid.to_string()]).stdout(write).stderr(Stdio::piped());
    drop(read);
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
