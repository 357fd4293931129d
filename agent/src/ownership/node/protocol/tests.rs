use super::*;

fn pipe() -> Named {
    Named { dev: 14, ino: 4711, kind: PipeKind::Pipe }
}

/// The longest message that there can be.
fn full() -> Message {
    let holder = Holder {
        pid: i32::MAX,
        start_ticks: u64::MAX,
        holds: vec![Held { tid: i32::MAX, end: End::Write, fds: vec![i32::MAX; MOST_FDS] }],
    };
    Message::answer(
        u64::MAX,
        Tell::Holders(Holders {
            pipe: Named { dev: u64::MAX, ino: u64::MAX, kind: PipeKind::Pipe },
            holders: vec![holder; MOST_HOLDERS],
            more: true,
            elsewhere: u32::MAX,
            unknown: u32::MAX,
            hidden: Some(u32::MAX),
            exact: false,
        }),
    )
}

#[test]
fn requests_are_read_as_they_are_written() {
    for (ask, text) in [
        (Ask::Hello { program: "x".into() }, r#"{"v":1,"id":7,"ask":"hello","program":"x"}"#),
        (Ask::Watch, r#"{"v":1,"id":7,"ask":"watch"}"#),
        (Ask::Unwatch { watch: 3 }, r#"{"v":1,"id":7,"ask":"unwatch","watch":3}"#),
        (Ask::Resolve { watch: Some(3) }, r#"{"v":1,"id":7,"ask":"resolve","watch":3}"#),
        (Ask::Resolve { watch: None }, r#"{"v":1,"id":7,"ask":"resolve"}"#),
        (Ask::Why, r#"{"v":1,"id":7,"ask":"why"}"#),
    ] {
        let request = Request::new(7, ask);
        assert_eq!(String::from_utf8(request.line()).unwrap(), format!("{text}\n"));
        assert_eq!(Request::parse(text.as_bytes()), Ok(request));
    }
    let more = br#"{"id":7,"later":[1,{"a":2}],"v":1,"ask":"why"}"#;
    assert_eq!(Request::parse(more), Ok(Request::new(7, Ask::Why)), "keys of later versions are passed over");
}

#[test]
fn what_is_no_request_is_told_why() {
    for (line, id, code, part) in [
        ("", 0, Code::Malformed, "send lines such as"),
        ("null", 0, Code::Malformed, "send lines such as"),
        ("[1,2]", 0, Code::Malformed, "send lines such as"),
        (r#"{"v":1,"id":7,"ask":"why"} {"#, 0, Code::Malformed, "send lines such as"),
        (r#"{"v":1,"id":-7,"ask":"why"}"#, 0, Code::Malformed, "send lines such as"),
        (r#"{"v":1,"ask":"why"}"#, 0, Code::Malformed, "an id from 1 on"),
        (r#"{"v":2,"id":7,"ask":"teleport"}"#, 7, Code::Version, "speaks version 1 and not 2"),
        (r#"{"id":7,"ask":"why"}"#, 7, Code::Version, "speaks version 1 and not 0"),
        (r#"{"v":1,"id":7,"ask":"tele\nport"}"#, 7, Code::Unknown, r#""tele\nport" is not known here; ask for hello"#),
        (r#"{"v":1,"id":7}"#, 7, Code::Unknown, "is not known here"),
        (r#"{"v":1,"id":7,"ask":"hello"}"#, 7, Code::Malformed, r#""hello" lacks something"#),
        (r#"{"v":1,"id":7,"ask":"unwatch","watch":"x"}"#, 7, Code::Malformed, r#""unwatch" lacks something"#),
    ] {
        let bad = Request::parse(line.as_bytes()).unwrap_err();
        assert_eq!((bad.id, bad.code), (id, code), "{line}");
        assert!(bad.message.contains(part) && !bad.message.contains('\n'), "{line}: {}", bad.message);
    }
}

#[test]
fn deep_nesting_is_no_request_and_nothing_else() {
    let deep = "[".repeat(LONGEST - 1);
    assert_eq!(Request::parse(deep.as_bytes()).unwrap_err().code, Code::Malformed);
}

#[test]
fn messages_are_read_as_they_are_written() {
    let held = Held { tid: 71, end: End::Write, fds: vec![1, 2] };
    let own = Own { pipe: pipe(), end: End::Read, fds: vec![0], writers: vec![71], readers: Vec::new(), elsewhere: 1 };
    for (tell, text) in [
        (
            Tell::Hello { version: "0.1.0".into(), rung: "bpf-fentry".into(), boot: "b".into() },
            r#""tell":"hello","version":"0.1.0","rung":"bpf-fentry","boot":"b""#,
        ),
        (
            Tell::Watching { watch: 1, pipe: pipe() },
            r#""tell":"watching","watch":1,"pipe":{"dev":14,"ino":4711,"kind":"pipe"}"#,
        ),
        (Tell::Eof { watch: 1 }, r#""tell":"eof","watch":1"#),
        (
            Tell::Escape {
                watch: 1,
                pid: 71,
                start_ticks: 8,
                pgid: 70,
                happened_ns: 9,
                holds: Some(vec![held.clone()]),
            },
            r#""tell":"escape","watch":1,"pid":71,"start_ticks":8,"pgid":70,"happened_ns":9,"holds":[{"tid":71,"end":"write","fds":[1,2]}]"#,
        ),
        (Tell::Lost { why: "x".into(), missed: 0 }, r#""tell":"lost","why":"x","missed":0"#),
        (
            Tell::Holders(Holders {
                pipe: pipe(),
                holders: vec![Holder { pid: 71, start_ticks: 8, holds: vec![held] }],
                more: false,
                elsewhere: 0,
                unknown: 0,
                hidden: None,
                exact: true,
            }),
            r#""tell":"holders","pipe":{"dev":14,"ino":4711,"kind":"pipe"},"holders":[{"pid":71,"start_ticks":8,"holds":[{"tid":71,"end":"write","fds":[1,2]}]}],"more":false,"elsewhere":0,"unknown":0,"exact":true"#,
        ),
        (
            Tell::Why { pipes: vec![own], more: false, exact: true },
            r#""tell":"why","pipes":[{"pipe":{"dev":14,"ino":4711,"kind":"pipe"},"end":"read","fds":[0],"writers":[71],"readers":[],"elsewhere":1}],"more":false,"exact":true"#,
        ),
        (Tell::Error { code: Code::NotHeld, message: "x".into() }, r#""tell":"error","code":"not_held","message":"x""#),
    ] {
        let message = Message::answer(7, tell);
        let text = format!(r#"{{"v":1,"id":7,{text}}}"#);
        assert_eq!(String::from_utf8(message.line()).unwrap(), format!("{text}\n"));
        assert_eq!(Message::parse(text.as_bytes()).unwrap(), message);
    }
}

#[test]
fn an_error_that_a_client_does_not_know_is_one_all_the_same() {
    let line = br#"{"v":1,"id":7,"tell":"error","code":"tired","message":"later"}"#;
    let Tell::Error { code, .. } = Message::parse(line).unwrap().tell else { panic!() };
    assert_eq!(code, Code::Other);
    assert!(code.is_final() && Code::Busy.is_final() && Code::TooLong.is_final() && !Code::NoWatch.is_final());
}

#[test]
fn the_longest_answer_is_a_line() {
    assert!(full().line().len() <= LONGEST, "{}", full().line().len());
}
