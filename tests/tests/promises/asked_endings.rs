//! A run that is told to end: by a timeout, by silence, by a signal. It ends the whole lineage.

use std::time::Duration;

use nix::sys::signal::Signal;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER};
use pipewarden_tests::kernel::stat;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

/// `timeout(1)`'s contract: 124, and the command is gone.
#[test]
fn a_timeout_is_124() {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(["--timeout", "300ms"]).command(["sleep", "1000"]).end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert_eq!(ended.report().ended_for(), "timeout");
    assert_eq!(ended.report().signal, Some(15));
    assert!(ended.stdout.eof);
}

#[test]
fn a_timeout_is_124_after_kill_too() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--timeout", "8s", "--kill-after", "100ms"]).fixture("ignore_term", [""; 0]);
    let ended = run.end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
    assert_eq!(ended.report().signal, Some(9));
}

#[test]
fn the_commands_own_status_is_preserved_when_asked() {
    let stage = Stage::new();
    let options = ["--timeout", "300ms", "--preserve-status"];
    assert_eq!(Run::on(&stage).options(options).command(["sleep", "1000"]).end().code(), 128 + 15);
    let options = ["--timeout", "8s", "--preserve-status", "--kill-after", "10m", "--max-drain", "20m"];
    let trapped = Run::on(&stage).options(options).fixture("tell_signals", ["SIGTERM", "--exit", "7"]).end();
    assert_eq!(trapped.code(), 7, "{}", trapped.stderr.text());
}

#[test]
fn a_command_that_beats_its_timeout_keeps_its_code() {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(["--timeout", "25s"]).fixture("hold_setsid", ["--exit", "3"]).end();
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
    assert_eq!(ended.report().ended_for(), "exit");
}

/// A leaked daemon that holds nothing outlives a natural ending, but not one that was asked for.
#[test]
fn a_timeout_ends_the_whole_lineage() {
    let stage = Stage::new();
    stage.hold(GATE);
    let ended = Run::on(&stage).options(["--timeout", "8s"]).fixture("hold_nothing", ["--gate"]).end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    for role in [COMMAND, HOLDER] {
        assert!(stage.wait(role).dies(Deadline::patient()), "{role}: {}", ended.stderr.text());
    }
}

/// The outer supervisor's SIGKILL is the end of the inner one, but not of the inner one's command.
#[test]
fn a_timeout_leaves_nothing_of_a_run_inside() {
    for kill_after in ["0", "10s"] {
        let stage = Stage::new();
        stage.hold(GATE);
        let inner = Run::on(&stage).report("none").fixture("hold_setsid", ["--gate"]).words();
        let ended = Run::on(&stage).options(["--timeout", "8s", "--kill-after", kill_after]).command(inner).end();
        assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
        for role in [COMMAND, HOLDER] {
            assert!(stage.wait(role).dies(Deadline::patient()), "{role}: {}", ended.stderr.text());
        }
        assert!(ended.stdout.eof);
    }
}

#[test]
fn silence_is_124_when_it_lasts_too_long() {
    let stage = Stage::new();
    let ended = Run::on(&stage).options(["--idle-timeout", "3s"]).bash("echo before; sleep 1000").end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert_eq!(ended.report().ended_for(), "idle");
    assert_eq!(ended.stdout.text(), "before\n");
}

/// Output on either stream is no silence.
#[test]
fn output_postpones_the_idle_timeout() {
    let stage = Stage::new();
    let line =
        "for i in 1 2 3 4 5 6 7 8; do sleep 0.5; if [ $((i % 2)) = 0 ]; then echo $i; else echo $i >&2; fi; done";
    let ended = Run::on(&stage).options(["--idle-timeout", "3s"]).bash(line).end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), "2\n4\n6\n8\n");
}

/// Those that end a run are forwarded; the command's answer to them is ours.
fn forwards(signal: Signal) {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "25s", "--max-drain", "25s"]);
    let run = run.fixture("tell_signals", [signal.as_str(), "--exit", "7"]).start();
    let _ = stage.wait("ready");
    run.signal(signal);
    let _ = stage.wait(signal.as_str());
    let ended = run.end();
    assert_eq!(ended.stdout.text(), format!("{signal}\n"), "once: {}", ended.stderr.text());
    assert_eq!(ended.code(), 7, "{}", ended.stderr.text());
}

#[test]
fn term_is_forwarded() {
    forwards(Signal::SIGTERM);
}

#[test]
fn int_is_forwarded() {
    forwards(Signal::SIGINT);
}

#[test]
fn hup_is_forwarded() {
    forwards(Signal::SIGHUP);
}

#[test]
fn quit_is_forwarded() {
    forwards(Signal::SIGQUIT);
}

