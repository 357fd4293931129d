//! What a test program says of its tests, read from its output (libtest's, as `cargo test` shows it).

/// What one or several closing lines say, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) ignored: u32,
    /// Of those that passed: how many had failed before.
    pub(super) flaky: u32,
}

impl Tally {
    /// Takes in a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`.
    fn read(&mut self, line: &str) -> bool {
        let Some(result) = line.strip_prefix("test result: ") else { return false };
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
        true
    }

    pub(super) fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.flaky += other.flaky;
    }

    pub(super) fn text(&self) -> String {
        let told = |count: u32, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
        let Tally { passed, failed, ignored, flaky } = *self;
        format!("{passed} passed, {failed} failed{}{}", told(flaky, "flaky"), told(ignored, "ignored"))
    }
}

/// A test that failed, and what it printed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) name: String,
    pub(super) output: String,
}

/// What a program's output says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) tally: Tally,
    pub(super) failed: Vec<Failed>,
    /// Whether it came to a result, and named every test that failed: one that crashes does not.
    pub(super) complete: bool,
}

/// Reads a program's whole output.
pub(super) fn read(output: &str) -> Said {
    let mut said = Said::default();
    let (mut begun, mut results) = (0, 0);
    let mut names: Vec<&str> = Vec::new();
    // The list of names follows the last such heading: a test's own output may have one as well.
    let mut listing = false;
    for line in output.lines() {
        if line == "failures:" {
            listing = true;
            names.clear();
        } else if said.tally.read(line) {
            results += 1;
            listing = false;
            said.failed
                .extend(names.drain(..).map(|name| Failed { name: name.to_owned(), output: printed(output, name) }));
        } else if is_beginning(line) {
            begun += 1;
        } else if listing && let Some(name) = line.strip_prefix("    ") {
            names.push(name);
        }
    }
    let named = u32::try_from(said.failed.len()).is_ok_and(|named| named == said.tally.failed);
    said.complete = results > 0 && results == begun && named;
    said
}

/// `running 12 tests`.
fn is_beginning(line: &str) -> bool {
    let count =
        line.strip_prefix("running ").and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")));
    count.is_some_and(|count| count.parse::<u32>().is_ok())
}

/// What a test printed that failed: from its heading to the next one.
fn printed(output: &str, name: &str) -> String {
    let heading = format!("---- {name} stdout ----");
    let lines = output.lines().skip_while(|line| *line != heading).skip(1);
    let is_next = |line: &str| line == "failures:" || line.starts_with("---- ") && line.ends_with(" stdout ----");
    let text: Vec<&str> = lines.take_while(|line| !is_next(line)).collect();
    text.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "
running 3 tests
test process::stat::tests::a_name_may_have_parentheses ... ok
test skips ... ignored, needs a network
test panics - should panic ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.12s

";

    const FAILED: &str = "
running 3 tests
test fifo::status_says_who ... FAILED
test holders::two ... FAILED
test why::three ... ok

failures:

---- fifo::status_says_who stdout ----
it prints
    something indented
failures:
    not::a_test

thread 'fifo::status_says_who' (4711) panicked at tests/tests/explain/fifo.rs:12:5:
assertion `left == right` failed
  left: 1
 right: 2
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace

---- holders::two stdout ----

thread 'holders::two' (4712) panicked at tests/tests/explain/holders.rs:9:5:
no


failures:
    fifo::status_says_who
    holders::two

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

";

    #[test]
    fn a_program_whose_tests_pass_is_counted() {
        let said = read(PASSED);
        assert_eq!(said.tally, Tally { passed: 2, failed: 0, ignored: 1, flaky: 0 });
        assert!(said.complete && said.failed.is_empty(), "{said:?}");
        assert_eq!(said.tally.text(), "2 passed, 0 failed, 1 ignored");
    }

    #[test]
    fn each_test_that_failed_is_named_with_what_it_printed() {
        let said = read(FAILED);
        assert_eq!(said.tally, Tally { passed: 1, failed: 2, ..Tally::default() });
        assert!(said.complete);
        let names: Vec<&str> = said.failed.iter().map(|failed| failed.name.as_str()).collect();
        assert_eq!(names, ["fifo::status_says_who", "holders::two"]);
        assert!(said.failed[0].output.starts_with("it prints\n"), "{said:?}");
        let two = &said.failed[1].output;
        assert!(two.starts_with("\nthread 'holders::two'") && two.ends_with("\nno"), "{two:?}");
    }

    #[test]
    fn several_results_in_one_output_are_summed() {
        let said = read(&format!("{PASSED}   Doc-tests pipewarden\n{FAILED}"));
        assert_eq!(said.tally, Tally { passed: 3, failed: 2, ignored: 1, flaky: 0 });
        assert!(said.complete && said.failed.len() == 2);
    }

    #[test]
    fn a_program_that_ends_in_the_midst_of_its_tests_came_to_no_result() {
        let (crashed, _) = PASSED.split_once("test skips").unwrap();
        assert!(!read(crashed).complete);
        assert!(!read(&format!("{FAILED}{crashed}")).complete);
        assert!(!read("").complete);
        // A list that does not name as many as the closing line counts is not relied on.
        assert!(!read(&FAILED.replace("    holders::two\n", "")).complete);
    }
}
