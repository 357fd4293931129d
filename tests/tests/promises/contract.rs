//! The command's contract is untouched: what it is given and what it gives back are as without us.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, LAST_LINE};
use pipewarden_tests::own_lock;
use pipewarden_tests::run::{self, Run};
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

#[test]
fn every_exit_code() {
    let stage = Stage::new();
    for code in [0, 1, 2, 77, 123, 124, 125, 126, 127, 128, 137, 200, 255] {
        let ended = Run::on(&stage).command(["sh", "-c", &format!("exit {code}")]).end();
        assert_eq!(ended.code(), code);
        assert_eq!(ended.report().code, Some(i64::from(code)));
    }
}

#[test]
fn death_by_a_signal_is_128_and_the_signal() {
    for signal in [1, 2, 3, 6, 9, 11, 13, 15] {
        let stage = Stage::new();
        let ended = Run::on(&stage).fixture("just_exit", ["--die-by", &signal.to_string()]).end();
        assert_eq!(ended.code(), 128 + signal);
        assert_eq!((ended.report().code, ended.report().signal), (None, Some(i64::from(signal))));
        assert_eq!(ended.stdout.bytes, LAST_LINE);
    }
}

#[test]
fn what_is_not_found_is_127() {
    let stage = Stage::new();
    for name in ["no-such-program", "/no/such/program", "./no-such-program"] {
        let ended = Run::on(&stage).report("text").command([name]).end();
        let said = ended.stderr.text();
        assert_eq!((ended.code(), said.lines().count()), (127, 1), "{said}");
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn what_is_not_executable_is_126() {
    let stage = Stage::new();
    let file = stage.path("data");
    std::fs::write(&file, "no program\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    for path in [file.as_path(), stage.folder()] {
        let ended = Run::on(&stage).report("text").command([path]).end();
        let said = ended.stderr.text();
        assert_eq!((ended.code(), said.lines().count()), (126, 1), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}

/// Everything that a process inherits, as the process itself sees it.
const SELF_PORTRAIT: &str = r#"
    grep -E '^(Sig(Blk|Ign)|Cap|Umask|NoNewPrivs|Seccomp|Groups|Uid|Gid|Cpus_allowed):' /proc/self/status
    cat /proc/self/limits /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/personality
    cat /proc/self/cgroup; readlink /proc/self/ns/* | grep -v "$OTHER_NAMESPACE"; nice; pwd; ulimit -a
    env | grep -v -e '^_=' -e '^PIPEWARDEN_NODE_SOCKET=' | sort; ls /proc/self/fd
"#;

fn portrait(prepare: &str, run: bool) -> String {
    let stage = Stage::new();
    let prepared = format!("{prepare}\nexec \"$@\"");
    // A test's own tracker lock is in a mount namespace, which the harness made.
    let own = run::backend_is("bpf");
    let other = if own { "mnt:" } else { "none" };
    if run {
        let ended = Run::on(&stage).report("none").wrapped_in(["bash", "-c", &prepared, "bash"]);
        let ended = ended.env("PIPEWARDEN_FIXTURE_SOCKET", "-").env("OTHER_NAMESPACE", other);
        let ended = ended.bash(SELF_PORTRAIT).end();
        assert_eq!((ended.code(), ended.stderr.text()), (0, String::new()));
        return ended.stdout.text();
    }
    let mut command = Command::new("bash");
    command.args(["-c", &prepared, "bash", "bash", "-c", SELF_PORTRAIT]).process_group(0);
    command.env("PIPEWARDEN_FIXTURE_SOCKET", "-").env("OTHER_NAMESPACE", other).stdin(std::process::Stdio::null());
    if own {
        own_lock::instead_of_the_machines(&mut command, &own_lock::new(&stage));
    }
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn it_inherits_what_it_would_without_us() {
    assert_eq!(portrait("", true), portrait("", false));
}

#[test]
fn it_inherits_what_was_changed_before_us() {
    let prepare = "trap '' PIPE INT USR2 HUP; umask 027; ulimit -c 7; ulimit -n 1000; cd /; export A=b; unset HOME";
    assert_eq!(portrait(prepare, true), portrait(prepare, false));
}

#[test]
fn it_gets_no_descriptor_of_ours() {
    for options in [&[][..], &["--stdio", "inherit"], &["--backend", "proc"], &["--audit", "/dev/null"]] {
        let stage = Stage::new();
        let run = Run::on(&stage).options(options).command(["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"]);
        assert_eq!(run.end().stdout.text(), "0 1 2 3 ", "3 is ls's own; {options:?}");
    }
}

/// What was inherited beyond 0, 1 and 2 is passed on: `make`'s job server lives there.
#[test]
fn it_gets_the_descriptors_that_were_meant_for_it() {
    let stage = Stage::new();
    let file = stage.path("nine");
    let shell = format!("exec \"$@\" 9>{}", file.display());
    let run = Run::on(&stage).wrapped_in(["sh", "-c", &shell, "sh"]).command(["sh", "-c", "echo here >&9"]);
    assert_eq!(run.end().code(), 0);
    assert_eq!(std::fs::read(file).unwrap(), b"here\n");
}

/// A stream that is closed stays closed: a program may depend on it, and nothing else may land there.
#[test]
fn closed_streams_stay_closed() {
    for (closed, redirection) in [(0, "<&-"), (1, ">&-"), (2, "2>&-")] {
        let stage = Stage::new();
        let answer = stage.path("answer");
        let shell = format!("exec \"$@\" {redirection}");
        let test = format!("[ -e /proc/self/fd/{closed} ]; echo $? >{}", answer.display());
        let run = Run::on(&stage).report("none").wrapped_in(["sh", "-c", &shell, "sh"]);
        assert_eq!(run.command(["sh", "-c", &test]).end().code(), 0);
        assert_eq!(std::fs::read_to_string(answer).unwrap(), "1\n", "{redirection}");
    }
}

#[test]
fn all_streams_closed() {
    let stage = Stage::new();
    let answer = stage.path("answer");
    let test = format!("ls /proc/self/fd >{}; exit 3", answer.display());
    let run = Run::on(&stage).report("none").wrapped_in(["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"]);
    assert_eq!(run.command(["sh", "-c", &test]).end().code(), 3);
    // 1 is the answer itself, and ls opens the folder as the first that is free.
    assert_eq!(std::fs::read_to_string(answer).unwrap(), "0\n1\n");
}

/// `... | head -1`: the writer learns that nobody reads, as it does without us.
#[test]
fn a_reader_that_goes_away_is_a_broken_pipe() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdout(writer).command(["yes"]).start();
    assert!(Deadline::patient().wait(std::os::fd::AsFd::as_fd(&reader), nix::poll::PollFlags::POLLIN));
    drop(reader);
    let ended = run.end();
    assert_eq!(ended.code(), 128 + 13, "{}", ended.stderr.text());
}

/// ... also when it ignores SIGPIPE, by EPIPE.
#[test]
fn a_reader_that_goes_away_is_an_error_to_who_ignores_the_signal() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdout(writer).bash("trap '' PIPE; while echo y; do :; done 2>/dev/null; exit 9").start();
    assert!(Deadline::patient().wait(std::os::fd::AsFd::as_fd(&reader), nix::poll::PollFlags::POLLIN));
    drop(reader);
    assert_eq!(run.end().code(), 9);
}

/// O_NONBLOCK belongs to the open file, which others share: we never set it.
#[test]
fn descriptors_that_we_inherit_stay_blocking() {
    let stage = Stage::new();
    stage.hold(GATE);
    let (from_us, to_us) = std::io::pipe().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdin(from_us.try_clone().unwrap()).stdout(writer.try_clone().unwrap());
    let run = run.fixture("just_exit", ["--gate", "--bytes", "1000"]).start();
    let _ = stage.wait(GATE);
    for fd in [std::os::fd::AsFd::as_fd(&from_us), std::os::fd::AsFd::as_fd(&writer)] {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
    }
    stage.release(GATE);
    assert_eq!(run.end().code(), 0);
    drop((reader, to_us));
}

/// A group of its own, so that it can be ended as one; the same session, so that the terminal stays.
#[test]
fn it_has_a_group_of_its_own_in_our_session() {
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).fixture("just_exit", ["--gate"]).start();
    let _ = stage.wait(GATE);
    let (command, supervisor) = (stage.wait(COMMAND).pid, run.process.pid);
    let stat = pipewarden_tests::kernel::stat;
    assert_eq!(stat(command, 5), Some(command.to_string()));
    assert_eq!(stat(supervisor, 5), Some(supervisor.to_string()));
    assert_eq!(stat(command, 6), stat(supervisor, 6));
    stage.release(GATE);
    assert_eq!(run.end().code(), 0);
}

/// `--foreground`: the command stays in our group, whatever that is, and gets what the group gets.
#[test]
fn with_foreground_it_is_in_our_group() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--foreground", "--kill-after", "10m", "--max-drain", "20m"]);
    let run = run.fixture("tell_signals", ["SIGUSR1", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    let (command, supervisor) = (stage.wait(COMMAND).pid, run.process.pid);
    let stat = pipewarden_tests::kernel::stat;
    assert_eq!((stat(command, 5), stat(command, 6)), (stat(supervisor, 5), stat(supervisor, 6)));
    // The run leads the group, which is the test's child, not yet waited for.
    let group = nix::unistd::Pid::from_raw(supervisor);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGUSR2).unwrap();
    let _ = stage.wait("SIGUSR2");
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGUSR1).unwrap();
    let ended = run.end();
    let told = ended.stdout.text();
    let told: Vec<&str> = told.lines().filter(|line| line.starts_with("SIG")).collect();
    assert_eq!((ended.code(), told), (7, vec!["SIGUSR2", "SIGUSR1"]), "each once");
}

/// ... and an ending ends what belongs to the run, not who else is in that group.
#[test]
fn with_foreground_an_ending_spares_who_else_is_in_our_group() {
    let stage = Stage::new();
    // The shell is in front of us in the group, and so is its other child.
    let shell = "sleep 600 & \"$@\"; echo code $?; kill $! && echo it lived";
    let run = Run::on(&stage).wrapped_in(["bash", "-c", shell, "bash"]).options(["--foreground", "--timeout", "300ms"]);
    let ended = run.bash("sleep 601 & sleep 602").end();
    assert_eq!(ended.stdout.text(), "code 124\nit lived\n", "{}", ended.stderr.text());
    assert!(ended.stdout.eof, "and nobody of the run is left to hold it");
}

/// When somebody SIGKILLs us, `--pdeathsig` is the command's end.
#[test]
fn the_command_can_die_with_us() {
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--pdeathsig", "KILL"]).fixture("just_exit", ["--gate"]).start();
    let _ = stage.wait(GATE);
    run.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
}

/// As the first process of a pid namespace, as in a container: the code, the signals, no zombie.
#[test]
fn as_pid_1() {
    if skip("as_pid_1", &[Need::Root]) {
        return;
    }
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let stage = Stage::new();
    let ended = Run::on(&stage).wrapped_in(unshare).fixture("hold_setsid", ["--exit", "3"]).end();
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{}", ended.stderr.text());
    assert!(ended.stdout.eof);
    // Orphans that exit are ours to reap, while the command goes on: it waits until none is left.
    let orphans = "for i in 1 2 3 4 5; do sh -c 'true & exec true'; done; while ps -eo stat= | grep -q Z; do :; done";
    let stage = Stage::new();
    let ended = Run::on(&stage).wrapped_in(unshare).bash(orphans).end();
    assert!(ended.stdout.eof && ended.code() == 0, "{}", ended.stderr.text());
}
