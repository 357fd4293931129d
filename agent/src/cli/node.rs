//! `pipewarden node`: the policies of a machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::print::{complain, print};
use crate::node::config::{Config, OnWithheld, PATH};

/// What a node's policies say
///
/// Exit status: 0; 125 if the configuration is wrong.
#[derive(Debug, Args)]
pub struct Node {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE", default_value = PATH)]
    config: PathBuf,
    /// Only say whether the configuration is right
    #[arg(long, required = true)]
    check: bool,
}

impl Node {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match Config::load(&self.config) {
            Ok(config) => print_or_fail(&checked(&config)),
            Err(error) => failed(&error),
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

/// The policies in their order, and what each comes to.
fn checked(config: &Config) -> String {
    let mut text = match config.policies.len() {
        0 => "no policy: every withheld pipe is observed\n".to_owned(),
        1 => "1 policy\n".to_owned(),
        number => format!("{number} policies; the first that matches a holder decides\n"),
    };
    for policy in &config.policies {
        let action = match policy.on_withheld {
            OnWithheld::Observe => "observes".to_owned(),
            OnWithheld::End => format!("ends holders after {}", humantime::format_duration(policy.grace)),
        };
        text += &format!("{}: {action}\n", policy.name);
        let unknown = policy.about.told_by_others();
        if !unknown.is_empty() {
            let keys = unknown.join(", ");
            text += &format!("{}: matches nobody: this build does not ask anybody for {keys}\n", policy.name);
        }
    }
    text
}
