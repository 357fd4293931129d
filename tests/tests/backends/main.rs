//! What a run gains by events, and what it loses without them: nothing but time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod background;
mod detached;
mod escape;
mod last_breath;
mod loss;
mod one_tracker;
mod refused;
mod room;
mod rungs;

use pipewarden::kernel::connector::{Connector, Kinds};
use pipewarden::kernel::object::{Scope, Sizes};
use pipewarden::kernel::rung::Rung;
use pipewarden::kernel::self_test::in_initial_pid_namespace;
use pipewarden::kernel::tracker::Tracker;
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

/// Whether no rung of bpf can be had here; says so.
fn no_live_map(test: &str) -> bool {
    let attached = Rung::ALL.into_iter().any(|rung| Tracker::attach(rung, Scope::Lineage, Sizes::RUN).is_ok());
    let why = match attached {
        _ if !in_initial_pid_namespace() => "it needs the machine's own pid namespace",
        false => "it needs a rung of bpf (`pipewarden doctor` says what is in the way)",
        true => return false,
    };
    skipped(test, why);
    true
}
