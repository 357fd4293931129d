//! Losing events costs nothing but a walk, and is on record.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use pipewarden::pipe::Outcome;
use pipewarden_tests::fixture::{GATE, HOLDER};
use pipewarden_tests::log::Log;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

use crate::no_connector;

/// Some more than the least room that a socket has.
const STORM: &str = "200";

/// Room for more events than a machine has while a test waits, in bytes.
const PLENTY: usize = 16 << 20;

/// The supervisor's connector, by a descriptor of ours.
fn connector_of(supervisor: &Process) -> OwnedFd {
    // sk, protocol, port, ... and as the last one the inode.
    let table = fs::read_to_string("/proc/net/netlink").unwrap();
    let connectors: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] == "11")
        .map(|fields| format!("socket:[{}]", fields[fields.len() - 1]))
        .collect();
    let fds = fs::read_dir(format!("/proc/{}/fd", supervisor.pid)).unwrap().flatten().filter(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|link| connectors.iter().any(|connector| link.as_os_str() == &**connector))
    });
    let fds: Vec<i32> = fds.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
    assert_eq!(fds.len(), 1, "one connector: {fds:?}");
    supervisor.copy_of(fds[0]).unwrap()
}

#[test]
fn a_fork_storm_that_nobody_reads_is_made_up_for() {
    let name = "a_fork_storm_that_nobody_reads_is_made_up_for";
    if skip(name, &[Need::Root]) || no_connector(name) {
        return;
    }
    let stage = Stage::new();
    let log = Log::named(&stage, "storm.jsonl");
    for role in ["ready", "leaver", GATE] {
        stage.hold(role);
    }
    let run = Run::on(&stage).options(["--backend", "connector"]).options(log.options());
    let run = run.fixture("leave_when_told", ["storm", STORM, "--gate"]).start();
    let _ = stage.wait("ready");
    // The least room that there is.
    let connector = connector_of(&run.process);
    setsockopt(&connector, sockopt::RcvBuf, &1).unwrap();
    run.signal(Signal::SIGSTOP);
    stage.release("ready");
    let leaver = stage.wait("leaver");
    // Room again for what is to be heard of, whatever else the machine does meanwhile.
    setsockopt(&connector, sockopt::RcvBufForce, &PLENTY).unwrap();
    drop(connector);
    run.signal(Signal::SIGCONT);
    let reseeded = log.wait("tracker.reseeded", |record| record["event"] == "tracker.reseeded");
    let detail = &reseeded["detail"];
    assert_eq!((&detail["rung"], detail["why"].is_string()), (&"connector".into(), true), "{reseeded}");
    assert!(detail["missed"].as_u64().unwrap() > 100, "{reseeded}");
    // Its birth was lost; it is lineage all the same, and what it does is heard of.
    stage.release("leaver");
    let escape = log.wait_for("pipe.escape", leaver.pid);
    assert!(escape["detail"]["noticed_after_us"].is_u64(), "by the event: {escape}");
    assert!(log.of("run.exited").is_empty());
    assert_eq!(stage.wait(HOLDER).pid, leaver.pid);
    stage.release(GATE);
    let ended = run.end();
    assert_eq!(ended.report().rung, "connector", "{}", ended.stderr.text());
}

/// Says that it is over when it goes, also where the test has failed.
struct UntilDropped<'a>(&'a AtomicBool);

impl Drop for UntilDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the rest of the machine does wakes a supervisor that listens. It sleeps over nothing of its own
/// in that: there is no bound that would wake it in time.
#[test]
fn the_machines_own_forks_do_not_disturb_an_ending() {
    if no_connector("the_machines_own_forks_do_not_disturb_an_ending") {
        return;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
        }
        let _storm = UntilDropped(&over);
        let stages: Vec<Stage> = (0..20).map(|_| Stage::new()).collect();
        let runs: Vec<_> = stages
            .iter()
            .map(|stage| {
                let run = Run::on(stage).options(["--backend", "connector", "--max-drain", "10m"]);
                run.fixture("hold_setsid", [""; 0]).start()
            })
            .collect();
        let outcomes: Vec<_> = runs.into_iter().map(|run| run.end().report().outcome).collect();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::HoldersEnded), "{outcomes:?}");
    });
}
