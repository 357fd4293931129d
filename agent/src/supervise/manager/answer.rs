//! What the control socket's clients ask for, and when they are answered.

use std::time::{Duration, Instant};

use super::Manager;
use super::slot::{Slot, exited, took};
use crate::supervise::control::{ClientId, CommandStatus, Reply, Request, Status};
use crate::supervise::state::{Event, Phase, Rest};

/// A client that waits until what it asked for has come about.
pub struct Waiter {
    client: ClientId,
    name: String,
    wish: Wish,
}

#[derive(Clone, Copy)]
enum Wish {
    /// That it runs, in a launch after so many.
    Up(u64),
    /// That nothing of it is left, in the launch of this number.
    Down(u64),
}

impl Manager {
    /// Takes what is asked.
    pub(super) fn serve(&mut self) {
        let now = Instant::now();
        let asked = self.server.as_mut().map(|server| server.turn(now)).unwrap_or_default();
        for (client, request) in asked {
            if let Some(reply) = self.take(client, &request, now) {
                self.reply(client, &reply, now);
            }
        }
    }

    fn reply(&mut self, client: ClientId, reply: &Reply, now: Instant) {
        if let Some(server) = &mut self.server {
            server.reply(client, reply, now);
        }
    }

    /// Begins what is asked for; the answer, if it can be given at once.
    fn take(&mut self, client: ClientId, request: &Request, now: Instant) -> Option<Reply> {
        let (name, event) = match request {
            Request::Status => return Some(Reply::Status(self.status(now))),
            Request::Start(name) => (name, Event::Start),
            Request::Stop(name) => (name, Event::Stop),
            Request::Restart(name) => (name, Event::Restart),
        };
        let Some(index) = self.slots.iter().position(|slot| slot.command.name == *name && !slot.removed) else {
            let names: Vec<&str> = self.slots.iter().map(|slot| slot.command.name.as_str()).take(8).collect();
            return Some(Reply::Refused(format!("there is no command {name}; the commands are {}", names.join(", "))));
        };
        if self.closing && event != Event::Stop {
            return Some(Reply::Refused(format!("{name}: nothing is started any more: we are shutting down")));
        }
        if self.closing {
            return Some(Reply::Refused(format!("{name}: its turn comes: we are shutting down")));
        }
        let launches = self.slots[index].machine.launches();
        let wish = match event {
            Event::Stop => Wish::Down(launches),
            // What runs already is what was asked for.
            Event::Start if matches!(self.slots[index].machine.phase(), Phase::Starting | Phase::Running) => {
                Wish::Up(launches.saturating_sub(1))
            }
            _ => Wish::Up(launches),
        };
        self.tell(index, event, now);
        self.waiters.push(Waiter { client, name: name.clone(), wish });
        None
    }

    /// Answers those whose wish has come about, or cannot any more.
    pub(super) fn answer_waiters(&mut self, now: Instant) {
        let Some(server) = &self.server else { return };
        self.waiters.retain(|waiter| server.waits(waiter.client));
        let mut answers = Vec::new();
        let slots = &self.slots;
        let closing = self.closing;
        self.waiters.retain(|waiter| {
            let slot = slots.iter().find(|slot| slot.command.name == waiter.name);
            let answer = answer(waiter, slot, closing, now);
            answers.extend(answer.as_ref().map(|reply| (waiter.client, reply.clone())));
            answer.is_none()
        });
        for (client, reply) in answers {
            self.reply(client, &reply, now);
        }
    }

    fn status(&self, now: Instant) -> Status {
        Status {
            pid: nix::unistd::getpid().as_raw(),
            config: self.file.display().to_string(),
            shutting_down: self.closing,
            commands: self.slots.iter().map(|slot| of(slot, now)).collect(),
        }
    }
}

fn answer(waiter: &Waiter, slot: Option<&Slot>, closing: bool, now: Instant) -> Option<Reply> {
    let name = &waiter.name;
    let done = |text: &str| Some(Reply::Done(format!("{name}: {text}")));
    let refused = |text: &str| Some(Reply::Refused(format!("{name}: {text}")));
    let Some(slot) = slot else {
        return match waiter.wish {
            Wish::Down(_) => done("stopped, and no longer in the configuration"),
            Wish::Up(_) => refused("it is no longer in the configuration"),
        };
    };
    let launched = |count| slot.machine.launches() > count;
    match (waiter.wish, slot.machine.phase()) {
        (Wish::Down(_), Phase::Resting(_)) if slot.child.is_none() => done(slot.state()),
        (Wish::Down(count), _) if launched(count) => refused("somebody started it again"),
        (Wish::Up(_), _) if closing => refused("nothing is started any more: we are shutting down"),
        (Wish::Up(count), Phase::Running) if launched(count) => done("running"),
        (Wish::Up(count), _) if slot.ready_launch > count => done("was ready, and has ended since"),
        (Wish::Up(count), Phase::Resting(Rest::Finished)) if launched(count) => done("finished"),
        (Wish::Up(_), Phase::Resting(_)) => {
            let how = slot.last_exit.map_or("see the log".to_owned(), exited);
            refused(&format!("{}: {how}", slot.state()))
        }
        (Wish::Up(count), Phase::Backoff(until)) if launched(count) => {
            let pause = took(until.saturating_duration_since(now));
            let how = slot.last_exit.map_or("it could not be started".to_owned(), exited);
            refused(&format!("{how}; starts again in {pause}"))
        }
        _ => None,
    }
}

fn of(slot: &Slot, now: Instant) -> CommandStatus {
    let child = slot.child.as_ref().filter(|child| child.exit.is_none());
    CommandStatus {
        name: slot.command.name.clone(),
        state: slot.state().to_owned(),
        pid: child.and_then(|child| child.command),
        run_pid: child.map(|child| child.pid),
        uptime_ms: slot.machine.running_since().map(|since| millis(now.saturating_duration_since(since))),
        starts_in_ms: slot.machine.due().map(|due| millis(due.saturating_duration_since(now))),
        restarts: slot.machine.restarts(),
        last_exit: slot.last_exit,
        holders_ended: slot.holders_ended,
        essential: slot.command.essential,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
