//! The live map as a source: who holds a pipe is looked up, and the kernel says when to look.
//!
//! What it does not do is kill from inside the kernel. A program could send SIGKILL to who forks again and
//! again, at the fork (bpf_send_signal); but then the decision would be taken where nothing can be
//! verified or recorded first, and the loop over the lineage ends such a process within milliseconds of
//! the escalation as it is.
//!
//! The tracker is shared by the thread that reads its events, the one that asks its map, and the one that seeds it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::events::Names;
use crate::kernel::choice::{self, NoSuchRung};
use crate::kernel::facts::Held;
use crate::kernel::lock::{self, Carrier, TrackerLock};
use crate::kernel::object::{self, LoadError};
use crate::kernel::room::{self, BadRoom};
use crate::kernel::self_test::{self, SelfTestError, in_initial_pid_namespace};
use crate::kernel::tracker::{Reader, Tracker};
use crate::kernel::trial::on_trial;
use crate::pipe::{End, PipeId};
use crate::process::table::{Hold, Via};

mod events;
mod shared;
mod source;

pub use events::BpfEvents;
use shared::Shared;

/// Why a run has no live map of its own.
#[derive(Debug, thiserror::Error)]
pub enum NoMap {
    /// The machine has one tracker, and it is another's.
    #[error("the machine's tracker is carried by {0}: one is enough, and each costs every process something")]
    Carried(String),
    /// The lock that says so cannot be had.
    #[error("/run/pipewarden/tracker.lock: {0}")]
    Lock(#[source] io::Error),
    /// The environment says nothing sensible of how large it is to be.
    #[error(transparent)]
    Room(#[from] BadRoom),
    /// The environment names a rung that does not exist.
    #[error(transparent)]
    Rung(#[from] NoSuchRung),
    /// No rung attaches; what the last one, which needs least, says.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It attaches, and does not tell the truth.
    #[error(transparent)]
    Untrue(#[from] SelfTestError),
}

/// A tracker that passed its test.
pub struct Attached {
    tracker: Tracker,
    reader: Reader,
    lock: TrackerLock,
}

impl Attached {
    /// Attaches the best rung that there is and tests it, with a child that this reaps: for when nobody else
    /// reaps our children.
    ///
    /// # Errors
    ///
    /// [`NoMap`].
    pub fn in_peace() -> Result<Attached, NoMap> {
        attach(|tracker, reader| {
            tracker.put_reader(reader);
            self_test::of_tracker(tracker)?;
            tracker.take_reader().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
        })
    }

    /// The same with a child that somebody else reaps: on any thread, while the run goes on.
    ///
    /// # Errors
    ///
    /// [`NoMap`].
    pub fn on_the_side() -> Result<Attached, NoMap> {
        attach(|tracker, mut reader| {
            on_trial(tracker, &mut reader)?;
            Ok(reader)
        })
    }

    /// The source of events for the run of that supervisor.
    #[must_use]
    pub fn into_events(self, root: i32) -> BpfEvents {
        let names = Names { backend: "bpf", rung: self.tracker.rung().name() };
        BpfEvents::new(names, self.reader, Arc::new(Shared::new(self.tracker, self.lock, root)))
    }
}

/// Whether it is worth trying: whether this process may load programs, and pids mean to it what they mean
/// to the kernel.
#[must_use]
pub fn may_be_had() -> bool {
    let allowed = |held: Held| held.effective.has("SYS_ADMIN") || held.effective.has("BPF");
    in_initial_pid_namespace() && Held::read().is_ok_and(allowed)
}

type Test = fn(&mut Tracker, Reader) -> Result<Reader, SelfTestError>;

fn attach(test: Test) -> Result<Attached, NoMap> {
    let sizes = room::of_a_run()?;
    let rungs = choice::rungs()?;
    let Some(lock) = TrackerLock::take(&lock::path(), "run").map_err(NoMap::Lock)? else {
        return Err(NoMap::Carried(match lock::carrier(&lock::path()) {
            Ok(Carrier::Process { pid, role }) => format!("{role} (pid {pid})"),
            _ => "another process".to_owned(),
        }));
    };
    let mut last = None;
    for rung in rungs {
        match Tracker::attach(rung, object::Scope::Lineage, sizes) {
            Ok(mut tracker) => {
                let Some(reader) = tracker.take_reader() else { continue };
                match test(&mut tracker, reader) {
                    Ok(reader) => return Ok(Attached { tracker, reader, lock }),
                    Err(error) => last = Some(error.into()),
                }
            }
            Err(error) => last = Some(NoMap::Load(error)),
        }
    }
    Err(last.unwrap_or_else(|| NoMap::Load(LoadError::Stale("rung".to_owned()))))
}

fn add(holds: &mut BTreeMap<PipeId, Hold>, pipe: PipeId, end: End, tid: i32, fd: i32) {
    let hold = holds.entry(pipe).or_insert_with(|| Hold { pipe, end, tid, fds: Vec::new(), via: Via::Descriptor });
    hold.end = hold.end.and(end);
    hold.fds.push(fd);
}
