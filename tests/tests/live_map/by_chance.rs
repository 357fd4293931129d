//! Operations by chance, many of them.

use std::time::Instant;

use pipewarden_tests::actor::op::Kind;
use pipewarden_tests::oracle::generate::play_by_chance;
use pipewarden_tests::oracle::play::{Tally, play};
use pipewarden_tests::oracle::script::Script;
use pipewarden_tests::oracle::shrink::shrink;

use crate::views::{each, iterators};

/// How many operations: more find more.
const OPERATIONS: &str = "PIPEWARDEN_ORACLE_OPERATIONS";
const DEFAULT_OPERATIONS: u64 = 20_000;
/// The first script's seed; the others follow it.
const SEED: &str = "PIPEWARDEN_ORACLE_SEED";
/// One script to play instead.
const SCRIPT: &str = "PIPEWARDEN_ORACLE_SCRIPT";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

fn some_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}

#[test]
fn any_operations_by_anybody_leave_the_view_exact() {
    each("any_operations_by_anybody_leave_the_view_exact", |view| {
        if let Ok(text) = std::env::var(SCRIPT) {
            let script: Script = text.parse().unwrap_or_else(|error: String| panic!("{SCRIPT}: {error}"));
            match play(&script, view) {
                Ok(tally) => return println!("{}: exact: {tally}", view.name()),
                Err(failure) => panic!("{}: {failure}", view.name()),
            }
        }
        let wanted = number(OPERATIONS).unwrap_or(DEFAULT_OPERATIONS);
        let first = number(SEED).unwrap_or_else(some_seed);
        let started = Instant::now();
        let mut all = Tally::default();
        for seed in first.. {
            match play_by_chance(seed, view) {
                Ok(tally) => all.add(&tally),
                Err(failure) => {
                    let found = failure.differences.len();
                    let short = shrink(failure, view);
                    let script = &short.script;
                    panic!("{}: {short}{found} differences first; {SEED}={seed}; {SCRIPT}='{script}'", view.name());
                }
            }
            if all.operations >= wanted {
                break;
            }
        }
        println!("{}: exact: {all} in {:.1} s, {SEED}={first}", view.name(), started.elapsed().as_secs_f64());
        for kind in Kind::ALL {
            let (performed, succeeded) = all.kinds.get(kind).copied().unwrap_or_default();
            println!("  {:20} {performed:8} {succeeded:8}", kind.word());
        }
    });
}

#[test]
fn a_burst_counts_for_what_its_tasks_did() {
    iterators("a_burst_counts_for_what_its_tasks_did", |view| {
        // Two tasks are there, and four are asked for.
        let script: Script = "0 fork 1; burst 1 200 4".parse().unwrap();
        let tally = play(&script, view).unwrap_or_else(|failure| panic!("{failure}"));
        assert!((2..=1 + 2 * 200).contains(&tally.operations), "{tally}");
        assert!(tally.burst < tally.operations, "{tally}: {} succeeded", tally.burst);
    });
}
