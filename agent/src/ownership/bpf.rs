//! The live map as a source: who holds a pipe is looked up, and the kernel says when to look.
//!
//! What it does not do is kill from inside the kernel. A program could send SIGKILL to who forks again and
//! again, at the fork (bpf_send_signal); but then the decision would be taken where nothing can be
//! verified or recorded first, and the loop over the lineage ends such a process within milliseconds of
//! the escalation as it is.
//!
//! The tracker is shared by the thread that reads its events and the one that asks its map.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pipewarden_common::event::{Escape, OTHER_UNKNOWN, kind};
use pipewarden_common::live_map::{Slot, SlotKey};

use super::events::{Escaped, Events, LineageEvent, Names};
use super::keep::Keep;
use super::proc::Proc;
use super::{Census, Lineage, Question, Scope, Source};
use crate::kernel::choice::{self, NoSuchRung};
use crate::kernel::facts::Held;
use crate::kernel::lock::{self, Carrier, TrackerLock};
use crate::kernel::object::{self, LoadError};
use crate::kernel::record::{Record, end_of, pipe_of, process_of};
use crate::kernel::room::{self, BadRoom};
use crate::kernel::seed::Root;
use crate::kernel::self_test::{self, SelfTestError, in_initial_pid_namespace};
use crate::kernel::tracker::{Losses, Reader, Tracker};
use crate::kernel::trial::on_trial;
use crate::kernel::users::Users;
use crate::pipe::{End, Pipe, PipeId, Relation};
use crate::process::stat::Stat;
use crate::process::table::{Hold, Via};

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
        let rung = self.tracker.rung();
        let shared = Shared {
            tracker: Mutex::new(self.tracker),
            must_seed: AtomicBool::new(true),
            seeded: Mutex::new(None),
            root,
            _lock: self.lock,
        };
        BpfEvents {
            names: Names { backend: "bpf", rung: rung.name() },
            reader: self.reader,
            shared: Arc::new(shared),
            home: 0,
            losses: Losses::default(),
            next_check: Instant::now() + CHECK,
            taken: 0,
        }
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

/// What both threads know.
struct Shared {
    tracker: Mutex<Tracker>,
    /// Whether the map must be seeded before it is asked.
    must_seed: AtomicBool,
    /// What a seeding found that nothing had told of.
    seeded: Mutex<Option<(&'static str, u64)>>,
    root: i32,
    /// Ours as long as the tracker is.
    _lock: TrackerLock,
}

impl Shared {
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, why: &'static str, missed: u64) {
        *self.seeded.lock().unwrap_or_else(PoisonError::into_inner) = Some((why, missed));
    }
}

/// How often it is asked whether anything was lost, beside each time that the map is.
const CHECK: Duration = Duration::from_secs(1);

/// How many records are taken in one turn: who forks as fast as it can does not keep a run from its
/// clocks.
const TURN: u32 = 256;

/// The live map's events, for one run.
pub struct BpfEvents {
    names: Names,
    reader: Reader,
    shared: Arc<Shared>,
    home: i32,
    losses: Losses,
    next_check: Instant,
    taken: u32,
}

impl Events for BpfEvents {
    fn names(&self) -> Names {
        self.names
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<LineageEvent>> {
        while self.taken < TURN {
            let Some(record) = self.reader.next_record() else { break };
            self.taken += 1;
            if let Some(event) = self.event(&record) {
                return Ok(Some(event));
            }
        }
        let was_a_turn = std::mem::take(&mut self.taken) == TURN;
        if was_a_turn {
            return Ok(None);
        }
        let noted = self.shared.seeded.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((why, missed)) = noted {
            return Ok(Some(LineageEvent::Lost { why, missed }));
        }
        self.lost()
    }

    fn follow(&mut self, lineage: &Lineage, _pipes: &[Pipe]) {
        self.home = lineage.home;
        self.shared.must_seed.store(true, Ordering::Release);
    }

    /// It was never tracked.
    fn disown(&mut self, _helper: i32) {}

    fn wants_walk(&self) -> bool {
        self.shared.must_seed.load(Ordering::Acquire)
    }

    fn source(&self, lineage: &Lineage, keep: &Keep) -> Option<Box<dyn Source>> {
        let proc = Proc::new(lineage.clone(), keep.clone());
        Some(Box::new(BpfSource {
            shared: Arc::clone(&self.shared),
            proc,
            watched: HashSet::new(),
            seen: Losses::default(),
        }))
    }
}

impl BpfEvents {
    fn event(&self, record: &Record) -> Option<LineageEvent> {
        let event = record.event();
        let pid = event.pid.cast_signed();
        Some(match (event.kind, record) {
            (kind::FORK, _) => LineageEvent::Forked { parent: pid, child: event.other.cast_signed() },
            (kind::EXEC, _) => LineageEvent::Exec(pid),
            (kind::EXIT, _) => LineageEvent::Exited(pid),
            (kind::LAST_WRITER, Record::Closed(closed)) => LineageEvent::LastWriterGone(pipe_of(&closed.held)),
            (_, Record::Escape(escape)) => LineageEvent::Escaped(self.escaped(escape)?),
            _ => return None,
        })
    }

