use super::*;

fn config(text: &str) -> Result<Config, String> {
    Config::parse("f.toml".into(), text.into()).map_err(|error| error.to_string())
}

fn only(text: &str) -> Command {
    config(&format!("[command.a]\n{text}")).unwrap().commands.remove(0)
}

#[test]
fn a_command_that_says_nothing_else_has_the_defaults() {
    let command = only("run = [\"true\"]");
    let launch = &command.launch;
    assert_eq!(command.name, "a");
    assert_eq!((&launch.stdin, &launch.stdout, &launch.stderr), (&Stdin::Null, &Output::Prefix, &Output::Prefix));
    assert_eq!((launch.ready.clone(), launch.ready_timeout), (Ready::Started, None));
    assert_eq!(command.policy.restart, Restart::OnFailure);
    assert_eq!(command.policy.limit, Some((10, Duration::from_secs(600))));
    let ending = &launch.ending;
    assert_eq!((ending.signal, ending.kill_after), (Signal::SIGTERM, Duration::from_secs(5)));
    assert_eq!(ending.reap, Reap::All, "what comes again must not meet what was left behind");
    assert_eq!(only("run = [\"true\"]\nrestart = \"never\"").launch.ending.reap, Reap::Auto);
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let command = only(
        r#"run = ["sh", "-c", "exit 3"]
        env = { A = "1", B = "" }
        clear_env = true
        cwd = "/tmp"
        user = "0:0"
        stdin = "inherit"
        stdout = "file:/tmp/x"
        stderr = "null"
        restart = "always"
        backoff = "10ms"
        backoff_max = 2
        backoff_reset = "1m30s"
        restart_limit = "3/1m"
        ready = { line = "re:^up$" }
        ready_timeout = "off"
        essential = true
        signal = "INT"
        kill_after = 0.5
        timeout = "1h"
        idle_timeout = "off"
        holder_grace = 0
        max_drain = "1s"
        max_deliver = "off"
        on_holder = "wait"
        on_foreign = "report"
        on_opaque = "end"
        reap = "holders"
        keep = ["ssh-agent", "*postgres*"]"#,
    );
    let launch = command.launch;
    assert_eq!(launch.run, ["sh", "-c", "exit 3"]);
    assert_eq!(launch.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
    assert_eq!(launch.user.unwrap().user, User { uid: 0, gid: 0, groups: vec![0] });
    assert_eq!((launch.stdin, launch.stderr), (Stdin::Inherit, Output::Null));
    assert_eq!(launch.stdout, Output::File("/tmp/x".into()));
    assert!(matches!(launch.ready, Ready::Line(regex) if regex.is_match(b"up")));
    assert_eq!(launch.ready_timeout, None);
    let policy = Policy {
        restart: Restart::Always,
        backoff: Duration::from_millis(10),
        backoff_max: Duration::from_secs(2),
        backoff_reset: Duration::from_secs(90),
        limit: Some((3, Duration::from_secs(60))),
    };
    assert_eq!(command.policy, policy);
    let ending = Ending {
        signal: Signal::SIGINT,
        kill_after: Duration::from_millis(500),
        timeout: Some(Duration::from_secs(3600)),
        idle_timeout: None,
        holder_grace: Duration::ZERO,
        max_drain: Duration::from_secs(1),
        max_deliver: None,
        on_holder: OnHolder::Wait,
        on_foreign: OnForeign::As(OnHolder::Report),
        on_opaque: OnOpaque::End,
        reap: Reap::Holders,
        keep: vec!["ssh-agent".into(), "*postgres*".into()],
    };
    assert_eq!(launch.ending, ending);
    assert!(command.essential);
}

#[test]
fn the_ways_to_be_ready() {
    let ready = |text: &str| only(&format!("run = [\"x\"]\nready = {text}")).launch.ready;
    assert_eq!(ready("\"finished\""), Ready::Finished);
    assert_eq!(ready("{ file = \"/x\" }"), Ready::File("/x".into()));
    assert_eq!(ready("{ delay = \"2s\" }"), Ready::Delay(Duration::from_secs(2)));
    assert_eq!(ready("{ socket = \"/run/x\" }"), Ready::Socket(Address::Path("/run/x".into())));
    let port = Address::Port("127.0.0.1:80".parse().unwrap());
    assert_eq!(ready("{ socket = \"127.0.0.1:80\" }"), Ready::Socket(port));
}

/// Whatever is wrong is one line that names the file, the line, the key and what would be right.
#[test]
fn what_is_wrong_is_named_with_its_line_and_what_would_be_right() {
    for (text, wanted) in [
        ("", "f.toml:1: there is no command; write [command.NAME]"),
        ("a = [", "f.toml:1: this is no TOML: "),
        ("[command.a]\nrun = [\"x\"]\n[command.a]\n", "f.toml:3: this is no TOML: "),
        ("[comand.a]\nrun = []", "f.toml:1: comand: there is no such key; did you mean command?"),
        ("[command.a]\n", "f.toml:1: command.a: run is missing; write run = [\"PROGRAM\", \"ARGUMENT\"]"),
        ("[command.a]\nrun = \"x\"", "f.toml:2: command.a.run: this is a string; use a list of texts"),
        ("[command.a]\nrun = [\n\"x\",\n7]", "f.toml:4: command.a.run: an integer is in the list; use a list"),
        ("[command.a]\nrun = []", "f.toml:2: command.a.run: there is no program in it"),
        (
            "[command.a]\nrun = [\"x\"]\nrestrat = 1",
            "f.toml:3: command.a.restrat: there is no such key; did you mean restart?",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nfoo = 1",
            "f.toml:3: command.a.foo: there is no such key; the keys here are restart,",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nrestart = \"no\"",
            "f.toml:3: command.a.restart: \"no\" is none of never, on-failure, always",
        ),
        ("[command.a]\nrun = [\"x\"]\nrestart = true", "f.toml:3: command.a.restart: this is a boolean; use a text"),
        (
            "[command.a]\nrun = [\"x\"]\nkill_after = \"-1\"",
            "f.toml:3: command.a.kill_after: \"-1\": a duration cannot be negative",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nsignal = \"FOO\"",
            "f.toml:3: command.a.signal: \"FOO\": no such signal; use a name",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nuser = \"nobody-here\"",
            "f.toml:3: command.a.user: \"nobody-here\": there is no such user",
        ),
        ("[command.a]\nrun = [\"x\"]\nready = {}", "f.toml:3: command.a.ready: one way to be ready is wanted; use"),
        ("[command.a]\nrun = [\"x\"]\nready = { delay = 1, file = \"x\" }", "f.toml:3: command.a.ready: one way"),
        ("[command.a]\nrun = [\"x\"]\nready = { line = \"x\" }", "f.toml:3: command.a.ready.line: \"x\": use re:REGEX"),
        (
            "[command.a]\nrun = [\"x\"]\nready = { line = \"re:(\" }",
            "f.toml:3: command.a.ready.line: \"re:(\": this is no regular",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nready = { socket = \"x:y\" }",
            "f.toml:3: command.a.ready.socket: \"x:y\": use an address",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nstdout = \"pump\"",
            "f.toml:3: command.a.stdout: \"pump\" is no output; use prefix,",
        ),
        ("[command.a]\nrun = [\"x\"]\nenv = { \"A=B\" = \"\" }", "f.toml:3: command.a.env.A=B: this is no variable"),
        ("[command.a]\nrun = [\"x\"]\nenv = { A = 1 }", "f.toml:3: command.a.env.A: this is an integer; use a text"),
        (
            "[command.a]\nrun = [\"x\"]\nrestart_limit = \"5\"",
            "f.toml:3: command.a.restart_limit: \"5\": use N/DURATION",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nbackoff = 5\nbackoff_max = 1",
            "f.toml:4: command.a.backoff_max: this is less than backoff",
        ),
        ("[command.a]\nrun = [\"x\"]\nkeep = [\"[\"]", "f.toml:3: command.a.keep: "),
        ("[command.\"a b\"]\nrun = [\"x\"]", "f.toml:1: command.a b: this is no name; use up to 64"),
        (
            "[command.a]\nrun = [\"x\"]\nafter = [\"b\"]",
            "f.toml:1: command.a.after: there is no command \"b\"; the commands are a",
        ),
        ("[command.a]\nrun = [\"x\"]\nafter = [\"a\"]", "f.toml:1: command.a.after: a -> a is a circle"),
        (
            "[command.x]\nrun = [\"x\"]\nafter = [\"b\"]\n[command.a]\nrun = [\"x\"]\nafter = [\"b\"]\n[command.b]\nrun = [\"x\"]\nafter = [\"a\"]",
            "f.toml:7: command.b.after: b -> a -> b is a circle: none could be the first; take one",
        ),
        (
            "[command.a]\nrun = [\"x\"]\nstdin = \"inherit\"\n[command.b]\nrun = [\"x\"]\nstdin = \"inherit\"",
            "f.toml:4: command.b.stdin: a has our standard input already; use \"null\"",
        ),
        ("[supervise]\naudit = \"-\"\n[command.a]\nrun = [\"x\"]", "f.toml:2: supervise.audit: \"-\" would be mixed"),
        (
            "[supervise]\ncolour = \"auto\"\n[command.a]\nrun = [\"x\"]",
            "f.toml:2: supervise.colour: there is no such key; did you mean color?",
        ),
    ] {
        let said = config(text).map(|_| ()).unwrap_err();
        assert!(said.starts_with(wanted), "{text}\nsaid:   {said}\nwanted: {wanted}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn one_command_and_two_hundred() {
    assert_eq!(config("[command.a]\nrun = [\"x\"]").unwrap().start_order(), ["a"]);
    let chain: String = (0..200)
        .map(|n| {
            let after = if n < 199 { format!("after = [\"c{}\"]", n + 1) } else { String::new() };
            format!("[command.c{n}]\nrun = [\"x\"]\n{after}\n")
        })
        .collect();
    let chain = config(&chain).unwrap();
    assert_eq!(chain.commands.first().unwrap().name, "c0", "commands are in the order of the file");
    let order: Vec<String> = (0..200).rev().map(|n| format!("c{n}")).collect();
    assert_eq!(chain.start_order(), order);
}
