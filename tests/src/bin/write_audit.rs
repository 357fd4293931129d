//! A run that does nothing but write its audit log, as told on stdin, line by line:
//! `record N` writes N records and waits for the last, `finish MILLISECONDS` closes the log and ends.
//! Each line is answered with one line on stdout.

use std::io::{BufRead, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use pipewarden::audit::detail::{Finished, Reseeded};
use pipewarden::audit::{Event, Log, Rotation, RunId, Target};

/// What ends a wait that nothing else ends.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let target = Target::from(arguments.next().context("usage: write_audit TARGET [MAX_SIZE FILES]")?);
    let mut number = || arguments.next().map(|text| text.to_string_lossy().parse::<u32>()).transpose();
    let log = match (number()?, number()?) {
        (Some(max_size), Some(files)) => {
            let rotation = Rotation { max_size: max_size.into(), files };
            Log::open_rotated(&target, rotation, RunId::new())?
        }
        _ => Log::open(&target, RunId::new())?,
    };
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("record", count)) => writeln!(out, "{:?}", record(&log, count.parse()?))?,
            Some(("finish", bound)) => {
                let closing = log.finish(Finished::new(None, 0, 1), Duration::from_millis(bound.parse()?));
                writeln!(out, "{:?} {:?}", closing.delivery, closing.account)?;
                return Ok(());
            }
            _ => bail!("what is {line}?"),
        }
    }
    Ok(())
}

/// Writes records, not more at once than the queue takes.
fn record(log: &Log, count: u64) -> Option<pipewarden::audit::Delivery> {
    let mut last = None;
    for missed in 0..count {
        // Of all lengths, so that a full disk cuts them in many places.
        let why = "sequence gap ".repeat(usize::try_from(missed % 50).unwrap_or_default());
        let detail = Reseeded { rung: "connector".to_owned(), why, missed };
        let receipt = log.record(Event::TrackerReseeded { detail });
        if missed % 100 == 99 || missed + 1 == count {
            last = Some(receipt.wait(DEADLINE));
        }
    }
    last
}
