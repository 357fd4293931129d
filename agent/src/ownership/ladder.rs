//! Which source a run takes, and when.
//!
//! | `--backend` | from the start | later |
//! |---|---|---|
//! | `auto` | `/proc`, without events | a node, where one lets us in; without one the connector, once the command has lived a little and few listen; the live map, once it has lived a second and the machine's tracker is nobody's |
//! | `proc` | `/proc`, without events | |
//! | `connector` | `/proc`, with events from the connector, or nothing is started | |
//! | `bpf` | the live map, with its events, or nothing is started | |
//! | `node` | a node's live map, with its events, or nothing is started | `/proc` when it is gone, and the node again when it is back |
//!
//! A better source is plugged in as an [`Events`]: forced ones in [`from_the_start`], and what `auto`
//! attaches in the background as another step of the [`Ladder`].

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::bpf::{self, NoMap};
use super::connector::ConnectorEvents;
use super::events::Events;
use super::node::client::{self, Knock, NoNode, Word};
use super::node::events::NodeEvents;
use crate::kernel::connector::{self, Connector, ConnectorError, Kinds, Trial};
use crate::kernel::self_test::in_initial_pid_namespace;

/// What `--backend` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// What works and is worth it.
    #[default]
    Auto,
    /// The live map.
    Bpf,
    /// `/proc`, with events from the connector.
    Connector,
    /// `/proc`, without events.
    Proc,
    /// Another process's live map.
    Node,
}

/// How long a command lives before `auto` attaches anything: who ends sooner pays nothing.
pub const SETTLED: Duration = Duration::from_millis(100);

/// How long a command lives before `auto` attaches a live map: short commands pay nothing for what only
/// long ones need.
pub const WORTH_A_MAP: Duration = Duration::from_secs(1);

/// How many listeners to the connector, ours included, `auto` puts up with. The first one doubles what
/// a fork costs on the whole machine (22 to 44 us for vfork, exec and exit), ten of them cost half as
/// much again, and from there on it is as bad as their number: 478 us with 100, 1.6 ms with 500.
pub const MOST_LISTENERS: usize = 8;

/// How soon a node that was lost is looked for again, at first and at most: it takes a tenth of a second to
/// start one.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often `auto` looks for it before it takes something else: some three seconds.
const PATIENT: u32 = 5;

/// Who was let in for so long had a node.
const FOR_A_WHILE: Duration = Duration::from_secs(1);

/// Why the backend that was asked for cannot be had; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no connector.
    #[error("--backend connector cannot be had here: {0}; --backend auto takes what there is")]
    Connector(#[from] ConnectorError),
    /// There is no live map.
    #[error("--backend bpf cannot be had here: {0}; pipewarden doctor says more, --backend auto takes what there is")]
    Bpf(#[from] NoMap),
    /// There is no node.
    #[error(
        "--backend node cannot be had here: {0}; start one (pipewarden node), set {name} to its socket, or take --backend auto",
        name = super::node::protocol::ENVIRONMENT
    )]
    Node(#[from] NoNode),
}

/// Events from a source that passed its self-test.
pub struct Attached {
    /// The source.
    pub events: Box<dyn Events>,
    /// How long it took.
    pub took: Duration,
}

/// `auto` goes on without something that it wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The rung.
    pub rung: &'static str,
    /// Why it cannot be had.
    pub why: String,
}

/// Attaches what was asked for by name. May wait for its self-test.
///
/// `helpers` are children of the supervisor that are no lineage.
///
/// # Errors
///
/// [`Unavailable`]: then nothing may be started.
pub fn from_the_start(backend: Backend, root: i32, helpers: &HashSet<i32>) -> Result<Option<Attached>, Unavailable> {
    let began = Instant::now();
    let events: Box<dyn Events> = match backend {
        Backend::Auto | Backend::Proc => return Ok(None),
        Backend::Connector => {
            let mut connector = Connector::open(Kinds::LINEAGE)?;
            connector::self_test(&mut connector)?;
            Box::new(ConnectorEvents::from_the_start(connector, root, helpers))
        }
        Backend::Bpf => Box::new(bpf::Attached::in_peace()?.into_events(root)),
        Backend::Node => {
            let path = client::socket_path();
            let events = NodeEvents::new(Knock::wait(&path)?, root);
            Box::new(events.map_err(|error| NoNode::Broken(path, error))?)
        }
    };
    Ok(Some(Attached { events, took: began.elapsed() }))
}

/// What `auto` attaches while the command runs. Nothing here waits.
pub struct Ladder {
    step: Step,
    backend: Backend,
    /// Since when the first command runs.
    began: Option<Instant>,
    root: i32,
    /// The last time that a node let us in.
    let_in: Option<Instant>,
    /// How often a node was lost, or none found, since one was there for a while.
    in_vain: u32,
}

