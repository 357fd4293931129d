//! On a terminal the command is as if we were not there: keys, job control, hangup, clocks.
//! What the user sees is compared in `terminal_sessions`; here it is what the kernel sees.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER};
use pipewarden_tests::kernel::stat;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::session::Session;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::terminal::Terminal;

/// The longest that a test waits before a SIGKILL that it must not see.
const PATIENT: &[&str] = &["--kill-after", "10m", "--max-drain", "20m"];

/// A run whose three streams are the terminal, and which leads a session there.
fn on<'a>(stage: &'a Stage, terminal: &Terminal) -> Run<'a> {
    let stream = || terminal.stream();
    Run::on(stage).report("none").on_terminal().stdin(stream()).stdout(stream()).stderr(stream())
}

fn has_state(pid: i32, states: &str) -> bool {
    stat(pid, 3).is_some_and(|state| states.contains(&state))
}

fn comes_to(pid: i32, states: &str) -> bool {
    Deadline::patient().until(|| has_state(pid, states))
}

/// The process in front of a command.
fn supervisor(command: &Process) -> Process {
    Process::open(stat(command.pid, 4).unwrap().parse().unwrap()).unwrap()
}

#[test]
fn all_streams_are_the_terminal() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    let test = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty >/dev/null && echo all three; exit 3";
    let run = on(&stage, &terminal).bash(test).start();
    terminal.shows("all three");
    assert_eq!(run.end().code(), 3);
}

/// The command may read from the terminal, which only the foreground group may.
#[test]
fn the_command_is_in_the_foreground() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    let run = on(&stage, &terminal).bash("echo ready; read word; echo \"you said $word\"; exit 3").start();
    terminal.shows("ready");
    terminal.press("please\n");
    terminal.shows("you said please");
    assert_eq!(run.end().code(), 3);
}

#[test]
fn the_interrupt_key_comes_once() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    let run = on(&stage, &terminal).options(PATIENT).fixture("tell_signals", ["SIGUSR1", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    terminal.press("\x03");
    let _ = stage.wait("SIGINT");
    stage.wait(COMMAND).signal(Signal::SIGUSR1);
    assert_eq!(run.end().code(), 7);
    terminal.shows("^CSIGINT\nSIGUSR1");
}

#[test]
fn the_interrupt_key_ends_a_command_that_does_not_handle_it() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    stage.hold(GATE);
    let run = on(&stage, &terminal).fixture("just_exit", ["--gate"]).start();
    let _ = stage.wait(GATE);
    terminal.press("\x03");
    // Whoever waits for us learns that it was the key: a shell then leaves its loop.
    assert_eq!(run.end().status.signal(), Some(2));
}

/// ... but a signal that is sent to us alone makes a code, as everywhere.
#[test]
fn a_signal_that_is_no_key_makes_a_code() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    stage.hold(GATE);
    let run = on(&stage, &terminal).fixture("just_exit", ["--gate"]).start();
    let _ = stage.wait(GATE);
    run.signal(Signal::SIGINT);
    assert_eq!(run.end().code(), 128 + 2);
}

/// The states of a job that is suspended, continued in the background, and fetched back.
#[test]
fn job_control_moves_both() {
    let stage = Stage::new();
    std::os::unix::fs::symlink(binary("just_exit"), stage.path("job")).unwrap();
    let session = Session::start(&stage, Some(PATIENT));
    stage.hold(GATE);
    session.terminal.press("./w ./job --gate --exit 3\r");
    let _ = stage.wait(GATE);
    let command = stage.wait(COMMAND);
    let supervisor = supervisor(&command);
    let foreground = |pid: i32| stat(pid, 8) == stat(pid, 5);
    for (keys, state, in_front) in [("\x1a", "T", false), ("bg\r", "SR", false), ("fg\r", "SR", true)] {
        session.terminal.press(keys);
        for pid in [command.pid, supervisor.pid] {
            assert!(comes_to(pid, state), "{pid} after {keys:?}: {:?}", stat(pid, 3));
            assert!(Deadline::patient().until(|| foreground(pid) == in_front), "{pid} after {keys:?}");
        }
    }
    stage.release(GATE);
    session.terminal.shows("the last line");
    session.terminal.press("echo code $?\r");
    session.terminal.shows("code 3");
}

