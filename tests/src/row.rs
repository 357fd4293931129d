//! A row of the table: a fixture, and what must become of it. It reads like the promise.

use pipewarden::pipe::{Action, Outcome, Relation};

use crate::deadline::Deadline;
use crate::fixture::{LAST_LINE, pattern};
use crate::kernel;
use crate::run::{Ended, Run};
use crate::skip::{Need, skip};
use crate::stage::Stage;

/// A fixture under `pipewarden run`, and what must become of it.
#[derive(Clone, Debug)]
pub struct Row {
    fixture: &'static str,
    words: Vec<String>,
    options: Vec<&'static str>,
    needs: Vec<Need>,
    uid: Option<u32>,
    outcomes: Vec<Outcome>,
    code: i32,
    output: Vec<u8>,
    reported: Vec<Reported>,
    died: Vec<&'static str>,
    lives: Vec<&'static str>,
}

/// What the report must say about a holder.
#[derive(Clone, Debug)]
struct Reported {
    role: &'static str,
    relation: Relation,
    escaped: bool,
    action: Action,
}

/// A row about this fixture: a natural outcome, nobody reported, exit 0, until it says otherwise.
#[must_use]
pub fn row(fixture: &'static str) -> Row {
    Row {
        fixture,
        words: Vec::new(),
        options: Vec::new(),
        needs: Vec::new(),
        uid: None,
        outcomes: vec![Outcome::Natural],
        code: 0,
        output: LAST_LINE.to_vec(),
        reported: Vec::new(),
        died: Vec::new(),
        lives: Vec::new(),
    }
}

