use super::*;
use proptest::prelude::*;

fn redact(arguments: &[&str]) -> String {
    command_line(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
}

/// Put where a secret is: has no shape of its own, so that only the place can give it away.
const S: &str = "Hx7Qz";

#[test]
fn secrets_are_gone_and_the_rest_is_there() {
    #[rustfmt::skip]
    let table: &[(&[&str], &str)] = &[
        // flags
        (&["x", "--password", "Hx7Qz", "--verbose"], "x --password [redacted] --verbose"),
        (&["x", "--password", "--Hx7Qz"], "x --password [redacted]"),
        (&["x", "--token=Hx7Qz", "y"], "x --token=[redacted] y"),
        (&["x", "--token=Hx7Qz and more Hx7Qz"], "x --token=[redacted]"),
        (&["x", "-api-key", "Hx7Qz"], "x -api-key [redacted]"),
        (&["x", "--apiKey", "Hx7Qz"], "x --apiKey [redacted]"),
        (&["x", "--client.secret", "Hx7Qz"], "x --client.secret [redacted]"),
        (&["java", "-Ddb.password=Hx7Qz", "Main"], "java -Ddb.password=[redacted] Main"),
        (&["aws", "configure", "set", "aws_secret_access_key", "Hx7Qz"], "aws configure set aws_secret_access_key [redacted]"),
        // variables
        (&["env", "PGPASSWORD=Hx7Qz", "psql"], "env PGPASSWORD=[redacted] psql"),
        (&["env", "MYSQL_PWD=Hx7Qz", "mysql"], "env MYSQL_PWD=[redacted] mysql"),
        (&["docker", "run", "-e", "GITHUB_TOKEN=Hx7Qz", "img"], "docker run -e GITHUB_TOKEN=[redacted] img"),
        (&["docker", "run", "--env=AWS_SECRET_ACCESS_KEY=Hx7Qz b"], "docker run --env=AWS_SECRET_ACCESS_KEY=[redacted]"),
        (&["x", "Server=db;Password=Hx7Qz;"], "x 'Server=db;Password=[redacted]'"),
        // headers
        (&["curl", "-H", "Authorization: Bearer Hx7Qz"], "curl -H 'Authorization: [redacted]'"),
        (&["curl", "-HX-Api-Key:Hx7Qz"], "curl -HX-Api-Key:[redacted]"),
        (&["curl", "--header=Cookie: a=Hx7Qz; b=Hx7Qz"], "curl '--header=Cookie: [redacted]'"),
        (&["x", "password: \"\"Hx7Qz", "x"], "x 'password: [redacted]' x"),
        (&["x", "--header", "Bearer Hx7QzHx7Qz"], "x --header 'Bearer [redacted]'"),
        // URLs
        (&["git", "clone", "https://me:Hx7Qz@host/r.git"], "git clone https://me:[redacted]@host/r.git"),
        (&["git", "clone", "https://Hx7Qz@host/r.git"], "git clone https://[redacted]@host/r.git"),
        (&["psql", "postgres://u:Hx/7Qz@db:5432/x"], "psql postgres://u:[redacted]@db:5432/x"),
        (&["x", "amqp://u:a@Hx7Qz@h"], "x amqp://u:[redacted]@h"),
        (&["x", "https://h/?a=1&access_token=Hx7Qz&b=2#f"], "x 'https://h/?a=1&access_token=[redacted]&b=2#f'"),
        (&["x", "app:Hx7Qz@tcp(db:3306)/x"], "x 'app:[redacted]@tcp(db:3306)/x'"),
        // JSON
        (&["x", r#"{"api_key":"Hx7\"Qz","model":"m"}"#], r#"x '{"api_key":[redacted],"model":"m"}'"#),
        (&["x", r#"{"n": 1, "password": "Hx7Qz", "m": 2}"#], r#"x '{"n": 1, "password": [redacted], "m": 2}'"#),
        // scripts
        (&["sh", "-c", "deploy --password Hx7Qz --to prod"], "sh -c 'deploy --password [redacted] --to prod'"),
        (&["sh", "-c", "cd x; API_TOKEN='a Hx7Qz' make all"], "sh -c 'cd x; API_TOKEN=[redacted] make all'"),
        (&["sh", "-c", r#"curl -H "Authorization: Basic Hx7Qz" -o f h"#], r#"sh -c 'curl -H "Authorization: [redacted]" -o f h'"#),
        (&["sh", "-c", r#"ssh h "mysql -uroot -pHx7Qz db""#], r#"sh -c 'ssh h "mysql -uroot -p[redacted] db"'"#),
        (&["sh", "-c", r#"don't --token "Hx7Qz Hx7Qz" x"#], r#"sh -c 'don'\''t --token [redacted] x'"#),
        // programs
        (&["/usr/bin/mysql", "-u", "root", "-pHx7Qz"], "/usr/bin/mysql -u root -p[redacted]"),
        (&["sshpass", "-p", "Hx7Qz", "ssh", "h"], "sshpass -p [redacted] ssh h"),
        (&["docker", "login", "-u", "me", "-p", "Hx7Qz", "h"], "docker login -u me -p [redacted] h"),
        (&["curl", "-u", "me:Hx7Qz", "h"], "curl -u me:[redacted] h"),
        (&["curl", "-ume:Hx7Qz", "--proxy-user=p:Hx7Qz"], "curl -ume:[redacted] --proxy-user=p:[redacted]"),
        (&["openssl", "enc", "-pass", "pass:Hx7Qz"], "openssl enc -pass [redacted]"),
        (&["openssl", "enc", "-passin", "pass:Hx7Qz"], "openssl enc -passin pass:[redacted]"),
        // shapes
        (&["x", "ghp_0123456789abcdefABCDEF0123456789abcd"], "x [redacted]"),
        (&["x", "a,github_pat_11ABCDEFG0123456789_abc,b"], "x a,[redacted],b"),
        (&["x", "sk-ant-api03-abcdefgh"], "x [redacted]"),
        (&["x", "sk-proj-abcdefghijklmn0123456789"], "x [redacted]"),
        (&["x", "xoxb-12345678-abcdef"], "x [redacted]"),
        (&["x", "AKIAIOSFODNN7EXAMPLE"], "x [redacted]"),
        (&["x", "glpat-0123456789abcdefghij"], "x [redacted]"),
        (&["x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"], "x [redacted]"),
        (&["x", "-----BEGIN RSA PRIVATE KEY-----\nHx7Qz\n-----END RSA PRIVATE KEY-----"],
            "x '-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----'"),
    ];
    for (arguments, expected) in table {
        let line = redact(arguments);
        assert_eq!(line, *expected, "{arguments:?}");
        assert!(!line.contains(S));
    }
}

#[test]
fn what_is_no_secret_stays() {
    #[rustfmt::skip]
    let table: &[&[&str]] = &[
        &["claude", "-p", "hello"],
        &["mkdir", "-p", "a/b"],
        &["docker", "run", "-p", "80:80", "-u", "1000:1000", "nginx:1.2"],
        &["docker", "run", "registry/token-server:v2"],
        &["curl", "-u", "1000:1000"],
        &["x", "--max-tokens", "4096", "--max_output_tokens=64000"],
        &["env", "CLAUDE_CODE_MAX_OUTPUT_TOKENS=64000", "TOKENIZERS_PARALLELISM=false", "PWD=/tmp"],
        &["x", "--tokenizer", "gpt2", "--compass", "north"],
        &["docker", "login", "--password-stdin", "host"],
        &["x", "--token-file", "/run/token", "--secret-name=db", "--no-password", "y"],
        &["curl", "--cookie-jar", "jar", "https://host:8080/a@b"],
        &["git", "clone", "ssh://git@host:22/r.git", "git@host:me/r.git"],
        &["pip", "install", "sk-learn-and-its-many-friends", "task-1"],
        &["ps", "-o", "pid,ppid,comm"],
        &["passwd", "alice"],
        &["x", "AKIAnotakey", "ghp_short", "eyJ"],
        &["mysql", "-p", "db"],
    ];
    for arguments in table {
        assert_eq!(redact(arguments), arguments.join(" "));
    }
}

#[test]
fn arguments_are_told_apart_and_cannot_play_tricks_on_a_terminal() {
    assert_eq!(redact(&["a b", "", "it's", "$HOME", "größe"]), r"'a b' '' 'it'\''s' '$HOME' größe");
    assert_eq!(redact(&["a\nb", "\x1b[2J", "\u{202e}x"]), r"$'a\nb' $'\u001b[2J' $'\u202ex'");
    assert_eq!(redact(&[]), "");
    assert_eq!(redact(&["", ""]), "'' ''");
}

#[test]
fn a_long_command_line_is_cut_but_never_within_a_token() {
    let token = "ghp_0123456789abcdefABCDEF0123456789abcd";
    let prompt = format!("{} {token} {}", "x".repeat(LIMIT - 20), "y".repeat(3 * LIMIT));
    let line = redact(&["claude", "-p", &prompt, "more"]);
    assert!(line.ends_with(&format!("x ' {CUT}")), "{line}");
    assert!(!line.contains("ghp_") && line.len() < LIMIT + 20);
    assert_eq!(text(&prompt), format!("{} {CUT}", "x".repeat(LIMIT - 20)));
    let whole = "y".repeat(LIMIT - 1);
    assert_eq!(redact(&["x", &whole]), format!("x {whole}"), "exactly the limit");
    assert_eq!(redact(&["x", &whole, "z"]), format!("x {whole} '' {CUT}"), "one more");
}

/// Names that smell, as flags and as variables.
fn smelly() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "password",
        "db-passwd",
        "client_secret",
        "token",
        "accessToken",
        "api-key",
        "api_key",
        "apikey",
        "AWS_ACCESS_KEY",
        "private-key",
        "authorization",
        "bearer",
        "session-cookie",
        "credentials",
    ])
    .prop_map(str::to_owned)
}

/// Any text with the marker somewhere in it.
fn secret() -> impl Strategy<Value = String> {
    ("[^\\x00]{0,12}", "[^\\x00]{0,12}").prop_map(|(before, after)| format!("{before}{S}{after}"))
}

/// Any other arguments.
fn others() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[^\\x00]{0,16}", 0..4)
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(arguments in prop::collection::vec("(\\PC|[-=:@/'\"\\\\ \n&;]|password|token|://|Bearer |curl|-u){0,24}", 0..6)) {
        let line = command_line(&arguments);
        prop_assert!(!line.contains('\n'));
        let _ = text(&arguments.concat());
    }

    #[test]
    fn the_value_of_a_flag_that_smells_never_survives(name in smelly(), secret in secret(), after in others()) {
        let mut arguments = vec!["program".to_owned(), format!("--{name}"), secret.clone()];
        arguments.extend(after.clone());
        prop_assert!(!command_line(&arguments).contains(S));
        let mut arguments = vec!["program".to_owned(), format!("--{name}={secret}")];
        arguments.extend(after);
        prop_assert!(!command_line(&arguments).contains(S));
    }

    #[test]
    fn the_value_of_a_variable_or_a_header_that_smells_never_survives(name in smelly(), secret in secret()) {
        for argument in [format!("{name}={secret}"), format!("--env={name}={secret}"), format!("{name}: {secret}")] {
            prop_assert!(!command_line(&["program".to_owned(), argument]).contains(S));
        }
    }

    #[test]
    fn a_word_in_a_script_never_survives_behind_a_flag_that_smells(name in smelly(), secret in "[!-~&&[^'\"`\\\\;|&]]{0,8}") {
        let script = format!("cd /x && program --{name} {secret}{S} --{name}={S}{secret} --last");
        let line = command_line(&["sh".to_owned(), "-c".to_owned(), script]);
        prop_assert!(!line.contains(S), "{}", line);
        prop_assert!(line.contains("cd /x"), "{}", line);
    }
}
