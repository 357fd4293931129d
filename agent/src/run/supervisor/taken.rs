//! What happens to us and to our children: signals, stops, exits.

use std::io;
use std::time::Instant;

use super::{Exited, ONE_REQUEST, Supervisor};
use crate::pipe::{EndedFor, ExitStatus};
use crate::process::children;
use crate::run::ending::{Beginning, Ending};
use crate::run::feed::Closing;
use crate::run::options::Reap;
use crate::run::reap;
use crate::run::signals::{self, Arrival};
use crate::run::terminal;

impl Supervisor<'_> {
    /// Takes the signals that came; whether SIGCONT was one of them.
    pub(super) fn take_signals(&mut self) -> io::Result<bool> {
        // Read first, looked at for exits next: a SIGCHLD that comes later is still to be read.
        let mut taken = Vec::new();
        while let Some(arrival) = self.scene.signals.next()? {
            taken.push(arrival);
        }
        let continued = taken.iter().any(|arrival| arrival.signal == libc::SIGCONT);
        // And exits before requests: one that comes with the command's exit comes too late for it. But
        // what was sent to our whole group may be what it died of.
        let (to_both, to_us): (Vec<_>, Vec<_>) = taken.into_iter().partition(|arrival| arrival.to_the_group);
        for arrival in to_both {
            self.take_signal(arrival);
        }
        self.take_exits()?;
        for arrival in to_us {
            self.take_signal(arrival);
        }
        Ok(continued)
    }

    pub(super) fn take_signal(&mut self, arrival: Arrival) {
        let signal = arrival.signal;
        if signal == libc::SIGCHLD {
            return;
        }
        if arrival.from_the_terminal {
            self.key = Some(signal);
        }
        self.forward(arrival);
        // A command that shares our group decides for both of us: see `stop_with_the_command`.
        if signals::is_stop(signal) && (self.scene.own_group || self.status.is_some()) {
            self.stop_by(signal);
        }
    }

    /// Job control stopped the command: whoever waits for us is to see that.
    pub(super) fn stop_with_the_command(&mut self) -> io::Result<()> {
        if !self.scene.own_group
            && self.status.is_none()
            && let Some(signal) = reap::stopped(self.command.pid)?
            && terminal::stops_with(self.front(), signal)
        {
            self.stop_by(signal);
        }
        Ok(())
    }

    /// The process that whoever started us waits for.
    pub(super) fn front(&self) -> i32 {
        self.lineage.adopter.unwrap_or(self.lineage.root)
    }

    pub(super) fn stop_by(&mut self, signal: i32) {
        match signals::stop_by(signal) {
            Some(time) => self.scene.stopped += time,
            // Nobody stops here, and so nobody would continue the command.
            None if signals::is_stop(signal) => self.signal_command(libc::SIGCONT, true),
            None => {}
        }
    }

    /// A signal was sent to us: the command gets it, and SIGINT and SIGTERM begin an ending.
    pub(super) fn forward(&mut self, arrival: Arrival) {
        let Arrival { signal, from_the_terminal, to_the_group } = arrival;
        // A key is the command's to answer, and it has it already.
        if from_the_terminal && to_the_group {
            return;
        }
        let rewritten = self.options.rewrite.iter().find(|(from, _)| *from == signal).map_or(signal, |(_, to)| *to);
        if rewritten == 0 {
            return;
        }
        if !self.scene.signals.asks_to_end(signal) {
            if !to_the_group {
                self.signal_command(rewritten, signals::is_for_the_group(signal));
            }
            return;
        }
        let now = self.now();
        // From the last one that counted: who repeats it faster than that is heard all the same.
        if self.last_request.is_some_and(|last| now.saturating_duration_since(last) < ONE_REQUEST) {
            return;
        }
        self.last_request = Some(now);
        self.requests += 1;
        match &mut self.ending {
            None if self.asked.is_none() && to_the_group => self.begin_to_end(EndedFor::Signal, signal),
            None if self.asked.is_none() => self.ask_to_end(EndedFor::Signal, rewritten),
            // Nobody needs to be told a second time, but the holders need not be given time any more.
            Some(ending) if self.asked.is_none() && self.requests == 1 => ending.end_the_grace(),
            _ => self.insist(),
        }
    }

    /// Notes the command's exit without reaping it, and reaps everything else that died.
    pub(super) fn take_exits(&mut self) -> io::Result<()> {
        let mut died = false;
        while self.status.is_none() {
            match reap::peek()? {
                None => break,
                Some(death) if death.pid == self.command.pid => self.command_exited(death.status),
                Some(death) => died |= reap::reap(death.pid),
            }
        }
        if self.status.is_some() {
            // The command's zombie, which we keep, would be found first by every wait for any child.
            for child in children::children(self.lineage.root).unwrap_or_default() {
                died |= child != self.command.pid && reap::reap(child);
            }
        }
        if died && let Some(ending) = &mut self.ending {
            ending.nudge();
        }
        Ok(())
    }

    pub(super) fn command_exited(&mut self, status: ExitStatus) {
        let at = self.now();
        self.status = Some(Exited { at, status });
        self.scene.journal.exited(status, Instant::now());
        let reap_all = match self.options.reap {
            Reap::All => true,
            Reap::Holders => false,
            Reap::Auto => self.asked.is_some() || !self.is_last(),
        };
        if self.is_last() {
            self.scene.close_input(Closing::RunOver);
        } else if let Some(feed) = &mut self.scene.feed {
            feed.end_of_try();
        }
        let signalled = self.asked.map(|asked| at.saturating_duration_since(asked.at));
        let beginning = Beginning { exit: at, home: self.lineage.home, signalled, reap_all };
        let mut ending = Ending::new(self.options, &beginning);
        if self.asked.is_some_and(|asked| asked.killed) {
            ending.hurry();
        }
        self.ending = Some(ending);
    }

    /// The signal that ended the command, where a shell's job control or a key asks for our death by it.
    pub(super) fn dies_by(&self, status: ExitStatus) -> Option<i32> {
        let ExitStatus::Signal(signal) = status else { return None };
        let shown = !self.scene.own_group && (self.key == Some(signal) || terminal::is_a_job(self.front()));
        shown.then_some(signal)
    }
}
