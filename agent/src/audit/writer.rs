//! The log of one run: a bounded queue, and one thread that writes what is in it.
//!
//! Nothing here may hold up the run: [`Log::record`] never waits, [`Receipt::wait`] and
//! [`Log::finish`] wait no longer than they are told, and a target that hangs costs the acts of a
//! run one wait in all, not one each.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use super::chain::{Chain, Hash};
use super::detail::{Account, Finished};
use super::record::{Event, RunId, Time};
use super::rotate::Rotation;
use super::sink::{OpenError, Put, Sink, Target};

/// How long an act waits for its record: long beside a write to a page cache (tens of microseconds),
/// short beside any grace period of an ending.
pub const ACT_WAIT: Duration = Duration::from_millis(50);

/// The most records that wait to be written. A writer that the scheduler keeps away for 50 ms is
/// 500 records behind in a storm of ten thousand escapes a second; and where the target hangs for
/// good, a thousand records of about a kilobyte are what the run can afford to hold.
pub const QUEUE: usize = 1024;

/// What a log's thread does besides writing.
pub struct Aside {
    /// The first of all.
    pub first: First,
    /// With each line that was written. It must not wait.
    pub wrote: Wrote,
}

/// What is done once.
pub type First = Box<dyn FnOnce() + Send>;
/// What is done with each line.
pub type Wrote = Box<dyn Fn(&[u8]) + Send>;

/// Enough for a record to be serialised in an unoptimised build; only touched pages count.
const STACK: usize = 256 * 1024;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the log (in the page cache: nobody waits for a disk).
    Written,
    /// It is not in the log yet. Whoever acts now acts before its record, which will say `late`.
    Late,
    /// It will never be in the log: the queue was full, or the target did not take it.
    Lost,
    /// There is no log.
    Off,
}

/// The log of a run. Dropped without [`finish`](Log::finish), it leaves the chain open.
#[derive(Debug)]
pub struct Log {
    run: RunId,
    shared: Option<Arc<Shared>>,
}

impl Log {
    /// A log that was not asked for: no thread, no queue, and every record is [`Delivery::Off`].
    #[must_use]
    pub fn disabled(run: RunId) -> Log {
        Log { run, shared: None }
    }

    /// Opens a target and starts the thread that writes to it. All signals are blocked in that
    /// thread: they are for the supervisor. A fork from here on is one from a process with threads.
    ///
    /// # Errors
    ///
    /// One line that names the option and the path.
    pub fn open(target: &Target, run: RunId) -> Result<Log, OpenError> {
        Log::open_named(target, run, None)
    }

    /// The same for a command that has a name, which every record then says.
    ///
    /// # Errors
    ///
    /// As for [`open`](Log::open).
    pub fn open_named(target: &Target, run: RunId, name: Option<String>) -> Result<Log, OpenError> {
        Log::over(Sink::open(target)?, target, Chain::new(run, host()).named(name), None)
    }

    /// The same for a file that is put aside before it grows beyond a size: the chain goes on in the next.
    ///
    /// # Errors
    ///
    /// As for [`open`](Log::open).
    pub fn open_rotated(target: &Target, rotation: Rotation, run: RunId) -> Result<Log, OpenError> {
        Log::over(Sink::open_rotated(target, rotation)?, target, Chain::new(run, host()), None)
    }

    /// The same for a log whose thread has more to do.
    ///
    /// # Errors
    ///
    /// As for [`open`](Log::open).
    pub fn open_aside(target: &Target, rotation: Rotation, run: RunId, aside: Aside) -> Result<Log, OpenError> {
        Log::over(Sink::open_rotated(target, rotation)?, target, Chain::new(run, host()), Some(aside))
    }

    fn over(sink: Sink, target: &Target, chain: Chain, aside: Option<Aside>) -> Result<Log, OpenError> {
        let run = chain.run();
        let shared = Arc::new(Shared::default());
        let (first, wrote) = aside.map(|aside| (aside.first, aside.wrote)).unzip();
        let writer = Writer { chain, sink, shared: Arc::clone(&shared), first, wrote };
        start(writer).map_err(|error| OpenError::Thread { target: target.clone(), error })?;
        Ok(Log { run, shared: Some(shared) })
    }

    /// The run that this is the log of.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Whether there is a log: if not, nobody needs to collect evidence for it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Puts a record on its way. Never waits: a full queue drops it, and `run.finished` will say so.
    /// Records are written in the order of these calls.
    pub fn record(&self, event: Event) -> Receipt {
        let Some(shared) = &self.shared else { return Receipt(None) };
        let slip = shared.push(event, QUEUE);
        Receipt(Some((Arc::clone(shared), slip)))
    }

    /// Writes `run.finished`, which closes the chain, and comes back when it is written or `bound`
    /// has passed, whichever is first. A writer that hangs is left behind; it ends with the process.
    #[must_use]
    pub fn finish(mut self, detail: Finished, bound: Duration) -> Closing {
        let Some(shared) = self.shared.take() else {
            return Closing { delivery: Delivery::Off, account: Account::default() };
        };
        // Above the queue's limit: whoever reads the log must learn what it lacks.
        let slip = shared.push(Event::RunFinished { detail: Box::new(detail) }, usize::MAX);
        shared.close();
        let delivery = shared.fate(&slip, bound).unwrap_or(Delivery::Late);
        Closing { delivery, account: shared.account() }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.close();
        }
    }
}

