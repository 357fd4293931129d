//! The node itself: it watches, finds what is withheld, and does what the policies say.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::attribution::Attribution;
use super::config::Config;
use super::journal::Journal;
use super::live::{Live, NoTracker};
use super::policy::Policies;
use crate::audit::{Log, OpenError, Rotation, RunId};
use crate::config::ConfigError;
use crate::pipe::PipeId;

mod cases;

use cases::{Case, State};

/// Why a node could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The audit log cannot be had.
    #[error("node: {0}")]
    Audit(#[from] OpenError),
    /// There is no tracker.
    #[error("node: {0}")]
    Tracker(#[from] NoTracker),
    /// The kernel refused us something.
    #[error("node: {0}")]
    Kernel(#[from] io::Error),
}

/// How often candidates are looked at, and losses where there is none.
const LOOK: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(1);
/// Records that are taken in before anything else is looked at.
const BATCH: usize = 4096;
/// A node at work.
struct Node {
    file: Option<PathBuf>,
    live: Live,
    policies: Policies,
    attribution: Attribution,
    journal: Journal,
    cases: HashMap<PipeId, Case>,
    pipefs: u64,
    started: Instant,
    say: fn(&dyn std::fmt::Display),
}

/// Watches until it is told to end (SIGTERM, SIGINT). SIGHUP reads the configuration again. Without a
/// file the defaults hold. `say` is told what an operator should know.
///
/// Must be called from the main thread of a process that does nothing else.
///
/// # Errors
///
/// [`NodeError`]; nothing stays behind.
pub fn run(file: Option<PathBuf>, say: fn(&dyn std::fmt::Display)) -> Result<(), NodeError> {
    let config = file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let signals = signals()?;
    let rotation = Rotation { max_size: config.audit.max_size, files: config.audit.files };
    if let crate::audit::Target::Path(path) = &config.audit.target
        && let Some(folder) = path.parent()
    {
        let _ = std::fs::create_dir_all(folder); // what is wrong with it is said by the open
    }
    let log = Log::open_rotated(&config.audit.target, rotation, RunId::new())?;
    let started = Instant::now();
    let live = Live::attach()?;
    let said = file.as_ref().map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
    say(&format_args!("node: watching by {}, with {} policies of {said}", live.rung(), config.policies.len()));
    let journal = Journal::begin(log, live.rung(), said, started.elapsed());
    let mut node = Node {
        file,
        live,
        policies: Policies::new(config.policies),
        attribution: Attribution::default(),
        journal,
        cases: HashMap::new(),
        pipefs: pipefs()?,
        started,
        say,
    };
    let outcome = node.watch(&signals);
    node.journal.finish(node.started.elapsed());
    Ok(outcome?)
}

/// SIGTERM, SIGINT and SIGHUP come by a descriptor from here on.
fn signals() -> io::Result<SignalFd> {
    let mut ours = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ours.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
    Ok(SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The device of anonymous pipes.
fn pipefs() -> io::Result<u64> {
    let (read, _write): (OwnedFd, OwnedFd) = nix::unistd::pipe()?;
    Ok(nix::sys::stat::fstat(read.as_fd())?.st_dev)
}

impl Node {
    fn watch(&mut self, signals: &SignalFd) -> io::Result<()> {
        let mut next_look = Instant::now();
        loop {
            let more = self.live.take_in(BATCH);
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo == libc::SIGHUP.cast_unsigned() {
                    self.reload();
                } else {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if now >= next_look {
                if let Some((why, missed)) = self.live.mend()? {
                    self.journal.reseeded(why, missed);
                }
                self.look()?;
                let at_work = self.live.has_candidates() || !self.cases.is_empty();
                next_look = now + if at_work { LOOK } else { IDLE };
            }
            if !more {
                self.wait(signals, next_look)?;
                if self.live.has_candidates() {
                    next_look = next_look.min(Instant::now() + LOOK);
                }
            }
        }
    }

    /// Until something happens, or it is time to look.
    fn wait(&self, signals: &SignalFd, until: Instant) -> io::Result<()> {
        // Up to the next millisecond, so that the wait is never one too few.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let mut fds = [self.live.fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the policies again. A file that has an error changes nothing.
    fn reload(&mut self) {
        let Some(file) = &self.file else {
            (self.say)(&"node: SIGHUP: there is no file to read again; name one with --config");
            return;
        };
        match Config::load(file) {
            Ok(config) => {
                let number = config.policies.len();
                self.policies.replace(config.policies);
                // Who was let live is put before the new ones.
                let holders = self.cases.values_mut().flat_map(|case| case.holders.values_mut());
                for holder in holders.filter(|holder| matches!(holder.state, State::Spared)) {
                    holder.state = State::New;
                }
                (self.say)(&format_args!("node: read {} again: {number} policies", file.display()));
            }
            Err(error) => (self.say)(&format_args!("{error}; nothing is changed")),
        }
    }
}
