//! What runs in a row: test executables, built static so that they run on any kernel as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{output, run, without_cargo};
use crate::workspace::{root, toolchain};

const TARGET: &str = "x86_64-unknown-linux-musl";

/// A test executable: its name in the table, what cargo builds it from, and which of its tests.
pub(crate) struct Harness {
    pub(crate) name: &'static str,
    cargo: &'static [&'static str],
    filter: &'static [&'static str],
    /// The programs of the test package that it runs. A machine gets no others: each costs its boot.
    pub(crate) programs: &'static [&'static str],
}

/// What is checked on every row.
pub(crate) const HARNESSES: &[Harness] = &[
    Harness { name: "kernel", cargo: &["--package", "pipewarden", "--lib"], filter: &["kernel::"], programs: &[] },
    Harness {
        name: "doctor",
        cargo: &["--package", "pipewarden-tests", "--test", "doctor"],
        filter: &[],
        programs: &["pipewarden-under-test", "just_exit"],
    },
];

/// The executables.
pub(crate) struct Built {
    /// Of each harness, in their order.
    pub(crate) harnesses: Vec<PathBuf>,
    /// The programs that tests run, by name.
    pub(crate) programs: BTreeMap<String, PathBuf>,
}

impl Harness {
    /// The arguments of a run that can be read line by line.
    pub(crate) fn arguments(&self) -> Vec<&'static str> {
        [&["--test-threads=1", "--nocapture"], self.filter].concat()
    }
}

/// Builds all of them.
pub(crate) fn build() -> Result<Built> {
    let toolchain = toolchain()?;
    let targets = output(Command::new("rustup").args(["target", "list", "--installed", "--toolchain", &toolchain]))?;
    if !targets.lines().any(|line| line == TARGET) {
        run(Command::new("rustup").args(["target", "add", TARGET, "--toolchain", &toolchain]))?;
    }
    let mut programs = BTreeMap::new();
    for (name, path) in cargo(&["build", "--package", "pipewarden-tests", "--bins"])? {
        programs.insert(name, path);
    }
    let mut harnesses = Vec::new();
    for harness in HARNESSES {
        let words = [&["test", "--no-run"], harness.cargo].concat();
        let built = cargo(&words)?.into_iter().map(|(_, path)| path);
        // A package's programs are built along with its tests.
        let built: Vec<PathBuf> = built.filter(|path| !programs.values().any(|program| program == path)).collect();
        harnesses.push(built.into_iter().next().with_context(|| format!("cargo built no tests of {}", harness.name))?);
    }
    Ok(Built { harnesses, programs })
}

/// Runs cargo; gives name and path of every executable.
fn cargo(words: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo);
    cargo.current_dir(root()).args(words).args([
        "--quiet",
        "--profile=vm",
        "--target",
        TARGET,
        "--message-format=json",
    ]);
    let messages = output(&mut cargo)?;
    let mut built = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo said something that is no JSON")?;
        if let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) {
            built.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(built)
}

/// A folder with all programs, for tests that run here.
pub(crate) fn folder_of(built: &Built) -> Option<&Path> {
    built.programs.values().next().and_then(|path| path.parent())
}
