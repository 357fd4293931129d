//! `pipewarden run`: the supervisor's options, and how its report is printed.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;

use super::lifecycle::{self, Agent, Beside};
use super::value::{self, Bound};
use crate::audit::Target;
use crate::ownership::keep::Keep;
use crate::ownership::ladder::Backend;
use crate::pipe::ExitStatus;
use crate::run::options::{Leak, OnForeign, OnHolder, OnOpaque, Options, Reap, ReportStyle, Stdin, Stdio};
use crate::run::{self, Finished, report::Report};

/// Run a command: every byte of its output arrives, then EOF, then its exit status.
///
/// Exit status: the command's own; 128+N if signal N ended it; 124 after --timeout or --idle-timeout;
/// 123 with --leak fail; 125 if pipewarden itself failed; 126 if the command cannot be executed;
/// 127 if it was not found.
#[derive(Debug, Args)]
pub struct Run {
    /// First signal of an ending
    #[arg(short, long, value_name = "SIG", default_value = "TERM", value_parser = value::signal)]
    signal: Signal,
    /// Time from the first signal to SIGKILL
    #[arg(short, long, value_name = "DUR", default_value = "1s", value_parser = value::duration, allow_hyphen_values = true)]
    kill_after: Duration,
    /// End the command after this time [off]
    #[arg(long, value_name = "DUR", value_parser = value::bound, allow_hyphen_values = true)]
    timeout: Option<Bound>,
    /// End the command after this time without output [off]
    #[arg(long, value_name = "DUR|auto", value_parser = idle_timeout, allow_hyphen_values = true)]
    idle_timeout: Option<IdleTimeout>,
    /// Quiet time after the command's exit before holders are ended
    #[arg(long, value_name = "DUR", default_value = "200ms", value_parser = value::duration, allow_hyphen_values = true)]
    holder_grace: Duration,
    /// Bound on waiting for holders, from the command's exit
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = value::duration, allow_hyphen_values = true)]
    max_drain: Duration,
    /// Bound on waiting for downstream to take what was read [off]
    #[arg(long, value_name = "DUR", value_parser = value::bound, allow_hyphen_values = true)]
    max_deliver: Option<Bound>,
    /// What to do about stale holders that descend from the command
    #[arg(long, value_name = "WHAT", default_value = "end")]
    on_holder: What,
    /// What to do about holders that do not [drain; close if they ignore SIGPIPE]
    #[arg(long, value_name = "WHAT")]
    on_foreign: Option<What>,
    /// What to do about descendants whose descriptors cannot be read
    #[arg(long, value_name = "WHAT", default_value = "report")]
    on_opaque: WhatOpaque,
    /// Whom an ending ends; auto: all after an asked ending, else the holders
    #[arg(long, value_name = "WHOM", default_value = "auto")]
    reap: Whom,
    /// Never end what matches by name, program path or command line (repeatable)
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,
    /// fail: exit 123 when a holder had to be ended and the command succeeded
    #[arg(long, value_name = "HOW", default_value = "pass")]
    leak: LeakArg,
    /// How stdout and stderr reach downstream; auto: pump pipes and sockets, inherit the rest
    #[arg(long, value_name = "HOW", default_value = "auto")]
    stdio: StdioArg,
    /// Two pipes even where our stdout and stderr are one
    #[arg(long)]
    split: bool,
    /// Where the command's standard input comes from: inherit, null, or fifo:PATH, which is made if need be
    #[arg(long, value_name = "FROM", default_value = "inherit", value_parser = lifecycle::stdin)]
    stdin: Stdin,
    /// What answers "who holds this pipe"
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendArg,
    /// Append audit records as JSON lines to this file; - is stderr
    #[arg(long, value_name = "PATH|-")]
    audit: Option<OsString>,
    /// The report on stderr; text: only when something was ended, spared, closed or undelivered
    #[arg(long, value_name = "STYLE", default_value = "text")]
    report: Style,
    /// After a timeout, exit with the command's own status
    #[arg(long)]
    preserve_status: bool,
    /// Leave the command in our process group (the terminal's signals reach it directly)
    #[arg(long)]
    foreground: bool,
    /// Forward signal N as M; M = 0 forwards nothing (repeatable)
    #[arg(short, long, value_name = "N:M", value_parser = value::rewrite)]
    rewrite: Vec<(i32, i32)>,
    /// The signal that the command gets when pipewarden dies
    #[arg(short, long, value_name = "SIG", value_parser = value::signal)]
    pdeathsig: Option<Signal>,
    #[command(flatten)]
    agent: Agent,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Signal them
    End,
    /// Only name them, and read on until --max-drain
    Report,
    /// Close the read end: their next write gets SIGPIPE
    Close,
    /// Wait for them until --max-drain
    Wait,
    /// Let a sink read what they write: downstream gets EOF and they live
    Drain,
}

