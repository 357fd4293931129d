//! When the machine gives us nothing more: we say so, with 125, and the command is not half started.

use std::io::Read as _;

use nix::sys::resource::Resource;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

/// No more processes: fork(2) gives EAGAIN. The user has none but us, so one is one too few.
#[test]
fn no_more_processes() {
    if skip("no_more_processes", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let proof = stage.path("started");
    let run = Run::on(&stage).report("text").as_user(61_234).limit(Resource::RLIMIT_NPROC, 1);
    let ended = run.command(["touch"]).command([&proof]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(!proof.exists());
    assert!(said.contains("Resource temporarily unavailable") || said.contains("EAGAIN"), "{said}");
}

/// No more descriptors, at every point where they can run out: either all goes well, or nothing
/// was started.
#[test]
fn no_more_descriptors() {
    let mut refused = 0;
    for limit in 4..32 {
        let stage = Stage::new();
        let proof = stage.path("started");
        let run = Run::on(&stage).report("text").limit(Resource::RLIMIT_NOFILE, limit);
        let ended = run.command(["touch"]).command([&proof]).end();
        let said = ended.stderr.text();
        match ended.code() {
            0 => assert!(proof.exists(), "with {limit}: {said}"),
            125 => {
                refused += 1;
                assert!(!proof.exists(), "with {limit}: {said}");
                assert_eq!(said.lines().count(), 1, "with {limit}: {said}");
            }
            code => panic!("{code} with {limit}: {said}"),
        }
        assert!(ended.stdout.eof, "with {limit}: {said}");
    }
    assert!(refused > 0, "four descriptors cannot be enough");
}

/// Where a command is refused for want of a descriptor, it has not run, not even for a moment: whether it
/// could have been executed is not known then. What does not exist is only missed where all else is there.
#[test]
fn a_command_that_cannot_be_watched_is_not_begun() {
    for limit in 4..32 {
        let code = |program: &str| {
            let stage = Stage::new();
            Run::on(&stage).limit(Resource::RLIMIT_NOFILE, limit).command([program]).end().code()
        };
        match code("true") {
            0 => assert_eq!(code("/nonexistent/program"), 127, "with {limit}"),
            125 => assert_eq!(code("/nonexistent/program"), 125, "with {limit}"),
            other => panic!("{other} with {limit}"),
        }
    }
}

/// The limit is ours to live with, and not ours to change for the command.
#[test]
fn the_limit_is_the_commands_too() {
    let stage = Stage::new();
    let run = Run::on(&stage).limit(Resource::RLIMIT_NOFILE, 64).bash("ulimit -n; ulimit -Hn");
    assert_eq!(run.end().stdout.text(), "64\n64\n");
}

/// A full disk downstream is our failure to deliver, and is said.
#[test]
fn a_full_disk_downstream() {
    let stage = Stage::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = Run::on(&stage).report("text").options(["--stdio", "pump"]).stdout(full);
    let ended = run.fixture("just_exit", ["--bytes", "100000"]).end();
    let said = ended.stderr.text();
    assert_eq!(ended.code(), 125, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
}

/// Inherited, it is the command's own business, as without us.
#[test]
fn a_full_disk_that_is_inherited() {
    let stage = Stage::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Run::on(&stage).stdout(full).bash("echo x || exit 9").end();
    assert_eq!(ended.code(), 9, "{}", ended.stderr.text());
}

/// What only the start needed, the parser above all, does not stay in memory for as long as the command
/// runs. (How much is left in a release is the bench's to say.)
#[test]
fn a_supervisor_that_waits_has_let_go_of_what_its_start_needed() {
    let stage = Stage::new();
    let (mut source, write) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdout(write).bash("echo up; exec sleep 600").start();
    let mut line = [0; 3];
    source.read_exact(&mut line).unwrap(); // it came through the supervisor, which is at work then
    let status = std::fs::read_to_string(format!("/proc/{}/status", run.process.pid)).unwrap();
    let kilobytes = |key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (most, now) = (kilobytes("VmHWM:"), kilobytes("VmRSS:"));
    assert!(now + 1024 < most, "{now} kB of {most} kB");
    run.signal(nix::sys::signal::Signal::SIGTERM);
    let _ = run.end();
}
