//! A node: its policies, checked and tried on what an audit log tells, and what it does on this machine.

#![allow(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::hang::{Hang, name};
use pipewarden_tests::skip::{Need, skip, skipped};
use serde_json::Value;

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

/// A node of its own: its lock is not the machine's, its pids are.
struct Node {
    child: Child,
    folder: tempfile::TempDir,
}

impl Node {
    /// None where it cannot be had, which is said.
    fn start(test: &str, policies: &str) -> Option<Node> {
        if skip(test, &[Need::Root]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs none /run && exec \"$0\" node --config \"$1\"";
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(binary(UNDER_TEST));
        command.arg(folder.path().join("node.toml")).stderr(File::create(folder.path().join("said")).unwrap());
        let configured = Node::text(folder.path(), policies);
        fs::write(folder.path().join("node.toml"), configured).unwrap();
        let mut node = Node { child: command.spawn().unwrap(), folder };
        let mut ended = false;
        let began = Deadline::patient().until(|| {
            ended = node.child.try_wait().unwrap().is_some();
            ended || !node.of("tracker.attached").is_empty()
        });
        assert!(began, "{}", node.said());
        if ended {
            assert!(node.said().contains("see pipewarden doctor"), "{}", node.said());
            skipped(test, &node.said());
            return None;
        }
        Some(node)
    }

    fn text(folder: &Path, policies: &str) -> String {
        format!("[http]\nlisten = \"off\"\n[audit]\npath = \"{}\"\n{policies}", folder.join("audit.jsonl").display())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap()
    }

    /// Records of an event.
    fn of(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        // The last line may be half there.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|record: &Value| record["event"] == event)
            .collect()
    }

    /// Those about a process. The machine has others.
    fn about(&self, event: &str, pid: i32) -> Vec<Value> {
        self.of(event).into_iter().filter(|record| record["process"]["pid"] == pid).collect()
    }

    fn wait_for(&self, event: &str, pid: i32) -> Value {
        let came = Deadline::patient().until(|| !self.about(event, pid).is_empty());
        assert!(came, "no {event} about {pid}: {}", self.said());
        self.about(event, pid).remove(0)
    }

    fn reload(&self, policies: &str, says: &str) {
        fs::write(self.folder.path().join("node.toml"), Node::text(self.folder.path(), policies)).unwrap();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGHUP).unwrap();
        assert!(Deadline::patient().until(|| self.said().contains(says)), "{}", self.said());
    }

