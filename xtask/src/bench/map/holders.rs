//! Who holds a pipe, asked in every way, among ever more processes that have nothing to do with it.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::super::crowd::Crowd;
use super::super::plan::{Plan, is_installed};
use super::super::samples::{Samples, time};
use super::super::table::Table;
use super::{Kinds, of, timed};
use crate::process::pipe;

const SIZES: [usize; 5] = [10, 100, 1000, 5000, 20_000];
const OURS: [(&str, &str); 3] = [("map", "live map"), ("iterator", "our iterator"), ("proc", "our scan of /proc")];
const OTHERS: [&str; 3] = ["fuser", "lsof", "lsfd"];
/// Other programs are asked among so many at most: lsof takes a second there.
const MOST_FOR_OTHERS: usize = 5000;

pub(super) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let others: Vec<&str> = OTHERS.into_iter().filter(|program| is_installed(program)).collect();
    for program in OTHERS.iter().filter(|program| !others.contains(program)) {
        println!("SKIPPED the comparison with {program}: it is not installed");
    }
    let mut crowd = Crowd::default();
    let mut by_size: Vec<(usize, Kinds)> = Vec::new();
    for size in SIZES {
        if let Some(why) = too_many(plan, size) {
            println!("SKIPPED {size} processes: {why}");
            break;
        }
        crowd.grow_to(size)?;
        let mut kinds = timed(plan, "holders", plan.samples(1000))?;
        for program in others.iter().filter(|_| size <= MOST_FOR_OTHERS) {
            kinds.insert((*program).to_owned(), asked(plan, program)?);
        }
        for (kind, what) in OURS.into_iter().chain(others.iter().map(|program| (*program, *program))) {
            if let Some(samples) = kinds.get(kind) {
                println!("  holders by {what:20} {size:5} others  {samples}");
            }
        }
        by_size.push((size, kinds));
    }
    drop(crowd);
    judge(&by_size, &others, table)
}

fn judge(by_size: &[(usize, Kinds)], others: &[&str], table: &mut Table) -> Result<()> {
    let ((least, first), (most, last)) = by_size
        .first()
        .zip(by_size.last())
        .map(|(first, last)| ((first.0, &first.1), (last.0, &last.1)))
        .context("no size")?;
    let growth = of(last, "map")?.against(of(first, "map")?);
    table.promise(
        format!("holders from the live map, {most} against {least} idle processes"),
        format!("{growth:.2}x ({} / {})", nanoseconds(of(last, "map")?), nanoseconds(of(first, "map")?)),
        "flat (1.2x)".to_owned(),
        growth <= 1.2,
    );
    let Some((_, kinds)) = by_size.iter().find(|(size, _)| *size == 1000) else { return Ok(()) };
    let map = of(kinds, "map")?;
    for other in ["iterator", "proc"].iter().chain(others) {
        let ratio = of(kinds, other)?.against(map);
        let what = format!("holders from the live map, speed against {other}, 1000 processes");
        let measured = format!("{ratio:.0}x ({} / {})", nanoseconds(map), time(of(kinds, other)?.median()));
        if *other == "lsof" {
            table.promise(what, measured, "1000x".to_owned(), ratio >= 1000.0);
        } else {
            table.aside(what, measured);
        }
    }
    Ok(())
}

fn nanoseconds(samples: &Samples) -> String {
    format!("{} ns", samples.median().as_nanos())
}

/// Why so many processes cannot be had here, if they cannot: half of what there may be is others'.
fn too_many(plan: &Plan, size: usize) -> Option<String> {
    if plan.is_quick() && size > 1000 {
        return Some("quick".to_owned());
    }
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    // An idle one takes some 400 kB.
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.split_whitespace().next()?;
    let room = available.parse::<usize>().ok()? / 400;
    if size > most / 4 * 3 {
        Some(format!("this machine has pids for {most}"))
    } else if size > room {
        Some(format!("there is memory for {room}"))
    } else {
        None
    }
}

/// Another program, asked from its start to its exit.
fn asked(plan: &Plan, program: &str) -> Result<Samples> {
    let (source, _write) = pipe()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), source.as_raw_fd());
    let mut samples = Samples::default();
    for _ in 0..plan.samples(20) {
        let mut command = Command::new(program);
        match program {
            // Neither can be asked for a pipe: they list everything, and one looks for its number.
            "lsof" => command.arg("-nPw"),
            "lsfd" => &mut command,
            _ => command.arg(&path),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        command.status().with_context(|| format!("cannot start {program}"))?;
        samples.push(started.elapsed());
    }
    Ok(samples)
}
