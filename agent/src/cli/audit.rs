//! `pipewarden audit`: reads what `--audit` wrote.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::print::{complain, print};
use crate::audit::verify::{Finding, KEPT, Verdict, Verifier};
use crate::audit::{record, rotate};

/// What `pipewarden audit` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check that no record was changed, removed, inserted or moved
    Verify(Verify),
    /// Print the JSON Schema of a record
    Schema,
}

/// Exit status: 0 intact (runs may be open), 1 something is wrong, 125 the log could not be read.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The log; several files, rotated ones say, are read as one log in this order; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Read FILE.2, FILE.1 and so on before FILE; of the oldest, a run's beginning may be gone
    #[arg(long)]
    rotated: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A log with a fault in it.
const BROKEN: u8 = 1;
/// Our own failure.
const FAILED: u8 = 125;

/// Runs one of them.
#[must_use]
pub fn run(command: &Command) -> ExitCode {
    let result = match command {
        Command::Verify(arguments) => verify(arguments),
        Command::Schema => schema(),
    };
    result.unwrap_or_else(|error| {
        complain(&format_args!("audit: {error:#}"));
        ExitCode::from(FAILED)
    })
}

fn schema() -> anyhow::Result<ExitCode> {
    let text = serde_json::to_string_pretty(&record::schema())?;
    print(&(text + "\n")).context("stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn verify(arguments: &Verify) -> anyhow::Result<ExitCode> {
    let mut files = arguments.files.clone();
    if arguments.rotated {
        let [file] = &files[..] else { anyhow::bail!("verify --rotated: name one file, the one that is written to") };
        files = rotate::set(file).with_context(|| file.display().to_string())?;
    }
    let older = arguments.rotated && files.len() > 1;
    let mut verifier = if older { Verifier::of_rotated() } else { Verifier::default() };
    for file in &files {
        if file.as_os_str() == "-" {
            verifier.read("stdin", io::stdin().lock()).context("stdin")?;
        } else {
            let name = file.display().to_string();
            let input = File::open(file).with_context(|| name.clone())?;
            verifier.read(&name, BufReader::with_capacity(1 << 16, input)).context(name)?;
        }
    }
    let verdict = verifier.verdict();
    let text = if arguments.json { serde_json::to_string(&verdict)? + "\n" } else { for_people(&verdict) };
    print(&text).context("stdout")?;
    Ok(if verdict.intact { ExitCode::SUCCESS } else { ExitCode::from(BROKEN) })
}

/// A line for everything that was found, and one that sums up.
fn for_people(verdict: &Verdict) -> String {
    let mut text = String::new();
    for finding in &verdict.faults.first {
        line(&mut text, "broken", finding);
    }
    for finding in &verdict.oddities.first {
        line(&mut text, "note", finding);
    }
    more(
        &mut text,
        verdict.faults.count + verdict.oddities.count,
        verdict.faults.first.len() + verdict.oddities.first.len(),
        "findings",
    );
    for open in &verdict.open {
        let _ = writeln!(
            text,
            "open: run {} after {} records: it goes on, was killed, or was cut off",
            open.run, open.records
        );
    }
    more(&mut text, verdict.runs.open, verdict.open.len(), "open runs");
    let runs = verdict.runs;
    let _ = writeln!(
        text,
        "{}: {} records in {} lines; runs: {} closed, {} open, {} broken",
        if verdict.intact { "intact" } else { "broken" },
        verdict.records,
        verdict.lines,
        runs.closed,
        runs.open,
        runs.broken,
    );
    text
}

fn line<Kind>(text: &mut String, sort: &str, finding: &Finding<Kind>) {
    let _ = write!(text, "{sort}: {}:{}: ", finding.file, finding.line);
    if let Some(run) = finding.run {
        let _ = write!(text, "run {run}: ");
    }
    let _ = writeln!(text, "{}", finding.text);
}

fn more(text: &mut String, count: u64, shown: usize, what: &str) {
    let hidden = count.saturating_sub(shown as u64);
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more {what} (the first {KEPT} of a kind are shown)");
    }
}
