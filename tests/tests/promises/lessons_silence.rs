//! What earlier systems got wrong with an agent that is alive and silent, line by line.
//!
//! These rows have their test, under its own name, where the rest of their promise is:
//!
//! | row | test |
//! |---|---|
//! | idle is min(900 s, max(300 s, a fifth of the total)) | in `cli/run.rs`: `auto_is_a_fifth_of_the_total_within_bounds` |
//! | the clock stops while a tool runs | `lifecycle::the_idle_clock_stands_still_while_a_tool_runs` |
//! | the timeout covers all tries and is authoritative | `lifecycle_tries::the_timeout_covers_all_tries_and_the_pauses` |
//! | session seen: resumed | `lifecycle_tries::with_a_session_it_is_resumed` |
//! | no session, no side effects: afresh, with the original input | `lifecycle_tries::without_session_and_side_effects_it_begins_afresh`, `a_fresh_start_gets_the_original_input` |
//! | no session, but tool calls: fails at once and says so | `lifecycle_tries::side_effects_without_a_session_fail_at_once` |
//! | an exit is another failure, off by default | `lifecycle_tries::a_failure_is_tried_again_only_when_asked` |
//! | waits are interruptible and visible | `lifecycle_tries::a_pause_is_announced_and_ends_with_a_signal` |
//! | no orphan of one try survives | `lifecycle_tries::no_orphan_of_one_try_lives_in_the_next`, `no_leaked_daemon_of_one_try_lives_in_the_next` |

use nix::sys::signal::Signal;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

use crate::lifecycle_tries::{row, starts, told, tries, tries_with};

/// The process is ended first, also one that ignores SIGTERM; only then is it decided what follows.
#[test]
fn the_process_is_ended_first_and_the_retry_decided_second() {
    let stage = Stage::new();
    stage.hold("second");
    let script: [&[&str]; 2] = [&["deaf", "at:first", "say:1", "hang"], &["at:second", "say:2", "exit:0"]];
    let run = tries(&stage, &script).options(["--kill-after", "100ms"]).start();
    let (first, _) = (stage.wait("first"), stage.wait("second"));
    assert!(first.is_dead(), "gone before the next try began");
    stage.release("second");
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout.text()), (0, "1\n2\n".into()), "{}", ended.stderr.text());
    assert_eq!(ended.report().tries[0]["exit_status"]["signal"], 9, "bounded: {}", ended.stderr.text());
}

/// Retries at most so many, with these pauses, of which the last repeats.
#[test]
fn the_last_pause_repeats() {
    let stage = Stage::new();
    let script: [&[&str]; 3] = [&["hang"], &["hang"], &["say:at last"]];
    let ended = tries_with(&stage, ["--retry-backoff", "1ms"], &script).end();
    let said = ended.stderr.text();
    let pause = |line: &str| Some(line.split_once("begins in ")?.1.split_once(',')?.0.to_owned());
    let pauses: Vec<String> = said.lines().filter_map(pause).collect();
    assert_eq!((ended.code(), ended.stdout.text()), (0, "at last\n".into()), "{said}");
    assert_eq!(pauses, ["1 ms", "1 ms"], "{said}");
}

/// A try that came to an end of its own resets the count: two retries are enough for three silences.
#[test]
fn a_completed_try_resets_the_count() {
    let stage = Stage::new();
    let silent: &[&str] = &["say:silence", "hang"];
    let script = [silent, silent, &["say:an end", "exit:3"], silent, &["say:done", "exit:0"]];
    let ended = tries(&stage, &script).options(["--retries-after-failure", "1"]).end();
    assert_eq!((ended.code(), starts(&stage)), (0, 5), "{}", ended.stderr.text());
    let afresh = |ended_for| row(ended_for, Some("afresh"));
    let expected = [row("idle", None), afresh("idle"), afresh("exit"), afresh("idle"), afresh("exit")];
    assert_eq!(told(&ended), expected);
    assert_eq!(ended.stdout.text(), "silence\nsilence\nan end\nsilence\ndone\n", "the output of every try is kept");
}

/// An ending is never cancelled half-way: whoever asks for the end of the run while a silent try is being
/// ended gets all of that ending, the helper in a session of its own with it, and no next try.
#[test]
fn an_ending_is_never_cancelled_half_way() {
    let stage = Stage::new();
    let (agent, deaf) = (binary("fake_agent"), binary("tell_signals"));
    let line = format!("{} leave:helper; exec {} SIGUSR1", agent.display(), deaf.display());
    let run = Run::on(&stage).options(["--idle-timeout", "3s", "--retries", "2", "--retry-backoff", "0"]);
    let run = run.options(["--kill-after", "10m", "--max-drain", "20m"]).bash(&line).start();
    let (command, helper) = (stage.wait("ready"), stage.wait("helper"));
    let _ = stage.wait("SIGTERM"); // from us, because it was silent
    assert!(command.lives());
    run.signal(Signal::SIGTERM);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert!(command.dies(Deadline::patient()) && helper.dies(Deadline::patient()), "{stderr}");
    assert_eq!((ended.code(), ended.report().tries.len()), (124, 1), "{stderr}");
}
