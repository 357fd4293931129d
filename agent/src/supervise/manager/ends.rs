//! What happens when a run exits: its last words, what it leaves behind, and what comes after it.

use std::collections::HashSet;
use std::io;
use std::time::Instant;

use super::Manager;
use super::slot::{self, took};
use crate::pipe::ExitStatus;
use crate::run::reap;
use crate::supervise::child::Word;
use crate::supervise::config::Ready;
use crate::supervise::launch;
use crate::supervise::orphans::Terms;
use crate::supervise::state::{Event, Phase, Rest, Then};

/// The exit status of a command that was not ready in time, as of one that reached a timeout.
const NOT_READY: u8 = 124;

impl Manager {
    pub(super) fn runs(&self) -> HashSet<i32> {
        let live = self.slots.iter().filter_map(|slot| slot.child.as_ref());
        live.filter(|child| child.exit.is_none()).map(|child| child.pid).collect()
    }

    /// Reaps whoever died, and hears the last words of runs.
    pub(super) fn bury(&mut self) -> io::Result<()> {
        let mut dead = Vec::new();
        while let Some(death) = reap::peek()? {
            let _ = reap::reap(death.pid);
            let at = self.slots.iter().position(|slot| slot.child.as_ref().is_some_and(|child| child.pid == death.pid));
            let Some(index) = at else { continue };
            if let Some(child) = &mut self.slots[index].child {
                child.exit = Some(death.status);
                child.exited = Some(Instant::now());
            }
            self.listen(index);
            dead.push(index);
        }
        if dead.is_empty() {
            return Ok(());
        }
        let runs = self.runs();
        let silent = |index: &usize| {
            self.slots.get(*index).and_then(|slot| slot.child.as_ref()).is_some_and(|child| child.result.is_none())
        };
        let violent: Vec<usize> = dead.iter().copied().filter(|index| silent(index)).collect();
        for index in &violent {
            let slot = &self.slots[*index];
            let command = slot.child.as_ref().and_then(|child| child.command);
            let launch = &slot.command.launch;
            let terms = Terms { keep: launch::keep(launch), command: launch.run.clone(), audit: self.audit.clone() };
            self.orphans.pursue(&slot.command.name, command, terms, dead.len() == 1, &runs);
            let text = format!("{}: its run died; what it left behind is ended", slot.command.name);
            self.outputs.log(&text);
        }
        if violent.len() < dead.len() {
            self.orphans.spare(&runs);
        }
        Ok(())
    }

    /// Ends what runs left behind that died before their time.
    pub(super) fn pursue(&mut self) {
        for ended in self.orphans.turn(&self.runs()) {
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.command.name == ended.name) {
                slot.holders_ended += ended.ended;
            }
            if ended.ended > 0 || ended.left > 0 {
                let text = format!(
                    "{}: ended {} processes that its run had left; {} are left",
                    ended.name, ended.ended, ended.left
                );
                self.outputs.log(&text);
            }
        }
    }

    /// Takes leave of runs of which nothing is left.
    pub(super) fn settle(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(child) = &mut slot.child else { continue };
            let lost = child.finish_lines(now, &mut self.outputs);
            if lost > 0 {
                let text = format!("{}: downstream did not take the last {lost} bytes", slot.command.name);
                self.outputs.log(&text);
            }
            if !child.is_over() || self.orphans.has(&slot.command.name) {
                continue;
            }
            self.ended(index, now);
        }
        self.slots.retain(|slot| !slot.removed || slot.child.is_some());
    }

    fn ended(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let Some(child) = slot.child.take() else { return };
        let asked = matches!(slot.machine.phase(), Phase::Stopping(_));
        let (name, ran) = (slot.command.name.clone(), slot.ran(now));
        let (code, how) = match child.result {
            Some(Word::Finished { code, exit_status, holders_ended, said }) => {
                slot.last_exit = Some(exit_status);
                slot.holders_ended += holders_ended;
                for line in said.lines() {
                    self.outputs.log(&format!("{name}: {}", line.strip_prefix("pipewarden: ").unwrap_or(line)));
                }
                (code, slot::exited(exit_status))
            }
            Some(Word::Failed { code, error }) => {
                slot.last_exit = None;
                (code, error)
            }
            Some(Word::Started { .. }) | None => {
                let status = child.exit.unwrap_or(ExitStatus::Signal(libc::SIGKILL));
                slot.last_exit = Some(status);
                (status.shell_code().max(1), "its run died without a last word".to_owned())
            }
        };
        self.over(index, code, &format!("{how} after {}", took(ran)), asked, now);
    }

    /// A command's run is over, or could not be begun.
    pub(super) fn over(&mut self, index: usize, code: u8, how: &str, asked: bool, now: Instant) {
        let slot = &mut self.slots[index];
        let judged = slot.machine.phase() == Phase::Stopping(Then::Judge);
        slot.probe.exited();
        let _ = slot.machine.take(Event::Ended(code), now);
        slot.close_input();
        let text = format!("{}: {how}{}", slot.command.name, slot.what_now(asked, now));
        self.outputs.log(&text);
        let name = slot.command.name.clone();
        let essential = slot.command.essential && !slot.removed;
        match slot.machine.phase() {
            Phase::Resting(Rest::Failed) if essential => {
                // Also one that ended well too often, or was not ready in time, has failed.
                let code = if judged { NOT_READY } else { code.max(1) };
                self.failed.get_or_insert(code);
                self.close(&format!("{name} is essential and failed"), now);
            }
            // One whose end is its readiness has only just begun to be of use.
            Phase::Resting(Rest::Finished) if essential && slot.command.launch.ready != Ready::Finished => {
                self.close(&format!("{name} is essential and finished"), now);
            }
            _ => {}
        }
    }
}
