//! A script performed, with comparisons.

use std::collections::BTreeMap;
use std::fmt;

use super::compare::{Difference, compare};
use super::script::Script;
use super::troupe::{Done, Troupe};
use super::view::View;
use crate::actor::op::{Hole, Kind, Op};
use crate::deadline::Deadline;

/// A script that showed a difference.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was performed until then.
    pub script: Script,
    /// The differences.
    pub differences: Vec<Difference>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        writeln!(f, "after `{}`:", self.script)?;
        self.differences.iter().take(SHOWN).try_for_each(|difference| writeln!(f, "  {difference}"))?;
        match self.differences.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }
}

/// How often each kind was performed, and how often it succeeded.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Operations, those of bursts included.
    pub operations: u64,
    /// Those of bursts that succeeded.
    pub burst: u64,
    /// Comparisons.
    pub comparisons: u64,
    /// Descriptors that were compared.
    pub holds: u64,
    /// Kind -> performed, succeeded.
    pub kinds: BTreeMap<Kind, (u64, u64)>,
}

impl Tally {
    /// Takes in another.
    pub fn add(&mut self, other: &Tally) {
        self.operations += other.operations;
        self.burst += other.burst;
        self.comparisons += other.comparisons;
        self.holds += other.holds;
        for (kind, (performed, succeeded)) in &other.kinds {
            let sum = self.kinds.entry(*kind).or_default();
            *sum = (sum.0 + performed, sum.1 + succeeded);
        }
    }

    fn count(&mut self, op: &Op, done: Done) {
        let succeeded = match done {
            Done::PassedOver => return,
            Done::Answered(result) => result >= 0,
            Done::Burst { .. } | Done::Ended | Done::Blocks => true,
        };
        self.operations += match done {
            Done::Burst { performed, .. } => u64::from(performed),
            // As often as it succeeded, and the try that did not.
            Done::Answered(times) if op.kind == Kind::DupMany => u64::try_from(times).unwrap_or(0).max(1),
            _ => 1,
        };
        if let Done::Burst { succeeded, .. } = done {
            self.burst += u64::from(succeeded);
        }
        let sum = self.kinds.entry(op.kind).or_default();
        *sum = (sum.0 + 1, sum.1 + u64::from(succeeded));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations, {} comparisons of {} descriptors", self.operations, self.comparisons, self.holds)
    }
}

/// A troupe that plays, and what it played so far.
pub struct Play<'a> {
    /// The actors.
    pub troupe: Troupe,
    view: &'a mut dyn View,
    played: Script,
    tally: Tally,
}

impl<'a> Play<'a> {
    /// A new troupe before this view.
    pub fn new(view: &'a mut dyn View) -> Play<'a> {
        let troupe = Troupe::start();
        troupe.leave_out(view.holes());
        Play { troupe, view, played: Script::default(), tally: Tally::default() }
    }

    /// What it cannot see.
    #[must_use]
    pub fn holes(&self) -> &'static [Hole] {
        self.view.holes()
    }

    /// Performs one operation.
    ///
    /// # Errors
    ///
    /// When it is a comparison and shows a difference.
    pub fn step(&mut self, op: Op) -> Result<Done, Failure> {
        self.played.0.push(op);
        if op.kind == Kind::Check {
            self.check()?;
            return Ok(Done::Answered(0));
        }
        let done = self.troupe.perform(&op);
        self.tally.count(&op, done);
        Ok(done)
    }

    /// Compares once more, and ends.
    ///
    /// # Errors
    ///
    /// When there is a difference.
    pub fn end(mut self) -> Result<Tally, Failure> {
        self.check()?;
        Ok(self.tally)
    }

    /// Asks the view between two looks at /proc that saw the same.
    fn check(&mut self) -> Result<(), Failure> {
        let deadline = Deadline::patient();
        let mut truth = self.troupe.truth();
        loop {
            let (tasks, files) = self.view.rows();
            let after = self.troupe.truth();
            if truth == after {
                let differences = compare(&truth, self.troupe.known(), &tasks, &files);
                self.tally.comparisons += 1;
                self.tally.holds += truth.tables.iter().map(|table| table.holds.len() as u64).sum::<u64>();
                return match differences.is_empty() {
                    true => Ok(()),
                    false => Err(Failure { script: self.played.clone(), differences }),
                };
            }
            assert!(!deadline.left().is_zero(), "it does not come to rest: {truth:?} and {after:?}");
            truth = after;
        }
    }
}

/// Performs a whole script with a new troupe.
///
/// # Errors
///
/// When a comparison shows a difference.
pub fn play(script: &Script, view: &mut dyn View) -> Result<Tally, Failure> {
    let mut play = Play::new(view);
    for op in &script.0 {
        play.step(*op)?;
    }
    play.end()
}
