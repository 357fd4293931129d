//! What `pipewarden run` promises, a file per promise. One program, so that tests which mostly wait
//! wait side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod asked_endings;
mod bad_input;
mod contract;
mod eof_arrives;
mod fixtures_hold_what_they_claim;
mod it_says_who_and_why;
mod lessons;
mod lessons_silence;
mod lessons_stdin;
mod lifecycle;
mod lifecycle_matchers;
mod lifecycle_tries;
mod limits;
mod nothing_innocent_dies;
mod nothing_is_lost;
mod options;
mod pid_1;
mod replacing;
mod signals;
mod stdin_fifo;
mod stdio_shapes;
mod terminal_sessions;
mod terminals;
