//! The source that a run has, with its events, from rung to rung.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::footprint;
use super::journal::Journal;
use crate::ownership::events::{Events, LineageEvent, Names};
use crate::ownership::keep::Keep;
use crate::ownership::ladder::{self, Attached, Backend, Ladder, Unavailable};
use crate::ownership::proc::Proc;
use crate::ownership::{Lineage, Source};
use crate::pipe::Pipe;
use crate::process::stat::Stat;

/// What a run knows its lineage by. It outlasts the tries.
pub struct Tracker {
    ladder: Ladder,
    events: Option<Box<dyn Events>>,
    /// Whether the audit log knows which source is in use.
    told: bool,
    /// Events that were lost, until what was known from them has been read anew.
    lost: Option<(&'static str, u64)>,
}

impl Tracker {
    /// What was asked for by name is attached here.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: then nothing may be started.
    pub fn start(
        backend: Backend,
        root: i32,
        helpers: &HashSet<i32>,
        journal: &mut Journal,
    ) -> Result<Tracker, Unavailable> {
        let forced = ladder::from_the_start(backend, root, helpers)?;
        let mut tracker = Tracker { ladder: Ladder::new(backend, root), events: None, told: false, lost: None };
        if let Some(attached) = forced {
            tracker.take(attached, journal);
        }
        Ok(tracker)
    }

    /// What is in use.
    #[must_use]
    pub fn names(&self) -> Names {
        self.events.as_ref().map_or(Names::PROC, |events| events.names())
    }

    /// A command is about to be started, with these pipes; [`born`](Self::born) follows.
    pub fn expect(&mut self, pipes: &[Pipe], helpers: &HashSet<i32>) {
        if let Some(events) = &mut self.events {
            events.expect(pipes, helpers);
        }
    }

    /// It was started, or could not be.
    pub fn born(&mut self, command: Option<i32>, journal: &mut Journal) {
        if let Some(events) = &mut self.events {
            events.born(command);
        }
        self.note_reseeded(journal);
    }

    /// A try begins.
    pub fn follow(&mut self, lineage: &Lineage, pipes: &[Pipe], now: Instant) {
        self.ladder.begin(now);
        if let Some(events) = &mut self.events {
            events.follow(lineage, pipes);
        }
    }

    /// The source for a try.
    pub fn source(&mut self, lineage: &Lineage, keep: &Keep, journal: &mut Journal) -> Box<dyn Source> {
        if !self.told {
            self.told = true;
            journal.source_attached(Names::PROC, None);
        }
        let brought = self.events.as_ref().and_then(|events| events.source(lineage, keep));
        brought.unwrap_or_else(|| Box::new(Proc::new(lineage.clone(), keep.clone())))
    }

    /// A child of ours is a helper, and no lineage.
    pub fn disown(&mut self, helper: i32) {
        if let Some(events) = &mut self.events {
            events.disown(helper);
        }
    }

    /// When to climb, at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.ladder.due()
    }

