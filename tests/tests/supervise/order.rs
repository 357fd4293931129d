//! What is started after what, ended before what, and what becomes of requests that cross.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use pipewarden::supervise::control::{Reply, Request};
use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, bash, fixture, nobody_is_left};

/// A command that writes its name when it is started and when it is ended.
fn scribe(name: &str, book: &Path, more: &str) -> String {
    let book = book.display();
    let line = format!(
        "trap 'echo -{name} >> {book}; exit 0' TERM; echo +{name} >> {book}; echo up; while :; do sleep 1000 & wait; done"
    );
    bash(name, &line, &format!("ready = {{ line = \"re:up\" }}\n{more}"))
}

fn lines(book: &Path) -> Vec<String> {
    fs::read_to_string(book).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn each_is_started_after_those_before_it_and_ended_before_them() {
    let stage = Stage::new();
    let book = stage.path("book");
    let config =
        scribe("c", &book, "after = [\"b\"]") + &scribe("a", &book, "") + &scribe("b", &book, "after = [\"a\"]");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.comes_to("c", "running");
    assert_eq!(lines(&book), ["+a", "+b", "+c"]);
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert_eq!(lines(&book), ["+a", "+b", "+c", "-c", "-b", "-a"]);
    nobody_is_left(&stage);
}

/// While one takes its time to end, those that it comes after are still there.
#[test]
fn what_others_come_after_stays_until_they_are_gone() {
    let stage = Stage::new();
    let base = fixture("base", "stay", &["--as", "base"], "");
    let slow = fixture("slow", "tell_signals", &["SIGTERM"], "after = [\"base\"]\nkill_after = \"1m\"");
    let supervised = Supervise::on(&stage, &(base + &slow)).start();
    stage.hold("SIGTERM");
    let (base, _) = (stage.wait("base"), stage.wait("ready"));
    supervised.signal(Signal::SIGTERM);
    let _ = stage.wait("SIGTERM");
    supervised.comes_to("slow", "stopping");
    assert_eq!(supervised.status_of("base").state, "running");
    assert!(base.lives());
    // A restart during the shutdown is refused, and says why.
    let Reply::Refused(why) = supervised.ask(&Request::Restart("base".into())) else { panic!("restarted") };
    assert!(why.contains("shutting down"), "{why}");
    stage.release("SIGTERM");
    assert_eq!(supervised.end().code(), 0);
    assert!(base.dies(Deadline::patient()));
    nobody_is_left(&stage);
}

/// A second request to end does not wait for anybody.
#[test]
fn a_second_signal_kills_everything_at_once() {
    let stage = Stage::new();
    let config = fixture("base", "ignore_term", &[], "kill_after = \"1m\"")
        + &fixture("slow", "tell_signals", &["SIGINT"], "after = [\"base\"]\nkill_after = \"1m\"\nrestart = \"never\"");
    let supervised =
        Supervise::on(&stage, &config.replace("\"1m\"\nrestart", "\"1m\"\nready = { delay = 0 }\nrestart")).start();
    stage.hold("SIGTERM");
    let _ = stage.wait("ready");
    supervised.comes_to("slow", "running");
    supervised.signal(Signal::SIGTERM);
    supervised.says("slow: stopping");
    supervised.signal(Signal::SIGTERM);
    let ended = supervised.end();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    nobody_is_left(&stage);
}

/// A restart of a command that is being ended waits for its ending; so do a second and a third, which
/// are one. The last wish counts.
#[test]
fn restarts_coalesce_and_wait_for_the_ending() {
    let stage = Stage::new();
    let config = fixture("a", "tell_signals", &["SIGTERM"], "kill_after = \"1m\"\nrestart = \"never\"");
    let supervised = Supervise::on(&stage, &config).start();
    let first = stage.wait("ready");
    stage.hold("SIGTERM");
    let ask = |request: Request| {
        let socket = supervised.socket.clone();
        std::thread::spawn(move || pipewarden::supervise::control::ask(&socket, &request).unwrap())
    };
    supervised.says("a: started");
    let stopped = ask(Request::Stop("a".into()));
    let _ = stage.wait("SIGTERM");
    let restarts: Vec<_> = (0..5).map(|_| ask(Request::Restart("a".into()))).collect();
    supervised.says("a: to be started again once it has stopped");
    assert_eq!(supervised.status_of("a").pid, Some(first.pid));
    assert!(first.lives());
    stage.release("SIGTERM");
    for restart in restarts {
        let reply = restart.join().unwrap();
        assert!(matches!(reply, Reply::Done(_)), "{reply:?}");
    }
    // The one who wanted it stopped is told that it did not stay so.
    assert!(matches!(stopped.join().unwrap(), Reply::Refused(_)));
    assert!(first.dies(Deadline::patient()));
    let now = supervised.status_of("a");
    assert_eq!((now.restarts, now.state.as_str()), (1, "running"));
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

/// A shutdown during a restart: the ending goes on, and nothing comes after it.
#[test]
fn a_shutdown_during_a_restart_is_a_shutdown() {
    let stage = Stage::new();
    let config = fixture("a", "tell_signals", &["SIGTERM"], "kill_after = \"1m\"");
    let supervised = Supervise::on(&stage, &config).start();
    let _ = stage.wait("ready");
    stage.hold("SIGTERM");
    supervised.says("a: started");
    let socket = supervised.socket.clone();
    let restart =
        std::thread::spawn(move || pipewarden::supervise::control::ask(&socket, &Request::Restart("a".into())));
    let _ = stage.wait("SIGTERM");
    supervised.signal(Signal::SIGTERM);
    supervised.says("shutting down");
    assert!(matches!(restart.join().unwrap(), Ok(Reply::Refused(why)) if why.contains("shutting down")));
    stage.release("SIGTERM");
    let ended = supervised.end();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert_eq!(ended.log.matches("a: started").count(), 1, "{}", ended.log);
    nobody_is_left(&stage);
}

/// As pid 1 of a namespace: the same, and an orphan that is nobody's is reaped and left alone.
#[test]
fn as_pid_1() {
    if pipewarden_tests::skip::skip("as_pid_1", &[pipewarden_tests::skip::Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let book = stage.path("book");
    let job = "setsid sleep 1000 & echo left; sleep 0.2; exit 7"; // its work, not a wait
    let config = scribe("a", &book, "") + &bash("job", job, "after = [\"a\"]\nessential = true\nrestart = \"never\"");
    let supervised = Supervise::on(&stage, &config).wrapped_in(["unshare", "-pf", "--mount-proc"]).start();
    let ended = supervised.end();
    assert_eq!(ended.code(), 7, "{}", ended.log);
    assert_eq!(lines(&book), ["+a", "-a"]);
    assert_eq!(ended.stdout.count("job | left\n"), 1);
    nobody_is_left(&stage);
}

/// As pid 1 it is SIGTERM that a container runtime sends.
#[test]
fn as_pid_1_it_is_stopped_by_its_signal() {
    if pipewarden_tests::skip::skip("as_pid_1_it_is_stopped_by_its_signal", &[pipewarden_tests::skip::Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let book = stage.path("book");
    let config = scribe("a", &book, "") + &scribe("b", &book, "after = [\"a\"]");
    let supervised = Supervise::on(&stage, &config).wrapped_in(["unshare", "-pf", "--mount-proc"]).start();
    supervised.says("b: ready");
    let [init] = pipewarden_tests::supervise::children(supervised.process.pid)[..] else { panic!("one init") };
    pipewarden_tests::process::Process::open(init).unwrap().signal(Signal::SIGTERM);
    let ended = supervised.end();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert_eq!(lines(&book), ["+a", "+b", "-b", "-a"]);
    nobody_is_left(&stage);
}

/// The fixtures are there: a test that finds none would wait in vain.
#[test]
fn the_fixtures_are_built() {
    for name in ["stay", "tell_signals", "ignore_term", "hold_setsid"] {
        assert!(binary(name).exists());
    }
}
