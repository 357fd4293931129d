//! How commands end, what is made of it, and the exit status of the whole.

use pipewarden::pipe::ExitStatus;
use pipewarden::supervise::control::Request;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{EndedSupervision, Supervise, bash, nobody_is_left};

fn end(config: &str) -> EndedSupervision {
    let stage = Stage::new();
    let ended = Supervise::on(&stage, config).start().end();
    nobody_is_left(&stage);
    ended
}

#[test]
fn the_exit_status_is_that_of_the_first_essential_command_that_fails() {
    let never = "restart = \"never\"";
    let essential = "restart = \"never\"\nessential = true";
    let stays = bash("stays", "sleep 1000", "");
    let stays_essential = bash("stays", "trap 'exit 9' TERM; sleep 1000 & wait", "essential = true");
    for (config, code, why) in [
        (bash("a", "exit 3", essential) + &stays, 3, "it failed"),
        (bash("a", "kill -USR1 $$", essential) + &stays, 128 + 10, "by a signal"),
        (bash("a", "exit 0", essential) + &stays, 0, "it finished"),
        (bash("a", "exit 3", never), 0, "it is not essential"),
        (bash("a", "exit 3", never) + &bash("b", "sleep 0.1; exit 4", essential), 4, "only one is essential"),
        (bash("a", "exit 3", essential) + &stays_essential, 3, "what is ended because of it does not count"),
        (bash("a", "exit 5", "essential = true\nrestart_limit = \"2/1h\""), 5, "it failed too often"),
        (
            bash("a", "exit 0", "essential = true\nrestart = \"always\"\nrestart_limit = \"2/1h\""),
            1,
            "it ended too often",
        ),
        (
            bash("a", "exit 1", &format!("{essential}\nready = \"finished\"")) + &bash("b", "true", "after = [\"a\"]"),
            1,
            "b cannot start",
        ),
        (
            bash("a", "exit 2", never)
                + &bash("b", "true", "after = [\"a\"]\nessential = true\n")
                    .replace("[command.a]", "[command.a]\nready = \"finished\""),
            1,
            "an essential one cannot start",
        ),
    ] {
        let config = if why == "an essential one cannot start" {
            config.replacen("[command.a]\n", "[command.a]\nready = \"finished\"\n", 1)
        } else {
            config
        };
        let ended = end(&config);
        assert_eq!(ended.code(), code, "{why}: {}", ended.log);
    }
}

#[test]
fn when_all_have_ended_it_ends() {
    let ended = end(&(bash("a", "echo one", "restart = \"never\"") + &bash("b", "echo two", "")));
    assert_eq!(ended.code(), 0, "{}", ended.log);
    assert!(ended.log.ends_with("pipewarden: everything has ended\n"), "{}", ended.log);
    assert_eq!((ended.stdout.count("a | one\n"), ended.stdout.count("b | two\n")), (1, 1));
}

#[test]
fn a_command_that_cannot_be_started_says_why_and_has_the_shells_status() {
    let essential = "restart = \"never\"\nessential = true";
    let stage = Stage::new();
    let folder = stage.folder().display().to_string();
    for (config, code, said) in [
        (bash("a", "", essential).replace("\"bash\"", "\"/no/such/program\""), 127, "a: /no/such/program: not found"),
        (bash("a", "", essential).replace("\"bash\"", &format!("\"{folder}\"")), 126, "cannot be executed"),
        (bash("a", "", &format!("{essential}\ncwd = \"/no/such/folder\"")), 125, "chdir /no/such/folder: No such file"),
        (
            bash("a", "", &format!("{essential}\nstdout = \"file:/no/such/folder/x\"")),
            125,
            "a: cannot be started: /no/such/folder/x: No such file",
        ),
    ] {
        let ended = end(&config);
        assert_eq!(ended.code(), code, "{}", ended.log);
        assert!(ended.log.contains(said), "{said}: {}", ended.log);
    }
}

/// One that exits at once, for ever: the pauses grow, it fails at its limit, and a start forgives it.
#[test]
fn what_exits_at_once_for_ever_fails_at_its_limit() {
    let stage = Stage::new();
    let config = bash("a", "exit 3", "restart_limit = \"3/1h\"") + &bash("stays", "sleep 1000", "");
    let config = config.replacen("backoff = 0", "backoff = \"10ms\"\nbackoff_max = \"25ms\"", 1);
    let supervised = Supervise::on(&stage, &config).start();
    supervised.says("failed: 3 restarts in 3600.0 s is the limit");
    let log = supervised.log.so_far();
    for pause in ["starts again in 10 ms (1 of 3)", "starts again in 20 ms (2 of 3)", "starts again in 25 ms (3 of 3)"]
    {
        assert_eq!(log.matches(pause).count(), 1, "{pause}: {log}");
    }
    let status = supervised.status_of("a");
    assert_eq!((status.state.as_str(), status.restarts, status.last_exit), ("failed", 3, Some(ExitStatus::Code(3))));
    // Whether it is seen to run, or only to have failed again, is a matter of luck.
    let _ = supervised.ask(&Request::Start("a".into()));
    supervised.says_times(2, "failed: 3 restarts");
    assert_eq!(supervised.terminate().code(), 0);
    nobody_is_left(&stage);
}

/// Somebody's stop is no failure, and what he stopped he may start: so the manager stays.
#[test]
fn who_stops_the_last_command_may_start_it_again() {
    let stage = Stage::new();
    let supervised = Supervise::on(&stage, &bash("a", "sleep 1000", "essential = true")).start();
    supervised.does(&Request::Stop("a".into()));
    assert_eq!(supervised.status_of("a").state, "stopped");
    supervised.does(&Request::Start("a".into()));
    assert_eq!(supervised.status_of("a").state, "running");
    assert_eq!(supervised.terminate().code(), 0);
}

/// The environment, the folder and the user are the command's; ours stay ours.
#[test]
fn a_command_has_its_environment_its_folder_and_its_user() {
    if pipewarden_tests::skip::skip("a_command_has_its_environment…", &[pipewarden_tests::skip::Need::Root]) {
        return;
    }
    let stage = Stage::new();
    let folder = stage.folder().display();
    let line = "echo $A-$HOME-$USER-$(id -u):$(id -g):$(id -G)-$PWD; grep -E 'Sig(Blk|Ign)' /proc/self/status";
    let config =
        bash("a", line, &format!("env = {{ A = \"1\" }}\ncwd = \"{folder}\"\nuser = \"nobody\"\nstdout = \"inherit\""))
            + &bash("b", "echo [$A]", "")
            + &bash(
                "c",
                "echo $(env | grep -vc -e '^_=' -e '^PWD=' -e '^SHLVL=')",
                "clear_env = true\nenv = { ONLY = \"x\", PATH = \"/usr/bin:/bin\" }",
            );
    let ended = Supervise::on(&stage, &config.replace("restart", "#")).start().end();
    let out = ended.stdout.so_far();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid, nobody.gid);
    assert!(
        out.contains(&format!("1-{}-nobody-{uid}:{gid}:{gid}-{folder}\n", nobody.dir.display())),
        "{out}{}",
        ended.log
    );
    assert!(out.contains("SigBlk:\t0000000000000000\n"), "no signal is blocked in it: {out}");
    assert!(out.contains("b | []\n") && out.contains("c | 2\n"), "{out}");
}
