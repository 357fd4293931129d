//! Bad input is one line that names the flag and the value; the exit code is 125, and nothing was
//! started.

use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

/// Runs a command that would create a file, with these options.
fn refuse(options: &[&str], named: &[&str]) {
    let stage = Stage::new();
    let proof = stage.path("started");
    let run = Run::on(&stage).report("text").options(options).command(["touch"]).command([&proof]);
    let ended = run.end();
    let said = ended.stderr.text();
    assert_eq!(ended.code(), 125, "{options:?}: {said}");
    assert!(!proof.exists(), "{options:?}: nothing was started");
    assert_eq!(said.lines().count(), 1, "{options:?}: one line, not:\n{said}");
    for name in named {
        assert!(said.contains(name), "{options:?}: the line names {name}: {said}");
    }
    assert_eq!(ended.stdout.bytes, b"", "{options:?}: our stdout is the command's");
}

macro_rules! refused {
    ($($name:ident: $($option:literal)* names $($named:literal)*;)*) => {$(
        #[test]
        fn $name() {
            refuse(&[$($option),*], &[$($named),*]);
        }
    )*};
}

refused! {
    an_unknown_signal: "-s" "SIGNOTHING" names "--signal" "SIGNOTHING";
    a_signal_out_of_range: "-s" "65" names "--signal" "65";
    signal_zero: "-s" "0" names "--signal" "0";
    an_empty_signal: "-s" "" names "--signal";
    a_negative_duration: "--timeout=-5s" names "--timeout" "-5s";
    an_overflowing_duration: "--timeout" "99999999999999999999999s" names "--timeout" "99999999999999999999999s";
    a_malformed_duration: "--holder-grace" "5parsecs" names "--holder-grace" "5parsecs";
    an_empty_duration: "--kill-after" "" names "--kill-after";
    a_duration_that_is_no_number: "--max-drain" "NaN" names "--max-drain" "NaN";
    an_infinite_duration: "--max-drain" "inf" names "--max-drain" "inf";
    a_duration_twice: "--max-drain" "1s2s3" names "--max-drain";
    an_unknown_backend: "--backend" "crystal-ball" names "--backend" "crystal-ball";
    an_unknown_policy: "--on-holder" "forgive" names "--on-holder" "forgive";
    an_unknown_policy_for_the_foreign: "--on-foreign" "invade" names "--on-foreign" "invade";
    an_unknown_reap: "--reap" "grim" names "--reap" "grim";
    an_unknown_stdio: "--stdio" "carrier-pigeon" names "--stdio" "carrier-pigeon";
    an_unknown_leak: "--leak" "maybe" names "--leak" "maybe";
    a_bad_glob: "--keep" "[a-" names "--keep" "[a-";
    an_audit_path_in_no_folder: "--audit" "/nowhere/at/all.jsonl" names "--audit" "/nowhere/at/all.jsonl";
    an_audit_path_that_is_a_folder: "--audit" "/" names "--audit" "/";
    an_unknown_option: "--frobnicate" names "--frobnicate";
    an_option_without_its_value: "--timeout" names "--timeout";
    a_bad_rewrite: "-r" "15" names "--rewrite" "15";
    a_bad_stdin: "--stdin" "telepathy" names "--stdin" "telepathy";
    a_fifo_without_a_path: "--stdin" "fifo:" names "--stdin" "fifo:";
    a_fifo_that_is_a_file: "--stdin" "fifo:/etc/hostname" names "--stdin" "/etc/hostname" "a file";
    a_fifo_that_is_a_folder: "--stdin" "fifo:/" names "--stdin" "a folder";
    a_fifo_that_is_a_device: "--stdin" "fifo:/dev/null" names "--stdin" "/dev/null" "a device";
    a_fifo_in_no_folder: "--stdin" "fifo:/nowhere/at/all" names "--stdin" "/nowhere/at/all";
    a_matcher_of_no_kind: "--done-when" "done" names "--done-when" "done" "re:";
    a_bad_regex: "--done-when" "re:(" names "--done-when" "re:(";
    a_bad_jsonpath: "--session-id" "json:$[" names "--session-id" "json:$[";
    a_jsonpath_without_its_root: "--side-effect" "json:type" names "--side-effect" "json:type";
    a_session_id_without_a_capture: "--session-id" "re:session .*" names "--session-id" "(?<id>";
    an_unknown_profile: "--profile" "hal9000" names "--profile" "hal9000" "claude";
    a_profile_that_is_a_path: "--profile" "../claude" names "--profile" "../claude";
    a_template_without_a_place: "--session-id" "json:$.id" "--resume-command" "agent --continue" names "--resume-command" "agent --continue" "{session_id}";
    a_template_with_an_open_quote: "--session-id" "json:$.id" "--resume-command" "agent '{session_id}" names "--resume-command" "quote";
    a_template_and_no_session: "--resume-command" "agent {session_id}" names "--resume-command" "--session-id";
    retries_and_no_silence: "--retries" "2" names "--retries" "--idle-timeout";
    a_backoff_and_no_retries: "--retry-backoff" "1s" names "--retry-backoff" "--retries";
    a_bad_backoff: "--retries" "1" "--retry-backoff" "1s,soon" names "--retry-backoff" "soon";
    a_negative_count: "--retries=-1" names "--retries" "-1";
    a_grace_and_no_marker: "--done-grace" "1s" names "--done-grace" "--done-when";
    a_tool_that_never_ends: "--tool-running" "re:x" names "--tool-running" "--tool-done";
    a_tool_that_never_begins: "--tool-done" "re:x" names "--tool-done" "--tool-running";
    a_reap_that_leaves_orphans: "--reap" "holders" "--idle-timeout" "9s" "--retries" "1" names "--reap" "--retries";
    an_inherited_stream_that_must_be_seen: "--stdio" "inherit" "--idle-timeout" "9s" names "--stdio" "--idle-timeout";
}

#[test]
fn no_command() {
    let stage = Stage::new();
    let ended = Run::on(&stage).report("text").end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.to_lowercase().contains("command"), "{said}");
}

#[test]
fn an_empty_command() {
    let stage = Stage::new();
    let ended = Run::on(&stage).report("text").command([""]).end();
    let said = ended.stderr.text();
    assert!([125, 127].contains(&ended.code()), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// The values that look odd and are fine.
#[test]
fn what_is_accepted() {
    let accepted: &[&[&str]] = &[
        &["--timeout", "1m30s"],
        &["--timeout", "1.5"],
        &["--timeout", "0"],
        &["--kill-after", "250ms"],
        &["-k", "2"],
        &["-s", "term"],
        &["-s", "SIGUSR1"],
        &["-s", "9"],
        &["--holder-grace", "0"],
        &["--max-drain", "0s"],
        &["--keep", "{postgres,ssh-agent}*"],
        &["--idle-timeout", "auto"],
    ];
    for options in accepted {
        let stage = Stage::new();
        let ended = Run::on(&stage).report("text").options(*options).command(["sh", "-c", "exit 3"]).end();
        assert_eq!((ended.code(), ended.stderr.text()), (3, String::new()), "{options:?}");
    }
}
