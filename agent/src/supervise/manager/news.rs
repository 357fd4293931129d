//! What a command tells while it runs, and what no event tells: readiness, and clocks.

use std::time::Instant;

use super::Manager;
use super::slot::took;
use crate::supervise::state::{Event, Phase};

impl Manager {
    /// Hears what a run has to say.
    pub(super) fn listen(&mut self, index: usize) {
        let now = Instant::now();
        let slot = &mut self.slots[index];
        let Some(child) = &mut slot.child else { return };
        let Some(pid) = child.listen() else { return };
        let restart =
            if slot.machine.restarts() > 0 { format!(", restart {}", slot.machine.restarts()) } else { String::new() };
        let text = format!("{}: started (pid {pid}{restart})", slot.command.name);
        self.outputs.log(&text);
        if slot.probe.started(now) {
            slot.is_ready(now);
        }
    }

    /// Reads what a command puts out.
    pub(super) fn read(&mut self, index: usize) {
        let now = Instant::now();
        let slot = &mut self.slots[index];
        let Some(child) = &mut slot.child else { return };
        let mut matched = false;
        let outputs = &mut self.outputs;
        child.lines().retain_mut(|line| {
            let seen = line.turn(outputs);
            matched |= seen.matched;
            !seen.eof
        });
        if matched {
            self.ready(index, now);
        }
    }

    pub(super) fn ready(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        if slot.machine.phase() != Phase::Starting {
            return;
        }
        let after = took(now.saturating_duration_since(slot.machine.since()));
        slot.is_ready(now);
        let text = format!("{}: ready after {after}", slot.command.name);
        self.outputs.log(&text);
    }

    /// Looks at everything that no event tells: readiness, and clocks.
    pub(super) fn look(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.machine.tick(now);
            if let Some(child) = &mut slot.child {
                child.urge(now);
            }
            if let Some(child) = &mut slot.child
                && child.overdue_at().is_some_and(|at| now >= at)
            {
                child.kill();
                let text = format!("{}: its ending takes too long: its run is killed", slot.command.name);
                self.outputs.log(&text);
            }
            if slot.machine.phase() != Phase::Starting {
                continue;
            }
            if slot.probe.look(now) {
                self.ready(index, now);
            } else if slot.not_ready_at().is_some_and(|at| now >= at) {
                let text = format!(
                    "{}: not ready after {}; it is ended",
                    slot.command.name,
                    took(slot.command.launch.ready_timeout.unwrap_or_default())
                );
                self.outputs.log(&text);
                self.tell(index, Event::NotReady, now);
            }
        }
    }
}