/// The window is closed: the kernel tells the shell, the shell tells its jobs, the command is told once.
#[test]
fn a_closed_window_hangs_up_the_job() {
    let stage = Stage::new();
    std::os::unix::fs::symlink(binary("tell_signals"), stage.path("tell")).unwrap();
    let mut session = Session::start(&stage, Some(PATIENT));
    session.terminal.press("./w ./tell SIGUSR1 --exit 7 >told\r");
    let _ = stage.wait("ready");
    let command = stage.wait(COMMAND);
    let supervisor = supervisor(&command);
    session.terminal.hang_up();
    assert!(session.shell.process.dies(Deadline::patient()));
    let _ = stage.wait("SIGHUP");
    command.signal(Signal::SIGUSR1);
    assert!(supervisor.dies(Deadline::patient()));
    let told = std::fs::read_to_string(stage.path("told")).unwrap();
    // The shell continues a job that it hangs up, in case that it is stopped; then it goes, and the
    // kernel hangs up whoever is left in the foreground once more, and continues it.
    let told: Vec<&str> = told.lines().filter(|signal| *signal != "SIGCONT").collect();
    let (last, before) = told.split_last().unwrap();
    assert!(*last == "SIGUSR1" && before.iter().all(|signal| *signal == "SIGHUP"), "{told:?}");
}

/// `xterm -e pipewarden run`, `ssh -t`, a container with a terminal: the kernel tells us alone.
#[test]
fn a_closed_window_hangs_up_a_command_without_a_shell() {
    let (stage, mut terminal) = (Stage::new(), Terminal::new());
    let told = std::fs::File::create(stage.path("told")).unwrap();
    let run = on(&stage, &terminal).options(PATIENT).stdout(told);
    let run = run.fixture("tell_signals", ["SIGHUP", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    terminal.hang_up();
    assert_eq!(run.end().code(), 7);
}

/// While the user has the job suspended, `--timeout` does not run.
#[test]
fn clocks_stand_still_while_the_job_is_suspended() {
    clocks_stand_still("./w ./job --gate --exit 3\r", "\x1a");
}

/// The shell's own `kill -STOP` is a way to suspend as well; nobody sees that one coming.
#[test]
fn clocks_stand_still_while_the_job_is_stopped() {
    clocks_stand_still("./w ./job --gate --exit 3 &\r", "kill -STOP %1\r");
}

fn clocks_stand_still(start: &str, suspend: &str) {
    /// Long enough for a busy machine to come to the stop, and from there to the end.
    const TIMEOUT: Duration = Duration::from_secs(8);
    let stage = Stage::new();
    std::os::unix::fs::symlink(binary("just_exit"), stage.path("job")).unwrap();
    let session = Session::start(&stage, Some(&["--timeout", "8s"]));
    stage.hold(GATE);
    session.terminal.press(start);
    let _ = stage.wait(GATE);
    session.terminal.press(suspend);
    let supervisor = supervisor(&stage.wait(COMMAND));
    assert!(comes_to(supervisor.pid, "T"));
    let stopped = Instant::now();
    assert!(Deadline::patient().until(|| stopped.elapsed() > TIMEOUT)); // time that passes is the matter
    session.terminal.press("fg\r");
    assert!(comes_to(supervisor.pid, "SR"));
    stage.release(GATE);
    session.terminal.shows("the last line");
    session.terminal.press("echo code $?\r");
    session.terminal.shows("code 3");
}

/// Where nobody does job control, a debugger or a CPU limiter that stops the command continues it too.
#[test]
fn a_command_that_is_stopped_alone_does_not_stop_us() {
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).fixture("just_exit", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE);
    let command = stage.wait(COMMAND);
    command.signal(Signal::SIGSTOP);
    assert!(comes_to(command.pid, "T"));
    // We answer, so we are not stopped, and were not since.
    run.signal(Signal::SIGUSR1);
    command.signal(Signal::SIGCONT);
    let ended = run.end();
    assert_eq!(ended.code(), 128 + 10, "{}", ended.stderr.text());
}

/// ... and `--timeout` ends it in whatever state it is.
#[test]
fn a_command_that_is_stopped_alone_reaches_its_timeout() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--timeout", "300ms"]).bash("kill -STOP $$");
    assert_eq!(run.end().code(), 124);
}