impl From<What> for OnHolder {
    fn from(what: What) -> OnHolder {
        match what {
            What::End => OnHolder::End,
            What::Report => OnHolder::Report,
            What::Close => OnHolder::Close,
            What::Wait => OnHolder::Wait,
            What::Drain => OnHolder::Drain,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhatOpaque {
    Report,
    End,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Whom {
    Auto,
    Holders,
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LeakArg {
    Pass,
    Fail,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StdioArg {
    Auto,
    Pump,
    Inherit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    /// /proc at once, and the connector's events once the command has lived a little
    Auto,
    /// The live map (not in this version)
    Bpf,
    /// /proc, with the proc connector's events from the start
    Connector,
    /// /proc alone
    Proc,
    /// Another process's live map (not in this version)
    Node,
}

impl From<BackendArg> for Backend {
    fn from(backend: BackendArg) -> Backend {
        match backend {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Bpf => Backend::Bpf,
            BackendArg::Connector => Backend::Connector,
            BackendArg::Proc => Backend::Proc,
            BackendArg::Node => Backend::Node,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
    Text,
    Json,
    None,
}

#[derive(Clone, Copy, Debug)]
enum IdleTimeout {
    After(Option<Duration>),
    Auto,
}

fn idle_timeout(text: &str) -> Result<IdleTimeout, String> {
    if text == "auto" {
        return Ok(IdleTimeout::Auto);
    }
    value::bound(text).map(|bound| IdleTimeout::After(bound.0)).map_err(|error| format!("{error}, or auto"))
}

impl IdleTimeout {
    /// Auto: a fifth of the whole, but between five and fifteen minutes.
    fn resolve(self, timeout: Option<Duration>) -> Option<Duration> {
        const LEAST: Duration = Duration::from_secs(300);
        const MOST: Duration = Duration::from_secs(900);
        match self {
            IdleTimeout::After(bound) => bound,
            IdleTimeout::Auto => Some(timeout.map_or(LEAST, |timeout| timeout / 5).clamp(LEAST, MOST)),
        }
    }
}

impl Run {
    /// Runs the command. `described` are the options as the user wrote them, for the audit log.
    #[must_use]
    pub fn run(self, described: Vec<(String, String)>) -> ExitCode {
        let options = match self.options(described) {
            Ok(options) => options,
            Err(error) => return super::usage_error(&error),
        };
        if let Some(caution) = run::caution(&options) {
            super::print::complain(&caution);
        }
        let code = match run::run(&options) {
            Ok(Finished::Supervised(report, failed, dies_by)) => {
                print(&report, &options);
                match failed {
                    None => {
                        let code = report.exit_code(&options);
                        if let Some(signal) = dies_by.filter(|signal| i32::from(code) == 128 + signal) {
                            run::die_by(signal);
                        }
                        code
                    }
                    Some(error) => {
                        super::print::complain(&error);
                        super::FAILURE
                    }
                }
            }
            Ok(Finished::Relayed(status)) => {
                if let ExitStatus::Signal(signal) = status {
                    run::die_by(signal);
                }
                status.shell_code()
            }
            Err(error) => {
                super::print::complain(&error);
                error.exit_code()
            }
        };
        ExitCode::from(code)
    }

    fn options(self, described: Vec<(String, String)>) -> Result<Options, String> {
        let keep = Keep::new(&self.keep).map_err(|error| {
            format!("invalid value for '--keep <GLOB>': {error}; quote the glob, as in '*postgres*'")
        })?;
        let timeout = self.timeout.and_then(|bound| bound.0);
        let stdio = match self.stdio {
            StdioArg::Auto => Stdio::Auto,
            StdioArg::Pump => Stdio::Pump,
            StdioArg::Inherit => Stdio::Inherit,
        };
        let reap = match self.reap {
            Whom::Auto => Reap::Auto,
            Whom::Holders => Reap::Holders,
            Whom::All => Reap::All,
        };
        let idle_timeout = self.idle_timeout.and_then(|idle| idle.resolve(timeout));
        let lifecycle = self.agent.lifecycle(Beside { idle: idle_timeout.is_some(), stdio, reap })?;
        Ok(Options {
            command: self.command,
            signal: self.signal,
            kill_after: self.kill_after,
            timeout,
            idle_timeout,
            lifecycle,
            holder_grace: self.holder_grace,
            max_drain: self.max_drain,
            max_deliver: self.max_deliver.and_then(|bound| bound.0),
            on_holder: self.on_holder.into(),
            on_foreign: self.on_foreign.map_or(OnForeign::Auto, |what| OnForeign::As(what.into())),
            on_opaque: match self.on_opaque {
                WhatOpaque::Report => OnOpaque::Report,
                WhatOpaque::End => OnOpaque::End,
            },
            reap,
            keep,
            leak: match self.leak {
                LeakArg::Pass => Leak::Pass,
                LeakArg::Fail => Leak::Fail,
            },
            stdio,
            split: self.split,
            backend: self.backend.into(),
            stdin: self.stdin,
            report: match self.report {
                Style::Text => ReportStyle::Text,
                Style::Json => ReportStyle::Json,
                Style::None => ReportStyle::None,
            },
            preserve_status: self.preserve_status,
            foreground: self.foreground,
            rewrite: self.rewrite,
            pdeathsig: self.pdeathsig,
            audit: self.audit.map(Target::from),
            described,
            ..Options::new(Vec::new())
        })
    }
}

/// Prints the report to stderr; that nobody reads it is no failure of the run.
fn print(report: &Report, options: &Options) {
    let text = match options.report {
        ReportStyle::Text => report.text(options),
        ReportStyle::Json => serde_json::to_string(report).map(|line| line + "\n").unwrap_or_default(),
        ReportStyle::None => return,
    };
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_a_fifth_of_the_total_within_bounds() {
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        for (timeout, idle) in [(10, 5), (25, 5), (40, 8), (75, 15), (600, 15)] {
            assert_eq!(IdleTimeout::Auto.resolve(minutes(timeout)), minutes(idle), "of {timeout} minutes");
        }
    }
}
