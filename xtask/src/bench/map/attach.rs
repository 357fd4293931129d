//! What it takes to have a live map: time, and the memory of who has it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::actor::told;
use super::super::memory::status_kb;
use super::super::plan::Plan;
use super::super::samples::time;
use super::super::table::Table;
use super::{of, timed};
use crate::process::{finish, pipe, read_some};

/// What a run that carries the map may have resident.
const BUDGET_KB: u64 = 8 * 1024;

pub(super) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let kinds = timed(plan, "attach", plan.samples(40))?;
    for (kind, what) in [
        ("load", "load the programs"),
        ("attach", "attach them"),
        ("first-event", "then, the first event of a fork"),
        ("detach", "detach them"),
    ] {
        let samples = of(&kinds, kind)?;
        println!("  {what:32}  {samples}");
        table.aside(format!("live map: {what}"), time(samples.median()));
    }
    match carrying(plan)? {
        Some(kilobytes) => {
            println!("  {:32}  {kilobytes} kB", "VmRSS of a run that carries it");
            table.promise(
                "memory of `run --backend bpf` while the command runs",
                format!("{kilobytes} kB"),
                format!("{BUDGET_KB} kB"),
                kilobytes <= BUDGET_KB,
            );
        }
        None => println!("SKIPPED the memory of a run with a live map: another process carries the machine's tracker"),
    }
    Ok(())
}

/// Resident memory of a run with a live map that has been seeded, while its command is silent.
fn carrying(plan: &Plan) -> Result<Option<u64>> {
    let (source, write) = pipe()?;
    let (_errors, stderr) = pipe()?;
    let mut program = plan.pipewarden(&["--backend", "bpf"], &plan.actor(&["stay"]));
    let mut child = program.stdin(Stdio::null()).stdout(write).stderr(stderr).spawn()?;
    drop(program);
    let said = read_some(&source)?;
    if said.is_empty() {
        finish(&mut child, Duration::from_secs(10))?;
        return Ok(None);
    }
    told(&said)?;
    let memory = settled(child.id());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id())?), nix::sys::signal::SIGTERM)?;
    finish(&mut child, Duration::from_secs(10))?;
    memory.map(Some)
}

/// The most of a second: what it reads at its start it forgets.
fn settled(pid: u32) -> Result<u64> {
    std::thread::sleep(Duration::from_millis(500));
    let until = Instant::now() + Duration::from_millis(500);
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(status_kb(pid, "VmRSS").context("the run has ended")?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(most)
}
