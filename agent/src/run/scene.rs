//! What outlasts a try: the signals, the ways downstream, the command's stdin, the books.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Whence;

use super::RunError;
use super::downstream::Downstream;
use super::feed::{Closing, Feed};
use super::fifo::Fifo;
use super::journal::Journal;
use super::matchers::Eye;
use super::options::{Options, Stdin};
use super::pump::{DownstreamFailed, Pump};
use super::signals::Signals;
use super::spawn::{self, Setup, Spawned};
use super::stdio::{self, Plan, Treatment};
use super::tracker::Tracker;
use crate::ownership::Lineage;
use crate::pipe::{Pipe, Stream};
use crate::process::children;
use crate::process::stat::Stat;

/// Everything that a run has beside its command.
pub struct Scene {
    /// Signals to us.
    pub signals: Signals,
    /// The streams that go through us.
    pub pumps: Vec<Pump>,
    /// The pipes behind streams that do not.
    pub watched: Vec<(Stream, Pipe)>,
    /// The command's stdin, where it goes through us.
    pub feed: Option<Feed>,
    /// Whether the command has a process group of its own.
    pub own_group: bool,
    /// The process in front of us.
    pub front: Option<i32>,
    /// Processes of ours that are no lineage.
    pub sinks: HashSet<i32>,
    /// Who is told the command's pid.
    pub told: Box<dyn FnMut(i32)>,
    /// The books.
    pub journal: Journal,
    /// What the lineage is known by.
    pub tracker: Tracker,
    /// When the run began.
    pub started: Instant,
    /// Time in which job control had us stopped.
    pub stopped: Duration,
    /// What broke on our side.
    pub failed: Option<DownstreamFailed>,
    stdin: Input,
    /// The command's ends of the first try's pipes.
    ends: Vec<OwnedFd>,
}

/// The command's stdin, where it does not go through us.
enum Input {
    /// Ours, and where it stood if it is a file: another try begins there.
    Ours(Option<i64>),
    /// `/dev/null`.
    Null(OwnedFd),
    /// It does go through us.
    Fed,
}

impl Scene {
    /// Takes what was prepared.
    #[must_use]
    pub fn new(
        ready: Ready,
        signals: Signals,
        own_group: bool,
        front: Option<i32>,
        (journal, tracker): (Journal, Tracker),
        told: Box<dyn FnMut(i32)>,
    ) -> Scene {
        let (pumps, ends) = ready.lines.into_iter().unzip();
        Scene {
            // Another child that is no lineage.
            sinks: signals.helper().into_iter().collect(),
            signals,
            pumps,
            watched: ready.plan.watched(),
            feed: ready.feed,
            own_group,
            front,
            told,
            journal,
            tracker,
            started: Instant::now(),
            stopped: Duration::ZERO,
            failed: None,
            stdin: ready.stdin,
            ends,
        }
    }

