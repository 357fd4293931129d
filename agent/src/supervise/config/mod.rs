//! The configuration file: what it may say, and what it means.

mod command;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use regex::bytes::Regex;

use crate::audit::Target;
use crate::config::{ConfigError, Source, Table, Value};
pub use crate::run::options::Stdin;
use crate::run::options::{OnForeign, OnHolder, OnOpaque, Reap, User};

/// A configuration that is sound in itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// The control socket, if the file names it.
    pub socket: Option<PathBuf>,
    /// Where the audit records of all commands go.
    pub audit: Option<Target>,
    /// Whether prefixes have colours.
    pub color: Color,
    /// The commands, in the order of the file.
    pub commands: Vec<Command>,
}

/// When prefixes have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// One command: `[command.NAME]`.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its name.
    pub name: String,
    /// What its process is made of: a change of this restarts it.
    pub launch: Launch,
    /// When it is started again: a change of this does not.
    pub policy: Policy,
    /// The commands that must be ready before it is started, and are stopped after it.
    pub after: Vec<String>,
    /// Whether everything ends with it.
    pub essential: bool,
}

/// What a command's process is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The program and its arguments; never empty.
    pub run: Vec<String>,
    /// Variables that are added to the environment.
    pub env: Vec<(String, String)>,
    /// Whether the environment has nothing of ours.
    pub clear_env: bool,
    /// The working directory, where it is not ours.
    pub cwd: Option<PathBuf>,
    /// Whom it runs as, where it is not us.
    pub user: Option<Account>,
    /// Its standard input.
    pub stdin: Stdin,
    /// Where its standard output goes.
    pub stdout: Output,
    /// Where its standard error goes.
    pub stderr: Output,
    /// How it is known to be ready.
    pub ready: Ready,
    /// How long that may take; none: for ever.
    pub ready_timeout: Option<Duration>,
    /// How it is ended.
    pub ending: Ending,
}

/// A user, and what is known of it beside the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The numbers.
    pub user: User,
    /// The login name and the home directory, where the user has them.
    pub login: Option<(String, PathBuf)>,
}

/// Where an output stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To our own stream of that name, each line with the command's name before it.
    Prefix,
    /// To our own stream of that name, as it is.
    Inherit,
    /// To `/dev/null`.
    Null,
    /// Appended to a file.
    File(PathBuf),
}

/// How a command is known to be ready.
#[derive(Clone, Debug)]
pub enum Ready {
    /// It was started.
    Started,
    /// It has exited with 0.
    Finished,
    /// A line of its output matches.
    Line(Regex),
    /// This file appears, or changes after the start.
    File(PathBuf),
    /// Somebody accepts connections here.
    Socket(Address),
    /// So long after its start it still runs.
    Delay(Duration),
}

impl PartialEq for Ready {
    fn eq(&self, other: &Ready) -> bool {
        match (self, other) {
            (Ready::Line(a), Ready::Line(b)) => a.as_str() == b.as_str(),
            (Ready::File(a), Ready::File(b)) => a == b,
            (Ready::Socket(a), Ready::Socket(b)) => a == b,
            (Ready::Delay(a), Ready::Delay(b)) => a == b,
            (Ready::Started, Ready::Started) | (Ready::Finished, Ready::Finished) => true,
            _ => false,
        }
    }
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Path(PathBuf),
    /// An address and port.
    Port(std::net::SocketAddr),
}

/// How a command is ended: the options of `run` with these names.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// `signal`.
    pub signal: Signal,
    /// `kill_after`.
    pub kill_after: Duration,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// `holder_grace`.
    pub holder_grace: Duration,
    /// `max_drain`.
    pub max_drain: Duration,
    /// `max_deliver`.
    pub max_deliver: Option<Duration>,
    /// `on_holder`.
    pub on_holder: OnHolder,
    /// `on_foreign`.
    pub on_foreign: OnForeign,
    /// `on_opaque`.
    pub on_opaque: OnOpaque,
    /// `reap`.
    pub reap: Reap,
    /// `keep`.
    pub keep: Vec<String>,
}

/// When a command is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// After which ends.
    pub restart: Restart,
    /// The pause before the first restart; it doubles with each.
    pub backoff: Duration,
    /// What it does not grow beyond.
    pub backoff_max: Duration,
    /// The time that a command must have run for the pause to be the first one again.
    pub backoff_reset: Duration,
    /// How many restarts there may be in how long a time; none: any number.
    pub limit: Option<(usize, Duration)>,
}

