//! The tries of a run, one after the other, and the pauses between them.

use std::io;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::RunError;
use super::course::{Course, Past, Sequel};
use super::options::{Options, ReportStyle};
use super::reap;
use super::report::{Completion, Report, Try, duration};
use super::scene::Scene;
use super::signals::{self, Arrival};
use super::supervisor::{Supervisor, Tried};
use crate::audit::detail::Restart;
use crate::pipe::{EndedFor, ExitStatus};

/// Runs the command until it came to its end, or must not be tried again. With the report comes the
/// signal that we are to die by, as the command did.
///
/// # Errors
///
/// When a try could not be started, or could not be supervised.
pub fn run(options: &Options, scene: &mut Scene) -> Result<(Report, Option<i32>), RunError> {
    let retries = &options.lifecycle.retries;
    let mut course = Course::new(retries.clone());
    let mut command = options.command.clone();
    let mut tries: Vec<Try> = Vec::new();
    let mut start = None;
    loop {
        let (spawned, lineage) = scene.start(options, &command, start != Some(Restart::Resumed))?;
        let may_go_on = course.may_go_on();
        let tried =
            Supervisor::new(options, scene, spawned, lineage, may_go_on).run().map_err(RunError::Supervision)?;
        let session_id = tried.session.clone();
        tries.push(Try { exit_status: tried.exit_status, ended_for: tried.ended_for, start, session_id });
        let sequel = match may_go_on {
            (false, false) if !retries.are_asked_for() => Sequel::Over,
            _ if scene.failed.is_some() || tried.told_to_end => Sequel::Over,
            _ => course.after(past(&tried, scene, options)),
        };
        let (again, session, pause) = match sequel {
            Sequel::Over => {
                let dies_by = tried.dies_by;
                return Ok((report(tried, tries, scene), dies_by));
            }
            Sequel::GiveUp(why) => {
                return Ok((Report { gave_up: Some(why.to_string()), ..report(tried, tries, scene) }, None));
            }
            Sequel::Again { start, session, pause } => (start, session, pause),
        };
        command = match (&retries.resume, &session) {
            (Some(template), Some(id)) => template.command(id),
            _ => options.command.clone(),
        };
        announce(options, &tried, tries.len() + 1, session.as_deref(), pause);
        scene.journal.retried(tried.ended_for, pause, again, &command);
        match rest(options, scene, pause).map_err(RunError::Supervision)? {
            Rest::Over => start = Some(again),
            Rest::OutOfTime => {
                return Ok((Report { ended_for: EndedFor::Timeout, ..report(tried, tries, scene) }, None));
            }
            Rest::Interrupted(signal) => {
                let interrupted_by = Some(signal);
                let ended_for = EndedFor::Signal;
                return Ok((Report { ended_for, interrupted_by, ..report(tried, tries, scene) }, None));
            }
        }
    }
}

fn past(tried: &Tried, scene: &Scene, options: &Options) -> Past {
    Past {
        ended_for: tried.ended_for,
        failed: tried.exit_status != ExitStatus::Code(0),
        done: tried.done.is_some(),
        session: tried.session.clone(),
        side_effects: tried.side_effects,
        input_kept: scene.input_is_kept(),
        survivors: scene.survivors(options),
        undelivered: tried.undelivered > 0,
    }
}

fn report(tried: Tried, tries: Vec<Try>, scene: &mut Scene) -> Report {
    scene.settle();
    let names = scene.tracker.names();
    Report {
        outcome: tried.outcome,
        exit_status: tried.exit_status,
        ended_for: tried.ended_for,
        exit_to_eof_us: tried.exit_to_eof.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        backend: names.backend,
        rung: names.rung,
        undelivered_bytes: u64::try_from(tried.undelivered).unwrap_or(u64::MAX),
        holders: scene.journal.holders(),
        tries,
        completion: tried.done.map(Completion::new),
        gave_up: None,
        interrupted_by: None,
        unseen_lines: scene.unseen(),
    }
}

/// One line that says what is waited for.
fn announce(options: &Options, tried: &Tried, next: usize, session: Option<&str>, pause: Duration) {
    if options.report == ReportStyle::None {
        return;
    }
    let why = match tried.ended_for {
        EndedFor::Idle => {
            format!(
                "the command wrote nothing for --idle-timeout {}",
                duration(options.idle_timeout.unwrap_or_default())
            )
        }
        _ => format!("the command exited with {}", tried.exit_status.shell_code()),
    };
    let how = session.map_or_else(|| "from the start".to_owned(), |id| format!("resuming session {id}"));
    eprintln!("pipewarden: {why}; try {next} begins in {}, {how}", duration(pause));
}

/// How a pause ended.
enum Rest {
    Over,
    OutOfTime,
    Interrupted(i32),
}

/// Waits before the next try; `--timeout` runs on, and a signal that would end the command ends this.
fn rest(options: &Options, scene: &mut Scene, pause: Duration) -> io::Result<Rest> {
    let until = scene.now() + pause;
    let bound = options.timeout.map(|timeout| scene.started + timeout);
    loop {
        while let Some(Arrival { signal, from_the_terminal, .. }) = scene.signals.next()? {
            // There is no command that could answer a key.
            if scene.signals.asks_to_end(signal) || (from_the_terminal && signal == libc::SIGQUIT) {
                return Ok(Rest::Interrupted(signal));
            }
            if signals::is_stop(signal) {
                scene.stopped += signals::stop_by(signal).unwrap_or_default();
            }
        }
        while let Some(death) = reap::peek()? {
            let _ = reap::reap(death.pid);
        }
        scene.turn_feed(0, false);
        // Nobody waits for what they say now, but they must not pile up.
        while scene.tracker.next(&mut scene.journal).is_some() {}
        let now = scene.now();
        if bound.is_some_and(|bound| now >= bound) {
            return Ok(Rest::OutOfTime);
        }
        if now >= until {
            return Ok(Rest::Over);
        }
        sleep_until(scene, bound.map_or(until, |bound| until.min(bound)))?;
    }
}

fn sleep_until(scene: &Scene, until: Instant) -> io::Result<()> {
    let mut fds = vec![PollFd::new(scene.signals.fd(), PollFlags::POLLIN)];
    if let Some(feed) = &scene.feed {
        fds.extend(feed.interests().into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
    }
    fds.extend(scene.tracker.fds()[0].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    let timeout = TimeSpec::from_duration(until.saturating_duration_since(scene.now()));
    match ppoll(&mut fds, Some(timeout), None) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
