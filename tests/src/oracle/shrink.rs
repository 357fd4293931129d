//! A failing script made short.

use std::time::{Duration, Instant};

use super::play::{Failure, play};
use super::script::Script;
use super::view::View;
use crate::actor::op::{Kind, Op};

/// What comes of trying for longer is not worth it.
const LONGEST: Duration = Duration::from_secs(300);
/// A script with races is taken to be right only after so many plays.
const RACES: u32 = 4;

/// The shortest script that was found to fail still.
pub fn shrink(failure: Failure, view: &mut dyn View) -> Failure {
    let mut search = Search { best: failure, view, until: Instant::now() + LONGEST };
    search.drop_bursts();
    search.drop_operations();
    search.simplify();
    search.drop_operations();
    search.best
}

struct Search<'a> {
    best: Failure,
    view: &'a mut dyn View,
    until: Instant,
}

impl Search<'_> {
    /// Whether a script fails too; then it is the best.
    fn still_fails(&mut self, script: Vec<Op>) -> bool {
        let script = Script(script);
        let plays = if script.has_races() { RACES } else { 1 };
        for _ in 0..plays {
            if Instant::now() > self.until {
                return false;
            }
            if let Err(mut failure) = play(&script, self.view) {
                // What came after the difference shows nothing; a check at the very end is made anyway.
                while failure.script.0.last().is_some_and(|op| op.kind == Kind::Check) {
                    failure.script.0.pop();
                }
                self.best = failure;
                return true;
            }
        }
        false
    }

    /// What fails without races fails each time, and is short soon.
    fn drop_bursts(&mut self) {
        if self.best.script.has_races() {
            let calm = self.best.script.0.iter().copied().filter(|op| !op.kind.is_burst()).collect();
            self.still_fails(calm);
        }
    }

    /// Leaves out halves, quarters, and so on, down to single operations, until nothing can be left out.
    fn drop_operations(&mut self) {
        let mut size = self.best.script.0.len().div_ceil(2);
        while size > 0 {
            let mut dropped = false;
            let mut at = 0;
            while at < self.best.script.0.len() {
                let mut shorter = self.best.script.0.clone();
                shorter.drain(at..(at + size).min(shorter.len()));
                if self.still_fails(shorter) {
                    dropped = true;
                } else {
                    at += size;
                }
            }
            if size == 1 && !dropped {
                break;
            }
            size = if size > 1 { size.div_ceil(2).min(size - 1) } else { 1 };
        }
    }

    /// Makes the arguments small: shorter bursts by fewer, and numbers near 0.
    fn simplify(&mut self) {
        for at in 0..self.best.script.0.len() {
            self.by_the_first(at);
            for argument in 0..3 {
                while self.make_smaller(at, argument) {}
            }
        }
    }

    /// Lets the first task perform it, so that another need not be born.
    fn by_the_first(&mut self, at: usize) {
        let mut script = self.best.script.0.clone();
        if let Some(op) = script.get_mut(at).filter(|op| op.task != 0) {
            op.task = 0;
            self.still_fails(script);
        }
    }

    fn make_smaller(&mut self, at: usize, argument: usize) -> bool {
        let Some(op) = self.best.script.0.get(at).copied() else { return false };
        let value = op.with[argument];
        // One less at a time is for small numbers; and no seed is simpler than another.
        let one_less = if value <= 32 { value.saturating_sub(1) } else { value };
        let is_seed = op.kind.is_burst() && argument == 0;
        [0, value / 2, one_less].into_iter().filter(|smaller| *smaller < value && !is_seed).any(|smaller| {
            let mut script = self.best.script.0.clone();
            script[at].with[argument] = smaller;
            self.still_fails(script)
        })
    }
}