/// After which ends a command is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// None.
    Never,
    /// Every exit status but 0.
    OnFailure,
    /// Every one.
    Always,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let source = Source::load(path, "docs/supervise.md")?;
        source.read(|table| read(&source, table))
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    ///
    /// As for [`load`](Config::load).
    pub fn parse(name: String, text: String) -> Result<Config, ConfigError> {
        let source = Source::new(name, text);
        source.read(|table| read(&source, table))
    }

    /// The names in an order in which each comes after those that it is to come after.
    #[must_use]
    pub fn start_order(&self) -> Vec<&str> {
        let mut order: Vec<&str> = Vec::new();
        while order.len() < self.commands.len() {
            let before = order.len();
            for command in &self.commands {
                let placed = |name: &String| order.contains(&name.as_str());
                if !placed(&command.name) && command.after.iter().all(placed) {
                    order.push(&command.name);
                }
            }
            if order.len() == before {
                break; // a circle: `read` lets none through
            }
        }
        order
    }
}

fn read(source: &Source, mut table: Table<'_>) -> Result<Config, ConfigError> {
    let mut config = Config { socket: None, audit: None, color: Color::Auto, commands: Vec::new() };
    if let Some(own) = table.take("supervise") {
        let mut own = own.table("[supervise]")?;
        config.socket = own.take("socket").map(|value| value.text().map(PathBuf::from)).transpose()?;
        config.audit = own.take("audit").map(|value| audit_target(&value)).transpose()?;
        if let Some(color) = own.take("color") {
            config.color =
                color.one_of(&[("auto", Color::Auto), ("always", Color::Always), ("never", Color::Never)])?;
        }
        own.done()?;
    }
    let commands = table.take("command");
    table.done()?;
    let such_as = "[command.NAME] with run = [\"PROGRAM\", \"ARGUMENT\"]";
    let Some(commands) = commands else {
        return Err(source.wrong(1, format!("there is no command; write {such_as}")));
    };
    let entries = commands.table(such_as)?.into_entries();
    let mut lines = HashMap::new();
    for entry in &entries {
        lines.insert(entry.name().to_owned(), entry.line());
        config.commands.push(command::read(entry)?);
    }
    if config.commands.is_empty() {
        return Err(commands.wrong(&format!("there is no command; write {such_as}")));
    }
    check(source, &config, &lines)?;
    Ok(config)
}

fn audit_target(value: &Value<'_>) -> Result<Target, ConfigError> {
    match value.text()? {
        "-" => Err(value.wrong("\"-\" would be mixed with the commands' stderr; name a file")),
        path => Ok(Target::Path(path.into())),
    }
}

/// What only all commands together can have wrong.
fn check(source: &Source, config: &Config, lines: &HashMap<String, usize>) -> Result<(), ConfigError> {
    let wrong = |name: &str, key: &str, text: &str| {
        let line = lines.get(name).copied().unwrap_or(1);
        source.wrong(line, format!("command.{name}.{key}: {text}"))
    };
    let mut input_of: Option<&str> = None;
    let mut fifos: HashMap<&Path, &str> = HashMap::new();
    for command in &config.commands {
        let name = &command.name;
        if let Some(unknown) = command.after.iter().find(|after| !lines.contains_key(*after)) {
            let names: Vec<&str> = config.commands.iter().map(|command| command.name.as_str()).take(8).collect();
            let text = format!("there is no command \"{unknown}\"; the commands are {}", names.join(", "));
            return Err(wrong(name, "after", &text));
        }
        if command.launch.stdin == Stdin::Inherit
            && let Some(first) = input_of.replace(name)
        {
            let text = format!("{first} has our standard input already; use \"null\" for all but one");
            return Err(wrong(name, "stdin", &text));
        }
        if let Stdin::Fifo(path) = &command.launch.stdin
            && let Some(first) = fifos.insert(path, name)
        {
            return Err(wrong(name, "stdin", &format!("{first} reads this FIFO already; use another path")));
        }
    }
    let order = config.start_order();
    match config.commands.iter().find(|command| !order.contains(&command.name.as_str())) {
        None => Ok(()),
        Some(command) => {
            let circle = circle(config, command, &order);
            let name = circle.first().map_or(command.name.as_str(), |name| name);
            let text = format!("{} is a circle: none could be the first; take one of these out", circle.join(" -> "));
            Err(wrong(name, "after", &text))
        }
    }
}

/// A circle that one comes to from a command that has no place in the order.
fn circle<'a>(config: &'a Config, from: &'a Command, order: &[&str]) -> Vec<&'a str> {
    let mut path: Vec<&str> = Vec::new();
    let mut at = from;
    loop {
        if let Some(start) = path.iter().position(|name| *name == at.name) {
            path.push(&at.name);
            return path.split_off(start);
        }
        path.push(&at.name);
        let next = at.after.iter().find(|name| !order.contains(&name.as_str()));
        let next = next.and_then(|name| config.commands.iter().find(|command| command.name == *name));
        match next {
            Some(next) => at = next,
            None => return path,
        }
    }
}

#[cfg(test)]
mod tests;
