//! What is asked for is told, whoever the runtime is; and nobody waits for one that does not answer.

use std::path::Path;
use std::time::Instant;

use pipewarden::node::config;
use pipewarden::node::names::{Directory, Known, NameCounts, Names, SYSTEMATIC};
use pipewarden_tests::deadline::Deadline;

use super::stand_in::{self, Manner, StandIn};

fn asking(socket: &Path) -> Directory {
    Directory::new(&config::Names { cri: Some(socket.to_owned()) }, || ()).unwrap()
}

/// The names of a container. Where everything takes long, the runtime is asked several times.
fn named(directory: &mut Directory, container: &str) -> Names {
    let mut names = None;
    let told = Deadline::patient().until(|| {
        names = directory.of(container, Instant::now()).names().cloned();
        names.is_some()
    });
    assert!(told, "{:?}", directory.counts());
    names.unwrap()
}

/// Waits for an answer to be counted, and gives all counts.
fn counted(directory: &mut Directory, container: &str, done: impl Fn(NameCounts) -> bool) -> NameCounts {
    let came = Deadline::patient().until(|| {
        let _ = directory.of(container, Instant::now());
        done(directory.counts())
    });
    assert!(came, "{:?}", directory.counts());
    directory.counts()
}

/// An id as runtimes have them.
fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn agent() -> stand_in::Known {
    stand_in::Known {
        id: id('a'),
        sandbox: id('b'),
        name: "claude".into(),
        image: "registry.example.com/agent:1.0.0".into(),
        pod: "job-7".into(),
        namespace: "ci-1".into(),
        labels: vec![("app".into(), "agent".into()), ("tier".into(), "batch".into())],
    }
}

fn names() -> Names {
    Names {
        namespace: "ci-1".into(),
        pod: "job-7".into(),
        labels: [("app", "agent"), ("tier", "batch")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        container: Some("claude".into()),
        image: Some("registry.example.com/agent:1.0.0".into()),
    }
}

#[test]
fn a_container_and_its_sandbox_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let runtime = StandIn::at(&socket, vec![agent()]);
    let mut directory = asking(&socket);
    assert_eq!(directory.of(&id('a'), Instant::now()), Known::Asked, "nobody waits");
    assert_eq!(named(&mut directory, &id('a')), names());
    let pause = Names { container: None, image: None, ..names() };
    assert_eq!(named(&mut directory, &id('b')), pause);
    let counts = counted(&mut directory, &id('c'), |counts| counts.absent == 1);
    assert_eq!(counts.named, 2);
    assert_eq!(directory.of(&id('c'), Instant::now()), Known::Nothing);

    // What was told is not asked for again; and it outlives the pod, and the runtime.
    let asked = runtime.asked();
    drop(runtime);
    assert_eq!(directory.of(&id('a'), Instant::now()).names(), Some(&names()));
    assert!(asked >= 3 + 2 + 2 && directory.counts().named == 2, "{asked}");
}

#[test]
fn a_runtime_that_does_not_answer_rightly_is_said_once_and_costs_nobody_a_wait() {
    for (manner, why) in [
        (Manner::Silent, "it does not answer within 2s"),
        (Manner::Refusing, "it answers with status 14: not yet"),
        (Manner::Nonsense, "it answers with failed to decode Protobuf message"),
        (Manner::Endless, "it answers with more than 4194304 bytes"),
        (Manner::Closing, ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cri.sock");
        let runtime = StandIn::at(&socket, vec![agent()]);
        runtime.is(manner);
        let mut directory = asking(&socket);
        counted(&mut directory, &id('a'), |counts| counts.failed == 1);
        assert_eq!(directory.of(&id('a'), Instant::now()), Known::Nothing);
        let said = directory.trouble().unwrap();
        // On a busy machine all of them may look like the first.
        let right = [why, "it does not answer within 2s"].map(|why| format!("{}: {why}", socket.display()));
        assert!(right.iter().any(|right| said.starts_with(right)), "{manner:?}: {said}");
        // Another container is not asked for in vain on a connection that is no good any more.
        runtime.is(Manner::Right);
        assert_eq!(named(&mut directory, &id('b')).pod, "job-7", "{manner:?}");
    }
}

#[test]
fn without_a_runtime_attribution_fails_systematically_until_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let mut directory = asking(&socket);
    for number in 1..=SYSTEMATIC {
        assert_eq!(directory.unanswered(), None);
        counted(&mut directory, &number.to_string(), |counts| counts.failed == number);
    }
    assert_eq!(directory.unanswered(), Some(SYSTEMATIC));
    let said = directory.trouble().unwrap();
    assert!(said.contains("cri.sock: No such file or directory"), "{said}");
    let _runtime = StandIn::at(&socket, vec![agent()]);
    assert_eq!(named(&mut directory, &id('a')), names());
    assert_eq!(directory.unanswered(), None);
}

/// However many are asked for at once, what is open is bounded, and nobody is forgotten for good.
#[test]
fn a_flood_of_containers_is_named_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let number = |number: usize| format!("{number:064x}");
    let known = (0..1000).map(|n| stand_in::Known { id: number(n), ..agent() }).collect();
    let _runtime = StandIn::at(&socket, known);
    let mut directory = asking(&socket);
    for n in 0..1000 {
        let known = directory.of(&number(n), Instant::now());
        assert!(known.names().is_none() || known.names().unwrap().container.is_some());
    }
    for n in 0..1000 {
        let named = Deadline::patient().until(|| directory.of(&number(n), Instant::now()).names().is_some());
        assert!(named, "{n}: {:?}", directory.counts());
    }
    assert_eq!(directory.counts().named, 1000);
}
