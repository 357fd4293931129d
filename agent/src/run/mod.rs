//! The supervisor: runs a command so that its readers get every byte, and then EOF.

pub mod options;
pub mod report;

mod course;
pub(crate) mod downstream;
mod drain;
mod ending;
pub(crate) mod feed;
pub mod fifo;
mod footprint;
pub(crate) mod inherited;
mod journal;
pub mod matchers;
mod pump;
pub(crate) mod reap;
pub(crate) mod relay;
mod scene;
pub(crate) mod signals;
mod spawn;
pub(crate) mod stdio;
pub(crate) mod supervisor;
pub mod template;
pub(crate) mod terminal;
mod tracker;
mod tries;
mod watch;
mod witness;

use std::io;

use crate::audit::{Log, OpenError, RunId};
use crate::ownership::ladder::Unavailable;
use crate::pipe::ExitStatus;
use fifo::FifoError;
use journal::Journal;
use options::Options;
pub use pump::DownstreamFailed;
use relay::Role;
pub use relay::caution;
use report::Report;
use scene::Scene;
use signals::Signals;
pub use signals::die_by;
use spawn::SpawnError;
use tracker::Tracker;

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
    /// The FIFO cannot be ours; nothing was started.
    #[error("invalid value for '--stdin <FROM>': {0}")]
    Fifo(#[from] FifoError),
    /// What was asked for by `--backend` cannot be had; nothing was started.
    #[error(transparent)]
    Backend(#[from] Unavailable),
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
            RunError::Audit(_)
            | RunError::Fifo(_)
            | RunError::Backend(_)
            | RunError::Setup(..)
            | RunError::Supervision(_) => FAILURE,
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
    footprint::share_one_heap();
    let mut signals = Signals::take_over().map_err(|error| RunError::Setup("take over signals", error))?;
    let own_group = !options.foreground && !terminal::is_ours();
    let front = match relay::enter(&mut signals, own_group).map_err(|error| RunError::Setup("fork", error))? {
        Role::Relay(status) => return Ok(Finished::Relayed(status)),
        Role::Supervisor(front) => front,
    };
    // While the command is on its way nobody waits for us.
    run_here(options, signals, own_group, front, Box::new(|_| footprint::shrink()))
}

/// The same in a process of which the caller knows that it has no children and is not pid 1.
/// `own_group`: the command gets a process group of its own. `front`: the process that adopts orphans
/// which are not lineage, if there is one. `started` is told the command's pid, at every try.
///
/// # Errors
///
/// As [`RunError`] says.
pub fn run_here(
    options: &Options,
    mut signals: Signals,
    own_group: bool,
    front: Option<i32>,
    started: Box<dyn FnMut(i32)>,
) -> Result<Finished, RunError> {
    let log = match &options.audit {
        Some(target) => Log::open_named(target, RunId::new(), options.name.clone())?,
        None => Log::disabled(RunId::new()),
    };
    let mut journal = Journal::open(log, options);
    let prepared = scene::prepare(options, &mut signals, own_group).and_then(|ready| {
        let root = nix::unistd::getpid().as_raw();
        let helpers = signals.helper().into_iter().collect();
        Ok((ready, Tracker::start(options.backend, root, &helpers, &mut journal)?))
    });
    let (ready, tracker) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            journal.close(None, error.exit_code());
            return Err(error);
        }
    };
    let mut scene = Scene::new(ready, signals, own_group, front, (journal, tracker), started);
    let tried = tries::run(options, &mut scene);
    let Scene { journal, failed, feed, .. } = scene;
    drop(feed); // whoever came late to its FIFO is let go before we are gone
    match tried {
        Ok((report, dies_by)) => {
            let code = if failed.is_some() { FAILURE } else { report.exit_code(options) };
            journal.close(Some(&report), code);
            Ok(Finished::Supervised(Box::new(report), failed, dies_by))
        }
        Err(error) => {
            journal.close(None, error.exit_code());
            Err(error)
        }
    }
}
