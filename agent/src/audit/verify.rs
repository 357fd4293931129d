//! Reads logs back: whether every chain is whole, and what else stands between the records.
//!
//! A record is torn if it begins or ends as a record does and is not one: no single changed byte can
//! hide both. What looks like nothing of ours (the command's own stderr beside `--audit -`) is
//! foreign: named, and no fault of the log. Memory depends on how many runs a log has, never on how
//! many records it has or how long its lines are.

mod lines;
mod verdict;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead};

use serde::Deserialize;

pub use self::verdict::{Fault, Finding, Findings, KEPT, Oddity, OpenRun, Runs, Verdict};

use self::lines::{Lines, Looks, is_cut, looks, pieces, run_of_torn};
use super::chain::{self, Hash};
use super::detail::Account;
use super::record::RunId;

/// How many runs may be open at once: they have to be remembered, at some 150 bytes each.
pub const OPEN_LIMIT: usize = 1 << 18;

/// How many closed runs are remembered, the latest ones, at some 30 bytes each. A record that comes
/// after the end of an older run looks like one whose predecessors are missing.
const CLOSED_LIMIT: usize = 1 << 20;

/// Why a log could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It has too many open runs to remember.
    #[error("more than {OPEN_LIMIT} runs are open at once; verify a part of the log at a time")]
    TooManyRuns,
}

/// What a verifier needs of a record. The rest may be of a later version.
#[derive(Deserialize)]
struct Link {
    schema: String,
    run: RunId,
    seq: u64,
    event: String,
    prev: Option<Hash>,
}

/// What a verifier needs of `run.finished`.
#[derive(Default, Deserialize)]
struct Closer {
    detail: CloserDetail,
}

#[derive(Default, Deserialize)]
struct CloserDetail {
    #[serde(default)]
    log: Account,
}

/// A line of a log.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    line: u64,
}

/// A run that is not closed yet.
#[derive(Default)]
struct Run {
    next: u64,
    head: Option<Hash>,
    records: u64,
    broken: bool,
    torn: u64,
    torn_at: Option<Place>,
}

/// Verifies the files of a log, one after the other: a run may go on in the next one.
#[derive(Default)]
pub struct Verifier {
    files: Vec<String>,
    lines: u64,
    records: u64,
    open: HashMap<RunId, Run>,
    /// Closed runs, and whether they are broken. Run ids sort by time.
    closed: BTreeMap<RunId, bool>,
    runs: Runs,
    faults: Findings<Fault>,
    oddities: Findings<Oddity>,
    /// Whether older files than the first that is read were put aside and dropped.
    rotated: bool,
    /// A torn record that nothing follows yet.
    end: Option<(Place, Option<RunId>)>,
}

impl Verifier {
    /// For a log of which the oldest files are gone, because only so many are kept: a run may have begun
    /// in one of them. Nobody can tell such a beginning from one that somebody cut off.
    #[must_use]
    pub fn of_rotated() -> Verifier {
        Verifier { rotated: true, ..Verifier::default() }
    }

    /// Reads a file to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has more than [`OPEN_LIMIT`] open runs.
    pub fn read(&mut self, name: &str, input: impl BufRead) -> Result<(), Error> {
        let file = self.files.len();
        self.files.push(name.to_owned());
        let mut lines = Lines::new(input);
        let mut number = 0;
        while let Some(line) = lines.next()? {
            // Something follows: what the file before ended with is no end any more.
            if let Some((place, run)) = self.end.take() {
                self.torn(place, run)?;
            }
            number += 1;
            self.lines += 1;
            let place = Place { file, line: number };
            let mut pieces = pieces(line.bytes).peekable();
            while let Some(piece) = pieces.next() {
                let at_end = pieces.peek().is_none() && !line.terminated;
                self.piece(place, piece, at_end)?;
            }
        }
        Ok(())
    }

    fn piece(&mut self, place: Place, piece: &[u8], at_end: bool) -> Result<(), Error> {
        match looks(piece) {
            Looks::Whole => match serde_json::from_slice(piece) {
                Ok(link) => self.record(place, piece, &link),
                Err(_) => self.torn(place, run_of_torn(piece)),
            },
            Looks::Torn if at_end && is_cut(piece) => {
                self.end = Some((place, run_of_torn(piece)));
                Ok(())
            }
            Looks::Torn => self.torn(place, run_of_torn(piece)),
            Looks::Foreign => {
                self.odd(place, None, Oddity::Foreign, "this is no audit record".into());
                Ok(())
            }
        }
    }

    fn record(&mut self, place: Place, line: &[u8], link: &Link) -> Result<(), Error> {
        let (stated, actual) = (chain::stated(line), chain::actual(line));
        if stated != actual {
            self.changed(place, link.run, stated);
            return Ok(());
        }
        if link.schema != "pipewarden.audit/1" {
            let text = format!("{}: a later version of pipewarden can verify this record", link.schema);
            self.odd(place, None, Oddity::Foreign, text);
            return Ok(());
        }
        self.records += 1;
        if self.closed.contains_key(&link.run) {
            self.fault(place, Some(link.run), Fault::AfterFinished, "this stands after the run's end".into());
            self.break_closed(link.run);
            return Ok(());
        }
        self.chain(place, link, stated)?;
        if link.event == "run.finished" {
            let closer: Closer = serde_json::from_slice(line).unwrap_or_default();
            self.close(place, link.run, closer.detail.log);
        }
        Ok(())
    }

    /// A record whose bytes are not its own any more stands for the one that was there.
    fn changed(&mut self, place: Place, run: RunId, stated: Option<Hash>) {
        self.fault(place, Some(run), Fault::Changed, "this record was changed after it was written".into());
        if let Some(state) = self.open.get_mut(&run) {
            state.broken = true;
            state.next += 1;
            state.head = stated;
        } else {
            self.break_closed(run);
        }
    }

