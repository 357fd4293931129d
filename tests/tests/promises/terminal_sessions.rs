//! Interactive sessions, played with pipewarden and without it: the user sees the same.

use pipewarden_tests::binaries::binary;
use pipewarden_tests::session::{At, Pages, Press, Resize, Session, Shows, Suspended, is_as_recorded, same_without_us};
use pipewarden_tests::stage::Stage;

/// The longest that a session waits before a SIGKILL that it must not see.
const PATIENT: &[&str] = &["--kill-after", "10m", "--max-drain", "20m"];

fn nothing(_: &Stage) {}

/// A book to read: numbered lines.
fn book(stage: &Stage) {
    let lines: String = (1..=300).map(|line| format!("line {line}\n")).collect();
    std::fs::write(stage.path("book"), lines).unwrap();
}

/// The fixture that prints the signals that it is sent.
fn teller(stage: &Stage) {
    std::os::unix::fs::symlink(binary("tell_signals"), stage.path("tell")).unwrap();
}

#[test]
fn ctrl_c_ends_the_command_and_the_shell_says_130() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w sh -c 'echo ready; exec cat'\r"), Shows("\nready")),
            (Press("hello\r"), Shows("hello\nhello")),
            (Press("\x03"), At("3$ ")),
            (Press("echo $?\r"), At("4$ ")),
        ],
    );
}

/// A shell leaves its loop only if it learns that the interrupt ended the command.
#[test]
fn ctrl_c_leaves_the_shells_loop() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("for i in 1 2 3; do ./w sh -c \"echo number $i; exec sleep 100\"; done\r"), Shows("\nnumber 1")),
            (Press("\x03"), At("3$ ")),
        ],
    );
}

/// ... and stays in it where the command handled the interrupt.
#[test]
fn a_command_that_handles_ctrl_c_keeps_the_shells_loop() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (
                Press(
                    "for i in 1 2; do ./w bash -c \"trap 'echo caught; exit 5' INT; echo number $i; while :; do sleep 0.05; done\"; done\r",
                ),
                Shows("\nnumber 1"),
            ),
            (Press("\x03"), Shows("\nnumber 2")),
            (Press("\x03"), At("3$ ")),
            (Press("echo $?\r"), At("4$ ")),
        ],
    );
}

#[test]
fn ctrl_backslash_quits_the_command() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w sh -c 'echo here; exec sleep 100'\r"), Shows("\nhere")),
            (Press("\x1c"), At("3$ ")),
            (Press("echo $?\r"), At("4$ ")),
        ],
    );
}

#[test]
fn ctrl_z_then_fg() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w sh -c 'echo ready; exec cat'\r"), Shows("\nready")),
            (Press("one\r"), Shows("one\none")),
            (Press("\x1a"), Suspended("3$ ")),
            (Press("echo $?; jobs\r"), At("4$ ")),
            (Press("fg\r"), Shows("$ fg\n./w sh -c 'echo ready; exec cat'")),
            (Press("two\r"), Shows("two\ntwo")),
            (Press("\x04"), At("5$ ")),
            (Press("echo $?\r"), At("6$ ")),
        ],
    );
}

#[test]
fn ctrl_z_then_bg_and_kill() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w sh -c 'echo here; exec sleep 100'\r"), Shows("\nhere")),
            (Press("\x1a"), Suspended("3$ ")),
            (Press("bg\r"), At("4$ ")),
            (Press("jobs\r"), At("5$ ")),
            (Press("kill %1; wait %1\r"), At("6$ ")),
            (Press("echo $?\r"), At("7$ ")),
        ],
    );
}

/// A shell sends a job's signals to its whole group, in which both of us are; to a pid goes what is
/// for us alone. The command gets each of them once.
#[test]
fn a_signal_to_the_job_reaches_the_command_once() {
    for target in ["%1", "$!"] {
        let stage = Stage::new();
        teller(&stage);
        let session = Session::start(&stage, Some(PATIENT));
        session.terminal.press("./w ./tell SIGTERM --exit 7 >told &\r");
        let _ = stage.wait("ready");
        let signals = ["SIGUSR1", "SIGHUP", "SIGQUIT", "SIGWINCH", "SIGCONT", "SIGUSR2", "SIGTERM"];
        for signal in signals {
            session.terminal.press(&format!("kill -{signal} {target}\r"));
            if signal == "SIGTERM" {
                break; // which makes it exit at once
            }
            let _ = stage.wait(signal);
        }
        session.step((Press("wait %1; echo code $?; clear; cat told\r"), Shows("SIGTERM\n11$")));
        let screen = session.terminal.screen();
        let told: Vec<&str> = screen.lines().filter(|line| line.starts_with("SIG")).collect();
        assert_eq!(told, signals, "sent to {target}");
    }
}

