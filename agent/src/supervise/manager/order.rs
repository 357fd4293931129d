//! What is started after what, and ended before what.

use std::collections::HashSet;
use std::io;
use std::time::Instant;

use super::Manager;
use super::input::Input;
use super::slot::Slot;
use crate::supervise::launch::{self, Surroundings};
use crate::supervise::ready::Probe;
use crate::supervise::state::{Event, Phase, Rest};

/// The exit status of a command that we could not even start.
const CANNOT: u8 = 125;

impl Manager {
    /// Starts what is to be started and may be.
    pub(super) fn start(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.machine.phase() != Phase::Waiting || slot.child.is_some() {
                continue;
            }
            if let Some(failed) = self.doom(slot) {
                let text = format!("{}: not started: it comes after {failed}, which failed", slot.command.name);
                self.outputs.log(&text);
                self.slots[index].doom(now);
                if self.slots[index].command.essential {
                    self.failed.get_or_insert(1);
                    let name = self.slots[index].command.name.clone();
                    self.close(&format!("{name} is essential and cannot start"), now);
                }
            } else if self.may_start(slot) && self.slots[index].machine.launch(now) {
                self.launch(index, now);
            }
        }
    }

    pub(super) fn may_start(&self, slot: &Slot) -> bool {
        slot.command.after.iter().all(|name| self.slot(name).is_some_and(Slot::is_up))
    }

    /// The first of those that a command comes after which will not come any more.
    fn doom(&self, slot: &Slot) -> Option<String> {
        let failed = |name: &&String| {
            self.slot(name).is_some_and(|before| before.machine.phase() == Phase::Resting(Rest::Failed))
        };
        slot.command.after.iter().find(failed).cloned()
    }

    fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.command.name == name)
    }

    fn launch(&mut self, index: usize, now: Instant) {
        let opened = self.slots[index].open_input(self.audit.as_ref()).map_err(io::Error::other);
        let slot = &self.slots[index];
        let around = Surroundings {
            fifo: slot.input.as_ref().map(Input::fifo),
            outputs: &self.outputs,
            color: self.color,
            index,
            width: self.slots.iter().map(|slot| slot.command.name.len()).max().unwrap_or(0),
            audit: self.audit.as_ref(),
            inherited: self.signals.inherited(),
            front: self.front,
        };
        let probe = Probe::new(&slot.command.launch.ready);
        let started = opened.and_then(|()| launch::launch(&slot.command, &around));
        let slot = &mut self.slots[index];
        slot.probe = probe;
        match started {
            Ok(child) => slot.child = Some(child),
            Err(error) => {
                slot.last_exit = None;
                self.over(index, CANNOT, &format!("cannot be started: {error}"), false, now);
            }
        }
    }

    /// Everything is to end.
    pub(super) fn close(&mut self, why: &str, now: Instant) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.outputs.log(&format!("shutting down: {why}"));
        for slot in &mut self.slots {
            let _ = slot.machine.take(Event::Shutdown, now);
            slot.close_input();
        }
    }

    /// During a shutdown: stops those of whose followers nothing is left.
    pub(super) fn stop_in_order(&mut self, now: Instant) {
        if !self.closing {
            return;
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let runs = matches!(slot.machine.phase(), Phase::Starting | Phase::Running);
            if runs && !self.has_followers(&slot.command.name) {
                self.tell(index, Event::Stop, now);
            }
        }
    }

    /// Whether something is left of a command that comes after this one, at whatever distance.
    fn has_followers(&self, name: &str) -> bool {
        let mut seen = HashSet::from([name]);
        let mut queue = vec![name];
        while let Some(name) = queue.pop() {
            for slot in self.slots.iter().filter(|slot| slot.command.after.iter().any(|before| before == name)) {
                if slot.child.is_some() {
                    return true;
                }
                if seen.insert(&slot.command.name) {
                    queue.push(&slot.command.name);
                }
            }
        }
        false
    }

    /// The first time everything is ended in its order; the second time at once, by SIGKILL.
    pub(super) fn asked_to_end(&mut self, now: Instant) {
        self.requests += 1;
        self.close("a signal asked for it", now);
        if self.requests < 2 {
            return;
        }
        self.outputs.log("asked again: everything is killed");
        for index in 0..self.slots.len() {
            self.tell(index, Event::Stop, now);
            if let Some(child) = &mut self.slots[index].child {
                child.hurry(now);
            }
        }
    }
}
