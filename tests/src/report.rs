//! What `--report json` says, read strictly: a field that is missing or misspelt is a failure.

use pipewarden::pipe::{Action, Outcome, Relation};
use serde_json::Value;

/// The report of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the ending went.
    pub outcome: Outcome,
    /// The command's own exit code, if it exited.
    pub code: Option<i64>,
    /// The signal that ended it, if one did.
    pub signal: Option<i64>,
    /// Microseconds from the command's exit to EOF; none where we let go of a stream before that,
    /// or do not read it.
    pub exit_to_eof_us: Option<u64>,
    /// Which source of ownership was asked.
    pub backend: String,
    /// How it was attached.
    pub rung: String,
    /// What downstream did not take.
    pub undelivered_bytes: u64,
    /// Everybody who kept EOF away.
    pub holders: Vec<Holder>,
    /// The tries, with what each was ended for.
    pub tries: Vec<Value>,
}

/// One holder in the report.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its pid.
    pub pid: i32,
    /// Its name, as the kernel has it.
    pub comm: String,
    /// How it relates to the run.
    pub relation: Relation,
    /// Whether it left the home group.
    pub escaped: bool,
    /// The streams that it held.
    pub streams: Vec<String>,
    /// What was done about it.
    pub action: Action,
}

impl Report {
    /// Finds the report among the lines of stderr: the last one that is a JSON object.
    ///
    /// # Panics
    ///
    /// When there is none, or more than one, or it lacks a field.
    #[must_use]
    pub fn find(stderr: &str) -> Report {
        let reports: Vec<Value> = stderr
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|value: &Value| value.get("outcome").is_some())
            .collect();
        assert_eq!(reports.len(), 1, "one report on stderr, which says:\n{stderr}");
        Report::read(&reports[0])
    }

    fn read(value: &Value) -> Report {
        let status = field(value, "exit_status");
        Report {
            outcome: word(value, "outcome"),
            code: status.get("code").and_then(Value::as_i64),
            signal: status.get("signal").and_then(Value::as_i64),
            exit_to_eof_us: word(value, "exit_to_eof_us"),
            backend: word(value, "backend"),
            rung: word(value, "rung"),
            undelivered_bytes: word(value, "undelivered_bytes"),
            holders: field(value, "holders").as_array().unwrap().iter().map(Holder::read).collect(),
            tries: field(value, "tries").as_array().unwrap().clone(),
        }
    }

    /// What the report says about a process.
    #[must_use]
    pub fn holder(&self, pid: i32) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.pid == pid)
    }

    /// What the last try was ended for.
    #[must_use]
    pub fn ended_for(&self) -> String {
        word(self.tries.last().unwrap(), "ended_for")
    }
}

impl Holder {
    fn read(value: &Value) -> Holder {
        assert!(field(value, "start_time").is_string(), "when it started, in {value}");
        // Null for who is gone before anybody could read it.
        let _: Option<String> = word(value, "cmdline");
        Holder {
            pid: word(value, "pid"),
            comm: word(value, "comm"),
            relation: word(value, "relation"),
            escaped: word(value, "escaped"),
            streams: word(value, "streams"),
            action: word(value, "action"),
        }
    }
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or_else(|| panic!("no `{name}` in {value}"))
}

fn word<T: serde::de::DeserializeOwned>(value: &Value, name: &str) -> T {
    serde_json::from_value(field(value, name).clone()).unwrap_or_else(|error| panic!("`{name}` in {value}: {error}"))
}
