//! SIGHUP: what changed is restarted, and nothing else.

use nix::sys::signal::Signal;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, Supervised, bash, fixture, nobody_is_left};

fn reload(supervised: &Supervised, config: &str, said: &str) {
    let before = supervised.log.count(said);
    supervised.rewrite(config);
    supervised.signal(Signal::SIGHUP);
    supervised.says_times(before + 1, said);
}

fn pids(supervised: &Supervised) -> Vec<(String, Option<i32>)> {
    supervised.status().commands.into_iter().map(|command| (command.name, command.pid)).collect()
}

#[test]
fn only_what_changed_is_restarted() {
    let stage = Stage::new();
    let (a, b) = (bash("a", "sleep 1000", ""), bash("b", "sleep 1000", ""));
    let supervised = Supervise::on(&stage, &(a.clone() + &b)).start();
    supervised.says("a: started");
    supervised.says("b: started");
    let before = pids(&supervised);

    reload(&supervised, &(a.clone() + &b), "again: 0 changed, 0 added, 0 removed");
    assert_eq!(pids(&supervised), before);

    // When it is started again is no part of its process.
    let patient = a.replace("backoff = 0", "backoff = 5\nrestart = \"always\"");
    reload(&supervised, &(patient + &b), "again: 0 changed");
    assert_eq!(pids(&supervised), before);

    let other = a.replace("sleep 1000", "sleep 2000");
    reload(&supervised, &(other.clone() + &b), "again: 1 changed, 0 added, 0 removed");
    supervised.says("a: started (pid");
    supervised.says(", restart 1)");
    assert_eq!(pids(&supervised)[1], before[1]);
    assert_ne!(pids(&supervised)[0], before[0]);

    let c = bash("c", "sleep 1000", "after = [\"b\"]");
    reload(&supervised, &(c.clone() + &b), "again: 0 changed, 1 added, 1 removed");
    supervised.says("c: started");
    supervised.says("a: ended by SIGTERM");
    let names = || pids(&supervised).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert!(Deadline::patient().until(|| names() == ["c", "b"]), "{:?}", names());
    assert_eq!(supervised.status_of("b").pid, before[1].1);
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

#[test]
fn a_file_with_an_error_changes_nothing() {
    let stage = Stage::new();
    let config = bash("a", "sleep 1000", "");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says("a: started");
    let before = pids(&supervised);
    reload(
        &supervised,
        &config.replace("backoff", "bakoff"),
        "command.a.bakoff: there is no such key; did you mean backoff?; nothing is changed",
    );
    reload(&supervised, "", "nothing is changed");
    std::fs::remove_file(&supervised.config).unwrap();
    supervised.signal(Signal::SIGHUP);
    supervised.says("it cannot be read");
    assert_eq!(pids(&supervised), before);
    assert_eq!(supervised.terminate().code(), 0);
}

/// Changes that come while the command is being ended are one restart, to the last of them.
#[test]
fn changes_during_an_ending_are_one_restart() {
    let stage = Stage::new();
    let config =
        |n: u32| fixture("a", "tell_signals", &["SIGTERM"], &format!("kill_after = \"1m\"\nenv = {{ N = \"{n}\" }}"));
    let supervised = Supervise::on(&stage, &config(0)).start();
    let _ = stage.wait("ready");
    stage.hold("SIGTERM");
    reload(&supervised, &config(1), "again: 1 changed");
    let _ = stage.wait("SIGTERM");
    for n in 2..20 {
        reload(&supervised, &config(n), "again: 1 changed");
    }
    // And gone, and back again.
    let other = bash("other", "sleep 1000", "");
    reload(&supervised, &other, "again: 0 changed, 1 added, 1 removed");
    reload(&supervised, &(config(20) + &other), "again: 1 changed, 0 added, 0 removed");
    stage.release("SIGTERM");
    supervised.says(", restart 1)");
    supervised.comes_to("a", "running");
    let pid = supervised.status_of("a").pid.unwrap();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.split(|byte| *byte == 0).any(|variable| variable == b"N=20"));
    assert_eq!(supervised.status_of("a").restarts, 1);
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

/// What somebody stopped stays stopped.
#[test]
fn what_was_stopped_is_not_started_by_a_change() {
    let stage = Stage::new();
    let config = bash("a", "sleep 1000", "");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.does(&pipewarden::supervise::control::Request::Stop("a".into()));
    reload(&supervised, &config.replace("1000", "2000"), "again: 1 changed");
    assert_eq!(supervised.status_of("a").state, "stopped");
    supervised.does(&pipewarden::supervise::control::Request::Start("a".into()));
    let pid = supervised.status_of("a").pid.unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(String::from_utf8_lossy(&line).contains("2000"), "it is started as the file says now");
    assert_eq!(supervised.terminate().code(), 0);
}