/// Without a terminal: a stop signal to us stops both, and SIGCONT to us continues both.
#[test]
fn a_stop_signal_to_us_stops_both() {
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).fixture("just_exit", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE);
    let command = stage.wait(COMMAND);
    run.signal(Signal::SIGTSTP);
    assert!(comes_to(run.process.pid, "T") && comes_to(command.pid, "T"));
    run.signal(Signal::SIGCONT);
    assert!(comes_to(run.process.pid, "SR") && comes_to(command.pid, "SR"));
    stage.release(GATE);
    assert_eq!(run.end().code(), 3);
}

/// In an orphaned group, such as a service's, the kernel stops nobody by that signal: nobody is there
/// who would continue. The command, whose group is not orphaned because we are there, goes on as well.
#[test]
fn a_stop_signal_where_nobody_continues_stops_nobody() {
    let stage = Stage::new();
    let run = Run::on(&stage).wrapped_in(["setsid", "--wait"]).fixture("tell_signals", ["SIGUSR1", "--exit", "7"]);
    let run = run.start();
    let _ = stage.wait("ready");
    let command = stage.wait(COMMAND);
    let supervisor = supervisor(&command);
    supervisor.signal(Signal::SIGTSTP);
    // SIGCONT came after the stop signal, and undid it.
    let _ = stage.wait("SIGCONT");
    // Asleep in whatever way, or at work.
    assert!(!has_state(command.pid, "Tt") && !has_state(supervisor.pid, "Tt"));
    supervisor.signal(Signal::SIGUSR1);
    assert_eq!(run.end().code(), 7);
}

/// Behind a process that stands in front of the supervisor, job control is the same.
#[test]
fn job_control_reaches_through_the_process_in_front() {
    let stage = Stage::new();
    std::os::unix::fs::symlink(binary("tell_signals"), stage.path("tell")).unwrap();
    let session = Session::start(&stage, Some(PATIENT));
    // A shell that has a child becomes us: that child is not lineage, so a process stands in front.
    session.terminal.press("sh -c 'sleep 100 & exec ./w ./tell SIGTERM --exit 7 >told'\r");
    let _ = stage.wait("ready");
    let command = stage.wait(COMMAND);
    let below = supervisor(&command);
    let front: i32 = stat(below.pid, 4).unwrap().parse().unwrap();
    assert_eq!(stat(front, 4), Some(session.shell.process.pid.to_string()), "a process stands in front");
    session.terminal.press("\x1a");
    for pid in [front, below.pid, command.pid] {
        assert!(comes_to(pid, "T"), "{pid}: {:?}", stat(pid, 3));
    }
    session.terminal.press("bg\r");
    for pid in [front, below.pid, command.pid] {
        assert!(comes_to(pid, "SR"), "{pid}: {:?}", stat(pid, 3));
    }
    for signal in ["SIGUSR1", "SIGHUP", "SIGTERM"] {
        session.terminal.press(&format!("kill -{signal} %1\r"));
        let _ = stage.wait(signal);
    }
    session.terminal.press("wait %1; echo code $?\r");
    session.terminal.shows("code 7");
    let told = std::fs::read_to_string(stage.path("told")).unwrap();
    let told: Vec<&str> = told.lines().filter(|signal| *signal != "SIGCONT").collect();
    assert_eq!(told, ["SIGUSR1", "SIGHUP", "SIGTERM"], "each once");
}

/// No reader waits for the EOF of a terminal: who stays on it is nobody's business.
#[test]
fn who_holds_the_terminal_lives() {
    let (stage, terminal) = (Stage::new(), Terminal::new());
    let run = on(&stage, &terminal).fixture("hold_setsid", ["--exit", "3"]).start();
    assert_eq!(run.end().code(), 3);
    assert!(stage.wait(HOLDER).lives());
}
