//! What came of a row's checks, and the table of all of them.

use std::collections::BTreeMap;

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    /// It said that it needs something that is not there.
    Skipped(String),
    /// With what it said.
    Failed(String),
}

/// Reads libtest's lines (one thread, output not captured): "test NAME ... ", whatever the test says,
/// and at the end of a line "ok" or "FAILED".
pub(crate) fn read(harness: &str, said: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    let mut test: Option<(String, Vec<&str>)> = None;
    for line in said.lines() {
        let mut rest = line;
        if test.is_none()
            && let Some((name, after)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
        {
            let short = name.strip_prefix(&format!("{harness}::")).unwrap_or(name).replace("tests::", "");
            test = Some((format!("{harness} {short}"), Vec::new()));
            rest = after;
        }
        let Some((name, lines)) = &mut test else { continue };
        let verdict = match rest {
            "ok" => lines
                .iter()
                .find_map(|line| line.split_once("SKIPPED ").map(|(_, why)| Verdict::Skipped(why.to_owned())))
                .unwrap_or(Verdict::Ok),
            "FAILED" => Verdict::Failed(lines.join("\n")),
            _ => {
                lines.push(rest);
                continue;
            }
        };
        verdicts.insert(std::mem::take(name), verdict);
        test = None;
    }
    // It began and never ended.
    if let Some((name, lines)) = test {
        verdicts.insert(name, Verdict::Failed(lines.join("\n")));
    }
    verdicts
}

/// What a row's checks said.
#[derive(Default)]
pub(crate) struct Told {
    /// The kernel that they ran on; nothing if none did.
    pub(crate) kernel: String,
    pub(crate) verdicts: BTreeMap<String, Verdict>,
    /// How much the oracle compared, on which rung.
    pub(crate) exact: Vec<String>,
}

impl Told {
    /// Takes in what the tests of a harness said; how many they were.
    pub(crate) fn take(&mut self, harness: &str, said: &str) -> usize {
        let verdicts = read(harness, said);
        let number = verdicts.len();
        self.verdicts.extend(verdicts);
        self.exact.extend(said.lines().filter(|line| line.contains(": exact: ")).map(str::to_owned));
        number
    }
}

/// A row of the table.
pub(crate) struct Outcome {
    pub(crate) row: &'static str,
    pub(crate) seconds: f64,
    pub(crate) told: Told,
    /// The row itself went wrong.
    pub(crate) broken: Option<String>,
}

impl Outcome {
    pub(crate) fn failed(&self) -> bool {
        self.broken.is_some() || self.failures().next().is_some()
    }

    /// The checks that failed, each with what it said.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.told.verdicts.iter().filter_map(|(check, verdict)| match verdict {
            Verdict::Failed(said) => Some((check.as_str(), said.as_str())),
            Verdict::Ok | Verdict::Skipped(_) => None,
        })
    }
}

/// Prints what failed and what was skipped, then check by kernel.
pub(crate) fn print(outcomes: &[Outcome]) {
    for outcome in outcomes {
        if let Some(broken) = &outcome.broken {
            println!("{}: BROKEN: {broken}", outcome.row);
        }
        for (check, verdict) in &outcome.told.verdicts {
            match verdict {
                Verdict::Ok => {}
                Verdict::Skipped(why) => println!("{}: {check}: SKIPPED {why}", outcome.row),
                Verdict::Failed(said) => println!("{}: {check}: FAILED:\n{said}\n", outcome.row),
            }
        }
    }
    let mut checks: Vec<&String> = outcomes.iter().flat_map(|outcome| outcome.told.verdicts.keys()).collect();
    checks.sort();
    checks.dedup();
    let width = checks.iter().map(|check| check.len()).max().unwrap_or(0);
    print!("\n{:width$}", "");
    for outcome in outcomes {
        print!("  {}", outcome.row);
    }
    println!();
    for check in checks {
        print!("{check:width$}");
        for outcome in outcomes {
            let cell = match outcome.told.verdicts.get(check) {
                Some(Verdict::Ok) => "ok",
                Some(Verdict::Skipped(_)) => "skip",
                Some(Verdict::Failed(_)) => "FAIL",
                None => "-",
            };
            print!("  {cell:column$}", column = outcome.row.len());
        }
        println!();
    }
    print!("{:width$}", "seconds");
    for outcome in outcomes {
        print!("  {:<column$}", format!("{:.1}", outcome.seconds), column = outcome.row.len());
    }
    println!();
    for outcome in outcomes {
        println!("{}: Linux {}", outcome.row, outcome.told.kernel);
        outcome.told.exact.iter().for_each(|line| println!("  {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_found_between_what_tests_say() {
        let said = "\nrunning 4 tests\ntest a::b ... ok\ntest c ... SKIPPED c: it needs root\nok\n\
                    test d ... \nthread 'd' panicked\nassertion\nFAILED\ntest e ... hello\n";
        let verdicts = read("h", said);
        assert_eq!(verdicts["h a::b"], Verdict::Ok);
        assert_eq!(verdicts["h c"], Verdict::Skipped("c: it needs root".into()));
        assert_eq!(verdicts["h d"], Verdict::Failed("\nthread 'd' panicked\nassertion".into()));
        assert_eq!(verdicts["h e"], Verdict::Failed("hello".into()), "it died in the middle");
    }
}
