//! Where output goes, and that nobody who reads slowly, or not at all, holds up anything else.

use std::fs;
use std::io::Read;
use std::time::Duration;

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::pattern;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Supervise, bash, fixture, nobody_is_left};

#[test]
fn lines_have_the_name_before_them_and_the_last_one_is_never_lost() {
    let stage = Stage::new();
    let config = bash("one", "echo a; echo b; printf end", "restart = \"never\"")
        + &bash("longer", "echo c; echo d >&2", "restart = \"never\"");
    let ended = Supervise::on(&stage, &config).start().end();
    let out = ended.stdout.so_far();
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["longer | c", "one    | a", "one    | b", "one    | end"]);
    assert!(ended.log.contains("longer | d\n"), "stderr goes to stderr: {}", ended.log);
}

#[test]
fn prefixes_have_colours_when_asked() {
    let stage = Stage::new();
    let config = "[supervise]\ncolor = \"always\"\n".to_owned() + &bash("a", "echo x", "restart = \"never\"");
    let ended = Supervise::on(&stage, &config).start().end();
    assert_eq!(ended.stdout.so_far(), "\x1b[36ma | \x1b[0mx\n");
}

/// Every byte of a megabyte, through each way out.
#[test]
fn nothing_is_lost_on_any_way_out() {
    const BYTES: usize = 1_000_000;
    let stage = Stage::new();
    let (file, watched) = (stage.path("file"), stage.path("watched"));
    let bytes = BYTES.to_string();
    let never = "restart = \"never\"";
    let config = fixture("inherits", "just_exit", &["--bytes", &bytes], &format!("{never}\nstdout = \"inherit\""))
        + &fixture(
            "direct",
            "just_exit",
            &["--bytes", &bytes],
            &format!("{never}\nstdout = \"file:{}\"", file.display()),
        )
        + &fixture(
            "watched",
            "just_exit",
            &["--bytes", &bytes],
            &format!("{never}\nstdout = \"file:{}\"\nready = {{ line = \"re:^0000001$\" }}", watched.display()),
        )
        + &fixture("nowhere", "just_exit", &["--bytes", &bytes], &format!("{never}\nstdout = \"null\""));
    let ended = Supervise::on(&stage, &config).start().end();
    let whole = |bytes: &[u8]| bytes.starts_with(&pattern(BYTES));
    assert!(whole(ended.stdout.so_far().as_bytes()), "{}", ended.log);
    assert!(whole(&fs::read(file).unwrap()), "{}", ended.log);
    assert!(whole(&fs::read(watched).unwrap()), "{}", ended.log);
    assert!(ended.log.contains("watched: ready after"), "{}", ended.log);
}

#[test]
fn both_streams_in_one_file_stay_in_their_order() {
    let stage = Stage::new();
    let file = stage.path("file");
    let line = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done";
    let more = format!("restart = \"never\"\nstdout = \"file:{0}\"\nstderr = \"file:{0}\"", file.display());
    let _ = Supervise::on(&stage, &bash("a", line, &more)).start().end();
    let wanted: String = (1..10).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(fs::read_to_string(file).unwrap(), wanted);
}

/// A reader that takes nothing holds up the output, but no stop: the bound on delivery ends the wait.
#[test]
fn a_reader_that_takes_nothing_holds_up_no_ending() {
    let stage = Stage::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let config =
        bash("floods", "exec yes flood", "max_deliver = \"100ms\"\nkill_after = 0") + &bash("quiet", "sleep 1000", "");
    let supervised = Supervise::on(&stage, &config).stdout(writer).start();
    supervised.says("floods: started");
    supervised.says("quiet: started");
    // Once everything on the way is full, the flood stands still.
    let written = || {
        let pid = supervised.status_of("floods").pid.unwrap();
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let full = Deadline::patient().until(|| {
        let before = written();
        std::thread::sleep(Duration::from_millis(100)); // to see whether it moves
        before > 100_000 && written() == before
    });
    assert!(full);
    supervised.does(&pipewarden::supervise::control::Request::Restart("quiet".into()));
    supervised.does(&pipewarden::supervise::control::Request::Stop("floods".into()));
    supervised.says("floods: downstream did not take the last");
    supervised.signal(Signal::SIGTERM);
    supervised.says("everything has ended");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(b"floods | flood\n"));
    assert_eq!(supervised.end().code(), 0);
    nobody_is_left(&stage);
}

/// A reader that goes away takes no command with it.
#[test]
fn a_reader_that_goes_away_takes_no_command_with_it() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let counted = stage.path("counted");
    let line = format!("while echo x; do echo x >> {}; done", counted.display());
    let supervised = Supervise::on(&stage, &bash("a", &line, "kill_after = 0")).stdout(writer).start();
    drop(reader);
    let size = || fs::metadata(&counted).map_or(0, |data| data.len());
    let far = size() + 1000;
    assert!(Deadline::patient().until(|| size() > far), "it writes on");
    assert_eq!(supervised.status_of("a").restarts, 0);
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

#[test]
fn one_command_may_have_our_stdin() {
    let stage = Stage::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"hello\n").unwrap();
    drop(writer);
    let config = bash("reads", "read line; echo [$line]", "stdin = \"inherit\"\nrestart = \"never\"")
        + &bash("none", "read line; echo [$line]", "restart = \"never\"");
    let ended = Supervise::on(&stage, &config).stdin(reader).start().end();
    let out = ended.stdout.so_far();
    assert!(out.contains("reads | [hello]\n") && out.contains("none  | []\n"), "{out}");
}

/// Every run's chain is whole, and every record of it has the command's name.
#[test]
fn audit_records_are_those_of_a_run_with_the_commands_name() {
    let stage = Stage::new();
    let log = stage.path("audit");
    let config = bash("a", "setsid sleep 1000 & echo x", "restart_limit = \"off\"\nrestart = \"never\"")
        + &bash("b", "true", "");
    let ended = Supervise::on(&stage, &config).options(["--audit".as_ref(), log.as_os_str()]).start().end();
    let text = fs::read_to_string(&log).unwrap();
    let of = |name: &str, event: &str| {
        let name = format!("\"name\":\"{name}\"");
        let event = format!("\"event\":\"{event}\"");
        text.lines().filter(|line| line.contains(&name) && line.contains(&event)).count()
    };
    for name in ["a", "b"] {
        for event in ["run.started", "run.exited", "run.finished"] {
            assert_eq!(of(name, event), 1, "{name} {event}: {text}{}", ended.log);
        }
    }
    assert_eq!(of("a", "holder.signalled"), 1, "{text}");
    assert!(text.lines().all(|line| line.contains("\"name\":\"")), "{text}");
    let verified = std::process::Command::new(binary(UNDER_TEST)).args(["audit", "verify"]).arg(&log).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