enum Step {
    /// Nothing is to be attached (any more).
    Rest,
    /// As soon as a command runs, for a while.
    Wanted,
    /// A node was lost: it may come back.
    Lost,
    /// A node, once it is that late.
    NodeAt(Instant),
    /// We have knocked at a node's.
    Knocked(Box<Knock>),
    /// The connector, once it is that late.
    At(Instant),
    /// The connector is on probation, since then.
    Trial(Box<Trial>, Instant),
    /// The live map, once it is that late.
    MapAt(Instant),
    /// The live map is being attached, on a thread of its own.
    Loading(Loading),
}

impl Ladder {
    /// The ladder of a run whose supervisor that is.
    #[must_use]
    pub fn new(backend: Backend, root: i32) -> Ladder {
        let step = if backend == Backend::Auto { Step::Wanted } else { Step::Rest };
        // What is asked for by name is there.
        let let_in = (backend == Backend::Node).then(Instant::now);
        Ladder { step, backend, began: None, root, let_in, in_vain: 0 }
    }

    /// A command runs, since now.
    pub fn begin(&mut self, now: Instant) {
        if matches!(self.step, Step::Wanted) {
            self.step = Step::NodeAt(now);
        }
        self.began.get_or_insert(now);
    }

    /// The node that was in use is gone.
    pub fn lost_the_node(&mut self) {
        if self.let_in.is_some_and(|since| since.elapsed() >= FOR_A_WHILE) {
            self.in_vain = 0;
        }
        self.step = Step::Lost;
    }

    /// When to climb next, at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match &self.step {
            Step::Rest | Step::Wanted => None,
            Step::Lost => self.began,
            Step::Knocked(knock) => Some(knock.deadline()),
            Step::Loading(loading) => Some(loading.deadline),
            Step::At(at) | Step::MapAt(at) | Step::NodeAt(at) => Some(*at),
            Step::Trial(trial, _) => Some(trial.deadline()),
        }
    }

    /// What becomes readable when it is time to climb.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.step {
            Step::Trial(trial, _) => Some(trial.connector().as_fd()),
            Step::Knocked(knock) => Some(knock.fd()),
            Step::Loading(loading) => Some(loading.fd()),
            _ => None,
        }
    }

    /// Does what is due. `helpers` are children of the supervisor that are no lineage; one may be added
    /// for a while.
    pub fn climb(&mut self, now: Instant, helpers: &mut HashSet<i32>) -> Option<Result<Attached, Missed>> {
        match std::mem::replace(&mut self.step, Step::Rest) {
            Step::Lost => {
                self.step = self.after_no_node(now);
                None
            }
            Step::NodeAt(at) if now >= at => match Knock::begin(&client::socket_path()) {
                Ok(knock) => {
                    self.step = Step::Knocked(Box::new(knock));
                    None
                }
                Err(why) => self.no_node(&why, now),
            },
            Step::Knocked(knock) => self.listen(*knock, now),
            Step::At(at) if now >= at => match on_trial() {
                Ok((trial, began)) => {
                    helpers.insert(trial.child());
                    self.step = Step::Trial(Box::new(trial), began);
                    self.climb(now, helpers)
                }
                Err(why) => {
                    self.step = self.map_step();
                    Some(Err(Missed { rung: "connector", why }))
                }
            },
            Step::Trial(mut trial, began) => {
                let Some(verdict) = trial.read() else {
                    self.step = Step::Trial(trial, began);
                    return None;
                };
                self.step = self.map_step();
                // It is dead, whoever will have its number.
                helpers.remove(&trial.child());
                Some(match verdict {
                    Ok(()) => {
                        let events = ConnectorEvents::from_now_on(trial.into_connector(), self.root, helpers);
                        Ok(Attached { events: Box::new(events), took: began.elapsed() })
                    }
                    Err(error) => Err(Missed { rung: "connector", why: error.to_string() }),
                })
            }
            Step::MapAt(at) if now >= at => match Loading::begin(now) {
                Ok(loading) => {
                    self.step = Step::Loading(loading);
                    None
                }
                Err(why) => Some(Err(Missed { rung: "bpf", why: format!("no thread to attach it: {why}") })),
            },
            Step::Loading(loading) => match loading.result() {
                None if now >= loading.deadline => {
                    let why = format!("it was not attached within {} s", PATIENCE.as_secs());
                    Some(Err(Missed { rung: "bpf", why }))
                }
                None => {
                    self.step = Step::Loading(loading);
                    None
                }
                Some((Ok(map), took)) => Some(Ok(Attached { events: Box::new(map.into_events(self.root)), took })),
                Some((Err(error), _)) => Some(Err(Missed { rung: "bpf", why: error.to_string() })),
            },
            step => {
                self.step = step;
                None
            }
        }
    }

    fn listen(&mut self, knock: Knock, now: Instant) -> Option<Result<Attached, Missed>> {
        let began = knock.began();
        match knock.listen() {
            Word::None(knock) => {
                self.step = Step::Knocked(Box::new(knock));
                None
            }
            Word::Out(why) => self.no_node(&why, now),
            Word::In(client) => match NodeEvents::new(client, self.root) {
                Ok(events) => {
                    self.let_in = Some(Instant::now());
                    Some(Ok(Attached { events: Box::new(events), took: began.elapsed() }))
                }
                Err(error) => self.no_node(&NoNode::Broken(client::socket_path(), error), now),
            },
        }
    }

    /// There is no node now. That there never was one is how most machines are, and needs no word.
    fn no_node(&mut self, why: &NoNode, now: Instant) -> Option<Result<Attached, Missed>> {
        let again = self.let_in.is_some();
        self.step = if again { self.after_no_node(now) } else { Step::At(self.settled(now)) };
        let expected = again || matches!(why, NoNode::Absent(_));
        (!expected).then(|| Err(Missed { rung: "node", why: why.to_string() }))
    }

    /// A node that was there is asked for again, ever later; `auto` takes what else there is after a while.
    fn after_no_node(&mut self, now: Instant) -> Step {
        let pause = BACK_OFF.0.saturating_mul(1 << self.in_vain.min(16)).min(BACK_OFF.1);
        self.in_vain += 1;
        if self.backend == Backend::Auto && self.in_vain > PATIENT {
            return Step::At(self.settled(now));
        }
        Step::NodeAt(now + pause)
    }

    fn settled(&self, now: Instant) -> Instant {
        self.began.unwrap_or(now) + SETTLED
    }

    /// What follows the connector. Who may not have a live map does not hear of it in every run: `doctor`
    /// says it, and what would help.
    fn map_step(&self) -> Step {
        match self.began {
            Some(began) if bpf::may_be_had() => Step::MapAt(began + WORTH_A_MAP),
            _ => Step::Rest,
        }
    }
}

