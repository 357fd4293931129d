//! From a process's setsid(2) to a thread of ours that knows of it.

use std::time::Duration;

use anyhow::Result;

use super::super::plan::Plan;
use super::super::samples::{Samples, time};
use super::super::table::Table;
use super::{Kinds, of, timed};
use crate::busy::Busy;

const READERS: [(&str, &str); 3] = [
    ("prioritised ring", "ring buffer, prioritised reader"),
    ("ring", "ring buffer, reader as any"),
    ("connector", "connector, reader as any"),
];

pub(super) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let quiet = timed(plan, "escape", plan.samples(800))?;
    let busy = {
        let _busy = Busy::start()?;
        timed(plan, "escape", plan.samples(400))?
    };
    print("quiet", &quiet)?;
    print("every core busy", &busy)?;
    promise(table, "ring buffer, prioritised reader", of(&quiet, "prioritised ring")?, [40, 100]);
    promise(table, "connector", of(&quiet, "connector")?, [20, 70]);
    for (kind, what) in READERS {
        let samples = of(&busy, kind)?;
        let measured = format!("{} / {}", time(samples.median()), time(samples.quantile(0.99)));
        table.aside(format!("the same by {what}, every core busy, p50 / p99"), measured);
    }
    Ok(())
}

fn print(when: &str, kinds: &Kinds) -> Result<()> {
    for (kind, what) in READERS {
        println!("  escape by {what:32} {when:16}  {}", of(kinds, kind)?);
    }
    Ok(())
}

fn promise(table: &mut Table, what: &str, samples: &Samples, budget: [u64; 2]) {
    let (p50, p99) = (samples.median(), samples.quantile(0.99));
    table.promise(
        format!("escape until it is known, {what}, p50 / p99"),
        format!("{} / {}", time(p50), time(p99)),
        format!("{} us / {} us", budget[0], budget[1]),
        p50 <= Duration::from_micros(budget[0]) && p99 <= Duration::from_micros(budget[1]),
    );
}
