//! Finding a pipe's holders through `/proc`: the lineage's, and everybody's.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::crowd::{Crowd, SIZES};
use super::plan::{Plan, is_installed};
use super::samples::{Samples, time};
use super::table::Table;
use crate::command::output;
use crate::process::pipe;

const ROUNDS: usize = 5;

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nproc: who holds a pipe, by a scan of the run's lineage and of the whole machine");
    let mut lineage = SIZES.map(|_| Samples::default());
    let mut machine = Samples::default();
    let others: Vec<&str> = ["fuser", "lsof"].into_iter().filter(|program| is_installed(program)).collect();
    let mut theirs: Vec<Samples> = others.iter().map(|_| Samples::default()).collect();
    for _ in 0..ROUNDS {
        let mut crowd = Crowd::default();
        for (index, size) in SIZES.into_iter().enumerate() {
            crowd.grow_to(size)?;
            for nanoseconds in output(plan.scan().args(["lineage", &plan.samples(200).to_string()]))?.lines() {
                lineage[index].push(Duration::from_nanos(nanoseconds.parse()?));
            }
            if size != 1000 {
                continue;
            }
            for _ in 0..plan.samples(40) / ROUNDS {
                let (source, _write) = pipe()?;
                let path = format!("/proc/{}/fd/{}", std::process::id(), source.as_raw_fd());
                machine.push(once(plan.scan().args(["machine", &path]))?);
                for (program, samples) in others.iter().zip(&mut theirs) {
                    let mut command = Command::new(program);
                    // lsof cannot be asked for a pipe: one lists everything, and looks for its number.
                    samples.push(once(if *program == "lsof" { command.args(["-nPw"]) } else { command.arg(&path) })?);
                }
            }
        }
    }
    for (index, size) in SIZES.into_iter().enumerate() {
        println!("  a lineage of one,         {size:4} others  {}", lineage[index]);
    }
    println!("  the machine (a process),  1000 others  {machine}");
    for (program, samples) in others.iter().zip(&theirs) {
        println!("  {program:24}  1000 others  {samples}");
    }
    let growth = lineage[2].against(&lineage[0]);
    table.promise(
        format!("scan of the lineage, {} against {} idle processes", SIZES[2], SIZES[0]),
        format!("{growth:.2}x ({} / {})", time(lineage[2].median()), time(lineage[0].median())),
        "flat (1.2x)".to_owned(),
        growth <= 1.2,
    );
    for (program, samples) in others.iter().zip(&theirs) {
        let ratio = samples.against(&machine);
        let what = format!("scan of 1000 processes, speed against {program}");
        let measured = format!("{ratio:.1}x ({} / {})", time(machine.median()), time(samples.median()));
        if *program == "fuser" {
            table.promise(what, measured, "3x".to_owned(), ratio >= 3.0);
        } else {
            table.aside(what, measured);
        }
    }
    for program in ["fuser", "lsof"].iter().filter(|program| !others.contains(program)) {
        println!("SKIPPED the comparison with {program}: it is not installed");
    }
    Ok(())
}

/// Runs a program that names holders, from its start to its exit.
fn once(program: &mut Command) -> Result<Duration> {
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let status = program.status().with_context(|| format!("cannot start {:?}", program.get_program()))?;
    let took = started.elapsed();
    ensure!(status.success(), "{:?} found no holder: {status}", program.get_program());
    Ok(took)
}
