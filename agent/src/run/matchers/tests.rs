use super::*;
use proptest::prelude::*;
use std::sync::Arc;

fn matchers(list: &[(Role, &str)]) -> Arc<Matchers> {
    let list = list.iter().map(|(role, text)| Matcher::new(*role, text).unwrap()).collect();
    Arc::new(Matchers::new(list, true))
}

/// What is seen in a text that arrives in pieces of this size.
fn seen_in(matchers: &Arc<Matchers>, text: &[u8], piece: usize) -> Vec<Sighting> {
    let mut eye = Eye::new(Arc::clone(matchers));
    for chunk in text.chunks(piece.max(1)) {
        eye.look(chunk);
    }
    eye.finish();
    eye.take()
}

fn done(status: &str) -> Sighting {
    Sighting::Done(Some(status.to_owned()))
}

#[test]
fn a_regex_captures_by_name() {
    let matchers = matchers(&[
        (Role::SessionId, r"re:^session (?<id>\S+)$"),
        (Role::DoneWhen, "re:^done(?: (?<status>.*))?$"),
        (Role::ToolRunning, r"re:tool (?<id>\d+)"),
    ]);
    let text = b"session abc\nno session abc\ntool 1 tool 2\ndone\r\ndone well\n";
    let expected = vec![
        Sighting::Session("abc".into()),
        Sighting::ToolStarted(Some("1".into())),
        Sighting::ToolStarted(Some("2".into())),
        Sighting::Done(None),
        done("well"),
    ];
    assert_eq!(seen_in(&matchers, text, 7), expected);
}

#[test]
fn a_query_captures_its_first_node() {
    let matchers = matchers(&[(Role::ToolDone, "json:$.id"), (Role::SessionId, "json:$['a','b']")]);
    let text = b"{\"id\":\"ok\"}\n{\"id\":0}\n{\"id\":true}\n{\"b\":\"x\",\"a\":7}\nno json {\"id\":1}\n[]\n\n\xff\n";
    let ended = |id: &str| Sighting::ToolEnded(Some(id.into()));
    assert_eq!(
        seen_in(&matchers, text, 1024),
        vec![ended("ok"), ended("0"), ended("true"), Sighting::Session("7".into())]
    );
}

#[test]
fn the_last_line_needs_no_end() {
    let matchers = matchers(&[(Role::DoneWhen, "json:$.status")]);
    assert_eq!(seen_in(&matchers, b"{\"status\":1}", 3), vec![done("1")]);
}

#[test]
fn a_word_that_is_spelt_by_escapes_is_found() {
    let matchers = matchers(&[(Role::DoneWhen, "json:$[?$.type=='result' && @ == $.subtype]")]);
    let text = br#"{"type":"r\u0065sult","subtype":"success"}"#;
    assert_eq!(seen_in(&matchers, text, 5), vec![done("success")]);
}

#[test]
fn a_line_over_the_limit_passes_unseen_and_is_counted() {
    let matchers = matchers(&[(Role::DoneWhen, "re:^x")]);
    let mut eye = Eye::new(matchers);
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..16 {
        eye.look(&chunk);
    }
    eye.look(b"\n");
    assert_eq!((eye.take().len(), eye.unseen()), (1, 0), "exactly the limit is no more than the limit");
    for _ in 0..16 {
        eye.look(&chunk);
    }
    eye.look(b"x\nx\n");
    assert_eq!((eye.take().len(), eye.unseen()), (1, 1), "one more byte is; the next line is seen again");
}

/// An agent that writes its session into every line need not be parsed line by line for it.
#[test]
fn what_is_known_is_not_looked_for_again_in_that_try() {
    let matchers = matchers(&[(Role::SessionId, "json:$.session"), (Role::SideEffect, "re:^wrote")]);
    let mut eye = Eye::new(matchers);
    eye.look(b"{\"session\":\"-x\"}\n{\"session\":\"a\"}\n{\"session\":\"b\"}\nwrote\nwrote\n");
    let session = |id: &str| Sighting::Session(id.into());
    assert_eq!(eye.take(), vec![session("-x"), session("a"), Sighting::SideEffect], "-x is no id, so it goes on");
    eye.begin_again();
    eye.look(b"{\"session\":\"c\"}\nwrote\n");
    assert_eq!(eye.take(), vec![session("c"), Sighting::SideEffect]);
}

