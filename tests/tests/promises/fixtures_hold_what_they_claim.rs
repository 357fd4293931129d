//! The fixtures without pipewarden, against the kernel: each holds what it claims, in the way it
//! claims, and a plain reader gets no EOF because of it.

use std::io::PipeReader;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{HOLDER, LAST_LINE, LATE_LINE, pattern};
use pipewarden_tests::kernel::{self, OnPipe};
use pipewarden_tests::process::Process;
use pipewarden_tests::reader::{Pace, read_now, read_to_end};
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

/// Runs a fixture to its command's exit, with our reader on its stdout. Its exit code comes too.
fn leave(command: &mut Command) -> (PipeReader, i32) {
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdin(Stdio::null()).stdout(writer);
    let mut child = command.spawn().unwrap();
    command.stdout(Stdio::null()); // drops our own write end
    (reader, child.wait().unwrap().code().unwrap_or(-1))
}

/// The command's output is there, and its exit brought no EOF.
fn assert_withheld(reader: &PipeReader) {
    let read = read_now(reader);
    assert_eq!(String::from_utf8_lossy(&read.bytes), String::from_utf8_lossy(LAST_LINE));
    assert!(!read.eof, "a plain reader gets no EOF");
}

/// EOF comes when these are gone.
fn assert_eof_after(reader: PipeReader, holders: &[Process]) {
    for holder in holders {
        holder.signal(Signal::SIGKILL);
        assert!(holder.dies(Deadline::patient()));
    }
    assert!(read_to_end(reader, Pace::Eager, Deadline::patient()).join().unwrap().eof, "they were what withheld it");
}

/// Runs a fixture that leaves [`HOLDER`] with a write end; gives what the kernel says about it.
fn hold(stage: &Stage, fixture: &str) -> (PipeReader, Process, Vec<OnPipe>) {
    let (reader, _) = leave(&mut stage.fixture(fixture));
    assert_withheld(&reader);
    let holder = stage.wait(HOLDER);
    let found = kernel::on_pipe(holder.pid, &reader);
    assert!(found.iter().any(|held| held.writes), "{fixture} holds a write end: {found:?}");
    (reader, holder, found)
}

/// Its process group and session, relative to its own pid and to ours.
fn leads_session(pid: i32) -> bool {
    kernel::stat(pid, 6) == Some(pid.to_string())
}

fn parent(pid: i32) -> String {
    kernel::stat(pid, 4).unwrap()
}

