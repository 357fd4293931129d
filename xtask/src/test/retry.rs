//! The second try of what failed: alone, when everything else is over.
//!
//! One test of more than a thousand that was starved by its neighbours does not cost a whole pipeline,
//! and it is told, counted and shown as what it is, so that it can be mended.

use std::process::ExitStatus;

use super::libtest::{self, Failed, Tally};
use super::programs::{Program, Ran};

/// How many failures get a second try. More at once are no accident.
pub(crate) const FORGIVEN: usize = 3;

/// How much of the output of a program that came to no result is told again, in lines.
const LAST_LINES: usize = 30;

/// A test that failed, or a program that came to no result.
pub(super) struct Failure {
    pub(super) program: Program,
    test: Option<String>,
    output: String,
    /// What the program was counted with, where it failed as a whole.
    counted: Tally,
}

impl Failure {
    pub(super) fn of_test(program: &Program, failed: Failed) -> Failure {
        let Failed { name, output } = failed;
        Failure { program: program.clone(), test: Some(name), output, counted: Tally::default() }
    }

    pub(super) fn of_program(program: &Program, status: ExitStatus, output: &str, counted: Tally) -> Failure {
        let lines: Vec<&str> = output.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        Failure { program: program.clone(), test: None, output: format!("{last}\n{status}"), counted }
    }

    pub(super) fn name(&self) -> String {
        match &self.test {
            Some(test) => format!("{}::{test}", self.program.name),
            None => format!("{} (the whole program)", self.program.name),
        }
    }

    /// How a program ended that came to no result; of a test its own output says it.
    pub(super) fn how(&self) -> String {
        let status = self.output.lines().last().filter(|_| self.test.is_none());
        status.map_or_else(String::new, |status| format!(": {status}"))
    }

    /// The arguments that run it and nothing else.
    pub(super) fn alone(&self, filter: Option<&str>, arguments: &[String]) -> Vec<String> {
        let own = match &self.test {
            Some(test) => vec![test.clone(), "--exact".to_owned()],
            None => filter.map(str::to_owned).into_iter().collect(),
        };
        let rest = arguments.iter().filter(|argument| *argument != "--exact" || self.test.is_none());
        own.into_iter().chain(rest.cloned()).collect()
    }

    /// What the second try counted, if it passed.
    pub(super) fn second_try(&self, ran: &Ran) -> Option<Tally> {
        let said = libtest::read(&ran.output);
        // A name that names no test, or several, shows nothing.
        let meant = self.test.is_none() || said.tally.passed == 1;
        (ran.status.success() && said.complete && said.failed.is_empty() && meant).then_some(said.tally)
    }

    /// The count of everything, once this has passed.
    pub(super) fn mend(&self, all: &Tally, second: &Tally) -> Tally {
        let (before, after) = match self.test {
            Some(_) => (Tally { failed: 1, ..Tally::default() }, Tally { passed: 1, ..Tally::default() }),
            None => (self.counted, *second),
        };
        Tally {
            passed: all.passed.saturating_sub(before.passed) + after.passed,
            failed: all.failed.saturating_sub(before.failed),
            ignored: all.ignored.saturating_sub(before.ignored) + after.ignored,
            flaky: all.flaky + 1,
        }
    }

    /// That it failed, that it then passed, and what it said when it failed.
    pub(super) fn told(&self) -> String {
        format!("FLAKY {}: failed, then passed alone; when it failed, it said:\n{}", self.name(), self.output)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn failure(test: Option<&str>) -> Failure {
        let program = Program::named("promises");
        match test {
            Some(name) => Failure::of_test(&program, Failed { name: name.into(), output: "no".into() }),
            None => {
                let counted = Tally { passed: 4, ignored: 1, ..Tally::default() };
                Failure::of_program(&program, ExitStatus::from_raw(6), "running 9 tests\n", counted)
            }
        }
    }

    fn ran(status: i32, passed: u32, failed: u32) -> Ran {
        let output =
            format!("\nrunning 1 test\n\ntest result: ok. {passed} passed; {failed} failed; 0 ignored; 0 measured\n");
        Ran { status: ExitStatus::from_raw(status), output, left_behind: None }
    }

    #[test]
    fn a_test_is_tried_again_by_its_name_and_a_program_as_a_whole() {
        let arguments = ["--nocapture".to_owned(), "--exact".to_owned()];
        assert_eq!(failure(Some("a::b")).alone(Some("a"), &arguments), ["a::b", "--exact", "--nocapture"]);
        assert_eq!(failure(None).alone(Some("a"), &arguments), ["a", "--nocapture", "--exact"]);
    }

    #[test]
    fn only_a_second_try_that_ran_the_test_and_passed_counts() {
        let failure = failure(Some("a::b"));
        assert!(failure.second_try(&ran(0, 1, 0)).is_some());
        assert!(failure.second_try(&ran(0, 0, 0)).is_none(), "nothing ran");
        assert!(failure.second_try(&ran(101 << 8, 1, 0)).is_none(), "it exited otherwise");
        assert!(failure.second_try(&ran(0, 1, 1)).is_none(), "something failed");
        assert!(failure.second_try(&Ran { output: String::new(), ..ran(0, 0, 0) }).is_none(), "it came to no result");
    }

    #[test]
    fn what_passed_alone_is_counted_as_passed_and_as_flaky() {
        let all = Tally { passed: 10, failed: 2, ignored: 3, flaky: 0 };
        let one = Tally { passed: 1, ..Tally::default() };
        let mended = failure(Some("a::b")).mend(&all, &one);
        assert_eq!(mended, Tally { passed: 11, failed: 1, ignored: 3, flaky: 1 });
        assert_eq!(mended.text(), "11 passed, 1 failed, 1 flaky, 3 ignored");
        // A program that crashed is counted by its second run alone.
        let nine = Tally { passed: 8, ignored: 1, ..Tally::default() };
        assert_eq!(failure(None).mend(&all, &nine), Tally { passed: 14, failed: 2, ignored: 3, flaky: 1 });
    }

    #[test]
    fn what_was_said_at_the_failure_is_told_again() {
        assert!(failure(Some("a::b")).told().starts_with("FLAKY promises::a::b: failed, then passed alone;"));
        let told = failure(None).told();
        assert!(told.contains("FLAKY promises (the whole program): failed, then passed alone"), "{told}");
        assert!(told.ends_with("running 9 tests\nsignal: 6 (SIGABRT)"), "{told}");
        assert_eq!([failure(None).how(), failure(Some("a::b")).how()], [": signal: 6 (SIGABRT)", ""]);
    }
}
