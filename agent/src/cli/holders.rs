//! `pipewarden holders`: who holds a pipe.

use std::process::ExitCode;

use super::explained::{self, Bounds, fds, footer, json, table, word};
use crate::explain::channel::Told;
use crate::explain::holders::{Report, Row, channels, report};
use crate::explain::machine::Machine;
use crate::explain::target::Target;

/// Say who holds a pipe, FIFO, unix socket or terminal
#[derive(Debug, clap::Args)]
pub struct Holders {
    /// pipe:[INO], the path of a FIFO, or PID[:FD]
    #[arg(value_name = "TARGET")]
    target: Target,
    /// One line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bounds: Bounds,
}

/// The answer about all that a process has.
#[derive(serde::Serialize)]
struct OfProcess {
    pid: i32,
    pipes: Vec<Report>,
}

impl Holders {
    /// Looks and prints.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        explained::answer(self.bounds, |teller| {
            let mut machine =
                Machine::look(teller.half_time()).map_err(|error| format!("/proc cannot be read: {error}"))?;
            if let Target::Process(pid, _) = self.target {
                // What fails here is only that sockets of another namespace stay unnamed.
                if let Err(error) = machine.sockets.add_those_of(pid) {
                    machine.sockets.failure.get_or_insert(format!("sockets of another network namespace: {error}"));
                }
            }
            let channels = channels(&self.target, &machine)?;
            for full in [false, true] {
                let reports: Vec<Report> = channels.iter().map(|channel| report(channel, &machine, full)).collect();
                teller.answer(&self.shown(reports)?);
            }
            Ok(())
        })
    }

    fn shown(&self, mut reports: Vec<Report>) -> Result<String, String> {
        match (self.json, &self.target) {
            (true, Target::Process(pid, None)) => json(&OfProcess { pid: *pid, pipes: reports }),
            (true, _) => match reports.pop() {
                Some(report) => json(&report),
                None => Err(format!("{} has no pipe, FIFO, unix socket or terminal", self.target)),
            },
            (false, _) if reports.is_empty() => {
                Ok(format!("{} has no pipe, FIFO, unix socket or terminal\n", self.target))
            }
            (false, _) => Ok(reports.iter().map(text).collect::<Vec<_>>().join("\n")),
        }
    }
}

/// The name of a channel, for people.
#[must_use]
pub fn name(pipe: &Told) -> String {
    match (&pipe.path, pipe.peer) {
        (Some(path), _) => format!("{path} ({})", pipe.kind),
        (None, Some(peer)) => format!("socket:[{}] - socket:[{peer}]", pipe.ino),
        (None, None) => format!("{}:[{}]", pipe.kind, pipe.ino),
    }
}

fn text(report: &Report) -> String {
    let mut text = name(&report.pipe);
    for waiting in &report.waiting {
        let side = waiting.side.as_ref().map_or_else(String::new, |side| format!(" to be read from {side}"));
        let of = waiting.capacity.map_or_else(String::new, |capacity| format!(" of {capacity}"));
        text.push_str(&format!(", {}{of} bytes waiting{side}", waiting.bytes));
    }
    text.push('\n');
    if report.holders.is_empty() {
        text.push_str("nobody whom we see holds it\n");
    } else {
        text.push_str(&rows(&report.holders));
    }
    for flight in &report.in_flight {
        let is = if flight.certain { "in flight" } else { "perhaps in flight" };
        text.push_str(&format!(
            "{is}: in the receive queue of socket:[{}], fd {} of {} ({}), with {} in all\n",
            flight.socket, flight.fd, flight.comm, flight.pid, flight.count
        ));
    }
    text + &footer(report.source, &report.unseen)
}

/// The rows as a table.
#[must_use]
pub fn rows(holders: &[Row]) -> String {
    let head = ["PID", "COMM", "END", "FDS", "NOW", "SINCE", "VIA", "PARENTS"].map(str::to_owned).to_vec();
    let mut lines = vec![head];
    for row in holders {
        let end = row.side.as_ref().map_or_else(|| row.end.to_owned(), Clone::clone);
        let of = row.tid.map_or_else(String::new, |tid| format!(" of thread {tid}"));
        let parents: Vec<String> = row.lineage.iter().map(|p| format!("{} ({})", p.comm, p.pid)).collect();
        lines.push(vec![
            row.pid.to_string(),
            row.comm.clone(),
            end,
            fds(&row.fds) + &of,
            row.now.as_ref().map_or_else(|| "-".to_owned(), word),
            row.since.to_owned(),
            row.via.to_owned(),
            parents.join(" < "),
        ]);
    }
    table(&lines)
}
