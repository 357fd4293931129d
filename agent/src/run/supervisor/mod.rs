//! The loop of one try: pump, forward, watch the clocks, end.

mod asked;
mod carried;
mod heard;
mod taken;

use std::io;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;

use self::heard::Look;
use super::ending::{Ending, LetGo, Step, View};
use super::feed::Closing;
use super::options::Options;
use super::pump::{Pump, StreamEnd};
use super::reap;
use super::scene::Scene;
use super::spawn::Spawned;
use super::stdio;
use super::watch::{Due, Flow, Watch};
use crate::ownership::Lineage;
use crate::ownership::worker::Worker;
use crate::pipe::{EndedFor, ExitStatus, Outcome};

/// Requests to end that come so soon after one are the same one: timeout(1) signals us, and then our whole
/// group, and on a busy machine it may have to wait for a core in between. Who means it twice is slower.
pub const ONE_REQUEST: Duration = Duration::from_millis(100);

/// A try under way.
pub struct Supervisor<'a> {
    options: &'a Options,
    scene: &'a mut Scene,
    command: Spawned,
    lineage: Lineage,
    /// Whether another try may follow if this one goes silent, and if it fails by itself.
    may_go_on: (bool, bool),
    watch: Watch,
    status: Option<Exited>,
    worker: Option<Worker>,
    look: Look,
    /// What the home group's other members are to be sent, once it is known who they are.
    for_members: Option<Signal>,
    asked: Option<Asked>,
    /// How often we were asked to end by a signal, and when by the last that counted.
    requests: u32,
    last_request: Option<Instant>,
    ending: Option<Ending>,
    /// The last signal that a key of the terminal sent.
    key: Option<i32>,
    last_eof: Option<Instant>,
    /// Since the command's exit: how long downstream was waited for, as of when, and whether it still is.
    waited_for_downstream: Duration,
    seen_at: Instant,
    was_blocked: bool,
}

/// The command's exit.
#[derive(Clone, Copy, Debug)]
struct Exited {
    at: Instant,
    status: ExitStatus,
}

/// An ending that was asked for while the command ran.
#[derive(Clone, Copy, Debug)]
struct Asked {
    what_for: EndedFor,
    at: Instant,
    killed: bool,
}

/// What ended a sleep.
struct Woken {
    /// A signal came.
    signalled: bool,
    /// Something else came than events.
    otherwise: bool,
    /// It took longer than it should have.
    overslept: bool,
    slept: Duration,
}

/// What the loop does next.
enum Next {
    Wait(Instant),
    Again,
    Done,
}

/// A try that is over.
#[derive(Clone, Debug)]
pub struct Tried {
    /// How its ending went.
    pub outcome: Outcome,
    /// How the command exited.
    pub exit_status: ExitStatus,
    /// What made us end it, if we did.
    pub ended_for: EndedFor,
    /// From the command's exit to EOF on every stream.
    pub exit_to_eof: Option<Duration>,
    /// Bytes that downstream did not take.
    pub undelivered: usize,
    /// The signal that we are to die by, as the command did.
    pub dies_by: Option<i32>,
    /// The status that the completion marker told, if it was seen.
    pub done: Option<Option<String>>,
    /// The session that it told.
    pub session: Option<String>,
    /// Whether it did what must not be done twice.
    pub side_effects: bool,
    /// Whether a signal asked us to end: then nothing is begun again.
    pub told_to_end: bool,
}

/// Bounds that nothing sets are this far away.
const FAR: Duration = Duration::from_secs(24 * 3600);