/// Whoever is done goes neither idle nor begins a tool: from then on only the last marker of what comes
/// at once is looked for, from its end, and the session if it was not told.
#[test]
fn after_the_marker_only_the_last_word_counts() {
    let list = [
        (Role::DoneWhen, "json:$.status"),
        (Role::SessionId, "json:$.session"),
        (Role::SideEffect, "re:^wrote"),
        (Role::ToolRunning, r"re:^tool (?<id>\d+)"),
    ];
    let mut eye = Eye::new(matchers(&list));
    eye.look(b"{\"status\":1}\ntool 1\nwrote\n{\"status\":2}\n{\"session\":\"a\"}\n{\"status\":3}\nx\n{\"stat");
    assert_eq!(eye.take(), vec![done("1"), Sighting::Session("a".into()), done("3")]);
    eye.look(b"us\":4}\n{\"status\":5}\n{\"status\":6}\n\nwrote\n");
    assert_eq!(eye.take(), vec![done("4"), done("6")]);
    eye.begin_again();
    eye.look(b"wrote\ntool 1\n");
    assert_eq!(eye.take(), vec![Sighting::SideEffect, Sighting::ToolStarted(Some("1".into()))]);
}

/// A tool's end says "result" as well; that the line is none is told without the whole of it.
#[test]
fn a_condition_on_the_line_is_looked_at_first() {
    let matchers = matchers(&[
        (Role::DoneWhen, "json:$[?$.type == 'result' && @ == $.subtype]"),
        (Role::ToolDone, "json:$.content[?$.type == 'user' && @.type == 'tool_result'].tool_use_id"),
    ]);
    assert!(!matchers.needs.is_all());
    let text = concat!(
        r#"{"type":"user","subtype":"result","content":[{"type":"tool_result","tool_use_id":"a"}]}"#,
        "\n",
        r#"{"type":"assistant","content":[{"type":"tool_result","tool_use_id":"b"}]}"#,
        "\n",
        r#"{"subtype":"well","type":"result"}"#,
    );
    assert_eq!(seen_in(&matchers, text.as_bytes(), 9), vec![Sighting::ToolEnded(Some("a".into())), done("well")]);
}

#[test]
fn what_is_no_matcher_is_said_in_one_line() {
    for (role, text) in [
        (Role::DoneWhen, "done"),
        (Role::DoneWhen, "re:("),
        (Role::DoneWhen, "json:status"),
        (Role::DoneWhen, "json:$["),
        (Role::DoneWhen, "json:$[?@.a=]"),
        (Role::SessionId, "re:session .*"),
        (Role::SessionId, ""),
    ] {
        let error = Matcher::new(role, text).unwrap_err().to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{text}: {error}");
    }
}

fn profile(name: &str) -> Arc<Matchers> {
    Arc::new(Matchers::new(profile::Profile::load(name).unwrap().matchers, false))
}