impl Row {
    /// The fixture's own arguments.
    #[must_use]
    pub fn with(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(ToString::to_string));
        self
    }

    /// Options of `run`.
    #[must_use]
    pub fn options(mut self, words: &[&'static str]) -> Self {
        self.options.extend(words);
        self
    }

    /// Not on every machine.
    #[must_use]
    pub fn needs(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// The supervisor is not root, and has no capability.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// The command writes so many bytes first; all of them must arrive.
    #[must_use]
    pub fn bytes(mut self, count: usize) -> Self {
        self.words.extend(["--bytes".to_owned(), count.to_string()]);
        self.output = [pattern(count), LAST_LINE.to_vec()].concat();
        self
    }

    /// The command exits with this; so must we.
    #[must_use]
    pub fn exits(mut self, code: i32) -> Self {
        self.words.extend(["--exit".to_owned(), code.to_string()]);
        self.code = code;
        self
    }

    /// The command dies by this signal; we must exit with 128 and it.
    #[must_use]
    pub fn dies_by(mut self, signal: i32) -> Self {
        self.words.extend(["--die-by".to_owned(), signal.to_string()]);
        self.code = 128 + signal;
        self
    }

    /// Our exit code, where it is not the command's.
    #[must_use]
    pub fn code(mut self, code: i32) -> Self {
        self.code = code;
        self
    }

    /// How the ending must go.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcomes = vec![outcome];
        self
    }

    /// A holder that escaped and must be ended by this.
    #[must_use]
    pub fn ends_escapee(mut self, role: &'static str, action: Action) -> Self {
        self.reported.push(Reported { role, relation: Relation::Lineage, escaped: true, action });
        self.died.push(role);
        self.outcome(Outcome::HoldersEnded)
    }

    /// A holder that stayed in the home group and must be ended by this.
    #[must_use]
    pub fn ends_member(mut self, role: &'static str, action: Action) -> Self {
        self.reported.push(Reported { role, relation: Relation::Lineage, escaped: false, action });
        self.died.push(role);
        self.outcome(Outcome::HoldersEnded)
    }

    /// A holder that must be reported and must live.
    #[must_use]
    pub fn spares(mut self, role: &'static str, relation: Relation, escaped: bool, action: Action) -> Self {
        self.reported.push(Reported { role, relation, escaped, action });
        self.lives.push(role);
        self.outcome(Outcome::HoldersSpared)
    }

    /// A suspect that must be ended by this.
    #[must_use]
    pub fn ends_suspect(mut self, role: &'static str, action: Action) -> Self {
        self.reported.push(Reported { role, relation: Relation::Suspect, escaped: true, action });
        self.died.push(role);
        self.outcome(Outcome::HoldersEnded)
    }

    /// An escapee that has the pipe registered with an io_uring, and must be ended by this: a suspect where the
    /// kernel does not name the pipe.
    #[must_use]
    pub fn ends_registered(self, role: &'static str, action: Action) -> Self {
        if kernel::names_registered_pipes() { self.ends_escapee(role, action) } else { self.ends_suspect(role, action) }
    }

    /// Somebody who holds nothing that matters: not reported, and alive at the end.
    #[must_use]
    pub fn leaves_alone(mut self, role: &'static str) -> Self {
        self.lives.push(role);
        self
    }

    /// Somebody who dies although the report need not name them as a holder.
    #[must_use]
    pub fn sees_die(mut self, role: &'static str) -> Self {
        self.died.push(role);
        self
    }

    /// Runs it and checks everything that it says.
    ///
    /// # Panics
    ///
    /// When a promise is broken.
    pub fn check(self, name: &str) {
        if skip(name, &self.needs) {
            return;
        }
        let stage = Stage::new();
        let ended = self.check_on(&stage);
        drop(ended);
    }

    /// As [`Row::check`], on a stage where more goes on.
    ///
    /// # Panics
    ///
    /// When a promise is broken.
    pub fn check_on(&self, stage: &Stage) -> Ended {
        let mut run = Run::on(stage).options(&self.options).fixture(self.fixture, &self.words);
        if let Some(uid) = self.uid {
            run = run.as_user(uid);
        }
        let ended = run.end();
        let stderr = ended.stderr.text();
        assert!(ended.stdout.eof, "EOF arrives on stdout; on stderr: {stderr}");
        assert!(ended.stderr.eof, "EOF arrives on stderr: {stderr}");
        assert_same_bytes(&ended.stdout.bytes, &self.output);
        assert_eq!(ended.code(), self.code, "the exit code; on stderr: {stderr}");
        let report = ended.report();
        assert!(self.outcomes.contains(&report.outcome), "{:?}, not {:?}: {stderr}", report.outcome, self.outcomes);
        for role in &self.died {
            assert!(stage.wait(role).dies(Deadline::patient()), "{role} is ended: {stderr}");
        }
        for role in &self.lives {
            assert!(stage.wait(role).lives(), "{role} lives: {stderr}");
        }
        for expected in &self.reported {
            let pid = stage.wait(expected.role).pid;
            let holder =
                report.holder(pid).unwrap_or_else(|| panic!("{} ({pid}) is reported: {stderr}", expected.role));
            assert_eq!(holder.relation, expected.relation, "{}: {stderr}", expected.role);
            assert_eq!(holder.escaped, expected.escaped, "{}: {stderr}", expected.role);
            assert_eq!(holder.action, expected.action, "{}: {stderr}", expected.role);
            // Who may hold it, as far as anybody can see, is not said to hold a stream.
            let unseen = matches!(expected.relation, Relation::Suspect | Relation::Opaque);
            assert!(unseen || holder.streams.iter().any(|stream| stream == "stdout"), "{}: {stderr}", expected.role);
        }
        assert_eq!(report.holders.len(), self.reported.len(), "nobody else is reported: {stderr}");
        ended
    }
}

/// Fails with where two outputs differ, rather than with all of both.
///
/// # Panics
///
/// When they differ.
pub fn assert_same_bytes(actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let at = actual.iter().zip(expected).take_while(|(a, e)| a == e).count();
    let near = |bytes: &[u8]| {
        String::from_utf8_lossy(&bytes[at.saturating_sub(20).min(bytes.len())..(at + 40).min(bytes.len())]).into_owned()
    };
    panic!(
        "{} bytes arrived and {} were written; they differ from byte {at}: {:?} instead of {:?}",
        actual.len(),
        expected.len(),
        near(actual),
        near(expected)
    );
}

/// Makes a test of each row, named after its promise.
#[macro_export]
macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident: $row:expr;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            $row.check(stringify!($name));
        }
    )*};
}
