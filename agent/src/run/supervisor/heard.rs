//! What the events say, and the looks that they cause while the command runs.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use super::Supervisor;
use crate::ownership::events::{Escaped, LineageEvent, Names};
use crate::ownership::worker::Worker;
use crate::ownership::{Census, Holder, Scope};
use crate::pipe::Relation;
use crate::process::describe::{describe, ignores_sigpipe};
use crate::process::stat::Stat;

/// A look at the lineage because of an event, off the main path.
pub(super) struct Look {
    /// Who escaped and was not looked at yet, and when that was.
    escaped: HashMap<i32, Duration>,
    /// The look that is under way.
    out: Option<Out>,
    /// What the ending asked for meanwhile.
    pub(super) put_off: Option<Scope>,
    /// Looks take a tenth of the time at most, however fast a process escapes after the other.
    not_before: Instant,
}

struct Out {
    since: Instant,
    /// Who had escaped when it began: who escapes later may be where it has been already.
    escaped: HashMap<i32, Duration>,
    /// Whether it began when the events wanted the lineage to be walked.
    for_the_events: bool,
}

impl Look {
    /// Nobody looks yet, and from now on anybody may.
    pub(super) fn new(now: Instant) -> Look {
        Look { escaped: HashMap::new(), out: None, put_off: None, not_before: now }
    }

    pub(super) fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Its question had no answer: the next look is for the same.
    pub(super) fn failed(&mut self) {
        if let Some(out) = self.out.take() {
            self.escaped.extend(out.escaped);
        }
    }
}

impl Supervisor<'_> {
    /// When to climb, at the latest. Nothing is begun for the sake of an ending.
    pub(super) fn climb_at(&self) -> Option<Instant> {
        let ending = self.status.is_some() || self.asked.is_some();
        self.scene.tracker.due().filter(|_| !ending || self.scene.tracker.is_on_trial())
    }

    /// Climbs, if it is time to.
    pub(super) fn climb(&mut self) {
        if self.climb_at().is_none() {
            return;
        }
        let now = self.now();
        let had = self.scene.tracker.names();
        let pipes = self.open_pipes();
        let scene = &mut *self.scene;
        scene.tracker.climb(now, (&self.lineage, &pipes), &mut scene.sinks, &mut scene.journal);
        self.swap_the_source(had);
    }

    /// Takes what the events say; whether anything concerned the lineage.
    pub(super) fn take_events(&mut self) -> bool {
        let had = self.scene.tracker.names();
        let mut heard = false;
        while let Some(event) = self.scene.tracker.next(&mut self.scene.journal) {
            heard = true;
            self.hear(event);
        }
        self.swap_the_source(had);
        heard
    }

    /// The source that was asked cannot answer: the next question goes to `/proc`.
    pub(super) fn source_failed(&mut self, error: &io::Error) {
        self.look.failed();
        let had = self.scene.tracker.names();
        let scene = &mut *self.scene;
        scene.tracker.source_failed(error, &mut scene.journal);
        self.swap_the_source(had);
        if let Some(ending) = &mut self.ending {
            ending.unanswered();
        }
    }

    /// Where another source is in use than we had, it is asked from here on.
    fn swap_the_source(&mut self, had: Names) {
        if self.scene.tracker.names().backend != had.backend
            && let Some(worker) = &mut self.worker
        {
            let scene = &mut *self.scene;
            worker.replace(scene.tracker.source(&self.lineage, &self.options.keep, &mut scene.journal));
        }
    }

    fn hear(&mut self, event: LineageEvent) {
        match event {
            LineageEvent::Escaped(escaped) => self.hear_escape(escaped),
            LineageEvent::Exec(_) | LineageEvent::Trouble(_) => return,
            LineageEvent::Forked { .. }
            | LineageEvent::Exited(_)
            | LineageEvent::LastWriterGone(_)
            | LineageEvent::Changed(_)
            | LineageEvent::Lost { .. } => {}
        }
        if let Some(ending) = &mut self.ending {
            ending.nudge();
        }
    }

    /// Who is nobody's business is not looked at: without an audit log, and where no pipe is watched.
    fn hear_escape(&mut self, escaped: Escaped) {
        let pipes = self.open_pipes();
        if pipes.is_empty() || !self.scene.journal.is_on() {
            return;
        }
        let Escaped { pid, happened, holds } = escaped;
        let Some(mut holds) = holds else {
            self.look.escaped.insert(pid, happened);
            return;
        };
        holds.retain(|hold| hold.end.writes() && pipes.iter().any(|pipe| pipe.id == hold.pipe));
        if holds.is_empty() {
            return;
        }
        if let (Ok(stat), Ok(description)) = (Stat::read(pid), describe(pid)) {
            let holder = Holder {
                id: stat.id,
                relation: Relation::Lineage,
                escaped: true,
                kept: self.options.keep.matches(pid, &description.comm),
                ignores_sigpipe: ignores_sigpipe(pid),
                holds,
                description,
            };
            self.scene.journal.escaped(&holder, Some(happened));
        }
    }

    /// When the next look is due: `None` while nothing asks for one. An ending that hunts looks for itself.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let hunting = self.ending.as_ref().is_some_and(|ending| !ending.in_grace());
        let wanted = !self.look.escaped.is_empty() || self.scene.tracker.wants_walk();
        let busy = self.worker.as_ref().is_some_and(Worker::is_busy);
        (wanted && !hunting && !busy).then_some(self.look.not_before)
    }

    /// Looks at the lineage, if that is due.
    pub(super) fn look(&mut self) {
        let now = self.now();
        if self.look_at().is_none_or(|at| now < at) {
            return;
        }
        let for_the_events = self.scene.tracker.wants_walk();
        if self.question(Scope::Lineage) {
            let escaped = std::mem::take(&mut self.look.escaped);
            self.look.out = Some(Out { since: now, escaped, for_the_events });
        } else {
            self.look.not_before = now + Duration::from_secs(1);
        }
    }

    /// Takes the answer to a look, and asks what was put off for it.
    pub(super) fn learn(&mut self, census: &Census) {
        let Some(out) = self.look.out.take() else { return };
        let now = self.now();
        self.look.not_before = now + now.saturating_duration_since(out.since) * 9;
        if out.for_the_events {
            self.scene.tracker.walked(&census.members, &mut self.scene.journal);
        }
        // What was seen may have been told by now: then it is known when it was.
        self.take_events();
        let escaped = |holder: &&Holder| holder.relation == Relation::Lineage && holder.escaped;
        for holder in census.holders.iter().filter(escaped) {
            let pid = &holder.id.pid;
            let told = self.look.escaped.remove(pid);
            self.scene.journal.escaped(holder, out.escaped.get(pid).copied().or(told));
        }
    }
}
