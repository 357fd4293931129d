//! A node and real containers, with pid and mount namespaces of their own, by runc.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use pipewarden::pipe::{Outcome, Relation};
use pipewarden::process::stat::Stat;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::container::Container;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::hang::name;
use pipewarden_tests::node::Node;
use pipewarden_tests::process::Process;
use pipewarden_tests::report::Report;
use pipewarden_tests::run::copied;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;
use serde_json::Value;

/// A container whose first process waits for the output of a command, which has left a helper in a session of its own.
struct Job {
    running: Child,
    helper: Process,
    id: String,
    name: String,
    stage: Stage,
    container: Container,
}

impl Job {
    /// One with a helper of this name, of which there is no other on the machine.
    fn start(name: &str, id: String) -> Result<Job, &'static str> {
        let stage = Stage::new();
        copied(Path::new("/bin/sleep"), &stage.path(name));
        nix::unistd::mkfifo(&stage.path("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(stage.path("command"), format!("setsid ./{name} 600 & read line <go\n")).unwrap();
        let script = format!("cd {}; output=$(sh command); exit 7", stage.folder().display());
        let words: Vec<OsString> = ["sh", "-c", &script].map(OsString::from).into();
        let container = Container::new(&stage, &words)?.within(&format!("/{id}"));
        let said = fs::File::create(stage.path("said")).unwrap();
        let mut running = container.run().stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let mut helper = None;
        let came = Deadline::patient().until(|| {
            helper = of_name(name);
            helper.is_some() || running.try_wait().unwrap().is_some()
        });
        let said = fs::read_to_string(stage.path("said")).unwrap();
        let helper = helper.unwrap_or_else(|| panic!("the container does not start (in time: {came}): {said}"));
        Ok(Job { running, helper, id, name: name.to_owned(), stage, container })
    }

    /// The command ends.
    fn begin(&self) {
        fs::write(self.stage.path("go"), "go\n").unwrap();
    }

    /// The code of the first process, if it has ended.
    fn code(&mut self) -> Option<i32> {
        self.running.try_wait().unwrap()?.code()
    }

    fn helper_lives(&self) -> bool {
        Stat::read(self.helper.pid).is_ok_and(|stat| stat.comm == self.name && !stat.is_dead())
    }

    fn records(&self, node: &Node, event: &str) -> Vec<Value> {
        let mut records = node.records(event);
        records.retain(|record| record["process"]["pid"] == self.helper.pid);
        records
    }

    fn wait_for(&self, node: &Node, event: &str) -> Value {
        let came = Deadline::patient().until(|| !self.records(node, event).is_empty());
        assert!(came, "no {event} about {}: {}", self.helper.pid, node.said());
        self.records(node, event).remove(0)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.container.end();
        let _ = self.running.wait();
    }
}

/// The process of this name, by the machine's own pids.
fn of_name(name: &str) -> Option<Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is = |pid: i32| Stat::read(pid).is_ok_and(|stat| stat.comm == name && !stat.is_dead());
    let process = Process::open(pids.into_iter().find(|pid: &i32| is(*pid))?).ok()?;
    is(process.pid).then_some(process)
}

/// An id of a container of this test run alone.
fn id(number: u32) -> String {
    format!("{number:032x}{:032x}", std::process::id())
}

#[test]
fn a_node_names_the_container_of_an_escapee_and_ends_it_while_its_sibling_lives() {
    const TEST: &str = "a_node_names_the_container_of_an_escapee_and_ends_it_while_its_sibling_lives";
    let (guilty, sibling) = (id(1), id(2));
    let policy = format!(
        "[[policy]]\nname = \"one\"\nmatch = {{ container = \"{guilty}\" }}\non_withheld = \"end\"\ngrace = 0\n"
    );
    let Some(node) = Node::with(TEST, &policy) else { return };
    let jobs = Job::start(&name("c"), guilty).and_then(|job| Ok((job, Job::start(&name("s"), sibling)?)));
    let (mut job, mut sibling) = match jobs {
        Ok(jobs) => jobs,
        Err(why) => return skipped(TEST, why),
    };
    job.begin();
    sibling.begin();
    assert!(Deadline::patient().until(|| job.code().is_some()), "the container waits: {}", node.said());
    assert_eq!(job.code(), Some(7), "its first process had its end of file");
    let act = job.wait_for(&node, "holder.signalled");
    assert_eq!(act["process"]["container"], job.id.as_str());
    assert_eq!((&act["decision"]["option"], &act["decision"]["action"]), (&"policy one".into(), &"term".into()));
    assert_eq!(act["evidence"]["verified"]["writes"], true);

    let spared = sibling.wait_for(&node, "holder.spared");
    assert_eq!(
        (&spared["process"]["container"], &spared["decision"]["note"]),
        (&sibling.id.as_str().into(), &"observed".into())
    );
    assert!(sibling.code().is_none() && sibling.helper_lives());
    assert!(sibling.records(&node, "holder.signalled").is_empty());
}

/// As deploy/example-job.yaml has it: no privilege, pids of its own, and the folder of the node's socket, read-only.
#[test]
fn an_unprivileged_run_in_a_container_uses_the_nodes_socket() {
    const TEST: &str = "an_unprivileged_run_in_a_container_uses_the_nodes_socket";
    let Some(node) = Node::start(TEST) else { return };
    let stage = Stage::new();
    let program = binary(UNDER_TEST);
    let script = "setsid sleep 600 & echo result; exit 3";
    let words = ["run", "--backend", "node", "--holder-grace", "0", "--report", "json", "--", "sh", "-c", script];
    let words: Vec<OsString> = std::iter::once(program.into()).chain(words.map(OsString::from)).collect();
    let container = match Container::new(&stage, &words) {
        Ok(container) => container.unprivileged(65534, 65534),
        Err(why) => return skipped(TEST, why),
    };
    let folder = node.socket().parent().unwrap().to_owned();
    let container = container.with_folder(&folder, "/node").with_variable("PIPEWARDEN_NODE_SOCKET", "/node/node.sock");
    let output = container.run().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"result\n"[..]), "{said}");
    let report = Report::find(&said);
    assert_eq!((report.backend.as_str(), report.outcome), ("node", Outcome::HoldersEnded), "{said}");
    assert_eq!(report.holders.len(), 1, "{said}");
    assert_eq!(report.holders[0].relation, Relation::Lineage);
    // By its own hands: the node ends nobody for others.
    assert!(node.records("holder.signalled").is_empty());
}
