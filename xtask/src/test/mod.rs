//! `cargo xtask test`: every test of the workspace, once or many times, on an idle machine or a busy one.

mod libtest;
mod programs;
mod retry;

use std::time::Instant;

use anyhow::{Result, ensure};

use self::libtest::Tally;
use self::programs::{Program, Ran};
pub(crate) use self::retry::FORGIVEN;
use self::retry::Failure;
use crate::busy::Busy;

/// Most tests wait for most of their time: for a clock of the program under test, or for a process.
const THREADS_PER_CORE: usize = 4;

/// Build and run every test of the workspace.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Run everything so many times, and fail at the first test that fails, even if it would pass alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    loops: Option<u32>,
    /// Keep every core busy meanwhile.
    #[arg(long)]
    busy: bool,
    /// Only this test program: a file or folder in tests/tests, or `lib` for the library's unit tests; repeatable.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Do not run a test that failed a second time.
    #[arg(long)]
    no_retry: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// What every test program gets, such as --nocapture.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// What came of running everything once.
#[derive(Default)]
struct Round {
    tally: Tally,
    failures: Vec<Failure>,
    /// Programs that left somebody behind, and whom.
    left_behind: Vec<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        // Before the cores are busy, and so that a failure to build is not taken for a test's.
        let programs = programs::build(&self.only)?;
        let mut busy = self.busy.then(Busy::start).transpose()?;
        if let Some(busy) = &busy {
            println!("{} processes of ours keep the cores busy", busy.len());
        }
        let loops = self.loops.unwrap_or(1);
        let mut all = Tally::default();
        for number in 1..=loops {
            let started = Instant::now();
            let mut round = self.once(&programs)?;
            if self.loops.is_none() && !self.no_retry {
                busy = None;
                self.forgive(&mut round)?;
            }
            all.add(&round.tally);
            let which = if loops > 1 { format!("loop {number} of {loops}: ") } else { String::new() };
            println!("{which}{} in {:.1} s", round.tally.text(), started.elapsed().as_secs_f64());
            round.check(&which)?;
        }
        drop(busy);
        if loops > 1 {
            println!("{} in {loops} loops", all.text());
        }
        Ok(())
    }

    /// Runs everything once. One program that fails does not keep the others from being run.
    fn once(&self, programs: &[Program]) -> Result<Round> {
        let arguments: Vec<String> = self.filter.iter().chain(&self.arguments).cloned().collect();
        let threads = THREADS_PER_CORE * std::thread::available_parallelism()?.get();
        let mut round = Round::default();
        for program in programs {
            let ran = program.run(&arguments, threads)?;
            round.take(program, ran);
        }
        Ok(round)
    }

    /// Runs what failed once more, and says so.
    fn forgive(&self, round: &mut Round) -> Result<()> {
        let failures = std::mem::take(&mut round.failures);
        if failures.len() > retry::FORGIVEN {
            println!("{} failures: too many to be chance, none is tried again", failures.len());
            round.failures = failures;
            return Ok(());
        }
        let mut told = Vec::new();
        for failure in failures {
            let alone = failure.alone(self.filter.as_deref(), &self.arguments);
            let ran = failure.program.run(&alone, 1)?;
            if let Some(whom) = &ran.left_behind {
                round.left_behind.push(format!("{}: {whom}", failure.program.name));
            }
            match failure.second_try(&ran) {
                Some(mended) => {
                    round.tally = failure.mend(&round.tally, &mended);
                    told.push(failure.told());
                }
                None => round.failures.push(failure),
            }
        }
        for flaky in told {
            println!("{flaky}");
        }
        Ok(())
    }
}

impl Round {
    /// Takes in what came of a program.
    fn take(&mut self, program: &Program, ran: Ran) {
        let mut said = libtest::read(&ran.output);
        if let Some(whom) = ran.left_behind {
            self.left_behind.push(format!("{}: {whom}", program.name));
        }
        if !said.complete || !ran.status.success() {
            if said.complete && !said.failed.is_empty() && program.runs_single_tests() {
                self.failures.extend(said.failed.into_iter().map(|failed| Failure::of_test(program, failed)));
            } else {
                // What it did not come to is not known, and something is wrong.
                said.tally.failed = said.tally.failed.max(1);
                self.failures.push(Failure::of_program(program, ran.status, &ran.output, said.tally));
            }
        }
        self.tally.add(&said.tally);
    }

    fn check(&self, which: &str) -> Result<()> {
        for failure in &self.failures {
            println!("FAILED {}{}", failure.name(), failure.how());
        }
        for whom in &self.left_behind {
            println!("LEFT BEHIND with the output of {whom}");
        }
        ensure!(self.left_behind.is_empty(), "{which}tests are over, and still somebody holds their output");
        ensure!(self.failures.is_empty(), "{which}the tests failed");
        ensure!(self.tally.passed > 0, "{which}no test ran");
        Ok(())
    }
}
