//! The claude CLI falls silent, and is resumed or given up; and is fed through a FIFO by two writers.

use std::fs;
use std::process::{Command, Stdio};

use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::process::Process;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;
use serde_json::Value;

use crate::claude::{Claude, STREAM, asked, lines, message};

/// Long enough for the CLI to come up on a busy machine.
const SILENCE: [&str; 6] = ["--idle-timeout", "8s", "--retries", "2", "--retry-backoff", "0"];

/// The lines of a type.
fn of<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

/// The API never answers the first request. The session goes on with the second one, under its id, and
/// knows what was asked before: one stream comes out, and the run succeeds.
#[test]
fn claude_is_resumed_where_it_fell_silent() {
    let Some(claude) = Claude::to_test("claude_is_resumed_where_it_fell_silent") else { return };
    let stage = Stage::new();
    let resume = format!("{} --resume {{session_id}} -p 'Go on.' {}", claude.program().display(), STREAM.join(" "));
    let run = claude.answered(Run::on(&stage), &stage, ["--silent", "first"]).options(SILENCE);
    let run = run.options(["--profile", "claude", "--resume-command", &resume]);
    let ended = run.command([claude.program()]).command(["-p", "say hello"]).command(STREAM).end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "exit".into()), "{stderr}");
    assert!(ended.stdout.eof);
    let tries = ended.report().tries;
    let told: Vec<_> = tries.iter().map(|one| (&one["ended_for"], &one["start"])).collect();
    assert_eq!(told, [(&"idle".into(), &Value::Null), (&"exit".into(), &"resumed".into())], "{stderr}");
    assert_eq!(tries[0]["session_id"], tries[1]["session_id"], "the same session: {stderr}");
    let lines = lines(&ended.stdout.text());
    let of_session = |line: &&Value| line["session_id"] == tries[0]["session_id"];
    assert!(lines.iter().all(|line| of_session(&line)), "{}", ended.stdout.text());
    assert_eq!(of(&lines, "system").iter().filter(|line| line["subtype"] == "init").count(), 2, "{stderr}");
    let results = of(&lines, "result");
    assert_eq!(results.len(), 1, "{}", ended.stdout.text());
    assert_eq!((&results[0]["subtype"], &results[0]["result"]), (&"success".into(), &"All is done: Go on.".into()));
    let asked = asked(&stage);
    assert_eq!(asked[0], ["say hello"]);
    let last = asked.last().unwrap();
    assert!(last[0] == "say hello" && last.last().unwrap() == "Go on.", "the session has its past: {asked:?}");
}

/// A tool has run, the API does not answer any more, and nothing tells the session: to begin again would
/// run the tool twice. The silence while the tool ran was longer than the limit, and was none.
#[test]
fn claude_that_stalls_after_a_tool_call_without_a_session_fails_at_once() {
    let Some(claude) = Claude::to_test("claude_that_stalls_after_a_tool_call_without_a_session_fails_at_once") else {
        return;
    };
    let stage = Stage::new();
    let tool = format!("echo done >> {}; sleep 10", stage.path("effects").display());
    let run = claude.answered(Run::on(&stage), &stage, ["--silent", "after-tool", "--tool", &tool]).options(SILENCE);
    let call = "json:$.message.content[?@.type == 'tool_use'].id";
    let run = run.options(["--side-effect", call, "--tool-running", call]);
    let run = run.options(["--tool-done", "json:$.message.content[?@.type == 'tool_result'].tool_use_id"]);
    let run = run.command([claude.program()]).command(["-p", "use a tool", "--allowedTools", "Bash"]).command(STREAM);
    let ended = run.patience(std::time::Duration::from_secs(60)).end();
    let (stderr, stdout) = (ended.stderr.text(), ended.stdout.text());
    assert_eq!((ended.code(), ended.report().ended_for()), (124, "idle".into()), "{stderr}{stdout}");
    assert_eq!(ended.report().tries.len(), 1, "{stderr}");
    assert!(stderr.contains("side effects and no session that could be resumed"), "it says why: {stderr}");
    assert_eq!(fs::read_to_string(stage.path("effects")).unwrap(), "done\n", "once: {stderr}");
    assert_eq!(of(&lines(&stdout), "user").len(), 1, "the tool had ended, 10 s after it began: {stdout}");
    assert!(ended.stdout.eof);
}

/// One writer for one message, who comes and goes; and one like a job's script, who holds the FIFO open
/// across its `wait`. The agent reads both, prints its last result and gets its EOF; the script is untouched.
#[test]
fn claude_is_fed_through_a_fifo_by_two_writers() {
    let Some(claude) = Claude::to_test("claude_is_fed_through_a_fifo_by_two_writers") else { return };
    let stage = Stage::new();
    let (fifo, out, log) = (stage.path("fifo"), stage.path("out"), stage.path("audit.jsonl"));
    let run = claude.answered(Run::on(&stage), &stage, []).env("XDG_RUNTIME_DIR", stage.folder());
    let run = run.options(["--stdin", &format!("fifo:{}", fifo.display()), "--profile", "claude"]);
    let last = "json:$[?$.type == 'result' && $.result == 'All is done: the second' && @ == $.subtype]";
    let run = run.options(["--done-when", last, "--done-grace", "25s"]);
    let run = run.options(["--audit".as_ref(), log.as_os_str()]).stdout(fs::File::create(&out).unwrap());
    let run = run.command([claude.program()]).command(["-p", "--input-format", "stream-json"]).command(STREAM).start();
    assert!(Deadline::patient().until(|| fifo.exists()));

    let write = |script: &str, text: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", script, "bash"]).arg(&fifo).arg(message(text)).stdin(Stdio::piped());
        shell.spawn().unwrap()
    };
    assert!(write("echo \"$2\" > \"$1\"", "the first").wait().unwrap().success());
    let answered = |text: &str| fs::read_to_string(&out).unwrap().contains(&format!("All is done: {text}"));
    assert!(Deadline::patient().until(|| answered("the first")), "{}", fs::read_to_string(&out).unwrap());
    let mut script = write("exec 9> \"$1\"; echo \"$2\" >&9; read -r", "the second");
    let holds_on = Process::open(script.id().try_into().unwrap()).unwrap();

    let ended = run.end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.report().ended_for()), (0, "exit".into()), "{stderr}");
    assert!(holds_on.lives(), "nobody has touched the script");
    drop(script.stdin.take());
    script.wait().unwrap();

    let lines = lines(&fs::read_to_string(&out).unwrap());
    let results: Vec<&Value> = of(&lines, "result").into_iter().map(|line| &line["result"]).collect();
    assert_eq!(results, ["All is done: the first", "All is done: the second"], "{stderr}");
    assert_eq!(asked(&stage).last().unwrap()[..], ["the first", "the second"], "one conversation");
    let log = crate::claude::lines(&fs::read_to_string(&log).unwrap());
    let opened = log.iter().any(|record| record["event"] == "fifo.opened" && record["process"]["pid"] == holds_on.pid);
    assert!(opened, "{log:#?}");
    let ours: Vec<&Value> = log.iter().filter(|record| record["event"] == "fifo.closed").collect();
    let why: Vec<&str> = ours.iter().filter_map(|record| record["detail"]["why"].as_str()).collect();
    assert_eq!(why, ["completion marker"], "closed once, and it says why: {ours:#?}");
}
