//! The node itself: it watches, finds what is withheld, and does what the policies say.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::attribution::Attribution;
use super::config::{Config, OnWithheld};
use super::http::gate::Token;
use super::http::{Board, Limits, Listener, NoListener};
use super::journal::Journal;
use super::live::{Live, NoTracker};
use super::metrics::Metrics;
use super::names::Directory;
use super::policy::Policies;
use super::privileges::{self, Capability, Undropped};
use super::socket::{self, Attendant};
use crate::audit::{Aside, Log, OpenError, Rotation, RunId, Target};
use crate::config::ConfigError;
use crate::pipe::PipeId;

mod cases;
mod view;

use cases::{Case, State};
use view::Known;

/// Why a node could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The audit log cannot be had.
    #[error("node: {0}")]
    Audit(#[from] OpenError),
    /// It cannot listen.
    #[error("node: {0}")]
    Listen(#[from] NoListener),
    /// There is no token to compare with.
    #[error("node: {0}")]
    Token(String),
    /// It would go on with more than it needs.
    #[error("node: {0}")]
    Privileges(#[from] Undropped),
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
/// How often the programs' run time is asked for, which takes a call for each.
const RUN_TIME: Duration = Duration::from_secs(5);

/// A node at work.
struct Node {
    file: Option<PathBuf>,
    live: Live,
    attendant: Attendant,
    policies: Policies,
    attribution: Attribution,
    names: Directory,
    journal: Journal,
    cases: HashMap<PipeId, Case>,
    pipefs: u64,
    started: Instant,
    metrics: Metrics,
    board: Arc<Board>,
    /// Whether anybody can read the board.
    serves: bool,
    known: Known,
    /// The file of the token that requests must show.
    token: Option<PathBuf>,
    /// Whether it gave up ending other users' processes when it began.
    harmless: bool,
    /// Why the last look came to nothing.
    blind: Option<String>,
    /// When the programs' run time was asked for last.
    asked: Option<Instant>,
    say: Say,
}

/// Watches until it is told to end (SIGTERM, SIGINT). SIGHUP reads the configuration again. Without a
/// file the defaults hold. `say` is told what an operator should know.
///
/// Must be called from the main thread of a process that does nothing else.
///
/// # Errors
///
/// [`NodeError`]; nothing stays behind.
pub fn run(file: Option<PathBuf>, say: Say) -> Result<(), NodeError> {
    let config = file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let signals = signals()?;
    // What may be wrong with the configuration is found out before the machine pays for a tracker.
    let listener = config.http.listen.map(Listener::bind).transpose()?;
    let token = config.http.token_file.as_deref().map(Token::read).transpose().map_err(NodeError::Token)?;
    if let Target::Path(path) = &config.audit.target
        && let Some(folder) = path.parent()
    {
        let _ = std::fs::create_dir_all(folder); // what is wrong with it is said by the open
    }
    let started = Instant::now();
    let mut live = Live::attach(config.map)?;
    let socket = socket::Listener::open(&config.socket)?;
    let ends = ends(&config);
    let kept = privileges::drop_all(ends, || live.works())?;
    let (metrics, registry) = Metrics::new(live.rung());
    let board = Arc::new(Board::new(registry, token));
    // Threads only from here on, each with less than we have: the tracker's self-test forks, and what was given up
    // was given up for this thread and those that it starts.
    let rotation = Rotation { max_size: config.audit.max_size, files: config.audit.files };
    let log = Log::open_aside(&config.audit.target, rotation, RunId::new(), aside(&board, &config.audit.target, say))?;
    let here = listener.as_ref().map(Listener::here);
    if let Some(listener) = listener {
        listener.serve(Arc::clone(&board), Limits::default(), move || confine("http", None, say))?;
    }
    let attendant = Attendant::start(socket, live.rung())?;
    // Threads that are started from here on open nothing for writing either.
    if let Err(error) = privileges::only_read() {
        say(&format_args!("node: seccomp: {error}: the node could write files if it were made to"));
    }
    let said = file.as_ref().map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
    say(&format_args!("node: watching by {}, with {} policies of {said}", live.rung(), config.policies.len()));
    if let Some(here) = here {
        say(&format_args!("node: http://{here}/metrics"));
    }
    let journal = Journal::begin(log, live.rung(), said, started.elapsed());
    let mut node = Node {
        file,
        live,
        attendant,
        policies: Policies::new(config.policies),
        attribution: Attribution::default(),
        names: names(&config.names, say),
        journal,
        cases: HashMap::new(),
        pipefs: pipefs()?,
        started,
        metrics,
        board,
        serves: here.is_some(),
        known: Known::new(),
        token: config.http.token_file,
        harmless: !ends && !kept.has(Capability::Kill),
        blind: None,
        asked: None,
        say,
    };
    let outcome = node.watch(&signals);
    node.journal.finish(node.started.elapsed());
    Ok(outcome?)
}

/// Whether a policy ends anybody.
fn ends(config: &Config) -> bool {
    config.policies.iter().any(|policy| policy.on_withheld == OnWithheld::End)
}

/// What an operator should know is told to this.
type Say = fn(&dyn std::fmt::Display);

/// Who listens by HTTP hears of records, too; the log's thread writes below the log's folder alone.
fn aside(board: &Arc<Board>, target: &Target, say: Say) -> Aside {
    let board = Arc::clone(board);
    let folder = match target {
        Target::Path(path) => path.parent().map(Path::to_owned),
        Target::Stderr => None,
    };
    let first = move || confine("the audit log", folder.as_deref(), say);
    Aside { first: Box::new(first), wrote: Box::new(move |line| board.wrote(line)) }
}

/// Takes from this thread what it does not need.
fn confine(whose: &str, writes_below: Option<&Path>, say: Say) {
    let here = Path::new(".");
    let writes_below = writes_below.map(|folder| if folder.as_os_str().is_empty() { here } else { folder });
    if let Err(error) = privileges::confine(writes_below) {
        say(&format_args!("node: the thread of {whose} keeps more than it needs: {error}"));
    }
}

/// Who is asked for names. That nobody can be is no reason not to watch: without names, policies that want them match
/// nobody.
fn names(config: &super::config::Names, say: Say) -> Directory {
    Directory::new(config, move || confine("names", None, say)).unwrap_or_else(|error| {
        say(&format_args!("node: {error}; containers stay without names"));
        Directory::of_nobody()
    })
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
            self.board.turned();
            let more = self.live.take_in(BATCH, &self.metrics);
            self.attendant.attend(&mut self.live);
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo == libc::SIGHUP.cast_unsigned() {
                    self.reload();
                } else {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if now >= next_look {
                let looked = self.mend().and_then(|()| self.look());
                self.looked(looked);
                self.publish();
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

    /// Makes up for what was lost, where something was.
    fn mend(&mut self) -> io::Result<()> {
        if let Some(mended) = self.live.mend()? {
            self.journal.reseeded(mended.why, mended.missed);
            self.attendant.lost(mended.why, mended.missed);
            self.metrics.reseeded(mended.kind);
            if mended.full {
                let why = mended.why;
                (self.say)(&format_args!("node: {why}: what has no room is not seen; give [map] more, and restart"));
            }
        }
        let now = Instant::now();
        if self.asked.is_none_or(|asked| now.duration_since(asked) >= RUN_TIME) {
            self.asked = Some(now);
            self.metrics.ran(self.live.run_time());
        }
        Ok(())
    }

    /// A look that comes to nothing is no end: the next may come to something.
    fn looked(&mut self, looked: io::Result<()>) {
        let error = looked.err().map(|error| error.to_string());
        if let Some(error) = &error {
            self.metrics.failed_looks.inc();
            if self.blind.is_none() {
                (self.say)(&format_args!("node: a look came to nothing: {error}; the next is tried all the same"));
            }
        }
        self.blind = error;
    }

    /// Until something happens, or it is time to look.
    fn wait(&self, signals: &SignalFd, until: Instant) -> io::Result<()> {
        let until = self.attendant.due(&self.live).map_or(until, |due| due.min(until));
        // Up to the next millisecond, so that the wait is never one too few.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let fds = [self.live.fd(), signals.as_fd(), self.attendant.fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
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
            Ok(config) if self.harmless && ends(&config) => {
                let file = file.display();
                (self.say)(&format_args!(
                    "node: {file}: a policy ends holders, and this node gave up the right to when it began without one; \
                     restart it; nothing is changed"
                ));
            }
            Ok(config) => {
                let number = config.policies.len();
                self.policies.replace(config.policies);
                // Who was let live is put before the new ones.
                let holders = self.cases.values_mut().flat_map(|case| case.holders.values_mut());
                for holder in holders.filter(|holder| matches!(holder.state, State::Spared)) {
                    holder.state = State::New;
                }
                (self.say)(&format_args!("node: read {} again: {number} policies", file.display()));
                self.read_token();
            }
            Err(error) => (self.say)(&format_args!("{error}; nothing is changed")),
        }
    }

    /// Reads the token's file again. One that cannot be read changes nothing.
    fn read_token(&self) {
        let Some(file) = &self.token else { return };
        match Token::read(file) {
            Ok(token) => self.board.expect(Some(token)),
            Err(error) => (self.say)(&format_args!("node: {error}; the token stays as it was")),
        }
    }
}
