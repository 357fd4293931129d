//! What a verification finds.

use serde::Serialize;

use crate::audit::chain::Hash;
use crate::audit::record::RunId;

/// How many findings of a sort are kept; the rest is only counted.
pub const KEPT: usize = 100;

/// What a log is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether nothing is faulty.
    pub intact: bool,
    /// The files, as they were named.
    pub files: Vec<String>,
    /// Lines that were read.
    pub lines: u64,
    /// Whole records among them.
    pub records: u64,
    /// Runs.
    pub runs: Runs,
    /// What is wrong.
    pub faults: Findings<Fault>,
    /// What is worth a look.
    pub oddities: Findings<Oddity>,
    /// The first [`KEPT`] open runs, in the order in which they began.
    pub open: Vec<OpenRun>,
}

/// How many runs of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Runs {
    /// Whole, from the first record to `run.finished`.
    pub closed: u64,
    /// Whole as far as they go.
    pub open: u64,
    /// With a fault.
    pub broken: u64,
}

/// A run whose `run.finished` is not there: it goes on, or was killed, or its end was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenRun {
    /// Which.
    pub run: RunId,
    /// Records that are there.
    pub records: u64,
    /// The hash of the last.
    pub head: Option<Hash>,
}

/// What is wrong with a record, or with the place where one should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The line's bytes are not those that its hash was made of.
    Changed,
    /// Records before this one are missing.
    Missing,
    /// Its number was there already: it was repeated, or moved behind a later one.
    Repeated,
    /// Its number fits and its `prev` does not: another record stood before it.
    Unchained,
    /// It comes after its run's `run.finished`.
    AfterFinished,
    /// A part of a record, or a damaged one, and its run does not say that one was lost.
    Torn,
}

/// What is worth a look and breaks no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// Something that is no audit record.
    Foreign,
    /// A part of a record that its run counted as lost (a full disk).
    TornAndCounted,
    /// The log ends within a record: it is being written, or its writer was killed, or it was cut.
    UnfinishedEnd,
    /// A run's first records were in a file that was put aside and is gone by now.
    BeginsLate,
    /// The run says itself that its log lacks records.
    Incomplete,
}

/// A fault or an oddity, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding<Kind> {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The run, where the line tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What sort of finding.
    pub kind: Kind,
    /// The same for people.
    pub text: String,
}

/// Findings: the first [`KEPT`] of them, and how many there are.
#[derive(Clone, Debug, Serialize)]
pub struct Findings<Kind> {
    /// How many.
    pub count: u64,
    /// The first of them, in the order in which they became clear.
    pub first: Vec<Finding<Kind>>,
}

impl<Kind> Findings<Kind> {
    pub(super) fn push(&mut self, finding: Finding<Kind>) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(finding);
        }
    }
}

impl<Kind> Default for Findings<Kind> {
    fn default() -> Findings<Kind> {
        Findings { count: 0, first: Vec::new() }
    }
}
