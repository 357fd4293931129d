//! What a run gains by events, and what it loses without them: nothing but time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod escape;
mod loss;
mod refused;

use pipewarden::kernel::connector::{Connector, Kinds};
use pipewarden::kernel::self_test::in_initial_pid_namespace;
use pipewarden_tests::skip::skipped;

/// Whether this machine has no connector for us; says so.
fn no_connector(test: &str) -> bool {
    let why = match Connector::open(Kinds::LINEAGE) {
        _ if !in_initial_pid_namespace() => "it needs the machine's own pid namespace".to_owned(),
        Err(error) => format!("it needs the proc connector: {error}"),
        Ok(_) => return false,
    };
    skipped(test, &why);
    true
}
