//! Looking at the output changes nothing about it, and profiles are data.

use pipewarden_tests::fixture::pattern;
use pipewarden_tests::row::assert_same_bytes;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

const CLAUDE: [&str; 4] = ["--profile", "claude", "--done-grace", "200ms"];

/// Lines of 10 MB, bytes that are no UTF-8, half lines: whatever looks, all of it passes.
#[test]
fn what_is_looked_at_passes_byte_for_byte() {
    let stage = Stage::new();
    let path = stage.path("output");
    let mut text = Vec::new();
    for _ in 0..3 {
        text.extend(pattern(10_000_000).into_iter().map(|byte| if byte == b'\n' { b'.' } else { byte }));
        text.extend_from_slice(b"\n\xff\xfe\0{\"type\":\"result\xc3\"}\r\n\n{\"half\":");
    }
    std::fs::write(&path, &text).unwrap();
    for matcher in ["re:(?-u)\\xff.*result", "json:$[?$.type=='result']"] {
        let run = Run::on(&stage).options(["--side-effect", matcher, "--session-id", "json:$.session"]);
        let ended = run.command(["cat".as_ref(), path.as_os_str()]).end();
        assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
        assert_same_bytes(&ended.stdout.bytes, &text);
    }
}

/// A marker in a line of 10 MB is found; one in a line that is too long is not, and that is said.
#[test]
fn a_line_over_16_mib_passes_unseen_and_is_counted() {
    for (length, seen) in [(10_000_000, true), ((16 << 20) + 1, false)] {
        let stage = Stage::new();
        let path = stage.path("output");
        let line = format!("{{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"{}\"}}\n", "x".repeat(length));
        std::fs::write(&path, &line).unwrap();
        let script = format!("cat {}; sleep 1000", path.display());
        let options = if seen { &CLAUDE[..] } else { &["--profile", "claude", "--idle-timeout", "1500ms"][..] };
        let ended = Run::on(&stage).options(options).bash(&script).end();
        let stderr = ended.stderr.text();
        assert_same_bytes(&ended.stdout.bytes, line.as_bytes());
        assert_eq!(
            (ended.code(), stderr.contains("\"unseen_lines\":1")),
            if seen { (0, false) } else { (124, true) },
            "{stderr}"
        );
    }
}

/// Both streams are looked at, through one pipe or two.
#[test]
fn a_marker_on_stderr_counts() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--done-when", "re:^done$", "--done-grace", "100ms"]);
    let ended = run.fixture("fake_agent", ["warn:done", "hang"]).end();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "done".into()), "{}", ended.stderr.text());
    let stage = Stage::new();
    let ended = Run::on(&stage).options(CLAUDE).options(["--idle-timeout", "1500ms"]);
    let line = r#"warn:{"type":"result","subtype":"success"}"#;
    let ended = ended.fixture("fake_agent", [line, "hang"]).end();
    assert_eq!(ended.code(), 124, "the profile looks at stdout only: {}", ended.stderr.text());
}

/// A whole session of an agent that prints its result and stays.
#[test]
fn the_claude_profile_ends_a_session() {
    let stage = Stage::new();
    let steps = [
        r#"say:{"type":"system","subtype":"init","session_id":"5e551041","tools":[]}"#,
        r#"say:{"type":"assistant","message":{"content":[{"type":"tool_use","id":"toolu_1","name":"Bash"}]}}"#,
        "work:3500",
        r#"say:{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"toolu_1"}]}}"#,
        r#"say:{"type":"result","subtype":"success","session_id":"5e551041"}"#,
        "hang",
    ];
    let run = Run::on(&stage).options(CLAUDE).options(["--idle-timeout", "1500ms"]);
    let ended = run.fixture("fake_agent", steps).end();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "done".into()), "{}", ended.stderr.text());
    assert_eq!(ended.report().tries[0]["session_id"], "5e551041");
}

#[test]
fn the_codex_profile_knows_success_from_failure() {
    for (last, code) in [
        (r#"say:{"type":"turn.completed","usage":{}}"#, 0),
        (r#"say:{"type":"turn.failed","error":{"message":"x"}}"#, 1),
    ] {
        let stage = Stage::new();
        let run = Run::on(&stage).options(["--profile", "codex", "--done-grace", "100ms"]);
        let ended =
            run.fixture("fake_agent", [r#"say:{"type":"thread.started","thread_id":"t-1"}"#, last, "hang"]).end();
        assert_eq!((ended.code(), ended.report().ended_for()), (code, "done".into()), "{}", ended.stderr.text());
        assert_eq!(ended.report().tries[0]["session_id"], "t-1");
    }
}

/// A profile of the user's own, which also goes before a built-in one of its name.
#[test]
fn a_profile_is_a_file() {
    for name in ["mine", "claude"] {
        let stage = Stage::new();
        let folder = stage.path("config/pipewarden/profiles");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.toml")), "done_when = ['re:^fin$']\n").unwrap();
        let run = Run::on(&stage).options(["--profile", name, "--done-grace", "100ms"]);
        let ended = run.env("XDG_CONFIG_HOME", stage.path("config")).fixture("fake_agent", ["say:fin", "hang"]).end();
        assert_eq!((ended.code(), ended.report().ended_for()), (0, "done".into()), "{}", ended.stderr.text());
    }
}

/// What the command line says of a role goes before what the profile says of it.
#[test]
fn an_option_goes_before_the_profile() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(CLAUDE).options(["--done-when", "re:^fin$"]);
    let steps = [r#"say:{"type":"result","subtype":"error"}"#, "work:600", "say:fin", "hang"];
    let ended = run.fixture("fake_agent", steps).end();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "done".into()), "{}", ended.stderr.text());
}

/// The whole first line of what is wrong with a profile, and nothing started.
#[test]
fn a_broken_profile_is_said() {
    let stage = Stage::new();
    let folder = stage.path("config/pipewarden/profiles");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("mine.toml"), "done_when = ['re:(']\n").unwrap();
    let run = Run::on(&stage).report("text").options(["--profile", "mine"]);
    let ended = run.env("XDG_CONFIG_HOME", stage.path("config")).command(["touch".into(), stage.path("started")]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count(), stage.path("started").exists()), (125, 1, false), "{said}");
    assert!(said.contains("mine.toml") && said.contains("done_when"), "{said}");
}