    /// Checks a record against its predecessor. After a fault the chain goes on from this record, so
    /// that one fault is not reported again with every record that follows it.
    fn chain(&mut self, place: Place, link: &Link, hash: Option<Hash>) -> Result<(), Error> {
        let may_begin_late = self.rotated && place.file == 0;
        let run = self.open_run(link.run)?;
        run.records += 1;
        if may_begin_late && run.records == 1 && run.torn == 0 && link.seq > 0 {
            run.next = link.seq.saturating_add(1);
            run.head = hash;
            let text = format!("the run's first {} records were in a file that is gone", link.seq);
            self.odd(place, Some(link.run), Oddity::BeginsLate, text);
            return Ok(());
        }
        let fault = match link.seq.cmp(&run.next) {
            std::cmp::Ordering::Less => {
                let last = run.next.saturating_sub(1);
                Some((Fault::Repeated, format!("record {} stands here, after record {last}", link.seq)))
            }
            std::cmp::Ordering::Greater if link.seq - run.next == 1 => {
                Some((Fault::Missing, format!("record {} is missing before this one", run.next)))
            }
            std::cmp::Ordering::Greater => {
                Some((Fault::Missing, format!("records {} to {} are missing before this one", run.next, link.seq - 1)))
            }
            std::cmp::Ordering::Equal if link.prev != run.head => {
                Some((Fault::Unchained, format!("record {} follows another record than the one before it", link.seq)))
            }
            std::cmp::Ordering::Equal => None,
        };
        if link.seq >= run.next {
            run.next = link.seq.saturating_add(1);
            run.head = hash;
        }
        if let Some((kind, text)) = fault {
            run.broken = true;
            self.fault(place, Some(link.run), kind, text);
        }
        Ok(())
    }

    fn open_run(&mut self, run: RunId) -> Result<&mut Run, Error> {
        if self.open.len() >= OPEN_LIMIT && !self.open.contains_key(&run) {
            return Err(Error::TooManyRuns);
        }
        Ok(self.open.entry(run).or_default())
    }

    /// Part of a record. Only its run's end tells whether it is accounted for.
    fn torn(&mut self, place: Place, run: Option<RunId>) -> Result<(), Error> {
        match run {
            Some(run) if !self.closed.contains_key(&run) => {
                let state = self.open_run(run)?;
                state.torn += 1;
                state.torn_at.get_or_insert(place);
            }
            _ => {
                self.fault(place, run, Fault::Torn, "this is a damaged record, or a part of one".into());
                if let Some(run) = run {
                    self.break_closed(run);
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, place: Place, id: RunId, log: Account) {
        let Some(mut run) = self.open.remove(&id) else { return };
        if let Some(torn_at) = run.torn_at {
            if run.torn <= log.lost {
                let text = format!("a part of a record that the run counted as lost ({} in all)", log.lost);
                self.odd(torn_at, Some(id), Oddity::TornAndCounted, text);
            } else {
                run.broken = true;
                let text = format!("{} damaged records, and the run counted {} as lost", run.torn, log.lost);
                self.fault(torn_at, Some(id), Fault::Torn, text);
            }
        }
        if log.dropped + log.lost > 0 {
            let text = format!("the run says that {} records were dropped and {} lost", log.dropped, log.lost);
            self.odd(place, Some(id), Oddity::Incomplete, text);
        }
        *(if run.broken { &mut self.runs.broken } else { &mut self.runs.closed }) += 1;
        self.closed.insert(id, run.broken);
        if self.closed.len() > CLOSED_LIMIT {
            self.closed.pop_first();
        }
    }

    /// A run that had looked whole is not.
    fn break_closed(&mut self, run: RunId) {
        if let Entry::Occupied(mut entry) = self.closed.entry(run)
            && !entry.insert(true)
        {
            self.runs.closed -= 1;
            self.runs.broken += 1;
        }
    }

    /// What all that was read is worth.
    #[must_use]
    pub fn verdict(mut self) -> Verdict {
        if let Some((place, run)) = self.end.take() {
            self.odd(place, run, Oddity::UnfinishedEnd, "the log ends within this record".into());
        }
        let mut left: Vec<(RunId, Run)> = self.open.drain().collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        let mut open = Vec::new();
        for (id, run) in left {
            if let Some(place) = run.torn_at {
                let text = format!("{} damaged records, and no run.finished that counts them", run.torn);
                self.fault(place, Some(id), Fault::Torn, text);
            }
            if run.broken || run.torn > 0 {
                self.runs.broken += 1;
                continue;
            }
            self.runs.open += 1;
            if open.len() < KEPT {
                open.push(OpenRun { run: id, records: run.records, head: run.head });
            }
        }
        Verdict {
            intact: self.faults.count == 0,
            files: self.files,
            lines: self.lines,
            records: self.records,
            runs: self.runs,
            faults: self.faults,
            oddities: self.oddities,
            open,
        }
    }

    fn fault(&mut self, place: Place, run: Option<RunId>, kind: Fault, text: String) {
        self.faults.push(self.finding(place, run, kind, text));
    }

    fn odd(&mut self, place: Place, run: Option<RunId>, kind: Oddity, text: String) {
        self.oddities.push(self.finding(place, run, kind, text));
    }

    fn finding<Kind>(&self, place: Place, run: Option<RunId>, kind: Kind, text: String) -> Finding<Kind> {
        let file = self.files.get(place.file).cloned().unwrap_or_default();
        Finding { file, line: place.line, run, kind, text }
    }
}
