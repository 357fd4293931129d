//! What an agent tells us in its own output: its session, its tools, that it is done.
//!
//! A matcher looks at single lines, `re:REGEX` at their bytes and `json:JSONPATH` (RFC 9535) at those
//! that parse as JSON. What it finds is a [`Sighting`]; what follows from one is decided elsewhere.

pub mod profile;

mod lines;
mod needed;

use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};
use memchr::memmem::Finder;
use regex::bytes::Regex;
use serde_json::Value;
use serde_json_path::JsonPath;

pub use lines::{Eye, LINE_LIMIT};

/// What a matcher is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--session-id`: its capture is what `{session_id}` stands for.
    SessionId,
    /// `--side-effect`: something was done that must not be done twice.
    SideEffect,
    /// `--tool-running`: a tool call began; its capture tells it from others.
    ToolRunning,
    /// `--tool-done`: a tool call ended.
    ToolDone,
    /// `--done-when`: the work is done; its capture is the status.
    DoneWhen,
}

impl Role {
    /// The option that names such matchers.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Role::SessionId => "--session-id",
            Role::SideEffect => "--side-effect",
            Role::ToolRunning => "--tool-running",
            Role::ToolDone => "--tool-done",
            Role::DoneWhen => "--done-when",
        }
    }

    /// The named group of a regular expression that is the capture.
    fn group(self) -> &'static str {
        if self == Role::DoneWhen { "status" } else { "id" }
    }
}

/// What was seen in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The session's id.
    Session(String),
    /// A side effect.
    SideEffect,
    /// A tool call began.
    ToolStarted(Option<String>),
    /// A tool call ended.
    ToolEnded(Option<String>),
    /// The work is done, with this status if it tells one.
    Done(Option<String>),
}

/// Why a matcher is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MatcherError {
    /// It begins with neither prefix.
    #[error("a matcher is re:REGEX or json:JSONPATH")]
    Kind,
    /// The regular expression does not parse.
    #[error("no regular expression: {0}")]
    Regex(String),
    /// The regular expression captures nothing where a capture is what it is for.
    #[error("its capture is a named group: use (?<id>…)")]
    Capture,
    /// The query does not parse.
    #[error("no JSONPath (RFC 9535): {0}")]
    JsonPath(String),
}

/// One matcher.
#[derive(Clone)]
pub struct Matcher {
    role: Role,
    text: String,
    /// The status that it stands for, whatever it captures.
    status: Option<String>,
    how: How,
}

#[derive(Clone)]
enum How {
    Regex(Regex),
    Json {
        query: JsonPath,
        /// What must stand in a line for the query to find something there.
        needed: Vec<Finder<'static>>,
    },
}

impl Matcher {
    /// Reads a matcher as it is written on the command line and in profiles.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in one line.
    pub fn new(role: Role, text: &str) -> Result<Matcher, MatcherError> {
        let how = if let Some(pattern) = text.strip_prefix("re:") {
            let regex = Regex::new(pattern).map_err(|error| MatcherError::Regex(last_line(&error)))?;
            let captures = regex.capture_names().flatten().any(|name| name == role.group());
            if role == Role::SessionId && !captures {
                return Err(MatcherError::Capture);
            }
            How::Regex(regex)
        } else if let Some(query) = text.strip_prefix("json:") {
            let needed = needed::literals(query).iter().map(|literal| Finder::new(literal).into_owned()).collect();
            let query = JsonPath::parse(query).map_err(|error| MatcherError::JsonPath(last_line(&error)))?;
            How::Json { query, needed }
        } else {
            return Err(MatcherError::Kind);
        };
        Ok(Matcher { role, text: text.to_owned(), status: None, how })
    }

    /// The same, standing for this status.
    #[must_use]
    pub fn with_status(self, status: &str) -> Matcher {
        Matcher { status: Some(status.to_owned()), ..self }
    }

    /// What it is for.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the line can match at all: cheap, and never wrong when it says no.
    fn is_possible(&self, line: &[u8], has_escapes: &mut Option<bool>) -> bool {
        match &self.how {
            How::Regex(_) => true,
            How::Json { needed, .. } => {
                needed.iter().all(|finder| finder.find(line).is_some())
                    // Any character of a JSON string can be written as an escape.
                    || *has_escapes.get_or_insert_with(|| memchr::memmem::find(line, needed::ESCAPE).is_some())
            }
        }
    }

    fn is_json(&self) -> bool {
        matches!(self.how, How::Json { .. })
    }

