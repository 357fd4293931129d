//! Lines in a stream of chunks, and what the matchers see in them.

use std::sync::Arc;

use memchr::{memchr, memrchr};

use super::{Matchers, Role, Sighting, is_session_id};

/// A longer line passes unseen, in bytes: it could not be looked at before it ends, and what it takes
/// to keep it until then is ours.
pub const LINE_LIMIT: usize = 16 << 20;

/// What is kept of the memory that a long line took.
const KEPT: usize = 256 << 10;

/// Looks at one stream.
pub struct Eye {
    all: Arc<Matchers>,
    /// Those that can still tell something new.
    matchers: Arc<Matchers>,
    /// The completion markers, once there was one: after that the last word counts, and nothing else.
    last_word: Option<Matchers>,
    /// A line that has begun and not ended.
    begun: Vec<u8>,
    /// Whether the line that has begun is too long already.
    skipping: bool,
    unseen: u64,
    sightings: Vec<Sighting>,
}

impl Eye {
    /// An eye on a stream that begins.
    #[must_use]
    pub fn new(matchers: Arc<Matchers>) -> Eye {
        Eye {
            all: Arc::clone(&matchers),
            matchers,
            last_word: None,
            begun: Vec::new(),
            skipping: false,
            unseen: 0,
            sightings: Vec::new(),
        }
    }

    /// Another try begins: everything is new again.
    pub fn begin_again(&mut self) {
        self.matchers = Arc::clone(&self.all);
        self.last_word = None;
    }

    /// Looks at what came next.
    pub fn look(&mut self, mut bytes: &[u8]) {
        if self.skipping || !self.begun.is_empty() {
            let Some(end) = memchr(b'\n', bytes) else { return self.begin(bytes) };
            self.begin(&bytes[..end]);
            self.end_of_line();
            bytes = &bytes[end + 1..];
        }
        let Some(last) = memrchr(b'\n', bytes) else { return self.begin(bytes) };
        self.whole_lines(&bytes[..last]);
        self.begin(&bytes[last + 1..]);
    }

    /// The stream has ended: a line without an end is a line.
    pub fn finish(&mut self) {
        if self.skipping || !self.begun.is_empty() {
            self.end_of_line();
        }
    }

    /// What was seen since the last time, in order.
    pub fn take(&mut self) -> Vec<Sighting> {
        std::mem::take(&mut self.sightings)
    }

    /// Lines that were too long to be looked at.
    #[must_use]
    pub fn unseen(&self) -> u64 {
        self.unseen
    }

    fn begin(&mut self, bytes: &[u8]) {
        if self.skipping {
            return;
        }
        if self.begun.len() + bytes.len() > LINE_LIMIT {
            self.skipping = true;
            self.begun = Vec::new();
            return;
        }
        self.begun.extend_from_slice(bytes);
    }

    fn end_of_line(&mut self) {
        if self.skipping {
            self.skipping = false;
            self.unseen += 1;
            return;
        }
        let line = std::mem::take(&mut self.begun);
        self.examine(&line);
        self.begun = line;
        self.begun.clear();
        self.begun.shrink_to(KEPT);
    }

    /// Lines with their ends between them. Where only some can matter, the others are not even cut out.
    fn whole_lines(&mut self, text: &[u8]) {
        let mut unheard = self.last_word.is_some().then_some(0);
        let mut at = 0;
        while at <= text.len() && !self.matchers.is_empty() {
            let mut candidate = None;
            if let Some(candidates) = self.matchers.candidates.as_ref().filter(|_| !self.matchers.every_line) {
                let Some(found) = candidates.find(&text[at..]) else { break };
                let place = at + found.start();
                at = memrchr(b'\n', &text[at..place]).map_or(at, |end| at + end + 1);
                candidate = Some(true);
            }
            let end = memchr(b'\n', &text[at..]).map_or(text.len(), |end| at + end);
            self.look_for_news(&text[at..end], candidate);
            at = end + 1;
            if self.last_word.is_some() {
                unheard.get_or_insert(at);
            }
        }
        if let Some(rest) = unheard.and_then(|from| text.get(from..)) {
            self.look_for_the_last_word(rest);
        }
    }

    fn examine(&mut self, line: &[u8]) {
        let was_done = self.last_word.is_some();
        self.look_for_news(line, None);
        if was_done {
            self.look_for_the_last_word(line);
        }
    }

    /// One session and one side effect are all that can be told in a try; to go on looking for them
    /// would mean to parse every line of an agent that writes its session into every line. And nobody
    /// who is done begins a tool or goes idle.
    fn look_for_news(&mut self, line: &[u8], candidate: Option<bool>) {
        let before = self.sightings.len();
        self.matchers.examine(line, candidate, &mut self.sightings);
        for sighting in &self.sightings[before..] {
            match sighting {
                Sighting::Session(id) if is_session_id(id) => {
                    self.matchers = Arc::new(self.matchers.only(|role| role != Role::SessionId));
                }
                Sighting::SideEffect => {
                    self.matchers = Arc::new(self.matchers.only(|role| role != Role::SideEffect));
                }
                Sighting::Done(_) if self.last_word.is_none() => {
                    self.last_word = Some(self.all.only(|role| role == Role::DoneWhen));
                    self.matchers = Arc::new(self.matchers.only(|role| role == Role::SessionId));
                }
                _ => {}
            }
        }
    }

    /// From the last line backwards, as far as it takes.
    fn look_for_the_last_word(&mut self, text: &[u8]) {
        let Some(matchers) = &self.last_word else { return };
        if !matchers.every_line && !matchers.candidates.as_ref().is_none_or(|all| all.is_match(text)) {
            return;
        }
        let before = self.sightings.len();
        for line in text.rsplit(|byte| *byte == b'\n') {
            matchers.examine(line, None, &mut self.sightings);
            if self.sightings.len() > before {
                break;
            }
        }
    }
}
