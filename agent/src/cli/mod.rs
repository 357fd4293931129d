//! The command line: a file per subcommand.

pub mod audit;
pub mod print;
pub mod run;
mod value;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// The exit status of what we ourselves could not do, as with env(1) and timeout(1).
const FAILURE: u8 = 125;

/// Makes end-of-file arrive.
#[derive(Debug, Parser)]
#[command(name = "pipewarden", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Run>),
    /// Check the audit log that --audit wrote
    #[command(subcommand)]
    Audit(audit::Command),
}

/// Parses, dispatches and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { verb: Verb::Run(run) }) => run.run(),
        Ok(Cli { verb: Verb::Audit(command) }) => audit::run(&command),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            print::print(&error.to_string()).map_or(ExitCode::from(FAILURE), |()| ExitCode::SUCCESS)
        }
        Err(error) => usage_error(&one_line(&error)),
    }
}

/// Says what is wrong with the command line.
fn usage_error(message: &str) -> ExitCode {
    print::complain(&message);
    ExitCode::from(FAILURE)
}

/// The parser's paragraphs in one line, without the usage.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> = said.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    let said = said.join(" ");
    format!("{} (see --help)", said.strip_prefix("error: ").unwrap_or(&said))
}
