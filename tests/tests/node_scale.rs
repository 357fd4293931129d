//! A node on a machine that does much: thousands of processes and descriptors, commands that are gone at once,
//! floods of events, and more holders than a policy may end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::hang::{Hang, name};
use pipewarden_tests::http::get;
use pipewarden_tests::node::Node;

/// A policy that ends processes of this name at once.
fn ends(name: &str, more: &str) -> String {
    format!("[[policy]]\nname = \"ours\"\nmatch = {{ comm = \"{name}\" }}\non_withheld = \"end\"\ngrace = 0\n{more}")
}

/// The sum of the samples whose names begin so.
fn sum(node: &Node, beginning: &str) -> f64 {
    let body = get(node.http(), "/metrics").body;
    let samples = body.lines().filter(|line| line.starts_with(beginning));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// Processes that come and go as fast as this machine has them, until it is dropped.
struct Flood {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn begin() -> Flood {
        let over = Arc::new(AtomicBool::new(false));
        let flood = || {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    Command::new("/bin/true").status().unwrap();
                }
            })
        };
        let threads = (0..2).map(|_| flood()).collect();
        Flood { over, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Processes with many descriptors on a pipe, until their stdin ends.
struct Crowd(Child);

impl Crowd {
    fn new(descriptors: u32, processes: u32) -> Crowd {
        let mut command = Command::new(binary("hold_many_descriptors"));
        let command = command.args([descriptors.to_string(), processes.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Crowd(child)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_with_a_hundred_thousand_descriptors_stays_small() {
    let test = "a_node_with_a_hundred_thousand_descriptors_stays_small";
    let Some(node) = Node::with_http(test, "", "") else { return };
    let _crowd = Crowd::new(100, 1000);
    let seen = || sum(&node, "pipewarden_map_entries{map=\"descriptors\"}") >= 100_000.0;
    assert!(Deadline::patient().until(seen), "{}", get(node.http(), "/metrics").body);
    // A hang makes it look for holders among all of them.
    let mut hang = Hang::new(&name("b"));
    hang.begin();
    let found = || node.records("holder.spared").iter().any(|record| record["process"]["pid"] == hang.helper());
    assert!(Deadline::patient().until(found), "{}", node.said());
    assert!(!hang.is_over());
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // Four times what the bench promises of an optimised build.
    assert!(rss.unwrap() < 160 * 1024, "{status}");
}

#[test]
fn commands_that_are_gone_at_once_leave_pipes_that_are_found_withheld() {
    let name = name("q");
    let test = "commands_that_are_gone_at_once_leave_pipes_that_are_found_withheld";
    let Some(node) = Node::with_http(test, "", &ends(&name, "limit = \"off\"\npod_limit = \"off\"\n")) else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy("/bin/sleep", folder.path().join(&name)).unwrap();
    // The helper's end is the test's at the latest: it is what the policy names, or it ends by itself.
    let script = format!("output=$(sh -c 'setsid ./{name} 60 &')");
    for _ in 0..3 {
        let mut shell = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).spawn().unwrap();
        let over = Deadline::patient().until(|| shell.try_wait().unwrap().is_some());
        let _ = shell.kill();
        shell.wait().unwrap();
        assert!(over, "the shell waits: {} {}", node.said(), get(node.http(), "/v1/pipes").body);
    }
    assert!(node.records("holder.signalled").len() >= 3);
}

#[test]
fn a_node_begins_and_finds_what_is_withheld_amid_a_flood_of_events_that_it_loses() {
    let name = name("f");
    let test = "a_node_begins_and_finds_what_is_withheld_amid_a_flood_of_events_that_it_loses";
    let _flood = Flood::begin();
    let map = "[map]\nevent_bytes = \"4KiB\"\n";
    let Some(node) = Node::with_http(test, "", &format!("{map}{}", ends(&name, ""))) else { return };
    let mut hang = Hang::new(&name);
    let lost = || sum(&node, "pipewarden_reseeds_total");
    let before = lost();
    assert!(Deadline::patient().until(|| lost() > before + 1.0), "{}", get(node.http(), "/metrics").body);
    hang.begin();
    assert!(
        Deadline::patient().until(|| hang.is_over()),
        "the shell waits: {} {}",
        node.said(),
        get(node.http(), "/v1/pipes").body
    );
}

#[test]
fn of_many_holders_no_more_are_ended_than_the_limit_says() {
    let name = name("m");
    let mut hangs: Vec<Hang> = (0..8).map(|_| Hang::new(&name)).collect();
    let test = "of_many_holders_no_more_are_ended_than_the_limit_says";
    let Some(node) = Node::with_http(test, "", &ends(&name, "limit = \"3/1h\"\n")) else { return };
    for hang in &hangs {
        hang.begin();
    }
    let told = |event: &str| {
        let ours = |record: &&serde_json::Value| hangs.iter().any(|hang| record["process"]["pid"] == hang.helper());
        node.records(event).iter().filter(ours).count()
    };
    assert!(Deadline::patient().until(|| told("holder.signalled") + told("holder.spared") >= 8), "{}", node.said());
    assert_eq!((told("holder.signalled"), told("holder.spared")), (3, 5));
    assert!(Deadline::patient().until(|| hangs.iter_mut().map(Hang::is_over).filter(|over| *over).count() == 3));
    assert_eq!(hangs.iter().filter(|hang| hang.helper_lives()).count(), 5);
}
