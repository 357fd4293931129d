//! Storms of signals in every state leave no process and no descriptor.

use nix::sys::signal::Signal;
use pipewarden_tests::process::Process;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Holdings, Supervise, bash, fixture, nobody_is_left};

/// A generator of the same order of signals in every run of the test.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Commands in every state there is.
fn everything(n: usize) -> String {
    bash("runs", "setsid sleep 1000 & sleep 1000", &format!("kill_after = 0\nenv = {{ N = \"{n}\" }}"))
        + &bash("loops", "true", "restart = \"always\"\nrestart_limit = \"off\"")
        + &bash("starts", "sleep 1000", "ready = { delay = \"1h\" }\nready_timeout = \"off\"\nkill_after = 0")
        + &bash("waits", "true", "after = [\"starts\"]")
        + &bash("fails", "exit 1", "restart = \"never\"")
        + &bash("pauses", "exit 1", "").replace("backoff = 0", "backoff = \"1h\"\nbackoff_max = \"1h\"")
        + &fixture("stubborn", "ignore_term", &[], &format!("kill_after = \"20ms\"\nenv = {{ N = \"{n}\" }}"))
}

/// Storms that it survives, and then one that ends it.
#[test]
fn ten_thousand_signals_in_all_states() {
    let stage = Stage::new();
    let mut dice = Dice(7);
    let supervised = Supervise::on(&stage, &everything(0)).start();
    supervised.says("runs: started");
    let manager = Process::open(supervised.status().pid).unwrap();
    supervised.comes_to("fails", "failed");
    supervised.comes_to("pauses", "backoff");
    supervised.does(&pipewarden::supervise::control::Request::Stop("loops".into()));
    supervised.comes_to("stubborn", "running");
    let before = Holdings::of(manager.pid).exact();
    supervised.does(&pipewarden::supervise::control::Request::Start("loops".into()));
    for n in 0..9_000 {
        if n % 300 == 0 {
            supervised.rewrite(&everything(n / 300 % 2)); // so that some of them restart something
        }
        manager.signal([Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGWINCH][dice.roll(3)]);
    }
    supervised.rewrite(&everything(0));
    let count = supervised.log.count("again: ");
    manager.signal(Signal::SIGHUP);
    supervised.says_times(count + 1, "again: ");
    supervised.does(&pipewarden::supervise::control::Request::Stop("loops".into()));
    for name in ["runs", "stubborn"] {
        supervised.comes_to(name, "running");
    }
    let calm = pipewarden_tests::deadline::Deadline::patient().until(|| Holdings::of(manager.pid).exact() == before);
    assert!(calm, "{:?} {before:?}", Holdings::of(manager.pid));
    for _ in 0..1_000 {
        manager.signal([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGINT][dice.roll(4)]);
    }
    let ended = supervised.end();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert!(ended.stdout.ends());
    nobody_is_left(&stage);
}

/// The end in the first moments, when runs are just being made.
#[test]
fn a_storm_while_everything_starts() {
    for round in 0..20 {
        let stage = Stage::new();
        let mut dice = Dice(round);
        let supervised = Supervise::on(&stage, &everything(0)).start();
        supervised.says("control socket");
        for _ in 0..dice.roll(400) {
            supervised.signal([Signal::SIGHUP, Signal::SIGCHLD][dice.roll(2)]);
        }
        for _ in 0..=dice.roll(3) {
            supervised.signal([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT][dice.roll(3)]);
        }
        let ended = supervised.end();
        assert_eq!(ended.code(), 0, "{}", ended.log);
        assert!(ended.stdout.ends());
        nobody_is_left(&stage);
    }
}
