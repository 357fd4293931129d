//! The side of the thread that has the map: questions are answered, and events told, once a turn.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::Counts;
use super::exchange::{Asked, Post, Question, Said, Word};
use crate::node::live::{Fled, Holding, Live};
use crate::ownership::node::protocol::Code;
use crate::pipe::{Pipe, PipeId, ProcessId};
use crate::process::table::{Sought, look};

/// Questions that are taken at once; others come with the next turn.
const QUESTIONS: usize = 1024;
/// Words that nobody has taken: with more, events are lost, and that is told.
const WORDS: usize = 16384;
/// How often it is asked who of the watchers still has his pipe.
const CHECK: Duration = Duration::from_secs(1);
/// Reading everything for new pipes takes a fifth of the time at most, and this much of it at once.
const SHARE: f64 = 0.2;
const AT_ONCE: f64 = 0.25;

/// A pipe that somebody watches.
#[derive(Clone, Copy, Debug)]
struct Watch {
    pipe: Pipe,
    peer: ProcessId,
}

/// Of which connection, and its number there.
type Key = (u64, u64);

/// What the thread that has the map knows of those who ask.
pub(super) struct Desk {
    questions: Arc<Post<Question>>,
    words: Arc<Post<Word>>,
    counts: Arc<Counts>,
    watches: HashMap<Key, Watch>,
    of_connection: HashMap<u64, HashSet<u64>>,
    of_pipe: HashMap<PipeId, HashSet<Key>>,
    /// Questions for which everything has to be read.
    waiting: Vec<Question>,
    /// How long everything may be read, in seconds, as of then.
    credit: (f64, Instant),
    next_check: Instant,
    /// Events that were lost, until that is told.
    lost: u64,
}

impl Desk {
    pub(super) fn new(questions: Arc<Post<Question>>, words: Arc<Post<Word>>, counts: Arc<Counts>) -> Desk {
        let now = Instant::now();
        let (watches, of_connection, of_pipe) = (HashMap::new(), HashMap::new(), HashMap::new());
        let waiting = Vec::new();
        let (credit, next_check, lost) = ((AT_ONCE, now), now, 0);
        Desk { questions, words, counts, watches, of_connection, of_pipe, waiting, credit, next_check, lost }
    }

    /// Answers what there is, and tells what happened.
    pub(super) fn attend(&mut self, live: &mut Live) {
        let mut about = Vec::new();
        for question in self.questions.take(QUESTIONS) {
            self.take(live, question, &mut about);
        }
        let mut passing = Vec::new();
        let now = Instant::now();
        if !self.waiting.is_empty() && now >= self.not_before() {
            self.read_everything(live, &mut about, &mut passing);
            let (credit, since) = self.credit;
            let credit = (credit + now.duration_since(since).as_secs_f64() * SHARE).min(AT_ONCE);
            self.credit = (credit - now.elapsed().as_secs_f64(), Instant::now());
        }
        self.answer(live, about);
        passing.into_iter().for_each(|pipe| live.leave(pipe));
        self.tell_news(live);
        if now >= self.next_check {
            self.check(live);
            self.next_check = now + CHECK;
        }
        if self.lost > 0 && self.words.len() < WORDS / 2 {
            let missed = std::mem::take(&mut self.lost);
            self.lost("too many events waited to be told", missed);
        }
    }

    /// When everything may be read again.
    fn not_before(&self) -> Instant {
        let (credit, since) = self.credit;
        since + Duration::from_secs_f64((-credit / SHARE).max(0.0))
    }

    /// When there is something to do without anybody asking.
    pub(super) fn due(&self, live: &Live) -> Option<Instant> {
        let waiting = (!self.waiting.is_empty()).then(|| self.not_before());
        let check = (!self.watches.is_empty()).then_some(self.next_check);
        [waiting, check, live.fades_at()].into_iter().flatten().min()
    }

    /// Events are missing: everybody who watches has to ask again.
    pub(super) fn lost(&self, why: &str, missed: u64) {
        if !self.watches.is_empty() {
            self.words.put(Word { connection: 0, said: Said::Lost { why: why.to_owned(), missed } });
        }
    }

