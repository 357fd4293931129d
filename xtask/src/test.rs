//! `cargo xtask test`: every test of the workspace, once or many times, on an idle machine or a busy one.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::busy::Busy;
use crate::command::{run, without_cargo};
use crate::process::{Pidfd, holders_of, pipe, read_some, wait_for};
use crate::workspace::root;

/// How long after cargo's exit its output may stay open. What the tests leave behind holds it for good.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// Build and run every test of the workspace.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Run everything so many times; the first failure is the end.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    loops: u32,
    /// Keep every core busy meanwhile.
    #[arg(long)]
    busy: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// What every test program gets, such as --nocapture.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        // Before the cores are busy, and so that a failure to build is not taken for a test's.
        run(cargo_test().arg("--no-run"))?;
        let busy = self.busy.then(Busy::start).transpose()?;
        if let Some(busy) = &busy {
            println!("{} processes of ours keep the cores busy", busy.len());
        }
        let mut all = Tally::default();
        for round in 1..=self.loops {
            let started = Instant::now();
            let (tally, succeeded) = self.once()?;
            all.add(&tally);
            let which = if self.loops > 1 { format!("loop {round} of {}: ", self.loops) } else { String::new() };
            println!("{which}{} in {:.1} s", tally.text(), started.elapsed().as_secs_f64());
            ensure!(succeeded, "{which}the tests failed");
            ensure!(tally.passed > 0, "{which}no test ran");
        }
        if self.loops > 1 {
            println!("{} in {} loops", all.text(), self.loops);
        }
        Ok(())
    }

    /// Runs everything once: what came of it, and whether cargo was content.
    fn once(&self) -> Result<(Tally, bool)> {
        let (read, write) = pipe()?;
        let mut cargo = cargo_test();
        // One file of tests that fails does not keep the others from being run.
        cargo.arg("--no-fail-fast").args(&self.filter).arg("--").args(&self.arguments).stdout(Stdio::from(write));
        let mut child = cargo.spawn().context("cannot start cargo")?;
        drop(cargo); // and with it our copy of the write end
        let tally = follow(&read, &Pidfd::of(&child)?);
        let status = child.wait()?;
        Ok((tally?, status.success()))
    }
}

fn cargo_test() -> Command {
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo).args(["test", "--workspace"]).current_dir(root());
    cargo
}

/// What the tests' closing lines say, summed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    /// Takes in a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`.
    fn read(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u32>() else { continue };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    fn text(&self) -> String {
        let ignored = if self.ignored > 0 { format!(", {} ignored", self.ignored) } else { String::new() };
        format!("{} passed, {} failed{ignored}", self.passed, self.failed)
    }
}

/// Passes cargo's output on, line by line, and sums what it says. Tests that leave somebody behind
/// with their output are a failure of their own: this is the one project where that must not happen.
fn follow(source: &OwnedFd, cargo: &Pidfd) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    let mut deadline = None;
    loop {
        let far = Instant::now() + Duration::from_secs(3600);
        let mut fds = vec![source.as_fd()];
        if deadline.is_none() {
            fds.push(cargo.as_fd());
        }
        let ready = wait_for(&fds, deadline.unwrap_or(far))?;
        if ready[0] {
            let bytes = read_some(source)?;
            if bytes.is_empty() {
                return Ok(tally);
            }
            std::io::stdout().write_all(&bytes)?;
            for byte in bytes {
                if byte == b'\n' {
                    tally.read(&String::from_utf8_lossy(&line));
                    line.clear();
                } else {
                    line.push(byte);
                }
            }
        } else if deadline.is_none() && ready[1] {
            deadline = Some(Instant::now() + LEFT_BEHIND);
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bail!("the tests are over, and still somebody holds their output: {}", left_behind(source)?);
        }
    }
}

fn left_behind(source: &OwnedFd) -> Result<String> {
    let holders = holders_of(source)?;
    let who: Vec<String> =
        holders.iter().map(|holder| format!("{} ({})", holder.command_line, holder.process.pid)).collect();
    Ok(if who.is_empty() { "nobody that we may look at".to_owned() } else { who.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_whatever_stands_around_them() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        tally.read("test result: \u{1b}[31mFAILED\u{1b}[m. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out");
        tally.read("test a_test_that_passed ... ok");
        tally.read("9 passed; 9 failed");
        assert_eq!(tally, Tally { passed: 15, failed: 2, ignored: 1 });
        assert_eq!(tally.text(), "15 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn whoever_is_left_with_the_output_is_named() {
        let (read, write) = pipe().unwrap();
        let mut helper = Command::new("sleep");
        let mut child = helper.arg("60").stdout(Stdio::from(write.try_clone().unwrap())).spawn().unwrap();
        drop((helper, write));
        let who = left_behind(&read).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(who, format!("sleep 60 ({})", child.id()));
        assert_eq!(read_some(&read).unwrap(), b"", "with its end the pipe ends");
    }
}