#[test]
fn a_command_in_the_background_stops_when_it_reads() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w cat & sleep 0.2\r"), At("3$ ")),
            (Press("wait %1; echo $?; jobs\r"), At("4$ ")),
            (Press("fg\r"), Shows("$ fg\n./w cat")),
            (Press("now\r"), Shows("now\nnow")),
            (Press("\x04"), At("5$ ")),
        ],
    );
}

#[test]
fn a_command_in_the_background_stops_when_it_writes_if_the_user_wants_that() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("stty tostop\r"), At("3$ ")),
            (Press("./w echo written & sleep 0.2\r"), At("4$ ")),
            (Press("wait %1; echo $?; jobs\r"), At("5$ ")),
            (Press("fg\r"), At("6$ ")),
        ],
    );
}

#[test]
fn the_window_changes_its_size() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (
                Press("./w bash -c 'trap \"stty size; exit\" WINCH; echo ready; while :; do sleep 0.05; done'\r"),
                Shows("\nready"),
            ),
            (Resize(30, 100), At("3$ ")),
        ],
    );
}

#[test]
fn raw_mode() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w sh -c 'stty raw -echo; echo ready; head -c 3 | od -An -tx1; stty sane'\r"), Shows("\nready")),
            (Press("\x03\x1a\x1c"), Shows("3$")),
        ],
    );
}

#[test]
fn a_pager_suspended_and_continued() {
    let steps = [
        (Press("./w less book\r"), Pages("line 23")),
        (Press(" "), Pages("line 46")),
        (Press("\x1a"), Suspended("3$ ")),
        (Press("jobs\r"), At("4$ ")),
        (Press("fg\r"), Pages("line 46")),
        (Press(" "), Pages("line 69")),
        (Press("q"), At("5$ ")),
        (Press("echo $?\r"), At("6$ ")),
    ];
    let screens = same_without_us(PATIENT, book, &steps);
    is_as_recorded("pager.txt", &steps, &screens);
}

#[test]
fn a_command_beside_a_pager() {
    let steps = [
        (Press("./w cat book | less\r"), Pages("line 23\n:")),
        (Press(" "), Pages("line 46\n:")),
        (Press("\x1a"), Suspended("3$ ")),
        (Press("jobs\r"), At("4$ ")),
        (Press("fg\r"), Pages("line 46\n:")),
        (Press("q"), At("5$ ")),
        (Press("echo ${PIPESTATUS[@]}\r"), At("6$ ")),
    ];
    let screens = same_without_us(PATIENT, book, &steps);
    is_as_recorded("pipeline.txt", &steps, &screens);
}

#[test]
fn a_command_that_has_more_than_the_pager_wants() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w yes | less\r"), Pages("y\n:")),
            (Press("\x1a"), Suspended("3$ ")),
            (Press("fg\r"), Pages("y\n:")),
            (Press("q"), At("4$ ")),
            (Press("fg; ./w yes | head -1; echo ${PIPESTATUS[@]}\r"), At("5$ ")),
        ],
    );
}

/// A program in raw mode that takes ctrl-Z as a key and stops itself alone, by the signal that
/// nobody can handle.
#[test]
fn a_command_that_suspends_itself() {
    same_without_us(
        PATIENT,
        nothing,
        &[
            (Press("./w bash -c 'kill -STOP $$; echo on again'\r"), At("3$ ")),
            (Press("jobs\r"), At("4$ ")),
            (Press("fg\r"), At("5$ ")),
            (Press("./w bash -c 'kill -TSTP $$; echo on again'\r"), At("6$ ")),
            (Press("fg\r"), At("7$ ")),
        ],
    );
}

/// In a script the shell that the user types to waits for the script, not for us.
#[test]
fn ctrl_z_in_a_script() {
    same_without_us(
        PATIENT,
        |stage| std::fs::write(stage.path("script"), "./w sh -c 'echo ready; exec cat'\necho cat said $?\n").unwrap(),
        &[
            (Press("sh script\r"), Shows("\nready")),
            (Press("one\r"), Shows("one\none")),
            (Press("\x1a"), Suspended("3$ ")),
            (Press("fg\r"), Shows("$ fg\nsh script")),
            (Press("two\r"), Shows("two\ntwo")),
            (Press("\x04"), At("4$ ")),
        ],
    );
}

/// Nobody will ever continue who stops in an orphaned group, so the kernel stops nobody there.
#[test]
fn in_an_orphaned_group_reading_fails() {
    let orphan = "(P=$BASHPID; ./w sh -c \"while kill -0 $P 2>&-; do :; done; cat </dev/tty; echo said \\$? >answer\" \
                  2>/dev/null &)\r";
    same_without_us(
        PATIENT,
        nothing,
        &[(Press(orphan), At("3$ ")), (Press("clear; until [ -s answer ]; do :; done; cat answer\r"), At("4$ "))],
    );
}
