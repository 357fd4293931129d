//! Runs that ask a node: what they gain by it, and that they never depend on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod absent;
mod auto;
mod elsewhere;
mod endings;
mod escapes;
mod gone;
mod lies;

use std::path::Path;

use pipewarden::ownership::node::protocol::ENVIRONMENT;
use pipewarden_tests::run::Run;
use pipewarden_tests::stage::Stage;

/// A run that is to ask the node at that socket.
fn asking<'a>(stage: &'a Stage, socket: &Path) -> Run<'a> {
    Run::on(stage).options(["--backend", "node"]).env(ENVIRONMENT, socket)
}

/// A run that may.
fn may_ask<'a>(stage: &'a Stage, socket: &Path) -> Run<'a> {
    Run::on(stage).options(["--backend", "auto"]).env(ENVIRONMENT, socket)
}
