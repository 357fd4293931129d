//! A node's policies: checked, and tried on what an audit log tells.

#![allow(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use pipewarden_tests::binaries::{UNDER_TEST, binary};

fn pipewarden(arguments: &[&str], path: Option<&Path>) -> Output {
    Command::new(binary(UNDER_TEST)).args(arguments).args(path).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_configuration_is_checked_and_what_is_wrong_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        pipewarden(&["node", "--check", "--config"], Some(&path))
    };
    let output = check("[[policy]]\nname = \"agents\"\nmatch = { image = \"a*\" }\non_withheld = \"end\"\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = "1 policy\nagents: ends holders after 5s\n\
                agents: matches nobody: this build does not ask anybody for image\n";
    assert_eq!(stdout(&output), said);
    let output = check("[[policy]]\n\ngrase = \"5s\"\n");
    assert_eq!((output.status.code(), stdout(&output)), (Some(125), String::new()));
    let said = format!("pipewarden: {}:3: policy.grase: there is no such key; did you mean grace?\n", path.display());
    assert_eq!(stderr(&output), said);
}

#[test]
fn a_policy_is_tried_on_the_log_of_a_run_that_spared_an_escapee() {
    let folder = tempfile::tempdir().unwrap();
    let (log, config) = (folder.path().join("log"), folder.path().join("node.toml"));
    let mut run = Command::new(binary(UNDER_TEST));
    run.args(["run", "--on-holder", "close", "--holder-grace", "0", "--audit"]).arg(&log);
    // The escapee ends when its stdin does, which is this test's end at the latest.
    let (stdin, keep) = std::io::pipe().unwrap();
    let script = "mkfifo up; exec 3<&0; setsid sh -c 'echo >up; read line <&3' & read line <up; exit 3";
    let mut run = run.current_dir(folder.path()).args(["--", "sh", "-c", script]);
    run = run.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::null());
    assert_eq!(run.output().unwrap().status.code(), Some(3));
    drop(keep);

    std::fs::write(
        &config,
        "[[policy]]\nname = \"shells\"\nmatch = { comm = \"sh\" }\non_withheld = \"end\"\ngrace = 0\n",
    )
    .unwrap();
    let output = pipewarden(&["node", "replay", log.to_str().unwrap(), "--config"], Some(&config));
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut lines = said.lines();
    let holder = lines.next().unwrap();
    assert!(holder.contains(" sh (") && holder.ends_with(": end (policy shells)"), "{said}");
    let sum = lines.next().unwrap();
    assert!(
        sum.ends_with("records: 1 escapees held withheld pipes; 1 would have been ended, 0 not because of a limit"),
        "{said}"
    );

    let output = pipewarden(&["node", "replay", "/no/such/log", "--config"], Some(&config));
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).starts_with("pipewarden: node replay: /no/such/log: "), "{output:?}");
}
