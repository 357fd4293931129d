//! The promises as tests: what the tests and their fixtures share.
//!
//! A fixture is a small program in `src/bin` that holds a pipe in one particular way. A test runs
//! it, with or without pipewarden, on a [`stage`]: every process that matters announces itself
//! there, so that the test knows it by a pidfd and asks the kernel, not a clock, whether it died.
//! The tests in `tests/` have a file per promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]
#![allow(clippy::missing_panics_doc, reason = "every function of the harness panics when its test has failed")]

pub mod actor;
pub mod binaries;
pub mod cgroup;
pub mod container;
pub mod deadline;
#[cfg(target_arch = "x86_64")]
pub mod detach;
pub mod explain;
pub mod fixture;
pub mod hang;
pub mod http;
pub mod kernel;
pub mod log;
pub mod manifest;
pub mod node;
pub mod node_client;
pub mod oracle;
pub mod own_lock;
pub mod packages;
pub mod process;
pub mod reader;
pub mod report;
pub mod row;
pub mod run;
pub mod session;
pub mod shape;
pub mod skip;
pub mod stage;
pub mod stand_in;
pub mod supervise;
pub mod terminal;
pub mod tracer;
