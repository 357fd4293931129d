//! `cargo xtask fuzz`: what reads the words of strangers, given nonsense for a while.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::{output, run, without_cargo};
use crate::workspace::{root, target};

/// What libFuzzer listens to: which edges and comparisons are reached. On stable Rust these are options of LLVM.
const INSTRUMENTATION: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cforce-frame-pointers=yes",
];

/// An input that takes longer is a finding, too.
const LONGEST_SECONDS: u32 = 20;

/// Give nonsense to the parsers of cgroup paths, node.toml and the node's socket.
///
/// What is found stays in the build folder and is tried first the next time. Without a C++ compiler, which
/// libFuzzer wants, this is skipped, and says so.
#[derive(clap::Args)]
pub(crate) struct Fuzz {
    /// How long each of them gets.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Which; all of them if none is named.
    targets: Vec<String>,
}

impl Fuzz {
    pub(crate) fn run(self) -> Result<()> {
        if !has_cxx() {
            println!("SKIPPED the fuzzing: libFuzzer is built by a C++ compiler, and c++ is not to be had");
            return Ok(());
        }
        let all = targets()?;
        for name in &self.targets {
            ensure!(all.contains(name), "{name}: there is no such target; there are {}", all.join(", "));
        }
        let programs = build()?;
        for name in all.iter().filter(|name| self.targets.is_empty() || self.targets.contains(name)) {
            self.fuzz(name, &programs.join(name))?;
        }
        Ok(())
    }

    fn fuzz(&self, name: &str, program: &Path) -> Result<()> {
        let folder = target().join("fuzz");
        let [found, failed] = ["corpus", "artifacts"].map(|kind| folder.join(kind).join(name));
        for folder in [&found, &failed] {
            fs::create_dir_all(folder)?;
        }
        let log = folder.join(format!("{name}.log"));
        let mut fuzzer = Command::new(program);
        fuzzer.args([&found, &root().join("fuzz/seeds").join(name)]).arg(format!("-max_total_time={}", self.seconds));
        fuzzer.arg(format!("-timeout={LONGEST_SECONDS}")).arg(format!("-artifact_prefix={}/", failed.display()));
        fuzzer.args(["-max_len=4096", "-print_final_stats=1"]);
        let status = fuzzer.stdin(Stdio::null()).stderr(fs::File::create(&log)?).status();
        let status = status.with_context(|| format!("cannot start {}", program.display()))?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let findings = said.lines().filter(|line| line.contains("panicked at") || line.starts_with("SUMMARY"));
        let findings: Vec<&str> = findings.collect();
        ensure!(status.success(), "{name}: {}; see {} and {}", findings.join("; "), log.display(), failed.display());
        let number = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap_or(" ?").trim().to_owned();
        let executed = number("stat::number_of_executed_units:");
        // "#12 DONE cov: 34 ft: 56 corp: 7/8b ..."
        let done = said.lines().rev().find(|line| line.contains("DONE")).unwrap_or_default();
        let edges = done.split_whitespace().skip_while(|word| *word != "cov:").nth(1).unwrap_or("?");
        ensure!(
            executed.parse::<u64>().is_ok_and(|units| units > 0),
            "{name}: nothing was tried: see {}",
            log.display()
        );
        println!("{name}: {executed} inputs, {edges} edges reached, nothing found");
        Ok(())
    }
}

fn has_cxx() -> bool {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let status = Command::new(compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A target is a file.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        names.extend(entry?.path().file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Builds all of them; gives their folder.
fn build() -> Result<PathBuf> {
    let host = output(Command::new("rustc").arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let folder = target().join("fuzz/build");
    let mut cargo = Command::new("cargo");
    // A target, even though it is this machine: build scripts and macros are not to be instrumented.
    without_cargo(&mut cargo).args(["build", "--release", "--locked", "--quiet", "--target", host]);
    cargo.current_dir(root().join("fuzz")).env("CARGO_TARGET_DIR", &folder);
    run(cargo.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f")))?;
    Ok(folder.join(host).join("release"))
}