/// How long a live map may take to be attached. It takes a tenth of a second, seconds on a machine that has
/// no time at all, and in a kernel that never answers it must not be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A live map that is being attached: it takes a tenth of a second and more, most of it in the verifier.
struct Loading {
    deadline: Instant,
    result: Receiver<(Result<bpf::Attached, NoMap>, Duration)>,
    done: Arc<EventFd>,
}

impl Loading {
    fn begin(now: Instant) -> io::Result<Loading> {
        let done = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (send, result) = sync_channel(1);
        let tell = Arc::clone(&done);
        thread::Builder::new().name("live map".into()).spawn(move || {
            // The main thread reads signals from a signalfd: none may be delivered here.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            let began = Instant::now();
            // Nobody may want it any more: then it is detached here.
            if send.send((bpf::Attached::on_the_side(), began.elapsed())).is_ok() {
                let _ = tell.write(1);
            }
        })?;
        Ok(Loading { deadline: now + PATIENCE, result, done })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    fn result(&self) -> Option<(Result<bpf::Attached, NoMap>, Duration)> {
        self.result.try_recv().ok()
    }
}

/// Opens a connector, unless too many listen already, and puts it to its test.
fn on_trial() -> Result<(Trial, Instant), String> {
    let began = Instant::now();
    if !in_initial_pid_namespace() {
        return Err("it tells pids as the initial pid namespace numbers them, and we are in another one".to_owned());
    }
    room_for_another()?;
    let connector = Connector::open(Kinds::LINEAGE).map_err(|error| error.to_string())?;
    // Others may have come at the same time. Whoever stays has seen all who came before and stayed, so
    // that there are never more of them.
    crowded(0)?;
    Trial::begin(connector).map(|trial| (trial, began)).map_err(|error| error.to_string())
}

/// Whether one more listener to the connector is not too many for `auto`.
///
/// # Errors
///
/// One line that says how many there are.
pub fn room_for_another() -> Result<(), String> {
    crowded(1)
}

/// An error where with so many more listeners there are too many.
fn crowded(more: usize) -> Result<(), String> {
    let listeners = connector::listeners().map_err(|error| format!("/proc/net/netlink: {error}"))?;
    if listeners + more <= MOST_LISTENERS {
        return Ok(());
    }
    let others = listeners + more - 1;
    Err(format!("{others} others listen to the connector already, and each one costs every fork of the machine"))
}
