//! What `pipewarden supervise` promises, a file per promise. One program, so that tests which mostly
//! wait do so side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod control;
mod exits;
mod input;
mod lessons;
mod no_pipe_is_leaked;
mod order;
mod output;
mod ready;
mod reload;
mod sidecar;
mod storms;