#[test]
fn the_claude_profile_reads_a_session() {
    let text = concat!(
        r#"{"type":"system","subtype":"init","cwd":"/","session_id":"5e551041","tools":["Bash"],"model":"m"}"#,
        "\n",
        r#"{"type":"assistant","message":{"role":"assistant","content":[{"type":"text","text":"tool_use result"}]},"session_id":"5e551041"}"#,
        "\n",
        r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"toolu_1","name":"Bash","input":{}},{"type":"tool_use","id":"toolu_2","name":"Read","input":{}}]},"session_id":"5e551041"}"#,
        "\n",
        r#"{"type":"user","message":{"role":"user","content":[{"tool_use_id":"toolu_2","type":"tool_result","content":"x"}]},"session_id":"5e551041"}"#,
        "\n",
        r#"{"type":"user","message":{"role":"user","content":"a string"},"session_id":"5e551041"}"#,
        "\n",
        r#"{"type":"result","subtype":"success","is_error":false,"result":"All done.","session_id":"5e551041"}"#,
        "\n",
        r#"{"type":"result","subtype":"error_max_turns","is_error":true,"session_id":"5e551041"}"#,
        "\n",
    );
    let session = || Sighting::Session("5e551041".into());
    let started = |id: &str| Sighting::ToolStarted(Some(id.into()));
    let expected = vec![
        session(),
        Sighting::SideEffect,
        started("toolu_1"),
        started("toolu_2"),
        Sighting::ToolEnded(Some("toolu_2".into())),
        done("success"),
        done("error_max_turns"),
    ];
    assert_eq!(seen_in(&profile("claude"), text.as_bytes(), 64), expected);
}

#[test]
fn the_codex_profile_reads_a_thread() {
    let text = concat!(
        r#"{"type":"thread.started","thread_id":"0199a213-81c0-7800-8aa1-bbab2a035a53"}"#,
        "\n",
        r#"{"type":"turn.started"}"#,
        "\n",
        r#"{"type":"item.completed","item":{"id":"item_0","type":"reasoning","text":"turn.completed"}}"#,
        "\n",
        r#"{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"","exit_code":null,"status":"in_progress"}}"#,
        "\n",
        r#"{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"docs","exit_code":0,"status":"completed"}}"#,
        "\n",
        r#"{"type":"item.completed","item":{"id":"item_2","type":"file_change","changes":[],"status":"completed"}}"#,
        "\n",
        r#"{"type":"turn.completed","usage":{"input_tokens":1,"cached_input_tokens":0,"output_tokens":2}}"#,
        "\n",
        r#"{"type":"turn.failed","error":{"message":"stream disconnected"}}"#,
        "\n",
    );
    let ended = |id: &str| Sighting::ToolEnded(Some(id.into()));
    let expected = vec![
        Sighting::Session("0199a213-81c0-7800-8aa1-bbab2a035a53".into()),
        ended("item_0"),
        Sighting::SideEffect,
        Sighting::ToolStarted(Some("item_1".into())),
        ended("item_1"),
        ended("item_2"),
        done("success"),
        done("failed"),
    ];
    assert_eq!(seen_in(&profile("codex"), text.as_bytes(), 64), expected);
}

proptest! {
    /// How a stream is cut into chunks is an accident, and so is which lines are skipped by a search.
    #[test]
    fn chunks_change_nothing(
        lines in prop::collection::vec(
            prop_oneof![
                Just(r#"{"type":"result","subtype":"success"}"#.to_owned()),
                Just(r#"{"type":"r\u0065sult","subtype":"x"}"#.to_owned()),
                Just("result".to_owned()),
                Just("\r".to_owned()),
                "[a-z\\\\{}\":]{0,12}",
            ],
            0..12,
        ),
        piece in 1_usize..40,
        ended in any::<bool>(),
    ) {
        let mut text = lines.join("\n").into_bytes();
        if ended {
            text.push(b'\n');
        }
        let query = "json:$[?$.type=='result' && @ == $.subtype]";
        let quick = matchers(&[(Role::DoneWhen, query)]);
        prop_assert!(!quick.every_line);
        let mut expected = Vec::new();
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
            if value["type"] == "result" {
                expected.extend(value["subtype"].as_str().map(done));
            }
        }
        // Of all markers the first and the last count.
        let ends = |all: Vec<Sighting>| (all.first().cloned(), all.last().cloned());
        let expected = ends(expected);
        prop_assert_eq!(ends(seen_in(&quick, &text, piece)), expected.clone());
        // With a matcher that needs every line, every line is looked at.
        let thorough = matchers(&[(Role::DoneWhen, query), (Role::SideEffect, "re:^never$")]);
        prop_assert!(thorough.every_line);
        prop_assert_eq!(ends(seen_in(&thorough, &text, piece)), expected);
    }
}