/// How a log was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// What became of `run.finished`; unless it is written, the chain stays open.
    pub delivery: Delivery,
    /// What the log holds and lacks.
    pub account: Account,
}

/// The promise of one record.
#[derive(Debug)]
#[must_use = "an act waits for its record; say `let _ =` where nothing is done on the strength of it"]
pub struct Receipt(Option<(Arc<Shared>, Arc<Slip>)>);

impl Receipt {
    /// Waits until the record is written or lost, at most this long ([`ACT_WAIT`] for an act).
    ///
    /// When that is not enough the record is marked late, and the writer puts the mark in if it has
    /// not begun to write the record; `run.finished` counts it either way. From then on, until the
    /// writer moves again, nobody waits for it. Records are written in order: who acts on several
    /// waits for the last.
    pub fn wait(&self, limit: Duration) -> Delivery {
        match &self.0 {
            None => Delivery::Off,
            Some((shared, slip)) => {
                let limit = if shared.stalled() { Duration::ZERO } else { limit };
                shared.fate(slip, limit).unwrap_or_else(|| shared.give_up(slip))
            }
        }
    }
}

/// What the writer and the holder of a receipt know about a record.
#[derive(Debug, Default)]
struct Slip {
    /// Written or lost; set under the state's lock.
    fate: OnceLock<Delivery>,
    /// Whether somebody has acted before the record was written.
    late: AtomicBool,
}

/// A record on its way.
#[derive(Debug)]
struct Job {
    time: Time,
    event: Event,
    slip: Arc<Slip>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    closed: bool,
    /// Somebody waited in vain, and the writer has not moved since.
    stalled: bool,
    account: Account,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The queue is not empty any more, or closed.
    filled: Condvar,
    /// A record's fate is known.
    settled: Condvar,
}

impl Shared {
    /// A panic elsewhere must not silence the log: its state is valid between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event, limit: usize) -> Arc<Slip> {
        let slip = Arc::new(Slip::default());
        let mut state = self.lock();
        // Under the lock, so that time never runs backwards from one record to the next.
        let job = Job { time: Time::now(), event, slip: Arc::clone(&slip) };
        if state.queue.len() < limit {
            state.queue.push_back(job);
            self.filled.notify_one();
        } else {
            state.account.dropped += 1;
            let _ = slip.fate.set(Delivery::Lost);
        }
        slip
    }

    /// The next record, once there is one; nothing once the queue is closed and empty.
    fn pop(&self) -> Option<Job> {
        let state = self.lock();
        let mut state = self
            .filled
            .wait_while(state, |state| state.queue.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.queue.pop_front()
    }

    fn settle(&self, slip: &Slip, put: Put) {
        let mut state = self.lock();
        state.stalled = false;
        let fate = match put {
            Put::Whole => {
                state.account.records += 1;
                Delivery::Written
            }
            Put::Lost => {
                state.account.lost += 1;
                Delivery::Lost
            }
        };
        let _ = slip.fate.set(fate);
        self.settled.notify_all();
    }

    /// Waits for a record's fate, at most this long.
    fn fate(&self, slip: &Slip, limit: Duration) -> Option<Delivery> {
        let state = self.lock();
        let _state = self
            .settled
            .wait_timeout_while(state, limit, |_| slip.fate.get().is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slip.fate.get().copied()
    }

    /// Notes that somebody acts before the record is written, unless that has just changed.
    fn give_up(&self, slip: &Slip) -> Delivery {
        let mut state = self.lock();
        slip.fate.get().copied().unwrap_or_else(|| {
            state.stalled = true;
            if !slip.late.swap(true, Ordering::AcqRel) {
                state.account.late += 1;
            }
            Delivery::Late
        })
    }

    fn stalled(&self) -> bool {
        self.lock().stalled
    }

    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    fn account(&self) -> Account {
        self.lock().account
    }
}

/// The thread's side.
struct Writer {
    chain: Chain,
    sink: Sink,
    shared: Arc<Shared>,
    first: Option<First>,
    wrote: Option<Wrote>,
}

impl Writer {
    fn run(mut self) {
        if let Some(first) = self.first.take() {
            first();
        }
        while let Some(Job { time, event, slip }) = self.shared.pop() {
            let put = self.write(time, event, &slip);
            self.shared.settle(&slip, put);
        }
    }

    fn write(&mut self, time: Time, mut event: Event, slip: &Slip) -> Put {
        if let Event::RunFinished { detail } = &mut event {
            detail.log = self.shared.account();
            detail.log.records += 1; // this one
        }
        match self.chain.seal(time, event, slip.late.load(Ordering::Acquire)) {
            Ok((line, hash)) => self.put(&line, hash),
            Err(_) => Put::Lost,
        }
    }

    /// Only a record that the target has is part of the chain: the next one follows the last that
    /// was written, and what is missing is counted, not guessed from a gap.
    fn put(&mut self, line: &[u8], hash: Hash) -> Put {
        let put = self.sink.put(line);
        if put == Put::Whole {
            self.chain.advance(hash);
            if let Some(wrote) = &self.wrote {
                wrote(line);
            }
        }
        put
    }
}

/// Starts the thread with every signal blocked, from its first instruction on.
fn start(writer: Writer) -> io::Result<()> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = std::thread::Builder::new().name("audit".to_owned()).stack_size(STACK).spawn(move || writer.run());
    before.thread_set_mask()?;
    started.map(drop)
}

/// The name of this host, as uname(2) tells it.
fn host() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
