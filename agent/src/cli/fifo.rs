//! `pipewarden fifo`: who is at a FIFO, and releasing those who wait to open it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::explained::{self, Bounds, footer, json};
use super::holders::{name, rows};
use crate::explain::fifo::{Closed, Status, find, release, status};
use crate::explain::machine::Machine;

/// Say who is at a FIFO, or release those who wait to open it
#[derive(Debug, clap::Subcommand)]
pub enum Fifo {
    /// Who reads, who writes, who waits to open it, and what is inside
    Status(At),
    /// Open and close the end that blocked openers wait for; nobody is signalled
    Close(At),
}

/// Which FIFO.
#[derive(Debug, clap::Args)]
pub struct At {
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bounds: Bounds,
}

/// How long a released opener may take to leave its system call, before it counts as left.
const PATIENCE: Duration = Duration::from_secs(2);

impl Fifo {
    /// Looks, acts if asked, and prints.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        match self {
            Fifo::Status(at) => explained::answer(at.bounds, |teller| {
                let (path, fifo) = find(&at.path)?;
                let machine = machine(teller.halfway)?;
                for full in [false, true] {
                    let status = status(&path, fifo, &machine, full);
                    teller.answer(&if at.json { json(&status)? } else { text(&status) });
                }
                Ok(())
            }),
            Fifo::Close(at) => explained::answer(at.bounds, |teller| {
                let closed = close(&at.path, teller.halfway)?;
                teller.answer(&if at.json { json(&closed)? } else { closed_text(&closed) });
                Ok(())
            }),
        }
    }
}

fn machine(deadline: std::time::Instant) -> Result<Machine, String> {
    Machine::look(deadline).map_err(|error| format!("/proc cannot be read: {error}"))
}

fn close(path: &Path, deadline: std::time::Instant) -> Result<Closed, String> {
    let (path, fifo) = find(path)?;
    let before = status(&path, fifo, &machine(deadline)?, true);
    let (did, released) = release(&path, fifo, &before, PATIENCE)?;
    let left = status(&path, fifo, &machine(deadline)?, true);
    Ok(Closed { did, released, left })
}

fn text(status: &Status) -> String {
    let mut text = name(&status.pipe);
    if let Some(waiting) = &status.waiting {
        let of = waiting.capacity.map_or_else(String::new, |capacity| format!(" of {capacity}"));
        text.push_str(&format!(", {}{of} bytes waiting", waiting.bytes));
    }
    text.push_str(&format!(
        "\n{} read, {} write, {} blocked in open\n",
        status.readers.len(),
        status.writers.len(),
        status.blocked.len()
    ));
    let mut everybody = status.readers.clone();
    everybody.extend(status.writers.iter().chain(&status.blocked).filter(|row| !status.readers.contains(row)).cloned());
    if !everybody.is_empty() {
        text.push_str(&rows(&everybody));
    }
    text + &footer(status.source, &status.unseen)
}

fn closed_text(closed: &Closed) -> String {
    let mut said = String::new();
    for act in &closed.did {
        said.push_str(&format!("{act}\n"));
    }
    for row in &closed.released {
        said.push_str(&format!("released: {} ({})\n", row.comm, row.pid));
    }
    if closed.did.is_empty() {
        said.push_str("nobody waits to open it: nothing was done\n");
    }
    if !closed.left.writers.is_empty() {
        said.push_str("left, and to be closed by themselves, before its readers get EOF:\n");
    }
    said + &text(&closed.left)
}
