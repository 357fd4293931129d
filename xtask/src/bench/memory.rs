//! Resident memory of a supervisor.

use std::fs;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::actor::told;
use super::plan::Plan;
use super::table::Table;
use crate::process::{Pidfd, finish, pipe, read_some, wait_for};

/// What it may take.
const BUDGET_KB: u64 = 5 * 1024;

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nmemory: VmRSS of the supervisor, stdout and stderr pumped");
    let waiting = while_it_waits(plan)?;
    let (ending, peak) = during_an_ending(plan)?;
    for (what, kilobytes) in [("while the command runs", waiting), ("while it ends holders", ending)] {
        println!("  {what:24}  {kilobytes} kB");
        table.promise(
            format!("memory of `run` {what}"),
            format!("{kilobytes} kB"),
            format!("{BUDGET_KB} kB"),
            kilobytes <= BUDGET_KB,
        );
    }
    println!("  {:24}  {peak} kB", "at its start");
    table.aside("the same at its start, for a millisecond".to_owned(), format!("{peak} kB"));
    Ok(())
}

/// The command has written, and is silent.
fn while_it_waits(plan: &Plan) -> Result<u64> {
    let (source, write) = pipe()?;
    let (_errors, stderr) = pipe()?;
    let mut program = plan.pipewarden(&[], &plan.actor(&["stay"]));
    let mut child = program.stdin(Stdio::null()).stdout(write).stderr(stderr).spawn()?;
    drop(program);
    // What the command wrote came through the supervisor: it is fully there.
    told(&read_some(&source)?)?;
    let memory = status_kb(child.id(), "VmRSS");
    // An asked ending: the command goes first, and the supervisor with it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id())?), nix::sys::signal::SIGTERM)?;
    finish(&mut child, Duration::from_secs(10))?;
    memory
}

/// The most that is seen of it while it hunts a holder that ignores SIGTERM, and the most that there was
/// from its start on: before the command runs it parses and prepares.
fn during_an_ending(plan: &Plan) -> Result<(u64, u64)> {
    let (source, write) = pipe()?;
    let (_errors, stderr) = pipe()?;
    let mut program = plan.pipewarden(
        &["--holder-grace", "0", "--kill-after", "500ms"],
        &plan.actor(&["leave-holder", "--ignoring-term"]),
    );
    let mut child = program.stdin(Stdio::null()).stdout(write).stderr(stderr).spawn()?;
    drop(program);
    told(&read_some(&source)?)?;
    let supervisor = Pidfd::of(&child)?;
    let (mut most, mut peak) = (0, 0);
    while !wait_for(&[supervisor.as_fd()], Instant::now() + Duration::from_millis(1))?.contains(&true) {
        most = status_kb(child.id(), "VmRSS").map_or(most, |now| most.max(now));
        peak = status_kb(child.id(), "VmHWM").unwrap_or(peak);
    }
    let status = finish(&mut child, Duration::from_secs(10))?;
    ensure!(status.success() && most > 0, "the supervisor was not seen at work: {status}");
    Ok((most, peak))
}

/// A field of `/proc/PID/status`, in kB.
pub(super) fn status_kb(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.trim_matches([':', ' ', '\t']).strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("/proc/{pid}/status has no {field}"))
}
