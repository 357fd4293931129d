//! Finding a pipe's holders through `/proc`: the lineage's, and everybody's.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::crowd::{Crowd, SIZES};
use super::plan::{Plan, is_installed};
use super::samples::{Samples, time};
use super::table::Table;
use crate::command::output;
use crate::process::pipe;

const ROUNDS: usize = 4;

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nproc: who holds a pipe, by a scan of the run's lineage and of the whole machine");
    let mut lineage = SIZES.map(|_| Samples::default());
    let mut machine = Cost::default();
    let others: Vec<&str> = ["fuser", "lsof"].into_iter().filter(|program| is_installed(program)).collect();
    let mut theirs: Vec<Cost> = others.iter().map(|_| Cost::default()).collect();
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
                machine.add(plan.scan().args(["machine", &path]))?;
                for (program, cost) in others.iter().zip(&mut theirs) {
                    let mut command = Command::new(program);
                    // lsof cannot be asked for a pipe: one lists everything, and looks for its number.
                    cost.add(if *program == "lsof" { command.arg("-nPw") } else { command.arg(&path) })?;
                }
            }
        }
    }
    for (index, size) in SIZES.into_iter().enumerate() {
        println!("  a lineage of one,         {size:4} others  {}", lineage[index]);
    }
    for (program, cost) in ["the machine"].iter().chain(&others).zip([&machine].into_iter().chain(&theirs)) {
        println!("  {program:24}  1000 others  {}", cost.wall);
        println!("  {:24}  {:11}  {}", "", "CPU time", cost.cpu);
    }
    let growth = lineage[2].against(&lineage[0]);
    table.promise(
        format!("scan of the lineage, {} against {} idle processes", SIZES[2], SIZES[0]),
        format!("{growth:.2}x ({} / {})", time(lineage[2].median()), time(lineage[0].median())),
        "flat (1.2x)".to_owned(),
        growth <= 1.2,
    );
    for (program, cost) in others.iter().zip(&theirs) {
        let (ratio, wall) = (cost.cpu.against(&machine.cpu), cost.wall.against(&machine.wall));
        let what = format!("scan of 1000 processes, speed against {program}, by CPU time");
        let (ours, theirs) = (time(machine.cpu.median()), time(cost.cpu.median()));
        let measured = format!("{ratio:.1}x ({ours} / {theirs}; {wall:.1}x by the clock)");
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

/// What it costs to run a program that names holders, from its start to its exit. It computes all the
/// time, so what other processes take of the cores shows in the clock's time alone.
#[derive(Default)]
struct Cost {
    wall: Samples,
    cpu: Samples,
}

impl Cost {
    fn add(&mut self, program: &mut Command) -> Result<()> {
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (started, before) = (Instant::now(), cpu_of_children()?);
        let status = program.status().with_context(|| format!("cannot start {:?}", program.get_program()))?;
        self.wall.push(started.elapsed());
        self.cpu.push(cpu_of_children()?.saturating_sub(before));
        ensure!(status.success(), "{:?} found no holder: {status}", program.get_program());
        Ok(())
    }
}

/// The CPU time of all children that were waited for.
fn cpu_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask for the children's CPU time")?;
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or_default();
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}