    fn escaped(&self, escape: &Escape) -> Option<Escaped> {
        let event = &escape.event;
        let happened = Duration::from_nanos(event.time_ns);
        // A shell puts its children into their groups: what they hold is not what it holds.
        if event.kind == kind::SETPGID && event.other == OTHER_UNKNOWN {
            return None; // the next look finds it
        }
        if event.kind == kind::SETPGID && event.other != 0 && event.other != event.pid {
            return Some(Escaped { pid: event.other.cast_signed(), happened, holds: None });
        }
        if event.pgid.cast_signed() == self.home {
            return None;
        }
        let mut holds = BTreeMap::<PipeId, Hold>::new();
        for held in escape.held.iter().take(escape.count as usize) {
            let Some(end) = end_of(held) else { continue };
            add(&mut holds, pipe_of(held), end, event.pid.cast_signed(), held.fd.cast_signed());
        }
        let holds = (escape.unseen == 0).then(|| holds.into_values().collect());
        Some(Escaped { pid: event.pid.cast_signed(), happened, holds })
    }

    /// Whether the kernel lost anything since this was asked last. What the programs count is asked whenever
    /// the ring buffer has been emptied: nothing may come any more by which it would be asked later.
    fn lost(&mut self) -> io::Result<Option<LineageEvent>> {
        let tracker = match self.shared.tracker.try_lock() {
            Ok(tracker) => tracker,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None), // it is being asked, and looks itself
        };
        let now = Instant::now();
        let counted = Losses { skipped: self.losses.skipped, ..tracker.counted_losses() };
        if now < self.next_check && counted == self.losses {
            return Ok(None);
        }
        self.next_check = now + CHECK;
        tracker.is_heard().map_err(io::Error::other)?;
        let losses = tracker.losses();
        drop(tracker);
        let before = std::mem::replace(&mut self.losses, losses);
        Ok(losses.since(&before).map(|(why, missed)| {
            self.shared.must_seed.store(true, Ordering::Release);
            LineageEvent::Lost { why, missed }
        }))
    }
}

fn add(holds: &mut BTreeMap<PipeId, Hold>, pipe: PipeId, end: End, tid: i32, fd: i32) {
    let hold = holds.entry(pipe).or_insert_with(|| Hold { pipe, end, tid, fds: Vec::new(), via: Via::Descriptor });
    hold.end = hold.end.and(end);
    hold.fds.push(fd);
}

/// The live map, asked for one run.
struct BpfSource {
    shared: Arc<Shared>,
    /// Describes holders, and looks where the map shows nothing.
    proc: Proc,
    watched: HashSet<PipeId>,
    seen: Losses,
}

impl Source for BpfSource {
    fn holders(&mut self, question: &Question) -> io::Result<Census> {
        self.make_exact(question)?;
        let mut index = self.index()?;
        if index.is_wrong {
            self.make_exact(question)?;
            index = self.index()?;
        }
        let mut census = self.census(question, &index)?;
        if question.scope == Scope::Lineage {
            return Ok(census);
        }
        // What the kernel counts and no table of the lineage shows is in another's table, in flight, or with
        // an io_uring. Where nothing is, nobody has to look.
        if self.all_writers_are_known(question, &index) {
            return Ok(census);
        }
        let found = self.proc.holders(question)?;
        let known: HashSet<_> = census.holders.iter().map(|holder| holder.id).collect();
        census.holders.extend(found.holders.into_iter().filter(|holder| !known.contains(&holder.id)));
        census.unseen = found.unseen;
        census.complete = found.complete;
        Ok(census)
    }
}