    /// The time on all our clocks: they stand still while job control has us stopped.
    #[must_use]
    pub fn now(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.stopped).unwrap_or(now)
    }

    /// Starts a try. `from_the_start`: it gets the input that the ones before it got.
    ///
    /// # Errors
    ///
    /// When its pipes or its process cannot be made.
    pub fn start(
        &mut self,
        options: &Options,
        command: &[OsString],
        from_the_start: bool,
    ) -> Result<(Spawned, Lineage), RunError> {
        let pipes = |error| RunError::Setup("make pipes for the command", error);
        let ends = self.command_ends().map_err(pipes)?;
        let end_of = |stream| {
            let line = self.pumps.iter().zip(&ends).find(|(pump, _)| pump.streams.contains(&stream));
            line.map(|(_, end)| end.as_raw_fd())
        };
        let (stdout, stderr) = (end_of(Stream::Stdout), end_of(Stream::Stderr));
        let fed = self.feed.as_mut().map(|feed| feed.begin(from_the_start)).transpose().map_err(pipes)?;
        if let Input::Ours(Some(offset)) = self.stdin
            && from_the_start
        {
            // Where that fails the file is none that could be read twice.
            let _ = nix::unistd::lseek(stdio::standard(0), offset, Whence::SeekSet);
        }
        let stdin = match &self.stdin {
            Input::Ours(_) => None,
            Input::Null(null) => Some(null.as_raw_fd()),
            Input::Fed => fed.as_ref().map(AsRawFd::as_raw_fd),
        };
        let pipes: Vec<Pipe> = self.lines().map(|(pipe, _)| pipe).collect();
        self.tracker.expect(&pipes, &self.sinks);
        let spawned = spawn::spawn(&Setup {
            command,
            stdio: [stdin, stdout, stderr],
            inherited: self.signals.inherited(),
            own_group: self.own_group,
            pdeathsig: options.pdeathsig,
            environment: options.environment.as_deref(),
            directory: options.directory.as_deref(),
            user: options.user.as_ref(),
        });
        self.tracker.born(spawned.as_ref().ok().map(|command| command.pid), &mut self.journal);
        let spawned = spawned?;
        (self.told)(spawned.pid);
        let home = if self.own_group { spawned.pid } else { nix::unistd::getpgrp().as_raw() };
        let root = nix::unistd::getpid().as_raw();
        Ok((spawned, Lineage { root, home, adopter: self.front }))
    }

    /// The pipes that concern us, each with the stream that it carries.
    pub fn lines(&self) -> impl Iterator<Item = (Pipe, Stream)> + '_ {
        let pumped = self.pumps.iter().flat_map(|pump| pump.streams.iter().map(|stream| (pump.pipe, *stream)));
        pumped.chain(self.watched.iter().map(|(stream, pipe)| (*pipe, *stream)))
    }

    /// The command's ends of the pipes: those that were made first, or new ones.
    fn command_ends(&mut self) -> io::Result<Vec<OwnedFd>> {
        if !self.ends.is_empty() || self.pumps.is_empty() {
            return Ok(std::mem::take(&mut self.ends));
        }
        let mut ends = Vec::new();
        for pump in &mut self.pumps {
            let (read, write) = stdio::stream_pipe()?;
            pump.begin_again(stdio::pipe_behind(read.as_fd())?, read);
            ends.push(write);
        }
        Ok(ends)
    }

    /// Whether the input that was given so far can be given again.
    #[must_use]
    pub fn input_is_kept(&self) -> bool {
        self.feed.as_ref().is_none_or(Feed::is_kept)
    }

    /// Moves input, and does what is asked about the FIFO.
    pub fn turn_feed(&mut self, command: i32, last_try: bool) {
        let Some(feed) = &mut self.feed else { return };
        let nobody_reads = feed.turn();
        let in_hand = feed.in_hand();
        let Some(fifo) = feed.fifo() else { return };
        let closing = if fifo.attend(command, in_hand) {
            Some(Closing::Asked)
        } else {
            (nobody_reads && last_try).then_some(Closing::NoReader)
        };
        match closing {
            Some(why) => self.close_input(why),
            None => self.note_fifo(),
        }
    }

    /// Ends the command's input.
    pub fn close_input(&mut self, why: Closing) {
        if let Some(feed) = &mut self.feed {
            feed.close(why);
            feed.turn();
        }
        self.note_fifo();
    }

    /// The run is over: what is still to be known about the FIFO.
    pub fn settle(&mut self) {
        self.close_input(Closing::RunOver);
        if let Some(fifo) = self.feed.as_mut().and_then(Feed::fifo) {
            fifo.settle();
        }
        self.note_fifo();
    }

    fn note_fifo(&mut self) {
        let Some(fifo) = self.feed.as_mut().and_then(Feed::fifo) else { return };
        let quiet = self.pumps.iter().filter_map(|pump| pump.last_bytes).max().map(|last| last.elapsed());
        for event in fifo.events() {
            self.journal.fifo(&fifo.path, fifo.pipe, event, quiet);
        }
    }

    /// Processes of the lineage that are still alive, without those that were to be kept.
    #[must_use]
    pub fn survivors(&self, options: &Options) -> usize {
        let root = nix::unistd::getpid().as_raw();
        let alive =
            |pid: &i32| Stat::read(*pid).is_ok_and(|stat| !stat.is_dead() && !options.keep.matches(*pid, &stat.comm));
        children::descendants(root, &self.sinks).unwrap_or_default().iter().filter(|pid| alive(pid)).count()
    }

    /// Lines that were too long for the matchers.
    #[must_use]
    pub fn unseen(&self) -> u64 {
        self.pumps.iter().map(Pump::unseen).sum()
    }
}

