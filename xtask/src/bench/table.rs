//! The table at the end: what was measured, what was promised.

use std::fmt;

/// Rows, in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// A promise, and whether the measurement keeps it.
    pub(crate) fn promise(&mut self, what: impl Into<String>, measured: String, budget: String, met: bool) {
        let verdict = if met { "met" } else { "NOT MET" };
        self.rows.push([what.into(), measured, budget, verdict.to_owned()]);
    }

    /// A measurement that nothing was promised of, for comparison.
    pub(crate) fn aside(&mut self, what: impl Into<String>, measured: String) {
        self.rows.push([what.into(), measured, "-".to_owned(), "-".to_owned()]);
    }
}

impl fmt::Display for Table {
    /// As Markdown, so that it can be pasted into the README.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what", "measured", "budget", "verdict"].map(str::to_owned);
        let width = |column: usize| {
            self.rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths = [0, 1, 2, 3].map(width);
        let rule = widths.map(|width| "-".repeat(width));
        for row in [&head, &rule].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "| {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}