impl BpfSource {
    /// Seeds the map if it has to be: the first time, when there are other pipes to watch, and whenever
    /// anything was lost.
    fn make_exact(&mut self, question: &Question) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut tracker = shared.tracker();
        tracker.is_heard().map_err(io::Error::other)?;
        let wanted: HashSet<PipeId> = question.pipes.iter().map(|pipe| pipe.id).collect();
        for pipe in self.watched.difference(&wanted) {
            tracker.forget(*pipe);
        }
        let mut must_seed = shared.must_seed.swap(false, Ordering::AcqRel);
        for pipe in wanted.difference(&self.watched) {
            tracker.watch(*pipe).map_err(io::Error::other)?;
            must_seed = true;
        }
        self.watched = wanted;
        let losses = tracker.losses();
        if let Some((why, missed)) = losses.since(&self.seen) {
            must_seed = true;
            if self.seen != Losses::default() {
                shared.note(why, missed);
            }
        }
        if !must_seed {
            return Ok(());
        }
        let root = Root { pid: shared.root, except: question.except.clone() };
        tracker.seed(Some(&root)).map_err(io::Error::other)?;
        // What was lost meanwhile was lost after what the passes found, and asks for another seeding.
        self.seen = losses;
        if tracker.losses().does_not_fit(&losses) {
            // Another seeding would not help.
            let (fill, sizes) = (tracker.fill(), tracker.sizes());
            return Err(io::Error::other(format!(
                "the live map is full: {} of {} processes, {} of {} descriptors on pipes",
                fill.processes, sizes.processes, fill.slots, sizes.slots
            )));
        }
        Ok(())
    }

    /// Reads the index.
    fn index(&self) -> io::Result<Index> {
        let mut tracker = self.shared.tracker();
        let mut slots = tracker.holders().map_err(io::Error::other)?;
        let deserted = tracker.deserted();
        let users = tracker.users(&slots).map_err(io::Error::other)?;
        let is_wrong = tracker.deserted() != deserted;
        slots.retain(|(key, _)| users.contains_key(&key.files));
        Ok(Index { slots, users, is_wrong })
    }

    /// What the map says.
    fn census(&self, question: &Question, index: &Index) -> io::Result<Census> {
        let processes = self.shared.tracker().processes().map_err(io::Error::other)?;
        let mut members = Vec::new();
        for (pid, process) in processes {
            let pid = pid.cast_signed();
            if question.except.contains(&pid) {
                continue;
            }
            // Where the map is behind, the number may be another's by now.
            if let Ok(stat) = Stat::read(pid)
                && !stat.is_dead()
                && (process.start_boot_ns == 0 || stat.id == process_of(pid.cast_unsigned(), process.start_boot_ns))
            {
                members.push(stat);
            }
        }
        let mut holds = HashMap::<i32, BTreeMap<PipeId, Hold>>::new();
        for (key, slot) in &index.slots {
            let Some((pipe, end)) = writes(slot, question) else { continue };
            // A thread may have a table of its own: then it is its process's all the same.
            for (pid, tid) in &index.users[&key.files] {
                let holds = holds.entry(pid.cast_signed()).or_default();
                add(holds, pipe, end, tid.cast_signed(), key.fd.cast_signed());
            }
        }
        let mut census =
            Census { scope: question.scope, holders: Vec::new(), members: Vec::new(), unseen: 0, complete: true };
        for stat in &members {
            let Some(holds) = holds.remove(&stat.id.pid) else { continue };
            // Who ended while we looked holds nothing any more.
            if let Ok(holder) = self.proc.holder(stat, Relation::Lineage, holds.into_values().collect()) {
                census.holders.push(holder);
            }
        }
        self.proc.mark_who_is_at_work(&mut members);
        // Parents first.
        members.sort_unstable_by_key(|stat| (stat.id.start_ticks, stat.id.pid));
        census.members = members;
        Ok(census)
    }

    /// Whether the kernel counts no writer of these pipes that the map does not show.
    fn all_writers_are_known(&self, question: &Question, index: &Index) -> bool {
        let tracker = self.shared.tracker();
        question.pipes.iter().all(|pipe| {
            let of_pipe = |slot: &Slot| writes(slot, question).is_some_and(|(id, _)| id == pipe.id);
            let shown = index.slots.iter().filter(|(_, slot)| of_pipe(slot)).map(|(_, slot)| slot.held.file);
            let shown = shown.collect::<HashSet<u64>>().len();
            tracker.writers(pipe.id).is_some_and(|writers| writers as usize <= shown)
        })
    }
}

/// The slots on watched pipes, at one time.
struct Index {
    slots: Vec<(SlotKey, Slot)>,
    /// Who has their tables.
    users: Users,
    /// Whether there were some that nobody has.
    is_wrong: bool,
}

/// The pipe and end of a slot, if it writes to a pipe of the question.
fn writes(slot: &Slot, question: &Question) -> Option<(PipeId, End)> {
    let (pipe, end) = (pipe_of(&slot.held), end_of(&slot.held)?);
    (end.writes() && question.pipes.iter().any(|asked| asked.id == pipe)).then_some((pipe, end))
}
