//! `pipewarden why`: what a process waits for, and what would release it.

use std::process::ExitCode;

use super::explained::{self, Bounds, fds, footer, json, table, word};
use super::holders::name;
use crate::explain::why::{Explanation, Waiting, dot, explain, look};

/// Say what a process waits for, who could end that, and what would release it
#[derive(Debug, clap::Args)]
pub struct Why {
    /// The process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// One line of JSON
    #[arg(long, conflicts_with = "dot")]
    json: bool,
    /// A picture for Graphviz
    #[arg(long)]
    dot: bool,
    #[command(flatten)]
    bounds: Bounds,
}

impl Why {
    /// Looks and prints.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        explained::answer(self.bounds, |teller| {
            let machine = look(self.pid, teller.half_time())?;
            for full in [false, true] {
                let (explanation, graph) = explain(self.pid, &machine, full)?;
                teller.answer(&if self.json {
                    json(&explanation)?
                } else if self.dot {
                    dot(&explanation, &graph)
                } else {
                    text(&explanation)
                });
            }
            Ok(())
        })
    }
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!("{}: {}\n", word(&explanation.verdict), explanation.explanation);
    if let Some(remedy) = &explanation.remedy {
        text.push_str(&format!("release: {remedy}\n"));
    }
    if let Some(note) = &explanation.remedy_note {
        text.push_str(&format!("         {note}\n"));
    }
    text.push('\n');
    text.push_str(&waits(explanation.pid, &explanation.comm, &explanation.waits));
    for other in &explanation.others {
        text.push_str(&waits(other.pid, &other.comm, &other.waits));
    }
    text.push('\n');
    text + &footer(explanation.source, &explanation.unseen)
}

/// What a process's threads wait for: threads that wait for the same are one line.
fn waits(pid: i32, comm: &str, waits: &[Waiting]) -> String {
    let mut lines: Vec<(String, String, usize)> = Vec::new();
    for wait in waits {
        let (what, who) = line(wait);
        match lines.iter_mut().find(|line| line.0 == what && line.1 == who) {
            Some(line) => line.2 += 1,
            None => lines.push((what, who, 1)),
        }
    }
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(what, who, count)| {
            let what = if count > 1 { format!("{what} ({count} threads)") } else { what };
            vec!["  ".to_owned() + &what, who]
        })
        .collect();
    format!("{comm} ({pid})\n{}", table(&rows))
}

fn line(wait: &Waiting) -> (String, String) {
    let mut what = word(&wait.what);
    if let Some(call) = wait.call.filter(|call| *call != what) {
        what.push_str(&format!(" [{call}]"));
    }
    if let Some(pipe) = &wait.pipe {
        what.push_str(&format!(" {}", name(pipe)));
    } else if let Some(object) = &wait.object {
        what.push_str(&format!(" {object}"));
    }
    if let Some(fd) = wait.fd {
        what.push_str(&format!(", fd {fd}"));
    }
    if wait.guessed {
        what.push_str(" (a guess)");
    }
    let children: Vec<String> = wait.children.iter().map(|child| format!("process {child}")).collect();
    let who = match &wait.held_by {
        None if children.is_empty() => String::new(),
        None => format!("<- {}", children.join(", ")),
        Some(holders) if holders.is_empty() => "<- nobody whom we see".to_owned(),
        Some(holders) => {
            let names = holders.iter().map(|holder| {
                let escaped = if holder.escaped { ", escaped" } else { "" };
                format!("{} ({}: fd {}{escaped}, {})", holder.comm, holder.pid, fds(&holder.fds), word(&holder.state))
            });
            format!("<- {}", names.collect::<Vec<_>>().join(", "))
        }
    };
    (what, who)
}
