//! `pipewarden fifo`: who is at a FIFO, and releasing those who wait to open it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::explained::{self, Bounds, footer, json};
use super::holders::{name, rows};
use crate::explain::aside::Teller;
use crate::explain::fifo::{Closed, Status, find, release, status};
use crate::explain::machine::Machine;
use crate::run::fifo::{self as owned, Ask, owner};

/// Say who is at a FIFO, close one that a run owns, or release those who wait to open it
#[derive(Debug, clap::Subcommand)]
pub enum Fifo {
    /// Who reads, who writes, who waits to open it, and what is inside
    Status(At),
    /// Close a FIFO that a run owns; of any other one open and close the end that blocked openers wait
    /// for. Nobody is signalled
    Close(At),
}

/// What is told: what can be seen of any FIFO, and what the run says that owns it.
#[derive(serde::Serialize)]
struct Answer<T> {
    #[serde(flatten)]
    seen: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<owned::Status>,
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
                let owner = ask(&path, Ask::Status)?;
                let machine = machine(teller)?;
                for full in [false, true] {
                    let answer = Answer { seen: status(&path, fifo, &machine, full), owner: owner.clone() };
                    let told = || text(&answer.seen) + &owner_text(answer.owner.as_ref());
                    teller.answer(&if at.json { json(&answer)? } else { told() });
                }
                Ok(())
            }),
            Fifo::Close(at) => explained::answer(at.bounds, |teller| {
                let answer = close(&at.path, teller)?;
                let told = || closed_text(&answer.seen) + &owner_text(answer.owner.as_ref());
                teller.answer(&if at.json { json(&answer)? } else { told() });
                Ok(())
            }),
        }
    }
}

fn machine(teller: &Teller) -> Result<Machine, String> {
    Machine::look(teller.half_time()).map_err(|error| format!("/proc cannot be read: {error}"))
}

/// Asks the run that owns the FIFO, if one does.
fn ask(path: &Path, what: Ask) -> Result<Option<owned::Status>, String> {
    let answer = owner(path).map(|owner| owner.ask(what)).transpose();
    answer.map_err(|error| format!("the run that owns {} does not answer: {error}", path.display()))
}

/// What the owner says, for people.
fn owner_text(owner: Option<&owned::Status>) -> String {
    let Some(owner) = owner else { return String::new() };
    let state = match (&owner.closed_at, &owner.closed_because) {
        (Some(at), Some(why)) => format!("closed at {at}: {why}"),
        _ if owner.open => "open".to_owned(),
        _ => "closed".to_owned(),
    };
    let (taken, waiting) = (owner.bytes_taken, owner.bytes_waiting);
    let mut text = format!(
        "owned by pipewarden ({}) since {}, {state}; {taken} bytes taken, {waiting} not read by the command yet\n",
        owner.pid, owner.opened_at
    );
    for (what, who) in [("writes", &owner.writers), ("reads", &owner.readers)] {
        for one in who {
            text.push_str(&format!("{} ({}) {what} since {}\n", one.comm, one.pid, one.since));
        }
    }
    text
}

fn close(path: &Path, teller: &Teller) -> Result<Answer<Closed>, String> {
    let (path, fifo) = find(path)?;
    if let Some(owner) = ask(&path, Ask::Close)? {
        let did = vec![format!("asked pipewarden ({}), which owns it, to close it", owner.pid)];
        let left = status(&path, fifo, &machine(teller)?, true);
        return Ok(Answer { seen: Closed { did, released: Vec::new(), left }, owner: Some(owner) });
    }
    let before = status(&path, fifo, &machine(teller)?, true);
    let (did, released) = release(&path, fifo, &before, PATIENCE)?;
    let left = status(&path, fifo, &machine(teller)?, true);
    Ok(Answer { seen: Closed { did, released, left }, owner: None })
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
