//! What no system call shows where a tracer looks for it. A view is exact about it nevertheless, or it
//! says by itself that it met such a hole.

use pipewarden_tests::actor::op::Hole;
use pipewarden_tests::oracle::troupe::Troupe;
use pipewarden_tests::skip::{Need, skip, skipped};

use crate::views::{each, strictly};

/// Exact, or reported.
fn seen(test: &str, hole: Hole, script: &str) {
    each(test, |view| {
        if let Err(failure) = strictly(script, view) {
            let declared = view.holes().contains(&hole);
            assert!(declared, "{}: {hole:?} is no hole of its, and still: {failure}", view.name());
            assert!(view.reports(hole), "{}: {hole:?} was met, and not reported: {failure}", view.name());
        }
    });
}

#[test]
fn an_io_uring_that_is_polled() {
    let test = "an_io_uring_that_is_polled";
    if skip(test, &[Need::Root, Need::IoUring]) {
        return;
    }
    for script in [
        "0 uring_open 0 2?5.11; check; 0 uring_open 0 2?5.11",
        "0 pipe; check; 0 uring_close 4 2?5.11; check; 0 uring_pipe 2?6.16",
        "0 pipe; 0 uring_install 4 2?6.8; 0 mailbox 0; 0 send 0 4; 0 uring_receive 0 2?5.11",
        "0 pipe; 0 thread 1; 0 fork 2; 1 uring_close 3 2?5.11; 2 uring_open 1 2?5.11; check; 2 kill 0",
    ] {
        seen(test, Hole::PollingThread, script);
    }
}

#[test]
fn an_io_uring_with_workers() {
    let test = "an_io_uring_with_workers";
    if !skip(test, &[Need::Root, Need::IoUring]) {
        seen(test, Hole::Worker, "0 pipe; 0 uring_open 0 1; 0 uring_close 4 1; check; 0 uring_pipe 1?6.16");
    }
}

#[test]
fn a_seccomp_supervisor_adds_a_descriptor() {
    for script in [
        "0 pipe; 0 add_fd 1 4 0; check; 1 close 3",
        "0 pipe; 0 add_fd 1 4 3; check; 0 close 4",
        "0 pipe; 0 add_fd 1 4 300; check; 1 fork 2; 1 exec",
        "0 null 0; 0 pipe; 0 add_fd 1 3 5; check; 1 dup 4",
    ] {
        seen("a_seccomp_supervisor_adds_a_descriptor", Hole::AddFd, script);
    }
}

#[test]
fn calls_of_32_bit_programs() {
    let test = "calls_of_32_bit_programs";
    if skip(test, &[Need::Root]) {
        return;
    }
    if !Troupe::start().has_compat() {
        return skipped(test, "this kernel answers no 32-bit calls");
    }
    for script in [
        "0 compat_pipe; check; 0 compat_dup 4; 0 compat_dup2 3 4; check; 0 compat_dup2 4 70; 0 compat_close 3",
        "0 pipe; 0 compat_dupfd 4 30; check; 0 compat_close_range 4 40 0; check; 0 compat_open 0",
        "0 pipe; 0 compat_fork 1; check; 1 compat_close 4; 0 compat_close 3; 1 compat_fork 2; 2 compat_pipe",
        "0 pipe; 0 thread 1; 1 compat_close 3; 0 compat_close_range 4 9 2; check; 1 compat_dup 4",
    ] {
        seen(test, Hole::Compat, script);
    }
}
