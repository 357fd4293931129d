//! The audit log of a run, read while it is being written.

use std::path::PathBuf;

use serde_json::Value;

use crate::deadline::Deadline;
use crate::stage::Stage;

/// A log on a stage.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// A log that nobody writes yet.
    #[must_use]
    pub fn on(stage: &Stage) -> Log {
        Log::named(stage, "audit.jsonl")
    }

    /// The same, of several.
    #[must_use]
    pub fn named(stage: &Stage, name: &str) -> Log {
        Log { path: stage.path(name) }
    }

    /// The options of a run that writes it.
    #[must_use]
    pub fn options(&self) -> [String; 2] {
        ["--audit".to_owned(), self.path.display().to_string()]
    }

    /// What is written so far.
    #[must_use]
    pub fn records(&self) -> Vec<Value> {
        let Ok(text) = std::fs::read_to_string(&self.path) else { return Vec::new() };
        // The last line may be half there.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Those of one event.
    #[must_use]
    pub fn of(&self, event: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["event"] == event).collect()
    }

    /// Waits for a record.
    ///
    /// # Panics
    ///
    /// When it does not come in time.
    #[must_use]
    pub fn wait(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let came = Deadline::patient().until(|| {
            found = self.records().into_iter().find(|record| is_it(record));
            found.is_some()
        });
        assert!(came, "no {what} in {:#?}", self.records());
        found.unwrap()
    }

    /// Waits for a process's record of this event.
    #[must_use]
    pub fn wait_for(&self, event: &str, pid: i32) -> Value {
        self.wait(&format!("{event} of {pid}"), |record| record["event"] == event && record["process"]["pid"] == pid)
    }
}
