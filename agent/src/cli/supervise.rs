//! `pipewarden supervise`: several commands from a file, and what can be asked about them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::print::{complain, print};
use crate::audit::Target;
use crate::pipe::ExitStatus;
use crate::supervise::config::Config;
use crate::supervise::control::{self, CommandStatus, Reply, Request, Status};
use crate::supervise::{self, Options};

/// Keep several commands: start, restart and end them, and leave no pipe of theirs open.
///
/// Exit status: that of the first essential command that failed, else 0; 125 if pipewarden itself
/// failed or the configuration is wrong.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Supervise {
    #[command(subcommand)]
    ask: Option<Ask>,
    #[command(flatten)]
    keep: Keep,
}

#[derive(Debug, Args)]
struct Keep {
    /// The commands, in TOML
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    config: Option<PathBuf>,
    /// Only say whether this file is right
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "socket", "audit"])]
    check: Option<PathBuf>,
    /// The control socket [$XDG_RUNTIME_DIR/pipewarden/supervise.sock, or in /run]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Append audit records of all commands as JSON lines to this file
    #[arg(long, value_name = "PATH")]
    audit: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Ask {
    /// Show every command's state
    Status {
        #[command(flatten)]
        whom: Whom,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Start a command that is down, and return when it is ready
    Start(Named),
    /// End a command, and return when nothing of it is left
    Stop(Named),
    /// Start a command anew, and return when it is ready again
    Restart(Named),
}

#[derive(Debug, Args)]
struct Whom {
    /// The control socket [as for `supervise --config`]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Named {
    /// The command's name
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    whom: Whom,
}

/// What was asked for was refused, or did not come about.
const REFUSED: u8 = 1;

impl Supervise {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let Keep { config, check, socket, audit } = self.keep;
        match (self.ask, check, config) {
            (Some(Ask::Status { whom, json }), ..) => ask(&whom, &Request::Status, json),
            (Some(Ask::Start(Named { name, whom })), ..) => ask(&whom, &Request::Start(name), false),
            (Some(Ask::Stop(Named { name, whom })), ..) => ask(&whom, &Request::Stop(name), false),
            (Some(Ask::Restart(Named { name, whom })), ..) => ask(&whom, &Request::Restart(name), false),
            (None, Some(file), _) => match Config::load(&file) {
                Ok(config) => print_or_fail(&checked(&config)),
                Err(error) => failed(&error),
            },
            (None, None, Some(config)) => {
                if audit.as_ref().is_some_and(|path| path.as_os_str() == "-") {
                    return failed(&"--audit -: the commands' stderr would be mixed with it; name a file");
                }
                let options = Options { config, socket, audit: audit.map(Target::Path) };
                supervise::supervise(&options).map_or_else(|error| failed(&error), ExitCode::from)
            }
            (None, None, None) => failed(&"--config FILE is missing (see --help)"),
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    complain(error);
    ExitCode::from(super::FAILURE)
}

fn print_or_fail(text: &str) -> ExitCode {
    print(text).map_or_else(|error| failed(&format_args!("stdout: {error}")), |()| ExitCode::SUCCESS)
}

fn checked(config: &Config) -> String {
    let number = config.commands.len();
    let noun = if number == 1 { "command" } else { "commands" };
    format!("{number} {noun}, started in this order: {}\n", config.start_order().join(", "))
}

fn ask(whom: &Whom, request: &Request, json: bool) -> ExitCode {
    let path = whom.socket.clone().unwrap_or_else(control::default_path);
    match control::ask(&path, request) {
        Ok(Reply::Status(status)) if json => match serde_json::to_string(&status) {
            Ok(line) => print_or_fail(&(line + "\n")),
            Err(error) => failed(&error),
        },
        Ok(Reply::Status(status)) => print_or_fail(&table(&status)),
        Ok(Reply::Done(text)) => print_or_fail(&(text + "\n")),
        Ok(Reply::Refused(text)) => {
            complain(&text);
            ExitCode::from(REFUSED)
        }
        Err(error) => failed(&error),
    }
}

/// The status for people.
fn table(status: &Status) -> String {
    let header = ["NAME", "STATE", "PID", "UPTIME", "RESTARTS", "LAST EXIT", "HOLDERS ENDED"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(status.commands.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if status.shutting_down {
        text.push_str("shutting down\n");
    }
    text
}

fn row(command: &CommandStatus) -> [String; 7] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let time = |millis: u64| humantime::format_duration(Duration::from_secs(millis / 1000)).to_string();
    let uptime = match (command.uptime_ms, command.starts_in_ms) {
        (Some(millis), _) => Some(time(millis)),
        (None, Some(millis)) => Some(format!("in {}", time(millis))),
        (None, None) => None,
    };
    let exit = command.last_exit.map(|exit| match exit {
        ExitStatus::Code(code) => code.to_string(),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
    });
    [
        command.name.clone(),
        command.state.clone(),
        or_none(command.pid.map(|pid| pid.to_string())),
        or_none(uptime),
        command.restarts.to_string(),
        or_none(exit),
        command.holders_ended.to_string(),
    ]
}
