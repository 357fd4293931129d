//! What `holders`, `why` and `fifo` have in common: they look aside, print once, and end in time.

use std::process::ExitCode;
use std::time::Duration;

use super::print::{complain, print};
use crate::explain::aside::{Teller, look};

/// How long a look may take.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Bounds {
    /// Answer with what was seen by then
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = super::value::duration)]
    within: Duration,
}

/// Looks, prints the last answer, and gives the exit code.
pub fn answer(bounds: Bounds, seek: impl FnOnce(&mut Teller) -> Result<(), String>) -> ExitCode {
    let told = match look(bounds.within, seek) {
        Ok(told) => told,
        Err(error) => return fail(&format!("no process or pipe to look with: {error}")),
    };
    if let Some(error) = told.error {
        return fail(&error);
    }
    match told.answer {
        Some(answer) => match print(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("stdout: {error}")),
        },
        None if told.late => fail(&format!(
            "nothing was seen within {}; try a longer --within",
            humantime::format_duration(bounds.within)
        )),
        None => fail("the look ended without an answer: it was killed"),
    }
}

fn fail(message: &str) -> ExitCode {
    complain(&message.replace('\n', " "));
    ExitCode::from(super::FAILURE)
}

/// An answer as one line of JSON.
///
/// # Errors
///
/// In one line.
pub fn json(value: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(value).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// Lines of columns, each as wide as its widest cell; the last one as it is.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Descriptors as people write them.
#[must_use]
pub fn fds(fds: &[i32]) -> String {
    if fds.is_empty() {
        return "-".to_owned();
    }
    fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A lower-case word of the vocabulary, as JSON writes it too.
#[must_use]
pub fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Which source answered, and what could not be seen.
#[must_use]
pub fn footer(source: &str, unseen: &[String]) -> String {
    let mut text = format!("source: {source}\n");
    for line in unseen {
        text.push_str(&format!("unseen: {line}\n"));
    }
    text
}