    /// Ends it by SIGTERM; its log is whole then.
    fn end(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(Deadline::patient().until(|| self.child.try_wait().unwrap().is_some()), "it does not end");
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.said());
        let output = pipewarden(&["audit", "verify"], Some(&self.folder.path().join("audit.jsonl")));
        assert!(stdout(&output).contains("runs: 1 closed, 0 open, 0 broken"), "{output:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_ends_what_its_policy_names_and_nobody_who_is_innocent() {
    let (guilty, kept) = (name("g"), name("k"));
    let (mut hang, mut spared) = (Hang::new(&guilty), Hang::new(&kept));
    // In a session of its own, with a reader that started it, and of the same name: but it is the command.
    let mut innocent = Command::new("setsid");
    let innocent = innocent.arg(hang.folder().join(&guilty)).arg("600").stdout(Stdio::piped());
    let mut innocent = innocent.spawn().unwrap();
    let policies = format!(
        "[[policy]]\nname = \"ours\"\nmatch = {{ comm = \"[gk]{}\" }}\non_withheld = \"end\"\ngrace = 0\nkeep = [\"{kept}\"]\n",
        std::process::id()
    );
    let test = "a_node_ends_what_its_policy_names_and_nobody_who_is_innocent";
    if let Some(node) = Node::start(test, &policies) {
        hang.begin();
        spared.begin();
        assert!(Deadline::patient().until(|| hang.is_over()), "the shell waits: {}", node.said());
        let act = node.wait_for("holder.signalled", hang.helper());
        assert_eq!((&act["decision"]["option"], &act["decision"]["action"]), (&"policy ours".into(), &"term".into()));
        assert_eq!(act["evidence"]["verified"]["writes"], true);
        let withheld = node.of("pipe.withheld");
        let its = withheld.iter().find(|record| record["pipe"]["ino"] == act["pipe"]["ino"]).unwrap();
        assert!(its["seq"].as_u64() < act["seq"].as_u64(), "said before it was done");
        assert_eq!(node.wait_for("holder.ended", hang.helper())["decision"]["reason"], "exited");

        assert_eq!(node.wait_for("holder.spared", spared.helper())["decision"]["action"], "kept");
        assert!(!spared.is_over() && spared.helper_lives());
        let pid = innocent.id().cast_signed();
        assert!(innocent.try_wait().unwrap().is_none(), "the innocent lives");
        for event in ["holder.signalled", "holder.spared"] {
            assert!(node.about(event, pid).is_empty(), "nobody holds it for a holder of a withheld pipe");
        }
        node.end();
    }
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn a_node_observes_until_a_valid_file_says_otherwise() {
    let name = name("o");
    let mut hang = Hang::new(&name);
    // A node that begins without a policy that ends gives up the right to.
    let other = "[[policy]]\nname = \"other\"\nmatch = { comm = \"nobody's\" }\non_withheld = \"end\"\n";
    let Some(node) = Node::start("a_node_observes_until_a_valid_file_says_otherwise", other) else { return };
    hang.begin();
    let record = node.wait_for("holder.spared", hang.helper());
    assert_eq!((&record["decision"]["action"], &record["decision"]["note"]), (&"none".into(), &"observed".into()));
    node.reload("[[policy]]\ngrase = 1\n", "did you mean grace?; nothing is changed");
    assert!(!hang.is_over() && hang.helper_lives());
    let end = format!("[[policy]]\nmatch = {{ comm = \"{name}\" }}\non_withheld = \"end\"\ngrace = 0\n");
    node.reload(&end, "again: 1 policies");
    assert!(Deadline::patient().until(|| hang.is_over()), "the shell waits: {}", node.said());
    assert_eq!(node.wait_for("holder.signalled", hang.helper())["decision"]["option"], "policy policy 1");
    node.end();
}

/// As whoever leaves by setsid(1) does, and is seen before it runs its program.
#[test]
fn who_was_let_live_is_put_before_the_policies_again_when_it_runs_another_program() {
    let name = name("t");
    let mut hang = Hang::disguised(&name);
    let policies = format!("[[policy]]\nmatch = {{ comm = \"{name}\" }}\non_withheld = \"end\"\ngrace = 0\n");
    let test = "who_was_let_live_is_put_before_the_policies_again_when_it_runs_another_program";
    let Some(node) = Node::start(test, &policies) else { return };
    hang.begin();
    assert_eq!(node.wait_for("holder.spared", hang.helper())["process"]["comm"], "sh");
    assert!(!hang.is_over());
    hang.turn();
    let act = node.wait_for("holder.signalled", hang.helper());
    assert_eq!(act["process"]["comm"], name.as_str());
    assert!(Deadline::patient().until(|| hang.is_over()), "the shell waits: {}", node.said());
    node.end();
}

#[test]
fn beyond_its_limit_a_node_observes_and_says_so() {
    let name = name("l");
    let mut hangs = [Hang::new(&name), Hang::new(&name)];
    let policies = format!(
        "[[policy]]\nname = \"one\"\nmatch = {{ comm = \"{name}\" }}\non_withheld = \"end\"\ngrace = 0\nlimit = \"1/1h\"\n"
    );
    let Some(node) = Node::start("beyond_its_limit_a_node_observes_and_says_so", &policies) else { return };
    for hang in &hangs {
        hang.begin();
    }
    let says = "policy one: limit is reached: observed: ";
    assert!(Deadline::patient().until(|| node.said().contains(says)), "{}", node.said());
    assert!(Deadline::patient().until(|| hangs.iter_mut().any(Hang::is_over)), "{}", node.said());
    let signalled = hangs.iter().filter(|hang| !node.about("holder.signalled", hang.helper()).is_empty()).count();
    assert_eq!(signalled, 1);
    let one_lives = || hangs.iter().filter(|hang| hang.helper_lives()).count() == 1;
    assert!(Deadline::patient().until(one_lives), "one is ended, and one lives");
    node.end();
}

#[test]
fn a_rung_that_does_not_exist_is_refused() {
    if skip("a_rung_that_does_not_exist_is_refused", &[Need::Root]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "[socket]\npath = \"{}\"\n[http]\nlisten = \"off\"\n[audit]\npath = \"{}\"\n",
        at("node.sock"),
        at("audit.jsonl")
    );
    fs::write(at("node.toml"), text).unwrap();
    let mut node = Command::new(binary(UNDER_TEST));
    node.args(["node", "--config", &at("node.toml")]).env(pipewarden::kernel::choice::RUNG, "kprobe");
    let output = node.output().unwrap();
    let said = "pipewarden: node: PIPEWARDEN_BPF_RUNG=kprobe: it wants bpf-fentry, bpf-kprobe or bpf-tracepoint\n";
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(125), said));
}
