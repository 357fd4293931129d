//! Takes a process's programs off their hooks in the kernel, as somebody might who may do anything.

use std::fs;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Ends a process's links to the hooks, and leaves it something else in their place. The process must wait in a
/// system call, sooner or later.
///
/// # Panics
///
/// When it has none, or cannot be made to.
pub fn detach_programs(pid: i32) {
    detach(pid, &links(pid));
}

/// The same with those alone that hear of system calls, by which rung ever: births and ends are still told.
///
/// # Panics
///
/// As [`detach_programs`].
pub fn detach_from_calls(pid: i32) {
    let (births, calls): (Vec<i32>, Vec<i32>) = links(pid).into_iter().partition(|fd| {
        // A link says so since Linux 5.9.
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
        let at = info.lines().find_map(|line| line.strip_prefix("tp_name:"));
        at.is_some_and(|name| name.trim().starts_with("sched_process_"))
    });
    assert!(!births.is_empty(), "some of its programs hear of births");
    detach(pid, &calls);
}

fn detach(pid: i32, links: &[i32]) {
    assert!(!links.is_empty(), "it has programs on hooks");
    has_put_over(Pid::from_raw(pid), 0, links);
}

/// Its descriptors that keep programs on their hooks.
fn links(pid: i32) -> Vec<i32> {
    // What kernels since 5.10 call them.
    const KINDS: [&str; 4] = ["bpf_link", "bpf-link", "bpf-raw-tracepoint", "[perf_event]"];
    let is_link = |target: &str| KINDS.iter().any(|kind| target.strip_prefix("anon_inode:") == Some(kind));
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.to_str().is_some_and(is_link)))
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

/// Has a process that waits in a system call put one of its descriptors over others of it, as if it did so itself.
fn has_put_over(pid: Pid, fd: i32, others: &[i32]) {
    ptrace::seize(pid, Options::empty()).unwrap();
    let stopped = || waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    let before = loop {
        ptrace::interrupt(pid).unwrap();
        assert!(matches!(stopped(), WaitStatus::PtraceEvent(..)), "it runs into no other stop meanwhile");
        let registers = ptrace::getregs(pid).unwrap();
        if registers.orig_rax.cast_signed() >= 0 {
            break registers;
        }
        // It was on its way to where it waits.
        ptrace::cont(pid, None).unwrap();
    };
    // Its instruction is right before where the call returns to.
    let instruction = before.rip - 2;
    for other in others {
        let mut registers = before;
        registers.rip = instruction;
        // Not in a call, so that none is begun again.
        registers.orig_rax = u64::MAX;
        registers.rax = libc::SYS_dup2.cast_unsigned();
        registers.rdi = u64::from(fd.cast_unsigned());
        registers.rsi = u64::from(other.cast_unsigned());
        ptrace::setregs(pid, registers).unwrap();
        ptrace::step(pid, None).unwrap();
        assert!(matches!(stopped(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
        assert_eq!(ptrace::getregs(pid).unwrap().rax, registers.rsi, "dup2");
    }
    // And the call in which it waited, from its beginning.
    let mut registers = before;
    registers.rip = instruction;
    registers.rax = before.orig_rax;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers).unwrap();
    ptrace::detach(pid, None).unwrap();
}
