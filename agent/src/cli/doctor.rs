//! `pipewarden doctor`: what works here, and why the rest does not.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::FAILURE;
use super::print::{complain, print};
use crate::doctor::probe::Probe;
use crate::doctor::{CapabilitySets, Report, Rung, examine};

/// Say which rungs and features work here, and why the others do not
///
/// Every rung is really loaded, attached and tested, and detached again.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Answer one question in this process (doctor asks them of itself)
    #[arg(long, hide = true, value_name = "PROBE")]
    probe: Option<Probe>,
}

impl Doctor {
    /// Examines and prints.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let text = match self.probe {
            Some(probe) => Ok(probe.answer()),
            None if self.json => serde_json::to_string(&examine()),
            None => Ok(text(&examine())),
        };
        let printed = text.map_err(std::io::Error::from).and_then(|text| print(&(text + "\n")));
        printed.map_or_else(
            |error| {
                complain(&format_args!("doctor: {error}"));
                ExitCode::from(FAILURE)
            },
            |()| ExitCode::SUCCESS,
        )
    }
}

/// The report for a person.
fn text(report: &Report) -> String {
    let mut page = Page::default();
    page.head("this machine");
    page.line("kernel", &format!("{} {}", report.kernel, report.architecture));
    page.line("capabilities", &capabilities(&report.capabilities));
    page.line("lsm", &report.lsm.as_ref().map_or_else(|| "unknown".to_owned(), |modules| modules.join(", ")));
    page.line("lockdown", report.lockdown.as_deref().unwrap_or("unknown"));
    page.line("btf", &report.btf.detail);
    page.line("tracker", &report.tracker.detail);
    page.head("rungs, best first");
    for rung in &report.rungs {
        page.line(rung.name, &verdict(rung.usable, &rung.reason));
        page.more(rung);
    }
    page.head("features");
    for feature in &report.features {
        page.line(&feature.name, &verdict(feature.available, &feature.detail));
    }
    page.head("in use");
    let later = report.auto_later.map_or_else(String::new, |rung| format!(", and {rung} after a second"));
    page.line("run", &format!("{}{later}", report.auto));
    page.line("node", report.node.unwrap_or("does not work here: it needs a rung of bpf"));
    page.head("to get a better rung");
    match &report.advice.command {
        Some(command) => page.line(command, &report.advice.why),
        None => page.line("", &report.advice.why),
    }
    page.0.trim_end().to_owned()
}

fn verdict(usable: bool, reason: &str) -> String {
    format!("{}{reason}", if usable { "yes: " } else { "no:  " })
}

fn capabilities(sets: &CapabilitySets) -> String {
    match (sets.effective.len(), sets.missing.as_slice()) {
        (0, _) => "none".to_owned(),
        (_, []) => "all".to_owned(),
        (_, missing) if missing.len() <= sets.effective.len() => format!("all but {}", missing.join(", ")),
        _ => sets.effective.join(", "),
    }
}

/// Lines with a column of names.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, title: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{gap}{title}"); // writing to a String cannot fail
    }

    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "  {name:26}  {value}");
    }

    /// What a rung of BPF took, and what the verifier said.
    fn more(&mut self, rung: &Rung) {
        if let Some(cost) = rung.cost {
            let verified = match cost.verified_instructions {
                0 => String::new(),
                count => format!("; {count} instructions verified"),
            };
            let milliseconds = |microseconds: u64| std::time::Duration::from_micros(microseconds).as_secs_f64() * 1e3;
            self.line(
                "",
                &format!(
                    "     loaded in {:.1} ms, attached in {:.1} ms, detached in {:.1} ms{verified}",
                    milliseconds(cost.load_us),
                    milliseconds(cost.attach_us),
                    milliseconds(cost.detach_us),
                ),
            );
        }
        for line in &rung.verifier {
            self.line("", &format!("     | {line}"));
        }
    }
}
