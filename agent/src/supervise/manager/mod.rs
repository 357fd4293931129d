//! The loop that keeps several commands: starts them in their order, sees them end, starts them again
//! or does not, and ends them in the reverse order.
//!
//! There is one thread (and at most one more for a stdout or stderr that only a thread can wait for),
//! and nothing here waits: what takes its time, a start, an ending, a full pipe, is waited for by the
//! one poll(2) in `wait`.

mod answer;
mod ends;
mod input;
mod news;
mod order;
mod reload;
mod slot;
mod wait;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::config::{Color, Config};
use super::control::Server;
use super::orphans::Orphans;
use super::output::Outputs;
use super::state::{Act, Event, Phase, Rest};
use crate::audit::Target;
use crate::run::signals::Signals;
use answer::Waiter;
use slot::Slot;

/// What the manager is made of.
pub struct Setup {
    /// The configuration file, which SIGHUP reads again.
    pub file: PathBuf,
    /// What it says now.
    pub config: Config,
    /// Where audit records go, if the command line says so.
    pub audit: Option<Target>,
    /// Signals to us.
    pub signals: Signals,
    /// The process in front of us, if there is one.
    pub front: Option<i32>,
    /// The ways out.
    pub outputs: Outputs,
    /// The control socket, if there is one.
    pub server: Option<Server>,
}

/// Several commands under supervision.
pub struct Manager {
    file: PathBuf,
    /// The command line's; it overrides the file's.
    audit_option: Option<Target>,
    audit: Option<Target>,
    color: Color,
    signals: Signals,
    front: Option<i32>,
    outputs: Outputs,
    server: Option<Server>,
    waiters: Vec<Waiter>,
    orphans: Orphans,
    slots: Vec<Slot>,
    /// Whether everything is being ended.
    closing: bool,
    /// How often we were asked to end by a signal.
    requests: u32,
    /// What the first essential command failed with.
    failed: Option<u8>,
}

impl Manager {
    /// Gets ready; nothing is started yet.
    #[must_use]
    pub fn new(setup: Setup, now: Instant) -> Manager {
        let Setup { file, config, audit, signals, front, outputs, server } = setup;
        let slots = config.commands.into_iter().map(|command| Slot::new(command, now)).collect();
        Manager {
            file,
            audit: audit.clone().or(config.audit),
            audit_option: audit,
            color: config.color,
            signals,
            front,
            outputs,
            server,
            waiters: Vec::new(),
            orphans: Orphans::default(),
            slots,
            closing: false,
            requests: 0,
            failed: None,
        }
    }

    /// Keeps the commands until everything has ended; the exit status.
    ///
    /// # Errors
    ///
    /// What poll(2), wait(2) and read(2) on our own descriptors say: nothing on a sound system.
    pub fn run(mut self) -> io::Result<u8> {
        loop {
            let now = Instant::now();
            self.bury()?;
            self.pursue();
            self.look(now);
            self.settle(now);
            self.start(now);
            self.stop_in_order(now);
            self.answer_waiters(now);
            self.outputs.turn();
            if self.is_over() {
                break;
            }
            if !self.is_restless(now) {
                self.wait(now)?;
            }
        }
        self.log_end();
        self.deliver_the_rest()?;
        Ok(self.failed.unwrap_or(0))
    }

    fn log_end(&mut self) {
        match self.failed {
            Some(code) => self.outputs.log(&format!("everything has ended; exit status {code}")),
            None => self.outputs.log("everything has ended"),
        }
    }

    /// Everything that can still come has come.
    fn is_over(&self) -> bool {
        let lives = |slot: &Slot| slot.child.is_some() || !matches!(slot.machine.phase(), Phase::Resting(_));
        let stopped = |slot: &Slot| slot.machine.phase() == Phase::Resting(Rest::Stopped);
        // What somebody stopped may be started by him again; but nothing is during a shutdown.
        !self.slots.iter().any(lives) && (self.closing || !self.slots.iter().any(stopped))
    }

    /// Whether something can be done at once.
    fn is_restless(&self, now: Instant) -> bool {
        let startable = |slot: &Slot| {
            let due = slot.machine.due().is_some_and(|due| due <= now);
            due || (slot.machine.phase() == Phase::Waiting && slot.child.is_none() && self.may_start(slot))
        };
        self.slots.iter().any(startable)
    }

    /// Gives an event to a command, and does what it asks for.
    fn tell(&mut self, index: usize, event: Event, now: Instant) {
        let slot = &mut self.slots[index];
        let before = slot.machine.phase();
        if slot.machine.take(event, now) == Act::End
            && let Some(child) = &mut slot.child
        {
            child.ask_to_end(now);
        }
        slot.close_input();
        let after = slot.machine.phase();
        if let Some(text) = slot::change(before, after) {
            let text = format!("{}: {text}", slot.command.name);
            self.outputs.log(&text);
        }
    }
}
