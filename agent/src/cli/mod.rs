//! The command line: a file per subcommand.

pub mod audit;
pub mod doctor;
mod explained;
pub mod fifo;
pub mod holders;
mod lifecycle;
pub mod node;
pub mod print;
pub mod run;
pub mod supervise;
pub mod why;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::value;

/// The exit status of what we ourselves could not do, as with env(1) and timeout(1).
const FAILURE: u8 = 125;

/// Makes end-of-file arrive.
#[derive(Debug, Parser)]
#[command(name = "pipewarden", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The subcommand that others wait for.
#[derive(Debug, Subcommand)]
enum Main {
    Run(Box<run::Run>),
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Main(Main),
    Supervise(Box<supervise::Supervise>),
    Node(node::Node),
    /// Check the audit log that --audit wrote
    #[command(subcommand)]
    Audit(audit::Command),
    Holders(holders::Holders),
    Why(why::Why),
    #[command(subcommand)]
    Fifo(fifo::Fifo),
    Doctor(doctor::Doctor),
}

/// Parses, dispatches and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    match parse() {
        Ok((Cli { verb: Verb::Main(Main::Run(run)) }, written)) => run.run(written),
        Ok((Cli { verb: Verb::Supervise(supervise) }, _)) => supervise.run(),
        Ok((Cli { verb: Verb::Node(node) }, _)) => node.run(),
        Ok((Cli { verb: Verb::Audit(command) }, _)) => audit::run(&command),
        Ok((Cli { verb: Verb::Holders(holders) }, _)) => holders.run(),
        Ok((Cli { verb: Verb::Why(why) }, _)) => why.run(),
        Ok((Cli { verb: Verb::Fifo(fifo) }, _)) => fifo.run(),
        Ok((Cli { verb: Verb::Doctor(doctor) }, _)) => doctor.run(),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            print::print(&error.to_string()).map_or(ExitCode::from(FAILURE), |()| ExitCode::SUCCESS)
        }
        Err(error) => usage_error(&one_line(&error)),
    }
}

/// Parses our arguments: what they say, and the options as the user wrote them.
fn parse() -> Result<(Cli, Vec<(String, String)>), clap::Error> {
    // To describe every subcommand takes longer than all else that comes before the command's start.
    let is_main = std::env::args_os().nth(1).is_some_and(|verb| Main::has_subcommand(&verb.to_string_lossy()));
    let mut command = if is_main {
        Main::augment_subcommands(clap::Command::new("pipewarden").max_term_width(100))
    } else {
        Cli::command()
    };
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli, written(&command, &matches)))
}

/// The subcommand's options as the user wrote them, without its arguments.
fn written(command: &clap::Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let options = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_opts);
    options
        .filter(|option| matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine))
        .filter_map(|option| {
            let values = matches.get_raw(option.get_id().as_str())?;
            let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
            Some((option.get_long()?.to_owned(), values.join(" ")))
        })
        .collect()
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
