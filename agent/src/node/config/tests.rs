use super::*;

fn config(text: &str) -> Result<Config, String> {
    Config::parse("node.toml".into(), text.into()).map_err(|error| error.to_string())
}

#[test]
fn a_file_that_says_nothing_is_the_defaults() {
    let config = config("").unwrap();
    assert_eq!(config.socket.path, Path::new("/run/pipewarden/node.sock"));
    assert_eq!((config.socket.mode, config.socket.group), (0o660, None));
    assert_eq!(config.http.listen, Some("127.0.0.1:9477".parse().unwrap()));
    assert_eq!(config.audit.target, Target::Path("/var/log/pipewarden/audit.jsonl".into()));
    assert_eq!((config.audit.max_size, config.audit.files), (64 << 20, 8));
    assert!(config.policies.is_empty());
}

#[test]
fn a_policy_that_says_nothing_else_observes() {
    let config = config("[[policy]]\n[[policy]]\nmatch = { uid = 0 }").unwrap();
    let names: Vec<&str> = config.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["policy 1", "policy 2"]);
    let policy = &config.policies[0];
    assert_eq!((policy.on_withheld, policy.grace), (OnWithheld::Observe, Duration::from_secs(5)));
    assert_eq!(policy.limit, Some((10, Duration::from_secs(60))));
    assert_eq!(policy.pod_limit, Some((3, Duration::from_secs(60))));
    assert!(policy.about.is_empty() && policy.keep.live.is_empty());
    assert_eq!(config.policies[1].about.uid, Some(0));
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let config = config(
        r#"
        [socket]
        path = "/tmp/s"
        mode = "0600"
        group = "root"
        [http]
        listen = "0.0.0.0:1"
        token_file = "/etc/token"
        [audit]
        path = "-"
        max_size = "1MiB"
        files = 3
        [[policy]]
        name = "agents"
        match = { namespace = "ci-*", pod = "build-?", labels = { "app.kubernetes.io/name" = "agent*" }, container = "claude", image = "*/agent:*", cgroup = "/kubepods*", uid = 1000, comm = "node" }
        on_withheld = "end"
        grace = "250ms"
        keep = ["ssh-agent"]
        limit = "100/1h"
        pod_limit = "off"
        "#,
    )
    .unwrap();
    assert_eq!(config.socket, Socket { path: "/tmp/s".into(), mode: 0o600, group: Some(0) });
    assert_eq!(config.http.listen, Some("0.0.0.0:1".parse().unwrap()));
    assert_eq!(config.audit, Audit { target: Target::Stderr, max_size: 1 << 20, files: 3 });
    let policy = &config.policies[0];
    assert_eq!((policy.name.as_str(), policy.on_withheld), ("agents", OnWithheld::End));
    assert_eq!((policy.limit, policy.pod_limit), (Some((100, Duration::from_secs(3600))), None));
    assert_eq!(policy.grace, Duration::from_millis(250));
    let about = &policy.about;
    assert!(about.namespace.as_ref().unwrap().matches("ci-7") && !about.namespace.as_ref().unwrap().matches("prod"));
    assert!(about.cgroup.as_ref().unwrap().matches("/kubepods.slice/a/b"), "a star crosses slashes");
    assert_eq!(about.labels[0].0, "app.kubernetes.io/name");
    assert_eq!(about.told_by_others(), ["namespace", "labels", "image"]);
}

#[test]
fn what_is_wrong_is_said_with_its_line_its_key_and_what_would_be_right() {
    for (text, said) in [
        ("[sockets]", "node.toml:1: sockets: there is no such key; did you mean socket?"),
        ("[socket]\nmod = 1", "node.toml:2: socket.mod: there is no such key; did you mean mode?"),
        ("[socket]\nmode = 660", "node.toml:2: socket.mode: use permissions in octal in quotes, such as \"0660\""),
        ("[socket]\nmode = \"0990\"", "node.toml:2: socket.mode: \"0990\": use permissions in octal"),
        ("[socket]\npath = \"s\"", "node.toml:2: socket.path: use a path that begins with /"),
        ("[socket]\ngroup = \"no-such\"", "node.toml:2: socket.group: \"no-such\": there is no such group"),
        ("[http]\n\nlisten = \"here\"", "node.toml:3: http.listen: \"here\": use ADDRESS:PORT"),
        ("[http]\nlisten = \"[::]:9\"", "node.toml:2: http.listen: others can connect here; name a token_file"),
        ("[audit]\npath = \"\"", "node.toml:2: audit.path: the path is empty"),
        ("[audit]\nmax_size = \"1k\"", "node.toml:2: audit.max_size: \"1k\": use a size such as 64MiB"),
        ("[audit]\nmax_size = 10", "node.toml:2: audit.max_size: this is a few records"),
        ("[audit]\nfiles = 0", "node.toml:2: audit.files: \"0\": use a number from 1 to 999"),
        ("policy = 1", "node.toml:1: policy: this is an integer; use [[policy]] with keys below it"),
        ("[policy]\nname = \"a\"", "node.toml:1: policy: this is a table; use [[policy]]"),
        ("[[policy]]\nname = \"\"", "node.toml:2: policy.name: the name is empty"),
        (
            "[[policy]]\nname = \"a\"\n[[policy]]\nname = \"a\"",
            "node.toml:4: policy.name: there is another policy \"a\"",
        ),
        ("[[policy]]\non_withheld = \"kill\"", "node.toml:2: policy.on_withheld: \"kill\" is none of observe, end"),
        ("[[policy]]\non_withheld = \"end\"", "node.toml:2: policy.on_withheld: \"end\" needs a match"),
        ("[[policy]]\ngrace = \"soon\"", "node.toml:2: policy.grace: \"soon\": use a duration such as 250ms"),
        ("[[policy]]\nkeep = \"a\"", "node.toml:2: policy.keep: this is a string; use a list of texts"),
        ("[[policy]]\nkeep = [\"[\"]", "node.toml:2: policy.keep: \"[\": "),
        ("[[policy]]\nlimit = 10", "node.toml:2: policy.limit: \"10\": use N/DURATION"),
        (
            "[[policy]]\n[[policy]]\nmatch = { pods = \"a\" }",
            "node.toml:3: policy.match.pods: there is no such key; did you mean pod?",
        ),
        ("[[policy]]\nmatch = { uid = \"root\" }", "node.toml:2: policy.match.uid: \"root\": use a number from 0"),
        ("[[policy]]\nmatch = { comm = \"[\" }", "node.toml:2: policy.match.comm: \"[\": "),
        (
            "[[policy]]\nmatch = { labels = { a = 1 } }",
            "node.toml:2: policy.match.labels.a: this is an integer; use a text",
        ),
        ("a b", "node.toml:1: this is no TOML"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.starts_with(said), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/no/such/node.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/node.toml:1: it cannot be read: "), "{error}");
}
