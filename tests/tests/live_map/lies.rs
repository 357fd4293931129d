//! A view that lies is found out, and by few operations.

use pipewarden_tests::oracle::generate::play_calmly;
use pipewarden_tests::oracle::liar::{Liar, Lie};
use pipewarden_tests::oracle::shrink::shrink;

use crate::views::iterators;

/// More scripts than the rarest lie needs to show.
const SCRIPTS: u64 = 60;
/// What is enough for every one of these lies, comparisons included.
const FEW: usize = 5;

/// What it came down to, for who looks (`--nocapture`).
#[allow(clippy::print_stdout, reason = "a test's own account")]
fn say(text: &str) {
    println!("{text}");
}

fn is_found_out(test: &str, lie: Lie) {
    iterators(test, |view| {
        // A liar remembers, and what it remembers is of one machine: each has its own.
        let failure = (1..SCRIPTS).find_map(|seed| play_calmly(seed, &mut Liar::new(view, lie)).err());
        let failure = failure.unwrap_or_else(|| panic!("{lie:?} is not found out"));
        let short = shrink(failure, &mut Liar::new(view, lie));
        say(&format!("{lie:?}: {short}"));
        assert!(short.script.0.len() <= FEW, "{lie:?}: still {short}");
        assert!(!short.differences.is_empty());
    });
}

macro_rules! lies {
    ($($name:ident: $lie:ident;)*) => {$(
        #[test]
        fn $name() {
            is_found_out(stringify!($name), Lie::$lie);
        }
    )*};
}

lies! {
    a_row_that_is_missing: Blind;
    an_end_that_is_missing: HalfOpen;
    a_row_that_stays_after_close: NeverCloses;
    a_process_that_stays_after_its_end: NeverEnds;
    a_thread_taken_for_a_process: ThreadsAreProcesses;
    a_session_that_was_left: NeverLeaves;
    a_table_that_is_not_shared: ThreadsShare;
    a_row_about_what_was_there_before: FirstStays;
    two_pipes_taken_for_one: OneObject;
    a_row_of_another_process: WrongProcess;
}