#[test]
fn hold_same_group_stays_in_the_commands_group() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_same_group");
    assert!(!leads_session(holder.pid));
    let command = stage.wait("command").pid;
    assert_ne!(kernel::stat(holder.pid, 5), Some(holder.pid.to_string()), "not a group of its own");
    assert_ne!(parent(holder.pid), command.to_string(), "its parent is gone");
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_setsid_has_a_session_of_its_own() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_setsid");
    assert!(leads_session(holder.pid));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_double_fork_leads_no_session_but_is_in_another() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_double_fork");
    assert!(!leads_session(holder.pid));
    assert_ne!(kernel::stat(holder.pid, 6), kernel::stat(std::process::id().try_into().unwrap(), 6));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_setpgid_leads_a_group_but_no_session() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_setpgid");
    assert_eq!(kernel::stat(holder.pid, 5), Some(holder.pid.to_string()));
    assert!(!leads_session(holder.pid));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_ignoring_term_ignores_term() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_ignoring_term");
    let status = std::fs::read_to_string(format!("/proc/{}/status", holder.pid)).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_ne!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 << (libc::SIGTERM - 1), 0);
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_reopened_has_one_descriptor_which_reads_and_writes() {
    let stage = Stage::new();
    let (reader, holder, found) = hold(&stage, "hold_reopened");
    assert!(found.len() == 1 && found[0].reads && found[0].writes, "{found:?}");
    assert_eq!(kernel::descriptors(holder.pid), 1);
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_in_second_thread_shows_nothing_at_the_process() {
    let stage = Stage::new();
    let (reader, holder, found) = hold(&stage, "hold_in_second_thread");
    assert_eq!(kernel::stat(holder.pid, 3).as_deref(), Some("Z"), "its first thread has ended");
    assert_eq!(kernel::descriptors(holder.pid), 0);
    assert!(found.iter().all(|held| held.tid != holder.pid), "{found:?}");
    assert!(holder.lives());
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_unshared_table_shows_nothing_at_the_process() {
    let stage = Stage::new();
    let (reader, holder, found) = hold(&stage, "hold_unshared_table");
    assert_eq!(kernel::descriptors(holder.pid), 0);
    assert!(found.iter().all(|held| held.tid != holder.pid), "{found:?}");
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_undumpable_belongs_to_root_as_far_as_proc_says() {
    if skip("hold_undumpable_belongs_to_root_as_far_as_proc_says", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let copy = stage.path("hold_undumpable");
    pipewarden_tests::run::copied(&pipewarden_tests::binaries::binary("hold_undumpable"), &copy);
    let mut command = Command::new(copy);
    let (reader, _) = leave(stage.announced(std::os::unix::process::CommandExt::uid(&mut command, 65534)));
    assert_withheld(&reader);
    let holder = stage.wait(HOLDER);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{}/fd", holder.pid)).unwrap());
    assert_eq!(owner, 0, "only root may list its descriptors");
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_stopped_is_stopped() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_stopped");
    assert_eq!(kernel::stat(holder.pid, 3).as_deref(), Some("T"));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_clone_parent_is_a_child_of_the_commands_parent() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_clone_parent");
    assert_eq!(parent(holder.pid), std::process::id().to_string());
    assert_eof_after(reader, std::slice::from_ref(&holder));
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(holder.pid), None).unwrap();
}

#[test]
fn hold_without_environment_has_none() {
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_without_environment");
    assert_eq!(std::fs::read(format!("/proc/{}/environ", holder.pid)).unwrap(), b"");
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_in_flight_is_in_no_table() {
    let stage = Stage::new();
    let (reader, _) = leave(&mut stage.fixture("hold_in_flight"));
    assert_withheld(&reader);
    let holder = stage.wait(HOLDER);
    assert_eq!(kernel::on_pipe(holder.pid, &reader), vec![]);
    assert!(kernel::fdinfo_says(holder.pid, "scm_fds: 1"));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn hold_io_uring_is_in_no_table() {
    if skip("hold_io_uring_is_in_no_table", &[Need::IoUring]) {
        return;
    }
    let stage = Stage::new();
    let (reader, _) = leave(&mut stage.fixture("hold_io_uring"));
    assert_withheld(&reader);
    let holder = stage.wait(HOLDER);
    assert_eq!(kernel::on_pipe(holder.pid, &reader), vec![]);
    assert!(kernel::fdinfo_says(holder.pid, if kernel::names_registered_pipes() { "0: pipe:[" } else { "    0: " }));
    assert_eof_after(reader, &[holder]);
}

#[test]
fn the_quiet_ones_withhold_nothing() {
    for fixture in ["hold_stdin_only", "hold_nothing", "ssh_agent_daemon", "just_exit"] {
        let stage = Stage::new();
        let (reader, _) = leave(&mut stage.fixture(fixture));
        let read = read_to_end(reader, Pace::Eager, Deadline::patient()).join().unwrap();
        assert!(read.eof && read.bytes == LAST_LINE, "{fixture}: {}", read.text());
        if let Some(holder) = stage.present(HOLDER) {
            assert!(holder.lives(), "{fixture}");
            let open = kernel::descriptors(holder.pid);
            assert_eq!(open, if fixture == "hold_nothing" { 0 } else { 3 }, "{fixture}");
        }
    }
}

#[test]
fn hold_read_end_withholds_nothing_and_reads() {
    let stage = Stage::new();
    let (reader, _) = leave(&mut stage.fixture("hold_read_end"));
    let holder = stage.wait(HOLDER);
    let found = kernel::on_pipe(holder.pid, &reader);
    assert!(found.len() == 1 && found[0].reads && !found[0].writes, "{found:?}");
    assert!(read_to_end(reader, Pace::Eager, Deadline::patient()).join().unwrap().eof);
}

#[test]
fn the_daemons_hold_what_their_models_hold() {
    let stage = Stage::new();
    let (reader, holder, found) = hold(&stage, "postgres_daemon");
    assert!(leads_session(holder.pid) && found.iter().any(|held| held.fd == 1));
    assert_eof_after(reader, &[holder]);
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "adb_daemon");
    let worker = stage.wait("worker");
    assert_eq!(parent(worker.pid), holder.pid.to_string());
    assert!(kernel::on_pipe(worker.pid, &reader).iter().any(|held| held.writes));
    assert_eof_after(reader, &[holder, worker]);
}

#[test]
fn a_descriptor_passed_away_is_held_by_the_daemon_alone() {
    let stage = Stage::new();
    let path = stage.path("daemon");
    let mut daemon = stage.fixture("foreign_daemon").arg(&path).spawn().unwrap();
    let holder = stage.wait("daemon");
    stage.hold("may write");
    let (reader, code) = leave(stage.fixture("pass_away").arg(&path));
    assert_eq!(code, 0);
    assert_withheld(&reader);
    assert!(kernel::on_pipe(holder.pid, &reader).iter().any(|held| held.writes));
    stage.release("may write");
    let _ = stage.wait("wrote");
    assert_eq!(read_now(&reader).bytes, LATE_LINE);
    assert_eof_after(reader, &[holder]);
    daemon.wait().unwrap();
}

#[test]
fn reforkers_go_on_until_the_test_closes_their_lifeline() {
    for words in [["0", ""], ["200", ""], ["1000", ""], ["0", "setsid"], ["200", "setsid"], ["1000", "setsid"]] {
        let stage = Stage::new();
        let (reader, _) = leave(stage.fixture("refork").args(words));
        assert_withheld(&reader);
        let first = stage.wait(HOLDER);
        assert!(first.dies(Deadline::patient()), "the generations move on");
        assert!(!stage.line_ends(HOLDER, Deadline::after(std::time::Duration::ZERO)), "and are still there");
        drop(stage);
        assert_eof_after(reader, &[]);
    }
}

#[test]
fn chatter_prints_numbered_lines_for_as_long_as_it_may() {
    let stage = Stage::new();
    let (mut reader, _) = leave(&mut stage.fixture("chatter"));
    let mut lines = [0; 4];
    std::io::Read::read_exact(&mut reader, &mut lines).unwrap();
    assert_eq!(&lines, b"0\n1\n");
    assert_eof_after(reader, &[stage.wait(HOLDER)]);
}

#[test]
fn commands_end_as_they_are_told() {
    use std::os::unix::process::ExitStatusExt;
    let stage = Stage::new();
    let exited = stage.fixture("just_exit").args(["--exit", "200", "--bytes", "100001"]).output().unwrap();
    assert_eq!(exited.status.code(), Some(200));
    assert_eq!(exited.stdout, [pattern(100_001), LAST_LINE.to_vec()].concat());
    let killed = stage.fixture("just_exit").args(["--die-by", "9"]).output().unwrap();
    assert_eq!(killed.status.signal(), Some(9));
}

#[test]
fn a_frozen_process_does_not_die_of_sigkill() {
    if skip("a_frozen_process_does_not_die_of_sigkill", &[Need::Freezer]) {
        return;
    }
    let stage = Stage::new();
    let (reader, holder, _) = hold(&stage, "hold_setsid");
    let frozen = kernel::Frozen::new(&holder);
    holder.signal(Signal::SIGKILL);
    // The kernel delivers the signal within the call, so "not yet dead" is no matter of time.
    assert!(!holder.is_dead());
    assert!(kernel::on_pipe(holder.pid, &reader).iter().any(|held| held.writes));
    drop(frozen);
    assert_eof_after(reader, &[holder]);
}
