//! What runs in a row: test executables, built static so that they run on any kernel as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{output, run, without_cargo};
use crate::workspace::{root, toolchain};

const TARGET: &str = "x86_64-unknown-linux-musl";

/// Tests of an executable: their name in the table, what cargo builds it from, and which of its tests.
pub(crate) struct Harness {
    pub(crate) name: &'static str,
    cargo: &'static [&'static str],
    /// What an ordinary run takes of them, as libtest's filters; all of them if there is none.
    filter: &'static [&'static str],
    /// What `--long` takes.
    long: &'static [&'static str],
    /// The programs of the test package that it runs. A machine gets no others: each costs its boot.
    pub(crate) programs: Programs,
    /// What its tests are told beside what all are.
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// On which rows it runs.
    pub(crate) reach: Reach,
}

/// Which of the test package's programs.
#[derive(Clone, Copy)]
pub(crate) enum Programs {
    These(&'static [&'static str]),
    All,
}

/// How much is checked: of a row, how much there is to be; of a harness, from which row on it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// What can be used.
    Basics,
    /// And whether the live map is exact, by chance.
    Chance,
    /// And in what has a name; and runs.
    All,
}

/// How many operations the oracle takes by chance, on each rung, where nobody says it.
pub(crate) const OPERATIONS: &str = "PIPEWARDEN_ORACLE_OPERATIONS";
const FEW_OPERATIONS: &[(&str, &str)] = &[(OPERATIONS, "1000")];

/// Large tables take minutes in an emulated machine, mostly to be read by way of /proc.
const SCRIPTS: &[&str] = &[
    "descriptors::",
    "processes::",
    "passing::",
    "io_uring::",
    "holes::",
    "--skip",
    "many_descriptors",
    "--skip",
    "fork_5000",
    "--skip",
    "fork_20000",
];

const LIVE_MAP: &[&str] = &["--package", "pipewarden-tests", "--test", "live_map"];
const BPF: (&str, &str) = ("PIPEWARDEN_TEST_BACKEND", "bpf");
const PROMISES: &[&str] = &["--package", "pipewarden-tests", "--test", "promises"];

/// Runs that depend on what is known of holders: one of each shape. In an emulated machine, to bring the programs into
/// the kernel takes most of a run's time.
const RUNS: &[&str] = &[
    "eof_arrives::by_default::a_session_of_its_own",
    "eof_arrives::by_default::in_flight_between_processes",
    "nothing_innocent_dies::a_foreign_daemon_is_drained",
];

/// The promises on one backend: those runs, and with `--long` all.
const fn promises(name: &'static str, environment: &'static [(&'static str, &'static str)]) -> Harness {
    Harness { name, cargo: PROMISES, filter: RUNS, long: &[], programs: Programs::All, environment, reach: Reach::All }
}

/// All of them.
pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "kernel",
        cargo: &["--package", "pipewarden", "--lib"],
        filter: &["kernel::"],
        long: &["kernel::"],
        programs: Programs::These(&[]),
        environment: &[],
        reach: Reach::Basics,
    },
    Harness {
        name: "doctor",
        cargo: &["--package", "pipewarden-tests", "--test", "doctor"],
        filter: &[],
        long: &[],
        programs: Programs::These(&["pipewarden-under-test", "just_exit"]),
        environment: &[],
        reach: Reach::Basics,
    },
    Harness {
        name: "chance",
        cargo: LIVE_MAP,
        filter: &["by_chance::any_operations"],
        long: &["by_chance::"],
        programs: Programs::These(&["fd_actor"]),
        environment: FEW_OPERATIONS,
        reach: Reach::Chance,
    },
    Harness {
        name: "scripts",
        cargo: LIVE_MAP,
        filter: SCRIPTS,
        long: &["--skip", "by_chance::"],
        programs: Programs::These(&["fd_actor", "pids_apart", "weeks_of_work"]),
        environment: &[],
        reach: Reach::All,
    },
    promises("run-proc", &[("PIPEWARDEN_TEST_BACKEND", "proc")]),
    promises("run-bpf-fentry", &[BPF, ("PIPEWARDEN_BPF_RUNG", "bpf-fentry")]),
    promises("run-bpf-kprobe", &[BPF, ("PIPEWARDEN_BPF_RUNG", "bpf-kprobe")]),
    promises("run-bpf-tracepoint", &[BPF, ("PIPEWARDEN_BPF_RUNG", "bpf-tracepoint")]),
    promises("run-connector", &[("PIPEWARDEN_TEST_BACKEND", "connector")]),
];

/// The executables.
pub(crate) struct Built {
    /// By the harness's name.
    pub(crate) harnesses: BTreeMap<&'static str, PathBuf>,
    /// The programs that tests run, by name.
    pub(crate) programs: BTreeMap<String, PathBuf>,
}

impl Harness {
    /// The arguments of a run that can be read line by line.
    pub(crate) fn arguments(&self, long: bool) -> Vec<&'static str> {
        let tests = if long { self.long } else { self.filter };
        ["--test-threads=1", "--nocapture"].iter().chain(tests).copied().collect()
    }
}

/// Builds them.
pub(crate) fn build(wanted: &[&'static Harness]) -> Result<Built> {
    let toolchain = toolchain()?;
    let targets = output(Command::new("rustup").args(["target", "list", "--installed", "--toolchain", &toolchain]))?;
    if !targets.lines().any(|line| line == TARGET) {
        run(Command::new("rustup").args(["target", "add", TARGET, "--toolchain", &toolchain]))?;
    }
    let mut programs = BTreeMap::new();
    for (name, path) in cargo(&["build", "--package", "pipewarden-tests", "--bins"])? {
        programs.insert(name, path);
    }
    let mut harnesses: BTreeMap<&'static str, PathBuf> = BTreeMap::new();
    for harness in wanted {
        let same = wanted.iter().find(|other| other.cargo == harness.cargo && harnesses.contains_key(other.name));
        if let Some(path) = same.and_then(|same| harnesses.get(same.name)).cloned() {
            harnesses.insert(harness.name, path);
            continue;
        }
        let words = [&["test", "--no-run"], harness.cargo].concat();
        let built = cargo(&words)?.into_iter().map(|(_, path)| path);
        // A package's programs are built along with its tests.
        let built: Vec<PathBuf> = built.filter(|path| !programs.values().any(|program| program == path)).collect();
        let path = built.into_iter().next().with_context(|| format!("cargo built no tests of {}", harness.name))?;
        harnesses.insert(harness.name, path);
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
