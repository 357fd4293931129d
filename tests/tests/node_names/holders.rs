//! A node whose policies are about names: who is named is ended, and who is named otherwise, or not at all, lives.

use pipewarden_tests::cgroup::Cgroup;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::hang::{Hang, name};
use pipewarden_tests::node::Node;
use pipewarden_tests::skip::{Need, skip, skipped};
use serde_json::Value;

use super::stand_in::{Known, Manner, StandIn};

const POD: &str = "1c5e8d9d-4b6f-4a2e-9c3b-0123456789ab";

/// An id of a container of this test run alone.
fn id(number: u32) -> String {
    format!("{number:032x}{:032x}", std::process::id())
}

fn known(number: u32, namespace: &str, container: &str) -> Known {
    Known {
        id: id(number),
        sandbox: id(number + 100),
        name: container.into(),
        image: "registry.example.com/agent:1.0.0".into(),
        pod: format!("job-{number}"),
        namespace: namespace.into(),
        labels: vec![("app".into(), "agent".into())],
    }
}

/// The record of an event about a process.
fn wait_for(node: &Node, event: &str, pid: i32) -> Value {
    let mut found = Vec::new();
    let came = Deadline::patient().until(|| {
        found = node.records(event);
        found.retain(|record| record["process"]["pid"] == pid);
        !found.is_empty()
    });
    assert!(came, "no {event} about {pid}: {}", node.said());
    found.remove(0)
}

#[test]
fn a_policy_about_names_ends_whom_it_names_once_they_are_told_and_nobody_else() {
    const TEST: &str = "a_policy_about_names_ends_whom_it_names_once_they_are_told_and_nobody_else";
    if skip(TEST, &[Need::Root]) {
        return;
    }
    let cgroups =
        [1, 2, 3].map(|number| Cgroup::new(&format!("pod{POD}-{}-{number}", std::process::id()), &id(number)));
    let [Some(guilty), Some(elsewhere), Some(unknown)] = cgroups else {
        return skipped(TEST, "it needs a v2 cgroup hierarchy that root may write to");
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let runtime = StandIn::at(&socket, vec![known(1, "ci-7", "claude"), known(2, "prod", "claude")]);
    // Nobody is told names yet, however soon the node looks.
    runtime.is(Manner::Refusing);
    let policy = format!(
        "[names]\ncri = \"{}\"\n[[policy]]\nname = \"agents\"\non_withheld = \"end\"\ngrace = 0\n\
         match = {{ namespace = \"ci-*\", container = \"claude\", image = \"*/agent:*\", labels = {{ app = \"agent\" }} }}\n",
        socket.display()
    );
    let Some(node) = Node::with(TEST, &policy) else { return };
    let mut hangs =
        [(&guilty, "g"), (&elsewhere, "e"), (&unknown, "u")].map(|(cgroup, of)| Hang::within(&name(of), cgroup));
    for hang in &hangs {
        hang.begin();
    }
    // Without names it is observed, and the trouble is said.
    let observed = wait_for(&node, "holder.spared", hangs[0].helper());
    assert_eq!(observed["process"]["container"], id(1).as_str());
    assert!(observed["process"]["names"].is_null(), "{observed}");
    assert!(hangs[0].helper_lives());
    let says = "it answers with status 14: not yet; containers stay without names until it answers";
    assert!(Deadline::patient().until(|| node.said().contains(says)), "{}", node.said());

    runtime.is(Manner::Right);
    assert!(Deadline::patient().until(|| hangs[0].is_over()), "the shell waits: {}", node.said());
    let act = wait_for(&node, "holder.signalled", hangs[0].helper());
    assert_eq!(act["decision"]["option"], "policy agents");
    let names = &act["process"]["names"];
    assert_eq!(names["namespace"], "ci-7", "{act}");
    assert_eq!((&names["pod"], &names["container"]), (&"job-1".into(), &"claude".into()));
    assert_eq!(
        (&names["image"], &names["labels"]["app"]),
        (&"registry.example.com/agent:1.0.0".into(), &"agent".into())
    );

    // Its neighbours: one is named otherwise, which is known in the end; the other is not known to the runtime.
    let told = Deadline::patient().until(|| {
        let about = |record: &Value| record["process"]["pid"] == hangs[1].helper();
        node.records("holder.spared")
            .iter()
            .any(|record| about(record) && record["process"]["names"]["namespace"] == "prod")
    });
    assert!(told, "{}", node.said());
    let _ = wait_for(&node, "holder.spared", hangs[2].helper());
    for hang in &mut hangs[1..] {
        assert!(!hang.is_over() && hang.helper_lives());
        let pid = hang.helper();
        assert!(node.records("holder.signalled").iter().all(|record| record["process"]["pid"] != pid));
    }
}
