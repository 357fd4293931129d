//! What earlier systems got wrong with several commands, line by line.
//!
//! These rows have their test, under its own name, where the rest of their promise is:
//!
//! | row | test |
//! |---|---|
//! | every pipe is closed: restart, stop, finish, failed spawn, replaced by a new configuration | `no_pipe_is_leaked::every_path_closes_every_pipe` |
//! | descriptors after N restarts are those after one | `no_pipe_is_leaked::after_a_thousand_restarts_everything_is_as_after_ten` |
//! | order | `order::each_is_started_after_those_before_it_and_ended_before_them` |
//! | coalescing | `order::restarts_coalesce_and_wait_for_the_ending`, `reload::changes_during_an_ending_are_one_restart` |
//! | timeouts | `ready::who_is_not_ready_in_time_has_failed`, `order::a_second_signal_kills_everything_at_once` |
//! | signals and exit codes | `exits::the_exit_status_is_that_of_the_first_essential_command_that_fails`, `order::as_pid_1_it_is_stopped_by_its_signal` |

use nix::sys::signal::Signal;
use pipewarden::supervise::control::{Reply, Request, ask};
use pipewarden_tests::stage::Stage;
use pipewarden_tests::supervise::{Holdings, Supervise, bash, nobody_is_left};

/// A command whose helper, in a session of its own, holds its pipes.
fn leaky(name: &str) -> String {
    bash(name, "setsid sleep 1000 & sleep 1000", "kill_after = 0")
}

/// The path on which pipes and their pumps were left: a restart, and the shutdown before it is over. The
/// shutdown comes while each of the commands is at another place of its restart.
#[test]
fn restart_then_shutdown_closes_every_pipe() {
    for round in 0..5 {
        let stage = Stage::new();
        let names = ["a", "b", "c"];
        let supervised = Supervise::on(&stage, &names.map(leaky).concat()).start();
        for name in names {
            supervised.says(&format!("{name}: started"));
        }
        let restarts: Vec<_> = names
            .into_iter()
            .map(|name| {
                let socket = supervised.socket.clone();
                std::thread::spawn(move || ask(&socket, &Request::Restart(name.to_owned())))
            })
            .collect();
        // Another place each round: asked for, being ended, being started, up again.
        match round {
            0 => {}
            1 => supervised.says("a: stopping"),
            2 => supervised.says("a: ended by SIG"),
            3 => supervised.says_times(2, "b: started"),
            _ => supervised.says_times(2, "c: started"),
        }
        supervised.signal(Signal::SIGTERM);
        // It comes to an end only when its stdout and stderr are nobody's any more.
        let ended = supervised.end();
        assert_eq!(ended.code(), 0, "{}", ended.log);
        nobody_is_left(&stage);
        for restart in restarts {
            let reply = restart.join().unwrap();
            assert!(matches!(reply, Ok(Reply::Done(_) | Reply::Refused(_)) | Err(_)), "{reply:?}");
        }
    }
}

/// A pump sees its EOF and ends, also where the command's output is more than a pipe holds and nobody
/// has read it yet; and what the manager has then is what it had before.
#[test]
fn the_pump_sees_eof_and_is_never_left_blocked() {
    let stage = Stage::new();
    let config = leaky("stays")
        + &bash("talks", "head -c 3000000 /dev/zero | tr '\\0' 'x\\n'; echo; echo last", "restart = \"never\"");
    let supervised = Supervise::on(&stage, &config).start();
    supervised.comes_to("talks", "finished");
    let manager = supervised.status().pid;
    let before = Holdings::of(manager).exact();
    for count in 2..6 {
        // It may have finished before anybody could see it run.
        let _ = supervised.ask(&Request::Start("talks".into()));
        supervised.stdout.wait_for(count, "talks | last\n");
        supervised.comes_to("talks", "finished");
    }
    let same = pipewarden_tests::deadline::Deadline::patient().until(|| Holdings::of(manager).exact() == before);
    assert!(same, "{:?} {before:?}", Holdings::of(manager));
    let ended = supervised.terminate();
    assert_eq!(ended.code(), 0, "{}", ended.log);
    nobody_is_left(&stage);
}