/// What a run needs, before anything is started.
pub struct Ready {
    plan: Plan,
    lines: Vec<(Pump, OwnedFd)>,
    feed: Option<Feed>,
    stdin: Input,
}

/// Gets everything ready: what can fail fails here, and nothing was started.
///
/// # Errors
///
/// What could not be had.
pub fn prepare(options: &Options, signals: &mut Signals, own_group: bool) -> Result<Ready, RunError> {
    if !own_group {
        signals.share_the_group().map_err(|error| RunError::Setup("fork", error))?;
    }
    // Orphans of the lineage become our children, so that its every member is below us.
    let subreaper = nix::sys::prctl::set_child_subreaper(true);
    subreaper.map_err(|error| RunError::Setup("become a subreaper", error.into()))?;
    let plan = Plan::new(options.stdio, options.split, options.sees());
    let plan = plan.map_err(|error| RunError::Setup("look at stdio", error))?;
    let lines = lines(&plan, options).map_err(|error| RunError::Setup("make pipes for the command", error))?;
    let keep = options.lifecycle.retries.are_asked_for();
    let (feed, stdin) = match &options.stdin {
        Stdin::Null => {
            let null = stdio::dev_null().map_err(|error| RunError::Setup("open /dev/null", error))?;
            (None, Input::Null(null))
        }
        Stdin::Fifo(path) => (Some(Feed::from_fifo(Fifo::own(path)?, keep)), Input::Fed),
        Stdin::Inherit if options.feeds() && stdio::flows(0) => (Some(Feed::from_stdin(keep)), Input::Fed),
        Stdin::Inherit => {
            let offset = || nix::unistd::lseek(stdio::standard(0), 0, Whence::SeekCur).ok();
            (None, Input::Ours(if keep { offset() } else { None }))
        }
    };
    Ok(Ready { plan, lines, feed, stdin })
}

/// The pipes for the command, with our ends and its ends.
fn lines(plan: &Plan, options: &Options) -> io::Result<Vec<(Pump, OwnedFd)>> {
    let mut lines = Vec::new();
    if plan.stdout == Treatment::Pumped {
        let shared = plan.stderr == Treatment::SharedWithStdout;
        let streams = if shared { vec![Stream::Stdout, Stream::Stderr] } else { vec![Stream::Stdout] };
        lines.push(line(streams, 1, options)?);
    }
    if plan.stderr == Treatment::Pumped {
        lines.push(line(vec![Stream::Stderr], 2, options)?);
    }
    Ok(lines)
}

fn line(streams: Vec<Stream>, fd: i32, options: &Options) -> io::Result<(Pump, OwnedFd)> {
    let (read, write) = stdio::stream_pipe()?;
    let pipe = stdio::pipe_behind(read.as_fd())?;
    let downstream = Downstream::new(fd, stdio::kind(fd)?)?;
    let matchers = &options.lifecycle.matchers;
    let seen = !matchers.is_empty() && (streams.contains(&Stream::Stdout) || matchers.look_at_stderr());
    let mut pump = Pump::new(streams, pipe, read, downstream);
    if seen {
        pump.watch_with(Eye::new(Arc::clone(matchers)));
    }
    Ok((pump, write))
}
