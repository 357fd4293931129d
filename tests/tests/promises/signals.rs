//! Signals: what was ignored or blocked stays so, what is sent arrives, at whatever moment it comes.

use std::collections::BTreeSet;
use std::io::{PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE};
use pipewarden_tests::kernel::{self, stat};
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::tracer::Traced;

/// The longest that a test waits before a SIGKILL that it must not see.
const PATIENT: &[&str] = &["--kill-after", "10m", "--max-drain", "20m"];

/// What a process has of masks and dispositions.
const MASKS: [&str; 6] = ["grep", "-E", "^(SigBlk|SigIgn|SigCgt|SigPnd|ShdPnd):", "/proc/self/status", "-s", "-h"];

/// Runs it with one signal ignored or blocked, and says what the command sees of that.
fn masks(us: bool, ignored: &[i32], blocked: &[i32]) -> String {
    let mut command = if us { Command::new(binary(UNDER_TEST)) } else { Command::new(MASKS[0]) };
    if us {
        command.args(["run", "--report", "none", "--"]).args(MASKS);
    } else {
        command.args(&MASKS[1..]);
    }
    let (ignored, blocked) = (ignored.to_vec(), blocked.to_vec());
    // SAFETY: signal(2) and sigprocmask(2) are async-signal-safe; the set is plain data.
    unsafe {
        command.process_group(0).pre_exec(move || {
            for signal in &ignored {
                libc::signal(*signal, libc::SIG_IGN);
            }
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in &blocked {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `nohup`, a Python parent that ignores SIGPIPE, a parent that leaks its mask: each signal alone, and all.
#[test]
fn every_disposition_and_mask_reaches_the_command() {
    let all: Vec<i32> = (1..=libc::SIGRTMAX()).filter(|signal| !matches!(signal, 9 | 19 | 32 | 33)).collect();
    for signals in all.chunks(1).chain([all.as_slice(), &[]]) {
        // What stops or ends everybody who is not asked cannot be ignored by a loader in between.
        assert_eq!(masks(true, signals, &[]), masks(false, signals, &[]), "ignored: {signals:?}");
        assert_eq!(masks(true, &[], signals), masks(false, &[], signals), "blocked: {signals:?}");
    }
}

/// A command that notes every signal that it gets, in the order of its numbers, until SIGTERM.
const NOTE: &str = "import os, signal, sys\n\
    every = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, every)\n\
    os.write(1, b'ready\\n')\n\
    while True:\n\
    \x20   came = signal.sigwaitinfo(every).si_signo\n\
    \x20   os.write(1, b'%d\\n' % came)\n\
    \x20   if came == signal.SIGTERM: sys.exit(7)\n";

/// Reads until this line.
fn read_line(reader: &mut PipeReader) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while reader.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn python() -> &'static str {
    "python3"
}

fn send(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers; the test's own child, not yet waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// The realtime ones included, of which none is merged with another.
#[test]
fn every_signal_is_forwarded() {
    let stage = Stage::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).options(PATIENT).stdout(writer).command([python(), "-c", NOTE]).start();
    assert_eq!(read_line(&mut reader), "ready");
    let forwarded = (1..=31).filter(|signal| !matches!(*signal, 9 | 17 | 19 | 20 | 21 | 22 | 15 | 2));
    let ours = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGABRT,
        libc::SIGPIPE,
    ];
    for signal in forwarded.filter(|signal| !ours.contains(signal)).chain(34..=libc::SIGRTMAX()) {
        send(run.process.pid, signal);
        assert_eq!(read_line(&mut reader), signal.to_string());
    }
    for _ in 0..100 {
        send(run.process.pid, libc::SIGRTMIN() + 1);
    }
    for _ in 0..100 {
        assert_eq!(read_line(&mut reader), (libc::SIGRTMIN() + 1).to_string(), "a hundred, none merged");
    }
    send(run.process.pid, libc::SIGTERM);
    assert_eq!(run.end().code(), 7);
}

#[test]
fn signals_are_rewritten() {
    let stage = Stage::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let rewrite = ["--rewrite", "10:12", "-r", "HUP:0", "-r", "34:1", "-r", "TERM:QUIT", "--pdeathsig", "KILL"];
    let run = Run::on(&stage).options(PATIENT).options(rewrite).stdout(writer).command([python(), "-c", NOTE]).start();
    assert_eq!(read_line(&mut reader), "ready");
    for (sent, seen) in [(10, 12), (34, 1), (12, 12)] {
        send(run.process.pid, libc::SIGHUP); // dropped
        send(run.process.pid, sent);
        assert_eq!(read_line(&mut reader), seen.to_string());
    }
    send(run.process.pid, libc::SIGTERM);
    let lines: BTreeSet<String> = [read_line(&mut reader), read_line(&mut reader)].into();
    assert_eq!(lines, ["18".to_owned(), "3".to_owned()].into(), "SIGQUIT, and SIGCONT for who is stopped");
    run.signal(Signal::SIGKILL); // and with us the command, which takes no other
}

/// What was ignored when we were started is no request to end: the command is to live.
#[test]
fn an_ignored_interrupt_ends_nothing() {
    let stage = Stage::new();
    // A script's `&` ignores SIGINT for what it starts.
    let run =
        Run::on(&stage).options(["--kill-after", "0"]).wrapped_in(["sh", "-c", "trap '' INT TERM; exec \"$@\"", "sh"]);
    let run = run.fixture("tell_signals", ["SIGUSR1", "--exit", "7"]).start();
    let _ = stage.wait("ready");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        run.signal(signal);
        let _ = stage.wait(signal.as_str());
    }
    run.signal(Signal::SIGUSR1);
    assert_eq!(run.end().code(), 7);
}

/// Ten thousand signals, of all kinds, while bytes flow: nothing is lost, and the code is the command's.
#[test]
fn a_storm_of_signals() {
    let stage = Stage::new();
    stage.hold(GATE);
    let script =
        "trap : USR1 USR2 HUP WINCH CONT ALRM; trap '' 35 40 64; seq 100000; \"$0\" --gate; seq 100000; exit 7";
    let just_exit = binary("just_exit");
    let run = Run::on(&stage).command(["bash".as_ref(), "-c".as_ref(), script.as_ref(), just_exit.as_os_str()]).start();
    let _ = stage.wait(GATE);
    let kinds = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH, libc::SIGCONT, libc::SIGALRM, 35, 40, 64];
    let group: i32 = stat(stage.wait(COMMAND).pid, 5).unwrap().parse().unwrap();
    assert_ne!(group, run.process.pid);
    for round in 0..10_000 {
        let signal = kinds[round % kinds.len()];
        // The queue of realtime signals is bounded, and full now and then.
        // SAFETY: kill(2) takes two integers; the test's own child, not yet waited for.
        let _ = unsafe { libc::kill(run.process.pid, signal) };
    }
    stage.release(GATE);
    let ended = run.end();
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(ended.code(), 7, "{}", ended.stderr.text());
    assert_eq!(ended.stdout.text(), format!("{expected}the last line\n{expected}"));
}

/// A run on no stage: its output, and a line on which every process hangs that it started.
struct Bare {
    traced: Traced,
    stdout: PipeReader,
    line: PipeReader,
}

impl Bare {
    /// `sh` writes, leaves an escapee that holds the pipe, and exits 7.
    fn start(options: &[&str]) -> Bare {
        // What a shell puts into the background loses its stdin, and keeps the rest.
        const SCRIPT: &str = "exec 3<&0; echo one; setsid sleep 1000 & echo two; exit 7";
        let (stdout, to_stdout) = std::io::pipe().unwrap();
        let (line, to_line) = std::io::pipe().unwrap();
        let mut command = Command::new(binary(UNDER_TEST));
        command.args(["run", "--holder-grace", "0", "--report", "none"]).args(PATIENT).args(options);
        // The lineage inherits the line, which nobody reads.
        command.args(["--", "sh", "-c", SCRIPT]).stdin(Stdio::from(to_line)).stdout(to_stdout);
        command.stderr(Stdio::null()).process_group(0);
        let traced = Traced::start(&mut command);
        drop(command);
        Bare { traced, stdout, line }
    }

    fn reads_to_the_end(&mut self) -> String {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        text
    }

    /// Whether every process that had the line is gone.
    fn all_are_gone(&self) -> bool {
        use std::os::fd::AsFd;
        Deadline::patient().wait(self.line.as_fd(), nix::poll::PollFlags::POLLIN)
    }
}

/// Walks every step instead of every [`STRIDE`]th: some minutes.
const EVERY_STEP: &str = "PIPEWARDEN_EVERY_STEP";

/// Odd, so that calls are met alternately when they are entered and when they are left.
const STRIDE: usize = 17;

/// Stops a run at a step (a system call of ours, entered or left), and lets the test go on; then a run
/// at a later step, until one ends before.
fn at_every_step(options: &[&str], check: impl Fn(usize, Bare)) {
    let stride = if std::env::var_os(EVERY_STEP).is_some() { 1 } else { STRIDE };
    // Another part of all steps each time.
    let mut nth = 1 + std::process::id() as usize % stride;
    let first = nth;
    loop {
        let mut bare = Bare::start(options);
        if !bare.traced.stop_at(nth) {
            break;
        }
        check(nth, bare);
        nth += stride;
    }
    assert!(nth - first > 300, "only {nth} steps");
}

/// SIGTERM at every step of our life: the command had its chance, nothing is left, EOF arrives.
#[test]
fn a_term_at_every_step() {
    at_every_step(&[], |nth, mut bare| {
        bare.traced.go_on_with(Signal::SIGTERM);
        let code = bare.traced.end();
        let text = bare.reads_to_the_end();
        assert!([7, 128 + 15].contains(&code), "step {nth}: exit {code}");
        assert!(["", "one\n", "one\ntwo\n"].contains(&text.as_str()), "step {nth}: {text:?}");
        assert!(code != 7 || text == "one\ntwo\n", "step {nth}: exit {code} with {text:?}");
        assert!(bare.all_are_gone(), "step {nth}: something is left");
    });
}

/// A signal that asks for nothing, at every step: as if it had not been sent, once the command ignores it.
#[test]
fn a_harmless_signal_at_every_step() {
    at_every_step(&[], |nth, mut bare| {
        bare.traced.go_on_with(Signal::SIGWINCH);
        let code = bare.traced.end();
        assert_eq!((code, bare.reads_to_the_end().as_str()), (7, "one\ntwo\n"), "step {nth}");
        assert!(bare.all_are_gone(), "step {nth}: something is left");
    });
}

/// SIGKILL at every step, with `--pdeathsig KILL`: the command does not outlive us. Whom it had sent
/// into a session of its own by then does, because nobody is left to end it.
#[test]
fn a_kill_at_every_step() {
    at_every_step(&["--pdeathsig", "KILL"], |nth, mut bare| {
        bare.traced.go_on_with(Signal::SIGKILL);
        assert_eq!(bare.traced.end(), 128 + 9, "step {nth}");
        // By name: another test's child has our descriptors too, until its exec.
        let ours = |pid: &i32| {
            let name = kernel::name(*pid);
            ["sh", "setsid", "sleep"].contains(&name.as_str()) || name.starts_with("pipewarden-u")
        };
        let left = || kernel::holders(&bare.line).into_iter().filter(ours).collect::<Vec<i32>>();
        let escaped = |pid: &i32| stat(*pid, 6) == Some(pid.to_string());
        let only_escapees = || left().iter().all(escaped);
        assert!(Deadline::patient().until(only_escapees), "step {nth}: the command is left");
        for pid in left() {
            // It may have ended since; it cannot have become another that holds this pipe.
            if let Ok(process) = Process::open(pid)
                && kernel::holders(&bare.line).contains(&pid)
            {
                process.signal(Signal::SIGKILL);
            }
        }
        assert!(bare.all_are_gone(), "step {nth}");
    });
}
