//! Questions to the source, and what is done on the strength of its answers.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Supervisor;
use crate::act::{self, Authority, Ground, Refusal, Verdict, Warrant};
use crate::ownership::worker::Worker;
use crate::ownership::{Census, Question, Scope};
use crate::pipe::{Action, Outcome, Pipe, Relation};
use crate::run::drain;
use crate::run::ending::{LetGo, Sentence};
use crate::run::journal;
use crate::run::options::{OnForeign, OnHolder};

/// How long a question to the source may take: longer than any sane walk over `/proc`, and an answer
/// that comes later is only asked for again.
const SCAN_BOUND: Duration = Duration::from_secs(2);

impl Supervisor<'_> {
    /// Asks for the ending's sake, or for the home group's members.
    pub(super) fn ask(&mut self, scope: Scope) {
        if self.look.is_out() {
            // Its answer is about a moment that is over: asked when it is there.
            self.look.put_off = Some(self.look.put_off.map_or(scope, |before| before.max(scope)));
            return;
        }
        if !self.question(scope)
            && let Some(ending) = &mut self.ending
        {
            ending.unanswered();
        }
    }

    /// Puts a question to the source; whether it was taken.
    pub(super) fn question(&mut self, scope: Scope) -> bool {
        let pipes = self.open_pipes();
        let question =
            Question { pipes, scope, deadline: Instant::now() + SCAN_BOUND, except: self.scene.sinks.clone() };
        self.worker().is_ok_and(|worker| worker.ask(question))
    }

    /// The thread that looks for holders: started when the first question comes up.
    pub(super) fn worker(&mut self) -> io::Result<&mut Worker> {
        if self.worker.is_none() {
            let scene = &mut *self.scene;
            let source = scene.tracker.source(&self.lineage, &self.options.keep, &mut scene.journal);
            self.worker = Some(Worker::start(source)?);
        }
        self.worker.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The pipes whose holders matter now.
    pub(super) fn open_pipes(&self) -> Vec<Pipe> {
        let pumped = self.scene.pumps.iter().filter(|pump| pump.end().is_none()).map(|pump| pump.pipe);
        pumped.chain(self.scene.watched.iter().map(|(_, pipe)| *pipe)).collect()
    }

    /// Takes an answer of the source: who is there, and who is to be signalled.
    pub(super) fn judge(&mut self, census: &Census) {
        if let Some(signal) = self.for_members.take() {
            self.signal_members(signal, census);
        }
        let (view, pipes) = (self.view(), self.open_pipes());
        let Some(ending) = &mut self.ending else { return };
        let sentences = ending.judge(census, &pipes, view);
        if !ending.in_grace() && (view.pumping || view.watching) {
            self.scene.journal.withheld(&census.holders, &pipes);
            for holder in &census.holders {
                self.scene.journal.saw(holder);
            }
        }
        for sentence in sentences {
            self.carry_out(&sentence, census);
        }
    }

    /// The home group's other members get what the command got.
    pub(super) fn signal_members(&mut self, signal: Signal, census: &Census) {
        let home = self.lineage.home;
        for stat in census.members.iter().filter(|stat| stat.pgid == home && stat.id.pid != self.command.pid) {
            let Some(description) = journal::description_of(stat.id, &census.holders) else { continue };
            let (id, ground) = (stat.id, Ground::Reap);
            let warrant = Warrant { id, relation: Relation::Lineage, ground, description: &description, signal };
            // Who refuses or is gone is met again by the ending.
            let _ = act::signal(&warrant, &self.authority(), &mut self.scene.journal);
        }
    }

    pub(super) fn carry_out(&mut self, sentence: &Sentence, census: &Census) {
        let Some(description) = journal::description_of(sentence.id, &census.holders) else { return };
        let warrant = Warrant {
            id: sentence.id,
            relation: sentence.relation,
            ground: sentence.ground.clone(),
            description: &description,
            signal: sentence.signal,
        };
        let verdict = act::signal(&warrant, &self.authority(), &mut self.scene.journal);
        let Some(ending) = &mut self.ending else { return };
        match verdict {
            Ok(Verdict::Signalled) => ending.signalled(sentence.id, sentence.signal),
            // It moved between the look and the verification; the next look sees where to.
            Ok(Verdict::Gone | Verdict::Refused(Refusal::NoHold | Refusal::Reused)) => {}
            Ok(Verdict::Refused(_)) => ending.refused(sentence.id),
            Err(_) => ending.unanswered(),
        }
    }

    pub(super) fn authority(&self) -> Authority {
        Authority {
            root: self.lineage.root,
            keep: self.options.keep.clone(),
            foreign: self.options.on_foreign == OnForeign::As(OnHolder::End),
            node: false,
        }
    }

    /// Lets go of every stream that is still open; what is in the pipes now is still delivered.
    pub(super) fn let_go(&mut self, how: LetGo) {
        let bound_reached = self.ending.as_ref().is_none_or(|ending| ending.outcome() == Outcome::Closed);
        for pump in self.scene.pumps.iter_mut().filter(|pump| pump.end().is_none()) {
            let Some(source) = pump.let_go() else { continue };
            let mut done = Action::Closed;
            if how == LetGo::Drain
                && let Ok(sink) = drain::start(&source)
            {
                self.scene.sinks.insert(sink);
                self.scene.tracker.disown(sink);
                done = Action::Drained;
            }
            self.scene.journal.let_go(pump.pipe, pump.bytes, done, bound_reached);
        }
    }

    /// Takes the source's answer, if there is one; whether there was.
    pub(super) fn take_answer(&mut self) -> bool {
        let Some(answer) = self.worker.as_mut().and_then(|worker| worker.answer().transpose()) else { return false };
        if answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.worker = None; // the next question starts another thread
        }
        let for_a_look = self.look.is_out();
        match answer {
            Ok(census) if for_a_look => self.learn(&census),
            Ok(census) => self.judge(&census),
            Err(error) => self.source_failed(&error),
        }
        if for_a_look && let Some(scope) = self.look.put_off.take() {
            self.ask(scope);
        }
        true
    }
}