impl<'a> Supervisor<'a> {
    /// Takes over a command that was just started.
    #[must_use]
    pub fn new(
        options: &'a Options,
        scene: &'a mut Scene,
        command: Spawned,
        lineage: Lineage,
        may_go_on: (bool, bool),
    ) -> Supervisor<'a> {
        let lines: Vec<_> = scene.lines().collect();
        let pipes: Vec<_> = lines.iter().map(|(pipe, _)| *pipe).collect();
        scene.journal.begin(command.pid, lines, &lineage);
        let now = scene.now();
        scene.tracker.follow(&lineage, &pipes, now);
        let watch = Watch::new(options.idle_timeout, options.lifecycle.done_grace, now);
        Supervisor {
            options,
            scene,
            command,
            lineage,
            may_go_on,
            watch,
            status: None,
            worker: None,
            look: Look::new(now),
            for_members: None,
            asked: None,
            requests: 0,
            last_request: None,
            ending: None,
            key: None,
            last_eof: None,
            waited_for_downstream: Duration::ZERO,
            seen_at: now,
            was_blocked: false,
        }
    }

    /// Runs to the end of the ending.
    ///
    /// # Errors
    ///
    /// What poll(2), wait(2) and read(2) on our own descriptors say: nothing on a sound system.
    pub fn run(mut self) -> io::Result<Tried> {
        loop {
            let now = self.now();
            self.turn_pumps(now);
            let is_last = self.is_last();
            self.scene.turn_feed(self.command.pid, is_last);
            match self.next(now)? {
                Next::Wait(until) => self.wait(until)?,
                Next::Again => {}
                Next::Done => {
                    // What was found out since is on record, too.
                    self.take_events();
                    return Ok(self.finish());
                }
            }
        }
    }

    fn now(&self) -> Instant {
        self.scene.now()
    }

    /// Whether no other try can follow this one, whatever happens.
    fn is_last(&self) -> bool {
        let (after_silence, after_failure) = self.may_go_on;
        match (self.asked, self.status) {
            (Some(asked), _) => asked.what_for != EndedFor::Idle || !after_silence,
            (None, Some(exited)) => !after_failure || exited.status == ExitStatus::Code(0),
            (None, None) => !after_silence && !after_failure,
        }
    }

    /// Moves bytes, and gives downstream its EOF as soon as a stream has ended.
    fn turn_pumps(&mut self, now: Instant) {
        let is_last = self.is_last();
        let mut sightings = Vec::new();
        for pump in &mut self.scene.pumps {
            let had_ended = pump.end().is_some();
            if let Err(error) = pump.turn(now) {
                self.scene.failed.get_or_insert(error);
            }
            sightings.append(&mut pump.sightings());
            if !had_ended && pump.end() == Some(StreamEnd::Eof) {
                self.last_eof = Some(now);
                self.scene.journal.eof(pump.pipe, pump.bytes);
            }
            // Our messages still need stderr; whoever reads only stdout need not wait for our exit.
            if is_last && pump.finish() == Some(1) {
                let _ = stdio::release(1);
            }
        }
        for sighting in sightings {
            if self.watch.saw(sighting, now) {
                self.scene.close_input(Closing::Done);
            }
        }
    }

    fn view(&self) -> View {
        View {
            pumping: self.scene.pumps.iter().any(|pump| pump.end().is_none()),
            watching: !self.scene.watched.is_empty(),
            blocked: self.scene.pumps.iter().any(Pump::is_blocked),
            last_bytes: self.scene.pumps.iter().filter_map(|pump| pump.last_bytes).max(),
        }
    }

    fn next(&mut self, now: Instant) -> io::Result<Next> {
        if self.scene.failed.is_some() && self.asked.is_none() && self.status.is_none() {
            self.ask_to_end(EndedFor::Signal, self.options.signal as i32);
        }
        let view = self.view();
        let bound = self.delivery_bound(now, view);
        let Some(ending) = &mut self.ending else { return Ok(self.while_it_runs(now, view)) };
        if bound.is_some_and(|bound| now >= bound) {
            // What is still in the pipes is counted with what was read: neither will arrive.
            self.let_go(LetGo::Close);
            return Ok(Next::Done);
        }
        let until_bound = |next| match (next, bound) {
            (Next::Wait(until), Some(bound)) => Next::Wait(until.min(bound)),
            (next, _) => next,
        };
        match ending.step(now, view) {
            Step::Wait(until) => Ok(until_bound(Next::Wait(until))),
            Step::Ask(scope) => {
                self.ask(scope);
                Ok(Next::Again)
            }
            Step::LetGo(how) => {
                self.let_go(how);
                Ok(Next::Again)
            }
            Step::Over if view.blocked => Ok(until_bound(Next::Wait(now + FAR))),
            Step::Over => Ok(Next::Done),
        }
    }

    /// The clocks of a command that still runs.
    fn while_it_runs(&mut self, now: Instant, view: View) -> Next {
        let mut until = now + FAR;
        if let Some(asked) = &mut self.asked {
            let kill_at = asked.at + self.options.kill_after;
            if now < kill_at && !asked.killed {
                return Next::Wait(kill_at);
            }
            if !asked.killed {
                asked.killed = true;
                self.signal_home(libc::SIGKILL);
                return Next::Again;
            }
            // In uninterruptible sleep, or frozen: not even SIGKILL makes it exit. We do.
            let give_up_at = kill_at + self.options.max_drain;
            if now < give_up_at {
                return Next::Wait(give_up_at);
            }
            self.let_go(LetGo::Close);
            return Next::Done;
        }
        if let Some(timeout) = self.options.timeout {
            let at = self.scene.started + timeout;
            if now >= at {
                self.ask_to_end(EndedFor::Timeout, self.options.signal as i32);
                return Next::Again;
            }
            until = until.min(at);
        }
        match self.watch.step(now, Flow { last_bytes: view.last_bytes, blocked: view.blocked }) {
            Due::Nothing(at) => Next::Wait(at.map_or(until, |at| until.min(at))),
            Due::Idle(quiet) => {
                self.scene.journal.output_idle(quiet, self.options.idle_timeout.unwrap_or_default());
                self.ask_to_end(EndedFor::Idle, self.options.signal as i32);
                Next::Again
            }
            Due::Done => {
                self.ask_to_end(EndedFor::Done, self.options.signal as i32);
                Next::Again
            }
        }
    }

    /// When downstream has been waited for long enough since the command's exit, if that is bounded.
    fn delivery_bound(&mut self, now: Instant, view: View) -> Option<Instant> {
        let bound = self.options.max_deliver.filter(|_| self.status.is_some())?;
        let waited = now.saturating_duration_since(self.seen_at);
        self.seen_at = now;
        if self.was_blocked {
            self.waited_for_downstream += waited;
        }
        self.was_blocked = view.blocked;
        view.blocked.then(|| now + bound.saturating_sub(self.waited_for_downstream))
    }

    /// Waits until something happens that concerns us or a clock runs out, and takes what happened.
    fn wait(&mut self, until: Instant) -> io::Result<()> {
        loop {
            let clocks = [self.climb_at(), self.look_at()].into_iter().flatten();
            let woken = self.sleep(clocks.fold(until, Instant::min))?;
            if woken.signalled {
                if self.take_signals()? && woken.overslept {
                    // SIGSTOP, which nobody sees coming, had us stopped when a clock ran out.
                    self.scene.stopped += woken.slept;
                }
                self.stop_with_the_command()?;
            }
            self.climb();
            let heard = self.take_events();
            let answered = self.take_answer();
            self.look();
            // Most of what the connector tells is about the rest of the machine.
            if woken.otherwise || heard || answered || self.now() >= until {
                return Ok(());
            }
        }
    }

    /// Sleeps until a descriptor has something for us, or until then.
    fn sleep(&mut self, until: Instant) -> io::Result<Woken> {
        let mut fds = vec![PollFd::new(self.scene.signals.fd(), PollFlags::POLLIN)];
        if let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_busy()) {
            fds.push(PollFd::new(worker.fd(), PollFlags::POLLIN));
        }
        let mut ways = Vec::new();
        for (index, pump) in self.scene.pumps.iter().enumerate() {
            for (side, interest) in pump.interests().into_iter().enumerate() {
                if let Some((fd, flags)) = interest {
                    if side == 1 {
                        ways.push((index, fds.len()));
                    }
                    fds.push(PollFd::new(fd, flags));
                }
            }
        }
        if let Some(feed) = &self.scene.feed {
            fds.extend(feed.interests().into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        let ours = fds.len();
        fds.extend(self.scene.tracker.fds().into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = until.saturating_duration_since(self.now());
        let asleep = Instant::now();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let slept = asleep.elapsed();
        let woken = Woken {
            signalled: fds[0].any().unwrap_or(true),
            otherwise: fds[..ours].iter().any(|fd| fd.any().unwrap_or(true)),
            overslept: slept > timeout,
            slept,
        };
        let said: Vec<(usize, PollFlags)> =
            ways.iter().filter_map(|(pump, at)| Some((*pump, fds[*at].revents()?))).collect();
        drop(fds);
        for (pump, flags) in said {
            self.scene.pumps[pump].downstream_said(flags);
        }
        Ok(woken)
    }

    /// Reaps the command and says how it went.
    fn finish(self) -> Tried {
        let pumps = &self.scene.pumps;
        let undelivered: usize = pumps.iter().map(Pump::undelivered).sum();
        // Without a status it was sent SIGKILL and cannot even die: it is counted as killed.
        let killed = Exited { at: self.now(), status: ExitStatus::Signal(libc::SIGKILL) };
        let exited = self.status.unwrap_or(killed);
        let outcome = match &self.ending {
            _ if undelivered > 0 => Outcome::Undelivered,
            Some(ending) => ending.outcome(),
            None => Outcome::Closed,
        };
        let dies_by = self.dies_by(exited.status);
        let _ = reap::reap(self.command.pid);
        let all_eof = !pumps.is_empty() && pumps.iter().all(|pump| pump.end() == Some(StreamEnd::Eof));
        let exit_to_eof = self.last_eof.filter(|_| all_eof).map(|eof| eof.saturating_duration_since(exited.at));
        Tried {
            outcome,
            exit_status: exited.status,
            ended_for: self.asked.map_or(EndedFor::Exit, |asked| asked.what_for),
            exit_to_eof,
            undelivered,
            dies_by,
            done: self.watch.done().cloned(),
            session: self.watch.session().map(str::to_owned),
            side_effects: self.watch.side_effects(),
            told_to_end: self.requests > 0,
        }
    }
}
