//! `cargo xtask VERB`: the project's own chores, a file per verb.

fn main() {}
