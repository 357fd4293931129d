//! What a tracker costs processes, tracked and not, against no programs and against empty ones on the same
//! hooks.

use anyhow::Result;

use super::super::plan::Plan;
use super::super::table::Table;
use super::{of, timed};

const OPERATIONS: [&str; 6] = ["getppid", "dup+close", "dup2-over", "pipe2+2close", "open+close", "fork+exit"];
/// How many system calls each of them is, where that is their cost.
const CALLS: [Option<u128>; 6] = [Some(1), Some(2), Some(1), Some(3), Some(2), None];
const CONDITIONS: [&str; 4] = ["none", "empty", "untracked", "tracked"];
/// What a system call of an untracked process may cost more than with empty programs.
const BUDGET_NS: u128 = 20;

pub(super) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let kinds = timed(plan, "operations", plan.samples(200))?;
    println!("  ns for each (p50, p10 to p90)      {}", CONDITIONS.map(|name| format!("{name:>24}")).join(""));
    for (operation, calls) in OPERATIONS.into_iter().zip(CALLS) {
        let mut medians = Vec::new();
        let mut cells = String::new();
        for condition in CONDITIONS {
            let samples = of(&kinds, &format!("{condition} {operation}"))?;
            let [p10, p50, p90] = [0.1, 0.5, 0.9].map(|part| samples.quantile(part).as_nanos());
            cells += &format!("{:>24}", format!("{p50} ({p10}-{p90})"));
            medians.push(p50);
        }
        println!("  {operation:34} {cells}");
        let [none, empty, untracked, tracked] = medians[..] else { continue };
        let measured = format!("{untracked} ns (nothing {none}, empty {empty}; tracked {tracked})");
        let what = format!("{operation} of an untracked process");
        match calls {
            Some(calls) => table.promise(
                what,
                measured,
                format!("empty + {BUDGET_NS} ns a call"),
                untracked <= empty + calls * BUDGET_NS,
            ),
            None => table.aside(what, measured),
        }
    }
    Ok(())
}
