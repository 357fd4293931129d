//! What `holders`, `why` and `fifo` say about a hang, a file per command. One program, so that tests which
//! mostly wait wait side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod fifo;
mod holders;
mod why;