    fn take(&mut self, live: &mut Live, question: Question, about: &mut Vec<(Question, Pipe)>) {
        let connection = question.connection;
        match question.asked {
            Asked::Over => {
                self.waiting.retain(|waiting| waiting.connection != connection);
                for watch in self.of_connection.remove(&connection).unwrap_or_default() {
                    self.forget(live, (connection, watch));
                }
            }
            Asked::Unwatch { watch } => {
                let is_it = |asked: &Asked| matches!(asked, Asked::Watch { watch: its, .. } if *its == watch);
                // Its answer is owed all the same.
                let waits = self.waiting.iter().position(|one| one.connection == connection && is_it(&one.asked));
                if let Some(Asked::Watch { id, .. }) = waits.map(|at| self.waiting.swap_remove(at).asked) {
                    self.refuse(connection, id, Code::NoWatch, "the watch was ended before it began", Some(watch));
                }
                self.forget(live, (connection, watch));
            }
            Asked::ResolveWatch { id, watch } => match self.watches.get(&(connection, watch)) {
                Some(its) => {
                    let pipe = its.pipe;
                    about.push((question, pipe));
                }
                // It may be about to begin.
                None if self.is_to_begin(connection, watch) => self.waiting.push(question),
                None => self.refuse(connection, id, Code::NoWatch, "there is no such watch on this connection", None),
            },
            Asked::Watch { .. } | Asked::Resolve { .. } | Asked::Why { .. } => self.waiting.push(question),
        }
    }

    fn is_to_begin(&self, connection: u64, watch: u64) -> bool {
        let is_it = |asked: &Asked| matches!(asked, Asked::Watch { watch: its, .. } if *its == watch);
        self.waiting.iter().any(|one| one.connection == connection && is_it(&one.asked))
    }

    /// Reads everything once, for all who wait for it.
    fn read_everything(&mut self, live: &mut Live, about: &mut Vec<(Question, Pipe)>, passing: &mut Vec<PipeId>) {
        let waiting = std::mem::take(&mut self.waiting);
        let (of_own, waiting): (Vec<Question>, Vec<Question>) =
            waiting.into_iter().partition(|question| matches!(question.asked, Asked::Why { .. }));
        if !of_own.is_empty() {
            self.tell_own(live, of_own);
        }
        let pipe_of = |question: &Question| match &question.asked {
            Asked::Watch { pipe, .. } | Asked::Resolve { pipe, .. } => Some(pipe.id),
            _ => None,
        };
        let pipes: Vec<PipeId> = waiting.iter().filter_map(pipe_of).collect();
        let sought = if pipes.is_empty() { Ok(()) } else { live.seek(&pipes) };
        for question in waiting {
            let connection = question.connection;
            match (&sought, &question.asked) {
                (Ok(()), Asked::Watch { id, watch, pipe }) => {
                    let (id, watch, pipe) = (*id, *watch, *pipe);
                    self.watches.insert((connection, watch), Watch { pipe, peer: question.peer });
                    self.of_connection.entry(connection).or_default().insert(watch);
                    self.of_pipe.entry(pipe.id).or_default().insert((connection, watch));
                    self.say(connection, Said::Watching { id, watch, pipe });
                }
                (Ok(()), Asked::Resolve { pipe, .. }) => {
                    passing.push(pipe.id);
                    let pipe = *pipe;
                    about.push((question, pipe));
                }
                (Err(error), Asked::Watch { id, watch, .. }) => self.unavailable(connection, *id, error, Some(*watch)),
                (Err(error), Asked::Resolve { id, .. }) => self.unavailable(connection, *id, error, None),
                (_, Asked::ResolveWatch { .. }) => self.take(live, question, about),
                _ => {}
            }
        }
    }

    /// Who holds each pipe: the index is read once for all.
    fn answer(&mut self, live: &mut Live, about: Vec<(Question, Pipe)>) {
        if about.is_empty() {
            return;
        }
        let exact = live.is_exact();
        let holding = live.holding(&about.iter().map(|(_, pipe)| pipe.id).collect());
        for (Question { connection, peer, asked }, pipe) in about {
            let (id, watch) = match asked {
                Asked::Resolve { id, .. } => (id, None),
                Asked::ResolveWatch { id, watch } => (id, Some(watch)),
                _ => continue,
            };
            match &holding {
                Ok(holding) => {
                    let holding = holding.get(&pipe.id).cloned().unwrap_or_default();
                    if let Some(watch) = watch.filter(|_| !has(peer, pipe, &holding)) {
                        let message = "this process has no end of that pipe open any more; pass its read end";
                        self.refuse(connection, id, Code::NotHeld, message, None);
                        self.end(live, (connection, watch));
                    } else {
                        self.say(connection, Said::Holding { id, pipe, holding, exact });
                    }
                }
                Err(error) => self.unavailable(connection, id, error, None),
            }
        }
    }

    fn tell_own(&mut self, live: &mut Live, questions: Vec<Question>) {
        let exact = live.is_exact();
        let own = live.own(&questions.iter().map(|question| question.peer).collect());
        for Question { connection, peer, asked } in questions {
            let Asked::Why { id } = asked else { continue };
            match &own {
                Ok(own) => {
                    let own = own.get(&peer).cloned().unwrap_or_default();
                    self.say(connection, Said::Own { id, own, exact });
                }
                Err(error) => self.unavailable(connection, id, error, None),
            }
        }
    }

