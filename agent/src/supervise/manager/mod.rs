//! The loop that keeps several commands: starts them in their order, sees them end, starts them again
//! or does not, and ends them in the reverse order.
//!
//! There is one thread (and at most one more for a stdout or stderr that only a thread can wait for),
//! and nothing here waits: what takes its time, a start, an ending, a full pipe, is waited for by the
//! one poll(2) in `Manager::wait`.

mod answer;
mod reload;
mod slot;

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::child::{Child, Word};
use super::config::{Color, Config, Ready};
use super::control::Server;
use super::launch::{self, Surroundings};
use super::orphans::{Orphans, Terms};
use super::output::{Outputs, Way};
use super::ready::Probe;
use super::state::{Act, Event, Phase, Rest};
use crate::audit::Target;
use crate::run::fifo::Fifo;
use crate::run::reap;
use crate::run::signals::{self, Signals};
use answer::Waiter;
use slot::{Slot, took};

/// Bounds that nothing sets are this far away.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// How long what we put out may take to arrive once everything has ended.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

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

/// What a descriptor in the poll belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Control,
    Output(Way),
    Child(usize),
    Fifo(usize),
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

    fn runs(&self) -> HashSet<i32> {
        let live = self.slots.iter().filter_map(|slot| slot.child.as_ref());
        live.filter(|child| child.exit.is_none()).map(|child| child.pid).collect()
    }

    /// Reaps whoever died, and hears the last words of runs.
    fn bury(&mut self) -> io::Result<()> {
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
    fn pursue(&mut self) {
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

    /// Hears what a run has to say.
    fn listen(&mut self, index: usize) {
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
    fn read(&mut self, index: usize) {
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

    fn ready(&mut self, index: usize, now: Instant) {
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
    fn look(&mut self, now: Instant) {
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

    /// Gives an event to a command, and does what it asks for.
    fn tell(&mut self, index: usize, event: Event, now: Instant) {
        let slot = &mut self.slots[index];
        let before = slot.machine.phase();
        if slot.machine.take(event, now) == Act::End
            && let Some(child) = &mut slot.child
        {
            child.ask_to_end(now);
        }
        slot.close_fifo();
        let after = slot.machine.phase();
        if let Some(text) = slot::change(before, after) {
            let text = format!("{}: {text}", slot.command.name);
            self.outputs.log(&text);
        }
    }

    /// Takes leave of runs of which nothing is left.
    fn settle(&mut self, now: Instant) {
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
                let status = child.exit.unwrap_or(crate::pipe::ExitStatus::Signal(libc::SIGKILL));
                slot.last_exit = Some(status);
                (status.shell_code().max(1), "its run died without a last word".to_owned())
            }
        };
        self.over(index, code, &format!("{how} after {}", took(ran)), asked, now);
    }

    /// A command's run is over, or could not be begun.
    fn over(&mut self, index: usize, code: u8, how: &str, asked: bool, now: Instant) {
        let slot = &mut self.slots[index];
        let judged = slot.machine.phase() == Phase::Stopping(super::state::Then::Judge);
        slot.probe.exited();
        let _ = slot.machine.take(Event::Ended(code), now);
        slot.close_fifo();
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

    /// Starts what is to be started and may be.
    fn start(&mut self, now: Instant) {
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

    fn may_start(&self, slot: &Slot) -> bool {
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
        let opened = self.slots[index].open_fifo().map_err(io::Error::other);
        let slot = &self.slots[index];
        let around = Surroundings {
            fifo: slot.fifo.as_ref(),
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
    fn close(&mut self, why: &str, now: Instant) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.outputs.log(&format!("shutting down: {why}"));
        for slot in &mut self.slots {
            let _ = slot.machine.take(Event::Shutdown, now);
            slot.close_fifo();
        }
    }

    /// During a shutdown: stops those of whose followers nothing is left.
    fn stop_in_order(&mut self, now: Instant) {
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

    /// Waits until something happens or a clock runs out, and takes what happened.
    fn wait(&mut self, now: Instant) -> io::Result<()> {
        let mut fds: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.fd(), PollFlags::POLLIN)];
        let control = self.server.iter().flat_map(Server::interests);
        fds.extend(control.map(|(fd, flags)| (Source::Control, fd, flags)));
        fds.extend(self.outputs.interests().map(|(way, fd, flags)| (Source::Output(way), fd, flags)));
        for (index, slot) in self.slots.iter().enumerate() {
            let fifo = slot.fifo.iter().flat_map(Fifo::interests);
            fds.extend(fifo.map(|(fd, flags)| (Source::Fifo(index), fd, flags)));
            if let Some(child) = &slot.child {
                let interests = child.interests(|way| self.outputs.has_room(way));
                fds.extend(interests.map(|fd| (Source::Child(index), fd, PollFlags::POLLIN)));
            }
        }
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let timeout = TimeSpec::from_duration(self.due(now).saturating_duration_since(Instant::now()));
        match ppoll(&mut polled, Some(timeout), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let said: Vec<(Source, PollFlags)> = fds
            .iter()
            .zip(&polled)
            .filter_map(|((source, ..), polled)| Some((*source, polled.revents().filter(|flags| !flags.is_empty())?)))
            .collect();
        drop(polled);
        drop(fds);
        for (source, flags) in said {
            match source {
                Source::Signals | Source::Control => {}
                Source::Output(way) => self.outputs.said(way, flags),
                Source::Fifo(index) => self.slots[index].attend_fifo(),
                Source::Child(index) => {
                    self.listen(index);
                    self.read(index);
                }
            }
        }
        self.take_signals()?;
        self.serve();
        Ok(())
    }

    /// The next moment at which something is due that no event tells.
    fn due(&self, now: Instant) -> Instant {
        let of_slots = self.slots.iter().flat_map(|slot| {
            let starting = slot.machine.phase() == Phase::Starting;
            let probe = slot.probe.due(now).filter(|_| starting);
            let late = slot.not_ready_at().filter(|_| starting);
            let overdue = slot.child.as_ref().and_then(Child::overdue_at);
            let urge = slot.child.as_ref().and_then(Child::urge_at);
            let undelivered = slot.child.as_ref().and_then(Child::undelivered_at);
            [slot.machine.due(), probe, late, overdue, urge, undelivered].into_iter().flatten()
        });
        let own = [self.orphans.due(now), self.server.as_ref().and_then(Server::due)];
        of_slots.chain(own.into_iter().flatten()).min().unwrap_or(now + FAR)
    }

    fn take_signals(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(arrival) = self.signals.next()? {
            match arrival.signal {
                libc::SIGHUP => self.reload(now),
                end if self.signals.asks_to_end(end) || end == libc::SIGQUIT => self.asked_to_end(now),
                stop if signals::is_stop(stop) => drop(signals::stop_by(stop)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The first time everything is ended in its order; the second time at once, by SIGKILL.
    fn asked_to_end(&mut self, now: Instant) {
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

    /// What is still to be read on our stdout and stderr, for as long as that may take.
    fn deliver_the_rest(&mut self) -> io::Result<()> {
        let until = Instant::now() + LAST_DELIVERY;
        self.outputs.turn();
        while !self.outputs.are_empty() && Instant::now() < until {
            let fds: Vec<(Way, BorrowedFd<'_>, PollFlags)> = self.outputs.interests().collect();
            let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
            let timeout = TimeSpec::from_duration(until.saturating_duration_since(Instant::now()));
            match ppoll(&mut polled, Some(timeout), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let said: Vec<(Way, PollFlags)> =
                fds.iter().zip(&polled).filter_map(|((way, ..), polled)| Some((*way, polled.revents()?))).collect();
            drop(polled);
            drop(fds);
            for (way, flags) in said {
                self.outputs.said(way, flags);
            }
            self.outputs.turn();
        }
        Ok(())
    }
}

/// The exit status of a command that we could not even start.
const CANNOT: u8 = 125;

/// The exit status of a command that was not ready in time, as of one that reached a timeout.
const NOT_READY: u8 = 124;
