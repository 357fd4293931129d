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
use super::sink::{OpenError, Put, Sink, Target};

/// How long an act waits for its record: long beside a write to a page cache (tens of microseconds),
/// short beside any grace period of an ending.
pub const ACT_WAIT: Duration = Duration::from_millis(50);

/// The most records that wait to be written. A writer that the scheduler keeps away for 50 ms is
/// 500 records behind in a storm of ten thousand escapes a second; and where the target hangs for
/// good, a thousand records of about a kilobyte are what the run can afford to hold.
pub const QUEUE: usize = 1024;

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
        let sink = Sink::open(target)?;
        let shared = Arc::new(Shared::default());
        let writer = Writer { chain: Chain::new(run, host()), sink, shared: Arc::clone(&shared) };
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
}

impl Writer {
    fn run(mut self) {
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
mod tests {
    use super::*;
    use crate::audit::detail::Reseeded;
    use crate::audit::record::Record;
    use crate::audit::verify::Verifier;
    use std::fs::File;
    use std::io::Read;
    use std::time::Instant;

    /// What ends a test that would otherwise hang; nothing is expected to take a part of it.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn event(missed: u64) -> Event {
        Event::TrackerReseeded { detail: Reseeded { rung: "connector".into(), why: "test".into(), missed } }
    }

    fn finished() -> Finished {
        Finished::new(None, 0, 1)
    }

    /// A FIFO that is full and that nobody reads: the first write to it blocks. What fills it is one
    /// line, and it can be read from the file that comes back.
    fn hanging() -> (tempfile::TempDir, Target, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = File::options().read(true).write(true).open(&path).unwrap();
        let size = nix::fcntl::fcntl(&fifo, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let mut filling = vec![b'-'; usize::try_from(size).unwrap()];
        *filling.last_mut().unwrap() = b'\n';
        nix::unistd::write(&fifo, &filling).unwrap();
        (folder, Target::Path(path), fifo)
    }

    /// Reads up to and with the line of `run.finished`.
    fn read_to_the_end(mut fifo: File) -> Vec<u8> {
        let mut all = Vec::new();
        let mut part = [0; 65536];
        while !(all.ends_with(b"\n") && all.windows(14).any(|w| w == b"\"run.finished\"")) {
            let n = fifo.read(&mut part).unwrap();
            all.extend_from_slice(&part[..n]);
        }
        all
    }

    fn records(log: &[u8]) -> Vec<Record> {
        log.split(|b| *b == b'\n')
            .filter(|line| line.starts_with(b"{"))
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn a_run_is_one_chain_that_its_last_record_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log::open(&Target::Path(path.clone()), RunId::new()).unwrap();
        for n in 0..5 {
            let receipt = log.record(event(n));
            assert_eq!(receipt.wait(DEADLINE), Delivery::Written);
            let so_far = std::fs::read(&path).unwrap();
            assert_eq!(records(&so_far).len() as u64, n + 1, "written means written");
        }
        let closing = log.finish(finished(), DEADLINE);
        let account = Account { records: 6, dropped: 0, lost: 0, late: 0 };
        assert_eq!(closing, Closing { delivery: Delivery::Written, account });
        let bytes = std::fs::read(&path).unwrap();
        let all = records(&bytes);
        let Event::RunFinished { detail } = &all[5].body.event else { panic!("{:?}", all[5]) };
        assert_eq!(detail.log, account);
        assert!(all.windows(2).all(|pair| pair[0].body.time <= pair[1].body.time));
        let mut verifier = Verifier::default();
        verifier.read("log", &bytes[..]).unwrap();
        let verdict = verifier.verdict();
        assert_eq!((verdict.intact, verdict.runs.closed, verdict.records), (true, 1, 6), "{verdict:?}");
    }

    #[test]
    fn no_log_takes_no_thread_and_keeps_nobody_waiting() {
        let log = Log::disabled(RunId::new());
        assert!(!log.is_on());
        assert_eq!(log.record(event(0)).wait(DEADLINE), Delivery::Off);
        assert_eq!(log.finish(finished(), DEADLINE).delivery, Delivery::Off);
    }

    #[test]
    fn an_act_before_its_record_is_marked_late_and_only_the_first_one_waits() {
        let (_folder, target, fifo) = hanging();
        let log = Log::open(&target, RunId::new()).unwrap();
        let _ = log.record(event(0));
        let act = log.record(event(1));
        assert_eq!(act.wait(ACT_WAIT), Delivery::Late);
        let begun = Instant::now();
        assert_eq!(log.record(event(2)).wait(DEADLINE), Delivery::Late);
        assert!(begun.elapsed() < DEADLINE, "the target is known to hang: nobody waits for it again");
        let patient = log.record(event(3));

        let reader = std::thread::spawn(move || read_to_the_end(fifo));
        let closing = log.finish(finished(), DEADLINE);
        assert_eq!(patient.wait(DEADLINE), Delivery::Written);
        assert_eq!(act.wait(DEADLINE), Delivery::Written, "late is not lost");
        assert_eq!((closing.delivery, closing.account.late), (Delivery::Written, 2));
        let late: Vec<bool> = records(&reader.join().unwrap()).iter().map(|record| record.body.late).collect();
        assert_eq!(late, [false, true, true, false, false]);
    }

    #[test]
    fn a_full_queue_drops_records_counts_them_and_still_takes_the_end() {
        let (_folder, target, fifo) = hanging();
        let log = Log::open(&target, RunId::new()).unwrap();
        let receipts: Vec<Receipt> = (0..2 * QUEUE as u64).map(|n| log.record(event(n))).collect();
        let dropped = receipts.iter().filter(|receipt| receipt.wait(Duration::ZERO) == Delivery::Lost).count();
        assert!((QUEUE - 1..=QUEUE).contains(&dropped), "one may be with the writer, the rest is queued: {dropped}");

        let reader = std::thread::spawn(move || read_to_the_end(fifo));
        let closing = log.finish(finished(), DEADLINE);
        assert_eq!((closing.delivery, closing.account.dropped), (Delivery::Written, dropped as u64));
        let bytes = reader.join().unwrap();
        assert_eq!(records(&bytes).len(), 2 * QUEUE - dropped + 1);
        let mut verifier = Verifier::default();
        verifier.read("log", &bytes[..]).unwrap();
        let verdict = verifier.verdict();
        assert_eq!((verdict.intact, verdict.runs.closed), (true, 1), "{verdict:?}");
        let told = verdict.oddities.first.last().unwrap();
        assert!(told.text.contains(&format!("{dropped} records were dropped")), "{told:?}");
    }

    #[test]
    fn an_ending_does_not_wait_for_a_log_that_hangs() {
        let (_folder, target, _fifo) = hanging();
        let log = Log::open(&target, RunId::new()).unwrap();
        let _ = log.record(event(0));
        assert_eq!(log.finish(finished(), Duration::from_millis(20)).delivery, Delivery::Late);
    }

    #[test]
    fn the_writer_takes_no_signal_that_is_meant_for_the_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let before = SigSet::thread_get_mask().unwrap();
        let log = Log::open(&Target::Path(folder.path().join("log")), RunId::new()).unwrap();
        assert_eq!(log.record(event(0)).wait(DEADLINE), Delivery::Written);
        assert_eq!(SigSet::thread_get_mask().unwrap(), before, "ours is as it was");
        let masks: Vec<u64> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
            .filter(|status| status.starts_with("Name:\taudit\n"))
            .map(|status| {
                let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
                u64::from_str_radix(mask.trim(), 16).unwrap()
            })
            .collect();
        let bit = |signal: i32| 1u64 << (signal - 1);
        let wanted = bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGCHLD) | bit(libc::SIGPIPE);
        assert!(!masks.is_empty() && masks.iter().all(|mask| mask & wanted == wanted), "{masks:x?}");
    }
}
