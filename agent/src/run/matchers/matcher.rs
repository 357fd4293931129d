//! One matcher: how it is written, and what it finds in a line.

use std::fmt;

use memchr::memmem::Finder;
use regex::bytes::{Captures, Regex};
use serde_json::Value;
use serde_json_path::JsonPath;

use super::needs::{Condition, Needs};
use super::{Document, Role, Sighting, needed, needs};

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
    Regex {
        regex: Regex,
        /// Whether it has the group that is its capture.
        captures: bool,
    },
    Json(Box<Query>),
}

#[derive(Clone)]
struct Query {
    path: JsonPath,
    /// The members that it leads along, where it is nothing but that.
    members: Option<Vec<String>>,
    /// What must stand in a line for the query to find something there.
    words: Vec<Finder<'static>>,
    /// That of them which is to be expected in the fewest lines.
    best: Option<String>,
    /// What else must be so.
    conditions: Vec<Condition>,
    needs: Needs,
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
            How::Regex { regex, captures }
        } else if let Some(query) = text.strip_prefix("json:") {
            let path = JsonPath::parse(query).map_err(|error| MatcherError::JsonPath(last_line(&error)))?;
            let (texts, names) = needed::literals(query);
            let best = texts.iter().max_by_key(|text| rarity(text)).or(names.iter().max_by_key(|name| rarity(name)));
            let best = best.map(|word| needed::as_it_stands(word));
            let words = texts.iter().chain(&names).map(|word| needed::as_it_stands(word));
            let words = words.map(|word| Finder::new(&word).into_owned()).collect();
            let ((needs, conditions), members) = (needs::of(query), needs::members(query));
            How::Json(Box::new(Query { path, members, words, best, conditions, needs }))
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

    /// Whether it is a query.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.how, How::Json(_))
    }

    /// A word without which no line matches; nothing where there is none that we know.
    pub(super) fn best_word(&self) -> Option<&str> {
        match &self.how {
            How::Regex { .. } => None,
            How::Json(query) => query.best.as_deref(),
        }
    }

    /// Whether a query can find anything in the line: cheap, and never wrong when it says no.
    pub(super) fn is_possible(&self, line: &[u8], has_escapes: &mut Option<bool>) -> bool {
        let How::Json(query) = &self.how else { return true };
        query.words.iter().all(|word| word.find(line).is_some())
            // Any character of a JSON string can be written as an escape.
            || *has_escapes.get_or_insert_with(|| memchr::memmem::find(line, needed::ESCAPE).is_some())
    }

    /// What has to be read of a line before anything else: its conditions, where it needs everything
    /// and mostly in vain.
    pub(super) fn needs_first(&self) -> Needs {
        let How::Json(query) = &self.how else { return Needs::default() };
        if !query.needs.is_all() || query.conditions.is_empty() {
            return query.needs.clone();
        }
        let mut needs = Needs::default();
        for condition in &query.conditions {
            needs.add(Needs::of_condition(condition));
        }
        needs
    }

    /// Says what it sees in a line.
    pub(super) fn sightings(&self, document: &mut Document<'_>, found: &mut Vec<Sighting>) {
        match &self.how {
            How::Regex { regex, captures } => self.of_regex(regex, *captures, document.line, found),
            How::Json(query) => self.of_query(query, document, found),
        }
    }

    fn of_regex(&self, regex: &Regex, captures: bool, line: &[u8], found: &mut Vec<Sighting>) {
        let text = |capture: &Captures<'_>| {
            let group = capture.name(self.role.group())?;
            Some(String::from_utf8_lossy(group.as_bytes()).into_owned())
        };
        let captures = captures && self.status.is_none() && self.role != Role::SideEffect;
        match (self.role.can_come_twice(), captures) {
            (false, false) => found.extend(regex.is_match(line).then(|| self.sighting(None)).flatten()),
            (false, true) => found.extend(regex.captures(line).and_then(|capture| self.sighting(text(&capture)))),
            (true, false) => found.extend(regex.find_iter(line).filter_map(|_| self.sighting(None))),
            (true, true) => {
                found.extend(regex.captures_iter(line).filter_map(|capture| self.sighting(text(&capture))));
            }
        }
    }

    fn of_query(&self, query: &Query, document: &mut Document<'_>, found: &mut Vec<Sighting>) {
        let Some(read) = document.read() else { return };
        if !query.conditions.iter().all(|condition| condition.holds(read)) {
            return;
        }
        let value = if query.needs.is_all() { document.whole() } else { document.read() };
        let Some(value) = value else { return };
        if let Some(members) = &query.members {
            let node = members.iter().try_fold(value, |value, name| value.as_object()?.get(name));
            found.extend(node.and_then(|node| self.sighting(Some(as_text(node)))));
            return;
        }
        let most = if self.role.can_come_twice() { usize::MAX } else { 1 };
        let nodes = query.path.query(value).into_iter().take(most);
        found.extend(nodes.filter_map(|node| self.sighting(Some(as_text(node)))));
    }

    fn sighting(&self, capture: Option<String>) -> Option<Sighting> {
        match self.role {
            Role::ToolRunning => Some(Sighting::ToolStarted(capture)),
            Role::ToolDone => Some(Sighting::ToolEnded(capture)),
            Role::SideEffect => Some(Sighting::SideEffect),
            Role::SessionId => capture.map(Sighting::Session),
            Role::DoneWhen => Some(Sighting::Done(self.status.clone().or(capture))),
        }
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.option(), self.text)
    }
}

/// How seldom a text can be expected to stand in a line: `tool_use` is an agent's own word, `assistant`
/// is everywhere. A wrong guess costs time only.
fn rarity(word: &str) -> (bool, usize) {
    (word.contains(['_', '.', '-']), word.len())
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
