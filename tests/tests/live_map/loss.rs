//! A map that lost something, whatever that was: the next seeding makes it exact again.

use pipewarden::kernel::rung::Rung;
use pipewarden_tests::oracle::generate::play_by_chance;
use pipewarden_tests::oracle::live_map::LiveMap;
use pipewarden_tests::oracle::play::Tally;
use pipewarden_tests::skip::{Need, skip, skipped};

const OPERATIONS: u64 = 10_000;

#[test]
fn what_was_lost_invented_or_altered_is_mended_by_a_seeding() {
    let test = "what_was_lost_invented_or_altered_is_mended_by_a_seeding";
    if skip(test, &[Need::Root]) {
        return;
    }
    let found = Rung::ALL.into_iter().map(|rung| LiveMap::spoiled(rung, 7)).find_map(Result::ok);
    let Some(mut view) = found else { return skipped(test, "it needs a rung of bpf") };
    let mut all = Tally::default();
    for seed in 1.. {
        match play_by_chance(seed, &mut view) {
            Ok(tally) => all.add(&tally),
            Err(failure) => panic!("seed {seed}: {failure}"),
        }
        if all.operations >= OPERATIONS {
            break;
        }
    }
}
