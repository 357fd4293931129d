//! The node's socket: what it answers, and what it withstands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's own helpers fail the test")]

mod answers;
mod descriptors;
mod floods;
mod identity;
mod lines;
mod restart;
