//! The live map: how soon an escape is known, how long an answer takes, what it costs who is not in it.

mod attach;
mod escape;
mod holders;
mod tax;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::plan::Plan;
use super::samples::Samples;
use super::table::Table;
use crate::command::output;

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nmap: the live map of pipe ownership, in the kernel");
    // Whether there can be one here is found out by having one.
    if let Err(error) = timed(plan, "attach", 1) {
        println!("SKIPPED the live map: {error:#}");
        return Ok(());
    }
    attach::measure(plan, table)?;
    escape::measure(plan, table)?;
    tax::measure(plan, table)?;
    holders::measure(plan, table)
}

/// Samples by what they are of.
type Kinds = BTreeMap<String, Samples>;

/// What the library's own clock says: see `time_map`.
fn timed(plan: &Plan, what: &str, count: usize) -> Result<Kinds> {
    let mut kinds = Kinds::new();
    for line in output(plan.map().args([what, &count.to_string()]))?.lines() {
        let (kind, nanoseconds) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
        kinds.entry(kind.to_owned()).or_default().push(Duration::from_nanos(nanoseconds.parse()?));
    }
    ensure!(!kinds.is_empty(), "time_map {what} measured nothing");
    Ok(kinds)
}

/// The samples of one kind.
fn of<'a>(kinds: &'a Kinds, kind: &str) -> Result<&'a Samples> {
    kinds.get(kind).with_context(|| format!("nothing was measured of {kind}"))
}
