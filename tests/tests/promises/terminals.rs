//! On a terminal the command is where it would be without us: in the foreground, with every key.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::pty::openpty;
use nix::sys::signal::Signal;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER};
use pipewarden_tests::kernel::stat;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

/// A terminal, and the side of it where the keys are.
fn terminal() -> (std::fs::File, std::fs::File) {
    let pair = openpty(None, None).unwrap();
    (pair.master.into(), pair.slave.into())
}

/// A run whose three streams are the terminal.
fn on<'a>(stage: &'a Stage, slave: &std::fs::File) -> Run<'a> {
    let stream = || Stdio::from(slave.try_clone().unwrap());
    Run::on(stage).report("none").on_terminal().stdin(stream()).stdout(stream()).stderr(stream())
}

/// Reads the screen until it shows this.
fn shows(master: &std::fs::File, text: &str) -> bool {
    let (deadline, mut screen, mut buffer) = (Deadline::patient(), Vec::new(), [0; 4096]);
    while deadline.wait(master.as_fd(), nix::poll::PollFlags::POLLIN) {
        let Ok(count) = nix::unistd::read(master, &mut buffer) else { return false };
        screen.extend_from_slice(&buffer[..count]);
        if String::from_utf8_lossy(&screen).contains(text) {
            return true;
        }
    }
    false
}

#[test]
fn all_streams_are_the_terminal() {
    let stage = Stage::new();
    let (master, slave) = terminal();
    let run =
        on(&stage, &slave).bash("[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty >/dev/null && echo all three; exit 3").start();
    assert!(shows(&master, "all three"));
    assert_eq!(run.end().code(), 3);
}

/// The command may read from the terminal, which only the foreground group may.
#[test]
fn the_command_is_in_the_foreground() {
    let stage = Stage::new();
    let (mut master, slave) = terminal();
    let run = on(&stage, &slave).bash("echo ready; read word; echo \"you said $word\"; exit 3").start();
    assert!(shows(&master, "ready"));
    master.write_all(b"please\n").unwrap();
    assert!(shows(&master, "you said please"));
    assert_eq!(run.end().code(), 3);
}

#[test]
fn the_interrupt_key_comes_once() {
    let stage = Stage::new();
    let (mut master, slave) = terminal();
    let run = on(&stage, &slave).options(["--kill-after", "10m", "--max-drain", "20m"]);
    let run = run.fixture("tell_signals", ["SIGINT", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    master.write_all(b"\x03").unwrap();
    let _ = stage.wait("SIGINT");
    assert_eq!(run.end().code(), 7);
}

#[test]
fn the_interrupt_key_ends_a_command_that_does_not_handle_it() {
    let stage = Stage::new();
    let (mut master, slave) = terminal();
    stage.hold(GATE);
    let run = on(&stage, &slave).fixture("just_exit", ["--gate"]).start();
    let _ = stage.wait(GATE);
    master.write_all(b"\x03").unwrap();
    // As it was without us: a shell's `$?` is 130, and a script that ran it is interrupted too.
    assert_eq!(run.end().status.signal(), Some(2));
}

/// Stopping is the shell's to see: we stop with the command, and go on with it.
#[test]
fn the_suspend_key_stops_both() {
    let stage = Stage::new();
    let (mut master, slave) = terminal();
    // A shell with job control, because the kernel does not stop an orphaned group by key.
    let shell = "set -m; \"$@\"; echo shell sees $?; kill -CONT %1; fg >/dev/null; exit $?";
    stage.hold(GATE);
    let run =
        on(&stage, &slave).wrapped_in(["bash", "-c", shell, "bash"]).fixture("just_exit", ["--gate", "--exit", "3"]);
    let run = run.start();
    let _ = stage.wait(GATE);
    let command = stage.wait(COMMAND);
    master.write_all(b"\x1a").unwrap();
    assert!(shows(&master, "shell sees 148"), "the shell sees its job stopped by SIGTSTP");
    stage.release(GATE);
    assert!(command.dies(Deadline::patient()), "the shell's fg went on with both");
    assert_eq!(run.end().code(), 3);
}

/// A stop that is sent to us is for the command too, and so is what continues us.
#[test]
fn a_stop_stops_us_and_the_command_and_sigcont_continues_both() {
    let stage = Stage::new();
    stage.hold(GATE);
    let run = Run::on(&stage).fixture("just_exit", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE);
    let (command, supervisor) = (stage.wait(COMMAND), run.process.pid);
    run.signal(Signal::SIGTSTP);
    for pid in [command.pid, supervisor] {
        assert!(Deadline::patient().until(|| stat(pid, 3).as_deref() == Some("T")), "{pid} is stopped");
    }
    run.signal(Signal::SIGCONT);
    let on = Deadline::patient().until(|| stat(command.pid, 3).is_some_and(|state| state != "T"));
    assert!(on, "SIGCONT to us is for the command too");
    stage.release(GATE);
    assert_eq!(run.end().code(), 3);
}

/// A command that stops itself, or that a debugger stops, does not stop us: nobody would continue us,
/// and the timeout has to end it.
#[test]
fn a_command_that_is_stopped_alone_reaches_its_timeout() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--timeout", "300ms"]).bash("kill -STOP $$");
    assert_eq!(run.end().code(), 124);
}

/// No reader waits for the EOF of a terminal: who stays on it is nobody's business.
#[test]
fn who_holds_the_terminal_lives() {
    let stage = Stage::new();
    let (master, slave) = terminal();
    let run = on(&stage, &slave).fixture("hold_setsid", ["--exit", "3"]).start();
    assert_eq!(run.end().code(), 3);
    assert!(stage.wait(HOLDER).lives());
    drop(master);
}
