//! SIGHUP: the configuration is read again, and what changed is restarted.

use std::time::Instant;

use super::Manager;
use super::slot::Slot;
use crate::supervise::config::{Command, Config};
use crate::supervise::state::{Event, Phase, Rest};

/// What a new configuration changes.
#[derive(Default)]
struct Changes {
    restarted: usize,
    added: usize,
    removed: usize,
}

impl Manager {
    /// Reads the file again. One that has an error changes nothing.
    pub(super) fn reload(&mut self, now: Instant) {
        if self.closing {
            self.outputs.log("SIGHUP: not read again: we are shutting down");
            return;
        }
        let config = match Config::load(&self.file) {
            Ok(config) => config,
            Err(error) => {
                self.outputs.log(&format!("{error}; nothing is changed"));
                return;
            }
        };
        self.color = config.color;
        self.audit = self.audit_option.clone().or(config.audit);
        let mut changes = Changes::default();
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if !slot.removed && !config.commands.iter().any(|command| command.name == slot.command.name) {
                changes.removed += 1;
                self.slots[index].removed = true;
                self.tell(index, Event::Stop, now);
            }
        }
        let mut order = Vec::new();
        for command in config.commands {
            order.push(command.name.clone());
            match self.slots.iter().position(|slot| slot.command.name == command.name) {
                Some(index) => self.change(index, command, &mut changes, now),
                None => {
                    changes.added += 1;
                    self.slots.push(Slot::new(command, now));
                }
            }
        }
        // In the file's order; what is on its way out comes last.
        self.slots.sort_by_key(|slot| order.iter().position(|name| *name == slot.command.name).unwrap_or(usize::MAX));
        let Changes { restarted, added, removed } = changes;
        let file = self.file.display();
        self.outputs.log(&format!("read {file} again: {restarted} changed, {added} added, {removed} removed"));
    }

    /// A command that is there already has this configuration from here on.
    fn change(&mut self, index: usize, command: Command, changes: &mut Changes, now: Instant) {
        let slot = &mut self.slots[index];
        let returns = std::mem::take(&mut slot.removed);
        let other = slot.command.launch != command.launch;
        if slot.command.policy != command.policy {
            slot.machine.set_policy(command.policy.clone());
        }
        slot.command = command;
        if !other && !returns {
            return;
        }
        changes.restarted += 1;
        // Who stopped it wants it stopped, whatever it is by now.
        if returns || slot.machine.phase() != Phase::Resting(Rest::Stopped) {
            self.tell(index, if other { Event::Restart } else { Event::Start }, now);
        }
    }
}