    /// Tells watchers what happened to their pipes.
    fn tell_news(&mut self, live: &mut Live) {
        let news = live.news();
        if news.is_empty() {
            return;
        }
        if news.missed {
            self.lost("too many escapes at once", 0);
        }
        // An escape first: what it changed is told by it.
        for fled in self.looked_up(live, news.escapes) {
            self.tell_watchers(fled.pipe, |watch| Said::Escape { watch, fled: fled.clone() });
        }
        for pipe in news.changed {
            self.tell_watchers(pipe, |watch| Said::Changed { watch });
        }
        for pipe in news.eof {
            self.tell_watchers(pipe, |watch| Said::Eof { watch });
        }
    }

    /// Of whom it is not known that he holds the pipe, the index tells.
    fn looked_up(&self, live: &mut Live, escapes: Vec<Fled>) -> Vec<Fled> {
        let unsure: HashSet<PipeId> = escapes.iter().filter(|fled| fled.hold.is_none()).map(|fled| fled.pipe).collect();
        let Some(holding) = (!unsure.is_empty()).then(|| live.holding(&unsure).ok()).flatten() else { return escapes };
        let hold_of = |fled: &Fled| {
            let parts = holding.get(&fled.pipe)?.parts.iter().filter(|(id, _)| id.pid == fled.pid);
            parts.flat_map(|(_, parts)| parts).find(|part| part.end.writes()).cloned()
        };
        let looked_up = escapes.into_iter().filter_map(|fled| match fled.hold {
            Some(_) => Some(fled),
            None => hold_of(&fled).map(|hold| Fled { hold: Some(hold), ..fled }),
        });
        looked_up.collect()
    }

    fn tell_watchers(&mut self, pipe: PipeId, said: impl Fn(u64) -> Said) {
        let keys: Vec<Key> = self.of_pipe.get(&pipe).into_iter().flatten().copied().collect();
        for (connection, watch) in keys {
            if self.words.len() >= WORDS {
                self.lost += 1;
                Counts::add(&self.counts.events_lost);
            } else {
                self.say(connection, said(watch));
            }
        }
    }

    /// Ends the watches of those who do not have their pipes any more: its numbers may be another pipe's.
    fn check(&mut self, live: &mut Live) {
        if self.watches.is_empty() {
            return;
        }
        let Ok(holding) = live.holding(&self.of_pipe.keys().copied().collect()) else { return };
        let empty = Holding::default();
        let its = |watch: &Watch| holding.get(&watch.pipe.id).unwrap_or(&empty);
        let over = self.watches.iter().filter(|(_, watch)| !has(watch.peer, watch.pipe, its(watch)));
        let over: Vec<Key> = over.map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.end(live, key));
    }

    fn end(&mut self, live: &mut Live, key: Key) {
        self.forget(live, key);
        self.say(key.0, Said::Ended { watch: key.1 });
    }

    fn forget(&mut self, live: &mut Live, key: Key) {
        let Some(Watch { pipe, .. }) = self.watches.remove(&key) else { return };
        live.leave(pipe.id);
        if let Some(keys) = self.of_pipe.get_mut(&pipe.id) {
            keys.remove(&key);
            if keys.is_empty() {
                self.of_pipe.remove(&pipe.id);
            }
        }
        if let Some(watches) = self.of_connection.get_mut(&key.0) {
            watches.remove(&key.1);
            if watches.is_empty() {
                self.of_connection.remove(&key.0);
            }
        }
    }

    fn unavailable(&self, connection: u64, id: u64, error: &io::Error, watch: Option<u64>) {
        let message = format!("the node's map cannot be read ({error}); look for yourself, or ask again later");
        self.refuse(connection, id, Code::Unavailable, &message, watch);
    }

    fn refuse(&self, connection: u64, id: u64, code: Code, message: &str, watch: Option<u64>) {
        self.say(connection, Said::Refused { id, code, message: message.to_owned(), watch });
    }

    fn say(&self, connection: u64, said: Said) {
        self.words.put(Word { connection, said });
    }
}

/// Whether a process has any end of a pipe open. Where the map does not show it, its own tables tell.
fn has(peer: ProcessId, pipe: Pipe, holding: &Holding) -> bool {
    holding.parts.contains_key(&peer)
        || look(peer.pid, &Sought { pipes: vec![pipe], hidden: false }).is_ok_and(|found| !found.holds.is_empty())
}
