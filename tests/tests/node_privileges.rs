//! What a node may still do once it is attached, and what is left of it when it is killed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::node::Node;

/// The numbers of include/uapi/linux/capability.h.
const DAC_READ_SEARCH: u64 = 1 << 2;
const KILL: u64 = 1 << 5;
const SETPCAP: u64 = 1 << 8;
const SYS_PTRACE: u64 = 1 << 19;
/// What maps need on kernels before 5.19, where bpf(2) is for the privileged alone.
const TRACING: u64 = 1 << 38 | 1 << 39;

/// The threads of a process, by name.
fn threads(pid: i32) -> Vec<(String, PathBuf)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let named =
        |task: fs::DirEntry| (fs::read_to_string(task.path().join("comm")).unwrap().trim().to_owned(), task.path());
    tasks.map(|task| named(task.unwrap())).collect()
}

/// A field of a thread's status.
fn field(task: &std::path::Path, name: &str) -> String {
    let status = fs::read_to_string(task.join("status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn set(task: &std::path::Path, name: &str) -> u64 {
    u64::from_str_radix(&field(task, name), 16).unwrap()
}

/// What the node's loop has, once every thread has what it should.
fn kept(node: &Node) -> u64 {
    let others_are_confined = || {
        let others = threads(node.pid()).into_iter().filter(|(name, _)| ["audit", "http"].contains(&name.as_str()));
        let others: Vec<_> = others.map(|(_, task)| set(&task, "CapPrm") | set(&task, "CapEff")).collect();
        others == [0, 0]
    };
    assert!(Deadline::patient().until(others_are_confined), "{:?}: {}", threads(node.pid()), node.said());
    let main = PathBuf::from(format!("/proc/{}/task/{0}", node.pid()));
    assert!(Deadline::patient().until(|| field(&main, "Seccomp") == "2"), "{}", node.said());
    assert_eq!(field(&main, "NoNewPrivs"), "1");
    assert_eq!(set(&main, "CapInh") | set(&main, "CapAmb"), 0);
    assert_eq!(set(&main, "CapEff"), set(&main, "CapPrm"));
    if set(&PathBuf::from("/proc/thread-self"), "CapEff") & SETPCAP != 0 {
        assert_eq!(set(&main, "CapBnd"), 0);
    }
    set(&main, "CapPrm") & !TRACING
}

#[test]
fn each_thread_of_a_node_has_what_it_needs_and_no_more() {
    let test = "each_thread_of_a_node_has_what_it_needs_and_no_more";
    let Some(node) = Node::with_http(test, "", "") else { return };
    assert_eq!(kept(&node), SYS_PTRACE | DAC_READ_SEARCH);
    assert!(!node.said().contains("keeps more than it needs") || !fs::exists("/sys/kernel/security/landlock").unwrap());

    // It could not end anybody now: a file that wants it to is for another node.
    let text = fs::read_to_string(node.config()).unwrap();
    let end = "[[policy]]\nmatch = { comm = \"nobody's\" }\non_withheld = \"end\"\n";
    fs::write(node.config(), format!("{text}{end}")).unwrap();
    node.signal(Signal::SIGHUP);
    let said = "this node gave up the right to when it began without one; restart it; nothing is changed";
    assert!(Deadline::patient().until(|| node.said().contains(said)), "{}", node.said());

    let mut node = node;
    node.terminate();
    node.start_again();
    assert_eq!(kept(&node), SYS_PTRACE | DAC_READ_SEARCH | KILL, "with a policy that ends");
}

/// The kernel's numbers of the programs that a process holds.
fn programs(pid: i32) -> Vec<u32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let text = infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
    text.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// Whether the kernel still has a program.
fn is_there(program: u32) -> bool {
    const PROG_GET_FD_BY_ID: libc::c_long = 13;
    let attributes = [program, 0, 0, 0];
    // SAFETY: bpf(2) reads as many bytes as it is told that there are.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_GET_FD_BY_ID, attributes.as_ptr(), size_of_val(&attributes)) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel just gave it to us.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
            true
        }
        _ => false,
    }
}

#[test]
fn nothing_of_a_node_that_was_killed_stays_in_the_kernel() {
    let Some(mut node) = Node::with_http("nothing_of_a_node_that_was_killed_stays_in_the_kernel", "", "") else {
        return;
    };
    let programs = programs(node.pid());
    assert!(programs.len() > 3 && programs.iter().all(|program| is_there(*program)), "{programs:?}");
    node.kill();
    // The kernel lets go of programs behind our back, after its grace periods.
    assert!(Deadline::patient().until(|| !programs.iter().any(|program| is_there(*program))), "{programs:?}");
    node.start_again();
}
