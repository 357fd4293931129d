//! The supervisor: runs a command so that its readers get every byte, and then EOF.

pub mod options;
pub mod report;

mod downstream;
mod drain;
mod ending;
mod inherited;
mod journal;
mod pump;
mod reap;
mod relay;
mod signals;
mod spawn;
mod stdio;
mod supervisor;
mod terminal;
mod witness;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::audit::{Log, OpenError, RunId};
use crate::ownership::Lineage;
use crate::pipe::{ExitStatus, Stream};
use downstream::Downstream;
use journal::Journal;
use options::{Options, Stdin};
pub use pump::DownstreamFailed;
use pump::Pump;
use relay::Role;
pub use relay::caution;
use report::Report;
use signals::Signals;
pub use signals::die_by;
use spawn::{Setup, SpawnError};
use stdio::{Plan, Treatment};
use supervisor::{Run, Supervisor};

/// The exit status of what we ourselves could not do.
const FAILURE: u8 = 125;

/// How a run came to its end.
pub enum Finished {
    /// Here is what is to be reported, what broke on our side, if something did, and the signal that
    /// a terminal's shell is to see us die by.
    Supervised(Box<Report>, Option<DownstreamFailed>, Option<i32>),
    /// Another process of ours supervised it and has reported; this is how it ended.
    Relayed(ExitStatus),
}

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command was not started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The audit log cannot be had; nothing was started.
    #[error(transparent)]
    Audit(#[from] OpenError),
    /// We could not get ready to supervise; nothing was started.
    #[error("cannot {0}: {1}")]
    Setup(&'static str, io::Error),
    /// Our own descriptors failed us.
    #[error("the supervisor cannot go on: {0}")]
    Supervision(io::Error),
}

impl RunError {
    /// The exit status of `run`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Spawn(error) => error.exit_code(),
            RunError::Audit(_) | RunError::Setup(..) | RunError::Supervision(_) => FAILURE,
        }
    }
}

/// Runs a command to its end, and to the end of its streams.
///
/// Must be called from the main thread of a process that does nothing else: it takes over signals,
/// becomes a subreaper, and reaps every child there is.
///
/// Minimum kernel: 5.3 (pidfd); 5.9 for sparing holders by a sink.
///
/// # Errors
///
/// As [`RunError`] says.
pub fn run(options: &Options) -> Result<Finished, RunError> {
    let mut signals = Signals::take_over().map_err(|error| RunError::Setup("take over signals", error))?;
    let own_group = !options.foreground && !terminal::is_ours();
    let front = match relay::enter(&mut signals, own_group)
        .map_err(|error| RunError::Setup("see our own children in /proc, or fork", error))?
    {
        Role::Relay(status) => return Ok(Finished::Relayed(status)),
        Role::Supervisor(front) => front,
    };
    let log = match &options.audit {
        Some(target) => Log::open(target, RunId::new())?,
        None => Log::disabled(RunId::new()),
    };
    let journal = Journal::open(log, options);
    match start(options, signals, own_group, front) {
        Ok(run) => {
            let ended = Supervisor::new(options, run, journal).run().map_err(RunError::Supervision)?;
            let code = if ended.failed.is_some() { FAILURE } else { ended.report.exit_code(options) };
            ended.journal.close(Some(&ended.report), code);
            Ok(Finished::Supervised(Box::new(ended.report), ended.failed, ended.dies_by))
        }
        Err(error) => {
            journal.close(None, error.exit_code());
            Err(error)
        }
    }
}

/// Gets everything ready, and starts the command last: what can fail has failed before.
fn start(options: &Options, mut signals: Signals, own_group: bool, front: Option<i32>) -> Result<Run, RunError> {
    if !own_group {
        signals.share_the_group().map_err(|error| RunError::Setup("fork", error))?;
    }
    become_subreaper().map_err(|error| RunError::Setup("become a subreaper", error))?;
    let plan = Plan::new(options.stdio, options.split).map_err(|error| RunError::Setup("look at stdio", error))?;
    let streams = Streams::new(&plan).map_err(|error| RunError::Setup("make pipes for the command", error))?;
    let stdin = match options.stdin {
        Stdin::Inherit => None,
        Stdin::Null => Some(stdio::dev_null().map_err(|error| RunError::Setup("open /dev/null", error))?),
    };
    let command = spawn::spawn(&Setup {
        command: &options.command,
        stdio: [stdin.as_ref().map(AsRawFd::as_raw_fd), streams.for_stdout(), streams.for_stderr()],
        inherited: signals.inherited(),
        own_group,
        pdeathsig: options.pdeathsig,
    })?;
    let home = if own_group { command.pid } else { nix::unistd::getpgrp().as_raw() };
    let lineage = Lineage { root: nix::unistd::getpid().as_raw(), home, adopter: front };
    Ok(Run { signals, command, pumps: streams.into_pumps(), watched: plan.watched(), own_group, lineage })
}

/// Orphans of the lineage become our children, so that its every member is below us.
fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// The pipes for the command, with our ends and its ends.
struct Streams {
    lines: Vec<(Pump, OwnedFd)>,
}

impl Streams {
    fn new(plan: &Plan) -> io::Result<Streams> {
        let mut lines = Vec::new();
        if plan.stdout == Treatment::Pumped {
            let shared = plan.stderr == Treatment::SharedWithStdout;
            let streams = if shared { vec![Stream::Stdout, Stream::Stderr] } else { vec![Stream::Stdout] };
            lines.push(line(streams, 1)?);
        }
        if plan.stderr == Treatment::Pumped {
            lines.push(line(vec![Stream::Stderr], 2)?);
        }
        Ok(Streams { lines })
    }

    /// What the command gets as a descriptor, if it is not ours.
    fn write_end_of(&self, stream: Stream) -> Option<i32> {
        let line = self.lines.iter().find(|(pump, _)| pump.streams.contains(&stream));
        line.map(|(_, write)| write.as_raw_fd())
    }

    fn for_stdout(&self) -> Option<i32> {
        self.write_end_of(Stream::Stdout)
    }

    fn for_stderr(&self) -> Option<i32> {
        self.write_end_of(Stream::Stderr)
    }

    /// Closes our copies of the command's ends: from here on EOF can come.
    fn into_pumps(self) -> Vec<Pump> {
        self.lines.into_iter().map(|(pump, _)| pump).collect()
    }
}

fn line(streams: Vec<Stream>, fd: i32) -> io::Result<(Pump, OwnedFd)> {
    let (read, write) = stdio::stream_pipe()?;
    let pipe = stdio::pipe_behind(std::os::fd::AsFd::as_fd(&read))?;
    let downstream = Downstream::new(fd, stdio::kind(fd)?)?;
    Ok((Pump::new(streams, pipe, read, downstream), write))
}
