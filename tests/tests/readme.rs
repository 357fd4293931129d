//! What the README says of the command line is what the command line says of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use pipewarden_tests::binaries::{UNDER_TEST, binary};

/// Every `--word` in a text.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

fn section<'a>(readme: &'a str, heading: &str, next: &str) -> &'a str {
    let (_, rest) = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    rest.split_once(&format!("\n{next}\n")).unwrap_or_else(|| panic!("no {next} after {heading}")).0
}

#[test]
fn its_table_has_every_option_of_run_and_no_other() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let help = Command::new(binary(UNDER_TEST)).args(["run", "--help"]).output().unwrap();
    assert!(help.status.success());
    let mut known = options(&String::from_utf8(help.stdout).unwrap());
    known.remove("--help");
    let section = section(&readme, "### Options", "### Exit status");
    let rows: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()).collect();
    assert_eq!(options(&rows.join(" ")), known, "left: the README; right: run --help");
}
