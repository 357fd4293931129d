//! Every pipe of a stopped, replaced or finished command is closed, on every path: restart, restart
//! then shutdown, shutdown, failed start. What the manager has after N restarts it had after one.

use nix::sys::signal::Signal;
use pipewarden::supervise::control::{CommandStatus, Request};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::process::Process;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Holdings, MARK, Supervise, Supervised, bash, fixture, left_of, nobody_is_left};

fn restart(name: &str) -> Request {
    Request::Restart(name.to_owned())
}

fn stop(name: &str) -> Request {
    Request::Stop(name.to_owned())
}

fn start(name: &str) -> Request {
    Request::Start(name.to_owned())
}

/// What the manager has once nothing of the moment is in it.
fn settled(supervised: &Supervised) -> Holdings {
    let manager = supervised.status().pid;
    // A client's connection, ours, may just be closing.
    let mut before = Holdings::of(manager);
    let calm = Deadline::patient().until(|| {
        let now = Holdings::of(manager);
        let same = now.exact() == before.exact();
        before = now;
        same
    });
    assert!(calm, "{before:?}");
    before
}

/// Commands that leave a holder in a session of their own and exit, a thousand times altogether: everything
/// is as it was after the first ten. They are four, side by side, because each restart is a chain of
/// processes that wait for one another.
#[test]
fn after_a_thousand_restarts_everything_is_as_after_ten() {
    const LOOPS: [&str; 4] = ["loop0", "loop1", "loop2", "loop3"];
    const RESTARTS: usize = 1000;
    let stage = Stage::new();
    // Without the stage's socket nobody announces himself, which a thousand times takes its time.
    let mark = format!("clear_env = true\nenv = {{ {MARK} = \"{}\" }}", stage.folder().display());
    let more = format!("restart = \"always\"\nrestart_limit = \"off\"\nsignal = \"KILL\"\n{mark}");
    let loops = LOOPS.map(|name| fixture(name, "hold_setsid", &[], &more)).concat();
    let bystander = bash("bystander", "setsid sleep 1000 & sleep 1000", "");
    let supervised = Supervise::on(&stage, &(loops + &bystander)).start();
    supervised.says("bystander: started");
    let bystander = supervised.status_of("bystander");
    let of_all = |count: fn(&CommandStatus) -> u64| -> usize {
        let each = supervised.status().commands.into_iter().filter(|command| LOOPS.contains(&command.name.as_str()));
        each.map(|command| usize::try_from(count(&command)).unwrap()).sum()
    };
    let after = |restarts: usize| {
        // In steps, each of which has the patience of one.
        let enough = restarts.div_ceil(LOOPS.len()) + 1;
        for launches in (0..enough).step_by(5).chain([enough]) {
            for name in LOOPS {
                supervised.says_times(launches, &format!("{name}: started"));
            }
        }
        for name in LOOPS {
            supervised.does(&stop(name));
        }
        let holdings = settled(&supervised);
        let done = of_all(|command| command.restarts);
        for name in LOOPS {
            supervised.does(&start(name));
        }
        (holdings, done)
    };
    let (first, few) = after(10);
    let (last, many) = after(RESTARTS);
    assert!((10..RESTARTS / 10).contains(&few) && many >= RESTARTS, "{few} and {many} restarts");
    assert_eq!(first.exact(), last.exact());
    assert_eq!(last.zombies, 0);
    // What each restart left behind would be there 900 times: a quarter of a kilobyte each shows.
    assert!(last.resident_kib <= first.resident_kib + 225, "{first:?} {last:?}");
    for name in LOOPS {
        supervised.does(&stop(name));
    }
    let (ended, restarts) = (of_all(|command| command.holders_ended), of_all(|command| command.restarts));
    assert!(ended + 3 * LOOPS.len() >= restarts, "each left one behind, but where we stopped it: {ended}, {restarts}");
    let holders = left_of(&stage).into_iter().filter(|(_, comm)| comm == "hold_setsid").count();
    assert_eq!(holders, 0, "{:?}", left_of(&stage));
    assert_eq!(
        left_of(&stage).len(),
        5,
        "the manager, and the run of the other command with three: {:?}",
        left_of(&stage)
    );
    assert_eq!(supervised.status_of("bystander").pid, bystander.pid, "nobody else was touched");
    println!("after {few}: {first:?}\nafter {many}: {last:?}");
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    nobody_is_left(&stage);
    // Those that were stopped, perhaps before they had said it, are three of each.
    let (said, launches) = (ended.stdout.count(" | the last line\n"), ended.log.matches("started (pid ").count() - 1);
    assert!((launches - 3 * LOOPS.len()..=launches).contains(&said), "{said} of {launches}");
}

