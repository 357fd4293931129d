//! Many runs at once: each ends its own holder and no other, and nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use pipewarden::pipe::Outcome;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{GATE, LAST_LINE};
use pipewarden_tests::run::{Run, Running};
use pipewarden_tests::stage::Stage;

const RUNS: usize = 500;

#[test]
fn five_hundred_runs_at_once() {
    // What is orphaned when a run ends becomes our child, so that "nothing is left" can be asked.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let stage = Stage::new();
    let bystander = stage.fixture("hold_nothing").args(["--as", "bystander"]).spawn().unwrap().wait().unwrap();
    assert!(bystander.success());
    // Nobody's command ends before everybody's holder is there.
    stage.hold(GATE);
    let runs: Vec<Running> = (0..RUNS)
        .map(|number| {
            // The bounds are for a machine on which all of this takes its time.
            let run = Run::on(&stage).options(["--kill-after", "10m", "--max-drain", "20m"]);
            let code = (number % 100).to_string();
            run.fixture("hold_setsid", ["--as", &format!("holder {number}"), "--gate", "--exit", &code]).start()
        })
        .collect();
    let holders: Vec<_> = (0..RUNS).map(|number| stage.wait(&format!("holder {number}"))).collect();
    assert!(holders.iter().all(pipewarden_tests::process::Process::lives));
    stage.release(GATE);
    for (number, (run, holder)) in runs.into_iter().zip(&holders).enumerate() {
        let ended = run.end();
        let stderr = ended.stderr.text();
        assert!(ended.stdout.eof && ended.stderr.eof, "run {number}: {stderr}");
        assert_eq!(ended.code(), i32::try_from(number % 100).unwrap(), "run {number}: {stderr}");
        assert_eq!(ended.stdout.bytes, LAST_LINE, "run {number}: {stderr}");
        let report = ended.report();
        assert_eq!(report.outcome, Outcome::HoldersEnded, "run {number}: {stderr}");
        let named: Vec<i32> = report.holders.iter().map(|holder| holder.pid).collect();
        assert_eq!(named, [holder.pid], "its own holder and no other: {stderr}");
        assert!(holder.dies(Deadline::patient()), "run {number}: {stderr}");
    }
    let bystander = stage.wait("bystander");
    assert!(bystander.lives());
    bystander.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(bystander.dies(Deadline::patient()));
    let left = Deadline::patient().until(|| {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
        waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD)
    });
    assert!(left, "no descendant of ours is left");
}
