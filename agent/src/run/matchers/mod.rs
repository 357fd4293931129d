//! What an agent tells us in its own output: its session, its tools, that it is done.
//!
//! A matcher looks at single lines, `re:REGEX` at their bytes and `json:JSONPATH` (RFC 9535) at those
//! that parse as JSON. What it finds is a [`Sighting`]; what follows from one is decided elsewhere.

pub mod profile;

mod lines;
mod matcher;
mod needed;
mod needs;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

pub use lines::{Eye, LINE_LIMIT};
pub use matcher::{Matcher, MatcherError};
use needs::Needs;

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

    /// Whether a line can tell of several: each tool that begins in it is a tool.
    fn can_come_twice(self) -> bool {
        matches!(self, Role::ToolRunning | Role::ToolDone)
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

/// The longest session id that we take for one, in bytes.
const ID_LIMIT: usize = 256;

/// Whether a capture can be put into a command line as one word that is no option: it comes from a
/// program's output, which is nobody's to vouch for.
#[must_use]
pub fn is_session_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_LIMIT && !id.starts_with('-') && id.bytes().all(|byte| byte.is_ascii_graphic())
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
    /// What the queries need of a line to begin with.
    needs: Needs,
}

impl Matchers {
    /// Puts matchers together; with `stderr` they look at both streams, else only at stdout.
    #[must_use]
    pub fn new(list: Vec<Matcher>, stderr: bool) -> Matchers {
        let candidates = candidates(&list);
        let every_line = candidates.is_none() || !list.iter().all(Matcher::is_json);
        let mut needs = Needs::default();
        for matcher in &list {
            needs.add(matcher.needs_first());
        }
        Matchers { list, stderr, candidates, every_line, needs: needs.settled() }
    }

    /// Those of the roles that are left.
    #[must_use]
    fn only(&self, is_left: impl Fn(Role) -> bool) -> Matchers {
        let list = self.list.iter().filter(|matcher| is_left(matcher.role())).cloned().collect();
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
        self.list.iter().any(|matcher| matcher.role() == role)
    }

    /// Whether stderr is looked at.
    #[must_use]
    pub fn look_at_stderr(&self) -> bool {
        self.stderr
    }

    /// What a line says, without its line end. Whether it is a candidate may be known already.
    fn examine(&self, line: &[u8], candidate: Option<bool>, found: &mut Vec<Sighting>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut document = Document { line, needs: &self.needs, read: None, whole: None };
        let (mut has_escapes, mut candidate) = (None, candidate);
        let mut is_candidate =
            || *candidate.get_or_insert_with(|| self.candidates.as_ref().is_none_or(|all| all.is_match(line)));
        for matcher in &self.list {
            // Once it is read, what it says is sooner found there than words in the line.
            if matcher.is_json()
                && (!is_candidate() || !(document.read.is_some() || matcher.is_possible(line, &mut has_escapes)))
            {
                continue;
            }
            matcher.sightings(&mut document, found);
        }
    }
}

/// A line as the queries see it: read once, however many of them look at it.
struct Document<'a> {
    line: &'a [u8],
    needs: &'a Needs,
    read: Option<Option<Value>>,
    whole: Option<Option<Value>>,
}

impl Document<'_> {
    /// What the queries need to begin with; nothing if the line is no JSON.
    fn read(&mut self) -> Option<&Value> {
        self.read.get_or_insert_with(|| self.needs.read(self.line)).as_ref()
    }

    /// All of it.
    fn whole(&mut self) -> Option<&Value> {
        if self.needs.is_all() {
            return self.read();
        }
        self.whole.get_or_insert_with(|| serde_json::from_slice(self.line).ok()).as_ref()
    }
}

/// A search for what the queries need, unless there is no query, or one needs nothing in particular.
fn candidates(list: &[Matcher]) -> Option<AhoCorasick> {
    // To build one costs a fifth of the start of a run.
    if !list.iter().any(Matcher::is_json) {
        return None;
    }
    let mut keys: Vec<&[u8]> = needed::ESCAPES.to_vec();
    for matcher in list.iter().filter(|matcher| matcher.is_json()) {
        keys.push(matcher.best_word()?.as_bytes());
    }
    keys.sort_unstable();
    keys.dedup();
    // Only this way of matching has the fast search for several words at once.
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(keys).ok()
}

#[cfg(test)]
mod tests;