/// One path after the other, and after each the manager has what it had before.
#[test]
fn every_path_closes_every_pipe() {
    let stage = Stage::new();
    let config = bash("a", "setsid sleep 1000 & sleep 1000", "kill_after = 0")
        + &bash("never", "true", "restart = \"never\"")
        + &bash("missing", "true", "restart = \"never\"").replace("\"bash\"", "\"/no/such/program\"")
        + &bash("nowhere", "true", "restart = \"never\"\ncwd = \"/no/such/folder\"")
        + &bash(
            "late",
            "sleep 1000",
            "restart = \"never\"\nready = { delay = \"1h\" }\nready_timeout = \"1ms\"\nkill_after = 0",
        )
        + &bash(
            "noisy",
            "while echo line; do :; done",
            "restart = \"never\"\nkill_after = 0\nready = { line = \"re:line\" }",
        );
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says("a: started");
    for (name, state) in [("never", "finished"), ("missing", "failed"), ("nowhere", "failed"), ("late", "failed")] {
        supervised.comes_to(name, state);
    }
    supervised.comes_to("noisy", "running");
    let before = settled(&supervised).exact();
    let paths: [(&str, &dyn Fn()); 7] = [
        ("restart", &|| supervised.does(&restart("a"))),
        ("stop, start", &|| {
            supervised.does(&stop("a"));
            supervised.does(&start("a"));
        }),
        ("finished", &|| {
            let _ = supervised.ask(&start("never"));
            supervised.comes_to("never", "finished");
        }),
        ("failed start", &|| {
            let _ = supervised.ask(&start("missing"));
            let _ = supervised.ask(&start("nowhere"));
            supervised.comes_to("missing", "failed");
            supervised.comes_to("nowhere", "failed");
        }),
        ("not ready in time", &|| {
            let _ = supervised.ask(&start("late"));
            supervised.comes_to("late", "failed");
        }),
        ("full of output", &|| supervised.does(&restart("noisy"))),
        ("reload", &|| {
            let count = supervised.log.count("again: ");
            supervised.rewrite(&config.replace("setsid sleep 1000 &", "setsid sleep 2000 &"));
            supervised.signal(Signal::SIGHUP);
            supervised.says_times(count + 1, "again: 1 changed");
            supervised.comes_to("a", "running");
            supervised.rewrite(&config);
            supervised.signal(Signal::SIGHUP);
            supervised.says_times(count + 2, "again: 1 changed");
            supervised.comes_to("a", "running");
        }),
    ];
    for (path, walk) in paths {
        for _ in 0..3 {
            walk();
        }
        assert_eq!(settled(&supervised).exact(), before, "{path}: {}", supervised.log.so_far());
    }
    // Restart, then shutdown.
    supervised.signal(Signal::SIGHUP);
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert!(ended.stdout.ends(), "nobody holds its stdout");
    nobody_is_left(&stage);
}

/// Holders of one command's pipes are ended with it. Another's, which look the same, live.
#[test]
fn an_ending_reaches_its_own_holders_and_no_others() {
    let stage = Stage::new();
    let more = "restart = \"never\"";
    let config = fixture("a", "hold_setsid", &["--as", "of a", "--gate"], more)
        + &bash("b", &format!("{} --as 'of b'; exec sleep 1000", binary("hold_setsid")), more);
    stage.hold("gate");
    let supervised = Supervise::on(&stage, &config).start();
    let (of_a, of_b) = (stage.wait("of a"), stage.wait("of b"));
    stage.release("gate");
    supervised.comes_to("a", "finished");
    assert!(of_a.dies(Deadline::patient()));
    assert_eq!(supervised.status_of("a").holders_ended, 1);
    assert!(of_b.lives());
    supervised.does(&stop("b"));
    assert!(of_b.dies(Deadline::patient()), "it goes with its own command");
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

fn binary(name: &str) -> String {
    pipewarden_tests::binaries::binary(name).display().to_string()
}

/// A run that is killed (an OOM killer's doing, say) leaves a lineage that nobody ends any more: the
/// manager does, before it starts the command again; a kept process and another command live on.
#[test]
fn what_a_killed_run_leaves_behind_is_ended_before_the_next_start() {
    let stage = Stage::new();
    let line =
        |role: &str| format!("{} --as '{role}'; exec {} --as '{role} command'", binary("hold_setsid"), binary("stay"));
    let config = bash("a", &line("of a"), "restart = \"always\"") + &bash("b", &line("of b"), "");
    let audit = stage.path("audit");
    let supervised = Supervise::on(&stage, &config).options(["--audit".as_ref(), audit.as_os_str()]).start();
    let (of_a, of_b, command) = (stage.wait("of a"), stage.wait("of b"), stage.wait("of a command"));
    supervised.comes_to("b", "running");
    let run = Process::open(supervised.status_of("a").run_pid.unwrap()).unwrap();
    run.signal(Signal::SIGKILL);
    supervised.says("a: its run died; what it left behind is ended");
    assert!(of_a.dies(Deadline::patient()) && command.dies(Deadline::patient()));
    supervised.says("a: started (pid ");
    supervised.says(", restart 1)");
    let log = supervised.log.so_far();
    let ended = log.find("processes that its run had left; 0 are left").unwrap_or_else(|| panic!("{log}"));
    assert!(ended < log.find(", restart 1)").unwrap(), "the ending comes first: {log}");
    assert!(of_b.lives());
    let audit = std::fs::read_to_string(audit).unwrap();
    let acts =
        audit.lines().filter(|line| line.contains("\"name\":\"a\"") && line.contains("holder.signalled")).count();
    assert_eq!(acts, 2, "the command and what it had left: {audit}");
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

/// Nothing outlives the manager, whatever ends it.
#[test]
fn when_the_manager_is_killed_every_run_ends_its_command() {
    let stage = Stage::new();
    let config = bash("a", "setsid sleep 1000 & sleep 1000", "kill_after = 0")
        + &bash("b", "trap '' TERM; sleep 1000", "kill_after = 0");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says("a: started");
    supervised.says("b: started");
    supervised.signal(Signal::SIGKILL);
    let _ = supervised.end();
    nobody_is_left(&stage);
}