#[test]
fn usr1_is_forwarded() {
    forwards(Signal::SIGUSR1);
}

#[test]
fn usr2_is_forwarded() {
    forwards(Signal::SIGUSR2);
}

/// A command that takes a USR1 and goes on does so; nothing is ended because of it.
#[test]
fn usr1_ends_nothing() {
    let stage = Stage::new();
    let run = Run::on(&stage).fixture("tell_signals", ["SIGUSR2", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGUSR1);
    let _ = stage.wait("SIGUSR1");
    run.signal(Signal::SIGUSR2);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.text()), (7, "SIGUSR1\nSIGUSR2\n".to_owned()), "{}", ended.stderr.text());
}

/// A user who asks twice does not wait for --kill-after.
#[test]
fn a_second_term_kills() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "10m", "--max-drain", "20m"]);
    let run = run.fixture("tell_signals", ["SIGUSR1"]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGTERM);
    let _ = stage.wait("SIGTERM");
    // What follows the first too closely is no second request.
    let insist = || {
        run.signal(Signal::SIGTERM);
        run.process.dies(Deadline::after(Duration::from_millis(200)))
    };
    assert!(Deadline::patient().until(insist));
    let ended = run.end();
    assert_eq!(ended.code(), 128 + 9, "{}", ended.stderr.text());
    assert_eq!(ended.report().ended_for(), "signal");
}

/// timeout(1) signals us, and then our whole group, in which we are: that is not asking twice.
#[test]
fn two_terms_at_once_are_one_request() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "10m", "--max-drain", "20m"]).wrapped_in(["timeout", "1h"]);
    let run = run.fixture("tell_signals", ["SIGTERM", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGALRM); // its hour is over
    let ended = run.end();
    assert_eq!(ended.code(), 124, "{}", ended.stderr.text());
    assert_eq!((ended.report().code, ended.stdout.text()), (Some(7), "SIGTERM\n".to_owned()));
    // As closely, but never merged with the first by the kernel; stopped, it meets both at once.
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "10m", "--max-drain", "20m"]);
    let run = run.fixture("tell_signals", ["SIGUSR1", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGSTOP);
    assert!(Deadline::patient().until(|| stat(run.process.pid, 3).as_deref() == Some("T")));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCONT] {
        run.signal(signal);
    }
    let _ = stage.wait("SIGINT"); // the lower number is read first
    run.signal(Signal::SIGUSR1);
    assert_eq!(run.end().code(), 7);
}

#[test]
fn a_term_escalates_by_itself() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--kill-after", "100ms"]).fixture("ignore_term", [""; 0]).start();
    let _ = stage.wait("ready");
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert_eq!(ended.code(), 128 + 9, "{}", ended.stderr.text());
}

/// Whoever escaped is ended too, holder or not, and what was written before still arrives.
#[test]
fn a_term_ends_the_whole_lineage() {
    for fixture in ["hold_nothing", "hold_setsid", "hold_double_fork"] {
        let stage = Stage::new();
        stage.hold(GATE);
        let run = Run::on(&stage).fixture(fixture, ["--gate", "--bytes", "1000"]).start();
        let _ = stage.wait(GATE);
        run.signal(Signal::SIGTERM);
        let ended = run.end();
        let stderr = ended.stderr.text();
        assert_eq!(ended.code(), 128 + 15, "{fixture}: {stderr}");
        assert!(ended.stdout.eof && ended.stdout.bytes == pipewarden_tests::fixture::pattern(1000), "{fixture}");
        for role in [COMMAND, HOLDER] {
            assert!(stage.wait(role).dies(Deadline::patient()), "{fixture}: {role}: {stderr}");
        }
    }
}

/// A signal that comes while holders are being waited for hurries that up, and changes no code.
#[test]
fn a_term_during_the_ending_hurries_it() {
    let stage = Stage::new();
    let options = ["--holder-grace", "10m", "--kill-after", "10m", "--max-drain", "20m"];
    let run = Run::on(&stage).options(options).fixture("hold_setsid", ["--exit", "3"]).start();
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{}", ended.stderr.text());
    assert!(ended.stdout.eof);
    assert_eq!(ended.code(), 3, "{}", ended.stderr.text());
}

/// A stopped command is ended all the same.
#[test]
fn a_stopped_command_is_ended() {
    let stage = Stage::new();
    let run = Run::on(&stage).fixture("tell_signals", ["SIGTERM", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    let command = stage.wait(COMMAND);
    command.signal(Signal::SIGSTOP);
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    assert!(command.dies(Deadline::patient()));
    assert_eq!(ended.code(), 7, "TERM came with CONT: {}", ended.stderr.text());
}