    /// The captures of a line, at most so many; none where it does not match.
    fn find(&self, line: &[u8], value: Option<&Value>, most: usize) -> Vec<Option<String>> {
        match &self.how {
            // To look for captures costs memory; nearly every line has none.
            How::Regex(regex) if !regex.is_match(line) => Vec::new(),
            How::Regex(regex) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let capture = |found: regex::bytes::Captures<'_>| {
                    found.name(self.role.group()).map(|group| text(group.as_bytes()))
                };
                regex.captures_iter(line).take(most).map(capture).collect()
            }
            How::Json { query, .. } => {
                let nodes = value.map(|value| query.query(value));
                nodes.into_iter().flatten().take(most).map(|node| Some(as_text(node))).collect()
            }
        }
    }

    fn sightings(&self, line: &[u8], value: Option<&Value>, found: &mut Vec<Sighting>) {
        // Several tools can begin in one line, and each of them is a tool.
        let several = matches!(self.role, Role::ToolRunning | Role::ToolDone);
        let mut captures = self.find(line, value, if several { usize::MAX } else { 1 }).into_iter();
        match self.role {
            Role::ToolRunning => found.extend(captures.map(Sighting::ToolStarted)),
            Role::ToolDone => found.extend(captures.map(Sighting::ToolEnded)),
            Role::SideEffect => found.extend(captures.next().map(|_| Sighting::SideEffect)),
            Role::SessionId => found.extend(captures.next().flatten().map(Sighting::Session)),
            Role::DoneWhen => {
                found.extend(captures.next().map(|capture| Sighting::Done(self.status.clone().or(capture))));
            }
        }
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.option(), self.text)
    }
}

/// The longest session id that we take for one, in bytes.
const ID_LIMIT: usize = 256;

/// Whether a capture can be put into a command line as one word that is no option: it comes from a
/// program's output, which is nobody's to vouch for.
#[must_use]
pub fn is_session_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_LIMIT && !id.starts_with('-') && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A capture: what a string says, and anything else as JSON writes it.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The parsers draw pictures of where they stopped; the last line says why.
fn last_line(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// All matchers of a run.
#[derive(Debug, Default)]
pub struct Matchers {
    list: Vec<Matcher>,
    /// Whether stderr is looked at too.
    stderr: bool,
    /// Finds every place that one of the queries could care for; absent where they care for every line.
    candidates: Option<AhoCorasick>,
    /// Whether some matcher cares for every line.
    every_line: bool,
}

impl Matchers {
    /// Puts matchers together; with `stderr` they look at both streams, else only at stdout.
    #[must_use]
    pub fn new(list: Vec<Matcher>, stderr: bool) -> Matchers {
        let candidates = candidates(&list);
        let every_line = candidates.is_none() || list.iter().any(|matcher| !matcher.is_json());
        Matchers { list, stderr, candidates, every_line }
    }

    /// Those that are left when everything is known that this role can tell.
    #[must_use]
    fn without(&self, role: Role) -> Matchers {
        let list = self.list.iter().filter(|matcher| matcher.role != role).cloned().collect();
        Matchers::new(list, self.stderr)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one has that role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.list.iter().any(|matcher| matcher.role == role)
    }

    /// Whether stderr is looked at.
    #[must_use]
    pub fn look_at_stderr(&self) -> bool {
        self.stderr
    }

    /// What a line says, without its line end.
    fn examine(&self, line: &[u8], found: &mut Vec<Sighting>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (mut parsed, mut has_escapes, mut json) = (None, None, None);
        let mut is_candidate =
            || *json.get_or_insert_with(|| self.candidates.as_ref().is_none_or(|all| all.is_match(line)));
        for matcher in &self.list {
            if (matcher.is_json() && !is_candidate()) || !matcher.is_possible(line, &mut has_escapes) {
                continue;
            }
            // Once a line, however many matchers want it.
            let value = if matcher.is_json() {
                parsed.get_or_insert_with(|| serde_json::from_slice::<Value>(line).ok()).as_ref()
            } else {
                None
            };
            matcher.sightings(line, value, found);
        }
    }
}

/// A search for what the queries need, unless there is no query, or one needs nothing in particular.
fn candidates(list: &[Matcher]) -> Option<AhoCorasick> {
    // To build one costs a fifth of the start of a run.
    if !list.iter().any(Matcher::is_json) {
        return None;
    }
    let mut keys = needed::ESCAPES.to_vec();
    for matcher in list {
        if let How::Json { needed, .. } = &matcher.how {
            keys.push(needed.iter().map(Finder::needle).max_by_key(|key| rarity(key))?);
        }
    }
    keys.sort_unstable();
    keys.dedup();
    // Only this way of matching has the fast search for several words at once.
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(keys).ok()
}

/// How seldom a word can be expected to stand in a line: `tool_use` is an agent's own word, `assistant`
/// and `message` are everywhere. A wrong guess costs time only.
fn rarity(word: &[u8]) -> (bool, usize) {
    (word.iter().any(|byte| matches!(byte, b'_' | b'.' | b'-')), word.len())
}

#[cfg(test)]
mod tests;
