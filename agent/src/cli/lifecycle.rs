//! The options of `pipewarden run` that make sense for an agent: when it is idle, done, tried again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::value;
use crate::run::matchers::profile::Profile;
use crate::run::matchers::{Matcher, Matchers, Role};
use crate::run::options::{Lifecycle, Reap, Retries, Stdin, Stdio};
use crate::run::template::Template;

/// Options that read the command's own output. M is `re:REGEX` (groups `id`, `status`) or `json:JSONPATH`.
#[derive(Debug, Args)]
#[command(next_help_heading = "For agents (M is re:REGEX or json:JSONPATH, over single lines)")]
pub struct Agent {
    /// Start a command that went silent again, at most so often [0]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Start a command that failed by itself again, at most so often [0]
    #[arg(long, value_name = "N")]
    retries_after_failure: Option<u32>,
    /// Pauses before the first, second, ... retry; the last one repeats [0s,5s,15s]
    #[arg(long, value_name = "LIST", value_parser = backoff, allow_hyphen_values = true)]
    retry_backoff: Option<Backoff>,
    /// The command that resumes a session, with {session_id} in it
    #[arg(long, value_name = "TEMPLATE", allow_hyphen_values = true)]
    resume_command: Option<String>,
    /// A line that matches says the work is done; its capture is the status (repeatable)
    #[arg(long, value_name = "M", allow_hyphen_values = true)]
    done_when: Vec<String>,
    /// From then on, how long the command has to exit by itself [10s]
    #[arg(long, value_name = "DUR", value_parser = value::duration, allow_hyphen_values = true)]
    done_grace: Option<Duration>,
    /// A line that matches tells the session's id (repeatable)
    #[arg(long, value_name = "M", allow_hyphen_values = true)]
    session_id: Vec<String>,
    /// A line that matches tells of work that must not be done twice (repeatable)
    #[arg(long, value_name = "M", allow_hyphen_values = true)]
    side_effect: Vec<String>,
    /// A line that matches begins a tool call: the idle clock stands still (repeatable)
    #[arg(long, value_name = "M", allow_hyphen_values = true)]
    tool_running: Vec<String>,
    /// A line that matches ends the tool call with the same capture (repeatable)
    #[arg(long, value_name = "M", allow_hyphen_values = true)]
    tool_done: Vec<String>,
    /// The matchers for a known agent: claude, codex, or a file of yours; options go before them
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// Pauses, in order.
#[derive(Clone, Debug)]
struct Backoff(Vec<Duration>);

fn backoff(text: &str) -> Result<Backoff, String> {
    let one = |part: &str| value::duration(part).map_err(|error| format!("{part:?}: {error}, separated by commas"));
    text.split(',').map(one).collect::<Result<_, _>>().map(Backoff)
}

/// What else was asked for, as far as it could contradict.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// Whether silence is bounded.
    pub idle: bool,
    /// `--stdio`.
    pub stdio: Stdio,
    /// `--reap`.
    pub reap: Reap,
}

const BACKOFF: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(15)];
const DONE_GRACE: Duration = Duration::from_secs(10);

impl Agent {
    /// Reads the matchers, and refuses what cannot be meant.
    ///
    /// # Errors
    ///
    /// One line that names the option, the value and what would be right.
    pub fn lifecycle(self, beside: Beside) -> Result<Lifecycle, String> {
        let (matchers, from_profile) = self.matchers()?;
        let retries = Retries {
            after_silence: self.retries.unwrap_or(0),
            after_failure: self.retries_after_failure.unwrap_or(0),
            backoff: self.retry_backoff.as_ref().map_or_else(|| BACKOFF.to_vec(), |list| list.0.clone()),
            resume: match self.resume_command.as_deref().or(from_profile.as_deref()) {
                None => None,
                Some(text) => {
                    Some(Template::new(text).map_err(|error| invalid("resume-command <TEMPLATE>", text, &error))?)
                }
            },
        };
        self.refuse_contradictions(&matchers, &retries, beside)?;
        let done_grace = self.done_grace.unwrap_or(DONE_GRACE);
        Ok(Lifecycle { retries, done_grace, matchers: Arc::new(matchers) })
    }

    /// The matchers of the command line and, for roles that it does not mention, of the profile; with
    /// the profile's resume command.
    fn matchers(&self) -> Result<(Matchers, Option<String>), String> {
        let mut list = Vec::new();
        let mut profile = None;
        if let Some(name) = &self.profile {
            profile = Some(Profile::load(name).map_err(|error| invalid("profile <NAME>", name, &error))?);
        }
        let mut stderr = profile.as_ref().is_none_or(|profile| profile.stderr);
        for (role, texts) in [
            (Role::SessionId, &self.session_id),
            (Role::SideEffect, &self.side_effect),
            (Role::ToolRunning, &self.tool_running),
            (Role::ToolDone, &self.tool_done),
            (Role::DoneWhen, &self.done_when),
        ] {
            for text in texts {
                let option = format!("{} <M>", role.option().trim_start_matches("--"));
                list.push(Matcher::new(role, text).map_err(|error| invalid(&option, text, &error))?);
                stderr = true;
            }
        }
        let resume = profile.as_ref().and_then(|profile| profile.resume_command.clone());
        if let Some(profile) = profile {
            let mentioned: Vec<Role> = list.iter().map(Matcher::role).collect();
            list.extend(profile.matchers.into_iter().filter(|matcher| !mentioned.contains(&matcher.role())));
        }
        Ok((Matchers::new(list, stderr), resume))
    }

    fn refuse_contradictions(&self, matchers: &Matchers, retries: &Retries, beside: Beside) -> Result<(), String> {
        let has = |role| matchers.has(role);
        let complaint = if retries.after_silence > 0 && !beside.idle {
            "--retries needs --idle-timeout: only a command that went silent is started again"
        } else if self.retry_backoff.is_some() && !retries.are_asked_for() {
            "--retry-backoff needs --retries"
        } else if self.resume_command.is_some() && !has(Role::SessionId) {
            "--resume-command needs --session-id or --profile: nothing tells which session to resume"
        } else if self.done_grace.is_some() && !has(Role::DoneWhen) {
            "--done-grace needs --done-when or --profile: nothing tells when the work is done"
        } else if has(Role::ToolRunning) && !has(Role::ToolDone) {
            "--tool-running needs --tool-done: the idle clock would stand still for ever"
        } else if has(Role::ToolDone) && !has(Role::ToolRunning) {
            "--tool-done needs --tool-running"
        } else if beside.reap == Reap::Holders && retries.are_asked_for() {
            "--reap holders contradicts --retries: what one try leaves behind would run beside the next"
        } else if beside.stdio == Stdio::Inherit && (beside.idle || !matchers.is_empty()) {
            "--stdio inherit contradicts --idle-timeout and matchers: they must see the output"
        } else {
            return Ok(());
        };
        Err(complaint.to_owned())
    }
}

/// Where the command's standard input comes from.
///
/// # Errors
///
/// What would be right, in one line.
pub fn stdin(text: &str) -> Result<Stdin, String> {
    match text.split_once(':') {
        None if text == "inherit" => Ok(Stdin::Inherit),
        None if text == "null" => Ok(Stdin::Null),
        Some(("fifo", path)) if !path.is_empty() => Ok(Stdin::Fifo(PathBuf::from(path))),
        _ => Err("use inherit, null or fifo:PATH".to_owned()),
    }
}

fn invalid(option: &str, value: &str, error: &dyn std::fmt::Display) -> String {
    format!("invalid value '{value}' for '--{option}': {error}")
}
