//! Names of pods and containers, as a container runtime tells them: by a stand-in for one, which can also be silent or
//! talk nonsense. The numbers of its fields are those of the published v1.proto; no real runtime takes part.
//!
//! All of it needs a build that can ask: `cargo test -p pipewarden-tests --features cri --test node_names`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

#[cfg(feature = "cri")]
mod holders;
#[cfg(feature = "cri")]
mod messages;
#[cfg(feature = "cri")]
mod questions;
#[cfg(feature = "cri")]
mod stand_in;

#[cfg(not(feature = "cri"))]
#[test]
fn names_of_containers() {
    pipewarden_tests::skip::skipped("names_of_containers", "it needs a build with --features cri (.ci/run has one)");
}