    /// Whether something has been begun that must be seen through.
    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        self.ladder.fd().is_some()
    }

    /// What becomes readable when there is an event, and when there is something to climb by.
    #[must_use]
    pub fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.events.as_ref().map(|events| events.fd()), self.ladder.fd()]
    }

    /// Attaches what is due.
    pub fn climb(
        &mut self,
        now: Instant,
        (lineage, pipes): (&Lineage, &[Pipe]),
        helpers: &mut HashSet<i32>,
        journal: &mut Journal,
    ) {
        match self.ladder.climb(now, helpers) {
            Some(Ok(mut attached)) => {
                attached.events.follow(lineage, pipes);
                self.take(attached, journal);
            }
            Some(Err(missed)) => journal.source_degraded(missed.rung, self.names().rung, &missed.why),
            None => {}
        }
    }

    fn take(&mut self, attached: Attached, journal: &mut Journal) {
        journal.source_attached(attached.events.names(), Some(attached.took));
        self.events = Some(attached.events);
        self.told = true;
        // To attach a live map takes five times the memory that it needs afterwards.
        footprint::settle();
    }

    /// The next event, if there is one. That there will be none any more is recorded, and no error.
    pub fn next(&mut self, journal: &mut Journal) -> Option<LineageEvent> {
        let events = self.events.as_mut()?;
        match events.next() {
            Ok(event) => {
                match &event {
                    Some(LineageEvent::Lost { why, missed }) => self.note_loss(why, *missed, journal),
                    Some(LineageEvent::Trouble(why)) => {
                        let rung = self.names().rung;
                        journal.source_degraded(rung, rung, why);
                    }
                    _ => {}
                }
                event
            }
            Err(error) => {
                self.fall(&error, journal);
                None
            }
        }
    }

    fn note_loss(&mut self, why: &'static str, missed: u64, journal: &mut Journal) {
        let before = self.lost.map_or(0, |(_, missed)| missed);
        self.lost = Some((why, before + missed));
        self.note_reseeded(journal);
    }

    /// What was lost is made up for, unless the lineage is still to be walked.
    fn note_reseeded(&mut self, journal: &mut Journal) {
        if !self.wants_walk()
            && let Some((why, missed)) = self.lost.take()
        {
            journal.source_reseeded(self.names().rung, why, missed);
        }
    }

    /// The source of a try could not answer. There is none below `/proc`: it is asked again.
    pub fn source_failed(&mut self, error: &io::Error, journal: &mut Journal) {
        if self.names().backend == Names::PROC.backend {
            journal.source_degraded(Names::PROC.rung, "none", &error.to_string());
        } else {
            self.fall(error, journal);
        }
    }

    /// Back to `/proc` alone, which loses nothing: it is asked as before, only not sooner. A node may come back.
    fn fall(&mut self, error: &io::Error, journal: &mut Journal) {
        let Names { backend, rung } = self.names();
        self.events = None;
        self.lost = None;
        if backend == "node" {
            self.ladder.lost_the_node();
        }
        journal.source_degraded(rung, Names::PROC.rung, &error.to_string());
        journal.source_is(Names::PROC);
    }

    /// Whether the lineage is to be walked for the events' sake.
    #[must_use]
    pub fn wants_walk(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.wants_walk())
    }

    /// It was, from beginning to end after it was wanted.
    pub fn walked(&mut self, members: &[Stat], journal: &mut Journal) {
        if let Some(events) = &mut self.events {
            events.walked(members);
        }
        self.note_reseeded(journal);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::audit::{Log, RunId, Target};
    use crate::kernel::connector::Connector;
    use crate::ownership::connector::ConnectorEvents;
    use crate::run::options::Options;

    /// A descriptor that is no socket any more gives what a dead one would: errors.
    #[test]
    fn when_the_socket_dies_the_run_goes_on_with_proc_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let log = Log::open(&Target::from(path.clone().into_os_string()), RunId::new()).unwrap();
        let mut journal = Journal::open(log, &Options::new(vec!["true".into()]));
        let root = nix::unistd::getpid().as_raw();
        let mut tracker = Tracker::start(Backend::Proc, root, &HashSet::new(), &mut journal).unwrap();
        let events = ConnectorEvents::from_the_start(Connector::dead(), root, &HashSet::new());
        tracker.take(Attached { events: Box::new(events), took: Duration::ZERO }, &mut journal);
        assert_eq!((tracker.names(), tracker.fds()[0].is_some()), (Names::CONNECTOR, true));
        assert_eq!(tracker.next(&mut journal), None);
        assert_eq!((tracker.names(), tracker.fds()[0].is_some()), (Names::PROC, false));
        journal.close(None, 0);
        let text = std::fs::read_to_string(path).unwrap();
        let degraded: Vec<&str> = text.lines().filter(|line| line.contains("tracker.degraded")).collect();
        assert_eq!(degraded.len(), 1, "{text}");
        assert!(degraded[0].contains(r#""from":"connector","to":"proc","why":"Socket operation on non-socket"#));
    }
}
