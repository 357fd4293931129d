//! `pipewarden node`: the shared tracker of a machine, and its policies.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::print::{complain, print};
use crate::config::ConfigError;
use crate::node::config::{Config, OnWithheld, PATH};
use crate::node::daemon;
use crate::node::names::NOT_IN_THIS_BUILD;
use crate::node::policy::Policies;
use crate::node::replay::{Cases, Fate, Outcome, Replay};

/// Find the withheld pipes of a whole machine, and end their holders where a policy says so
///
/// SIGHUP reads the configuration again, SIGTERM ends it. Exit status: 0; 125 if pipewarden itself
/// failed or the configuration is wrong.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Node {
    #[command(subcommand)]
    ask: Option<Ask>,
    #[command(flatten)]
    which: Which,
    /// Only say whether the configuration is right
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct Which {
    /// The configuration, in TOML [/etc/pipewarden/node.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Which {
    /// The file, where one was named or the usual one is there.
    fn file(&self) -> Option<PathBuf> {
        let usual = || Some(PathBuf::from(PATH)).filter(|path| path.exists());
        self.config.clone().or_else(usual)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        self.file().map_or_else(|| Ok(Config::default()), |file| Config::load(&file))
    }
}

#[derive(Debug, Subcommand)]
enum Ask {
    /// Say what the policies would have done about the holders that an audit log tells of
    Replay {
        /// The log; several files, rotated ones say, are read as one log in this order; - is stdin
        #[arg(value_name = "LOG", required = true)]
        logs: Vec<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
}

impl Node {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.ask {
            Some(Ask::Replay { logs, which }) => replay(&logs, &which),
            None if !self.check => match daemon::run(self.which.file(), complain) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            },
            None => match self.which.load() {
                Ok(config) => print_or_fail(&checked(&config)),
                Err(error) => failed(&error),
            },
        }
    }
}

fn replay(logs: &[PathBuf], which: &Which) -> ExitCode {
    let config = match which.load() {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    let mut cases = Cases::default();
    for log in logs {
        let read = if log.as_os_str() == "-" {
            cases.read(io::stdin().lock())
        } else {
            File::open(log).and_then(|file| cases.read(BufReader::new(file)))
        };
        if let Err(error) = read {
            return failed(&format_args!("node replay: {}: {error}; name an audit log", log.display()));
        }
    }
    print_or_fail(&replayed(&cases.decide(Policies::new(config.policies))))
}

/// A line for each holder, and one that sums up.
fn replayed(replay: &Replay) -> String {
    let mut text = String::new();
    for Outcome { time, process, place, policy, fate } in &replay.outcomes {
        let what = match fate {
            Fate::Observed => "observe".to_owned(),
            Fate::WentByItself => "gone before its grace was over".to_owned(),
            Fate::Kept => "keep".to_owned(),
            Fate::Ended => "end".to_owned(),
            Fate::Limited(limit) => format!("observe: {} is reached", limit.key()),
        };
        let _ = write!(text, "{time} {} ({})", process.comm.escape_debug(), process.pid);
        if let Some(container) = &place.container {
            let _ = write!(text, " in container {:.12}", container.id);
        }
        if let Some(pod) = &place.pod {
            let _ = write!(text, " of pod {}", pod.uid);
        }
        let policy = policy.as_ref().map_or("no policy".to_owned(), |name| format!("policy {}", name.escape_debug()));
        let _ = writeln!(text, ": {what} ({policy})");
    }
    let ended = replay.outcomes.iter().filter(|outcome| outcome.fate == Fate::Ended).count();
    let limited = replay.outcomes.iter().filter(|outcome| matches!(outcome.fate, Fate::Limited(_))).count();
    let holders = replay.outcomes.len();
    let _ = writeln!(
        text,
        "{} records: {holders} escapees held withheld pipes; {ended} would have been ended, {limited} not because of a limit",
        replay.records
    );
    if replay.foreign > 0 {
        let _ = writeln!(text, "{} lines are no records; check the log with pipewarden audit verify", replay.foreign);
    }
    text
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    complain(error);
    ExitCode::from(super::FAILURE)
}

fn print_or_fail(text: &str) -> ExitCode {
    print(text).map_or_else(|error| failed(&format_args!("stdout: {error}")), |()| ExitCode::SUCCESS)
}

/// The policies in their order, and what each comes to.
fn checked(config: &Config) -> String {
    let mut text = match config.policies.len() {
        0 => "no policy: every withheld pipe is observed\n".to_owned(),
        1 => "1 policy\n".to_owned(),
        number => format!("{number} policies; the first that matches a holder decides\n"),
    };
    let asks = cfg!(feature = "cri") && config.names.cri.is_some();
    let why = if cfg!(feature = "cri") { "[names] names nobody to ask" } else { "this build does not ask anybody" };
    for policy in &config.policies {
        let action = match policy.on_withheld {
            OnWithheld::Observe => "observes".to_owned(),
            OnWithheld::End => format!("ends holders after {}", humantime::format_duration(policy.grace)),
        };
        text += &format!("{}: {action}\n", policy.name);
        let unknown = policy.about.told_by_others();
        if !unknown.is_empty() && !asks {
            let keys = unknown.join(", ");
            text += &format!("{}: matches nobody: {why} for {keys}\n", policy.name);
        }
    }
    if let (Some(socket), false) = (&config.names.cri, cfg!(feature = "cri")) {
        let _ = writeln!(text, "[names] cri = \"{}\": {NOT_IN_THIS_BUILD}", socket.display());
    }
    text
}
