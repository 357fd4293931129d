//! Times the live map through the library, for `cargo xtask bench map`. Prints a line for each sample:
//! what was measured, in a word or two, and nanoseconds.
//!
//! | call | |
//! |---|---|
//! | `time_map escape COUNT` | from setsid(2) to a thread that reads: by ring buffer, prioritised and not, and by connector |
//! | `time_map holders COUNT` | who holds a pipe, by the live map of all processes, an iterator, and `/proc` |
//! | `time_map operations COUNT` | system calls without programs, with empty ones, with a tracker, and tracked by it |
//! | `time_map attach COUNT` | loading, attaching, the first event, detaching |
#![allow(clippy::print_stdout, reason = "what was measured is this program's result")]

use std::collections::HashSet;
use std::io::{self, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, getpid, getppid, setsid};
use pipewarden::kernel::connector::{Connector, ConnectorEvent, Kinds};
use pipewarden::kernel::empty::Empty;
use pipewarden::kernel::object::{LoadError, Scope, Sizes};
use pipewarden::kernel::record::{Record, end_of, pipe_of};
use pipewarden::kernel::rung::Rung;
use pipewarden::kernel::snapshot::Snapshot;
use pipewarden::kernel::tracker::{Reader, Tracker};
use pipewarden::ownership::keep::Keep;
use pipewarden::ownership::proc::Proc;
use pipewarden::ownership::{Lineage, Question, Scope as Whom, Source};
use pipewarden::pipe::{End, Pipe, PipeId, PipeKind};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["batches", condition, count] = words[..] {
        return batches(condition, count.parse()?);
    }
    let [what, count] = words[..] else { bail!("use `time_map escape|holders|operations|attach COUNT`") };
    let count = count.parse()?;
    match what {
        "escape" => escape(count),
        "holders" => holders(count),
        "operations" => operations(count),
        "attach" => attach(count),
        _ => bail!("nothing is called {what}"),
    }
}

fn tracker(scope: Scope, sizes: Sizes) -> Result<Tracker, LoadError> {
    let mut attached = Tracker::attach(Rung::ALL[0], scope, sizes);
    for rung in &Rung::ALL[1..] {
        if attached.is_err() {
            attached = Tracker::attach(*rung, scope, sizes);
        }
    }
    attached
}

/// A child that ends with us, and that is ended and waited for when this goes.
struct Part(Pid);

impl Part {
    fn play(part: impl FnOnce() -> Result<()>) -> Result<Part> {
        // SAFETY: what the child does, in this program, is system calls; what other threads there are
        // only read a descriptor.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let played = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into).and_then(|()| part());
                // SAFETY: _exit(2): nothing of ours is to be done twice.
                unsafe { libc::_exit(i32::from(played.is_err())) }
            }
            ForkResult::Parent { child } => Ok(Part(child)),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A child that was not waited for: its number is still its own.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

// Escapes.

/// What is read by another thread.
enum Told {
    Ring(Reader),
    Connector(Connector),
}

impl Told {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Told::Ring(reader) => reader.as_fd(),
            Told::Connector(connector) => connector.as_fd(),
        }
    }

    /// When the next escape that is told happened, and whose it was.
    fn next(&mut self) -> Result<Option<(i32, Duration)>> {
        match self {
            Told::Ring(reader) => {
                while let Some(record) = reader.next_record() {
                    if let Record::Escape(escape) = record {
                        return Ok(Some((escape.event.pid.cast_signed(), Duration::from_nanos(escape.event.time_ns))));
                    }
                }
            }
            Told::Connector(connector) => {
                while let Some(event) = connector.next_event()? {
                    if let ConnectorEvent::Setsid(pid) = event {
                        return Ok(Some((pid, connector.happened())));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// How long after the last escape nothing is expected any more.
const SILENCE: u16 = 2000;

fn read_all(told: &mut Told, prioritised: bool, count: usize) -> Result<Vec<(i32, Duration)>> {
    if prioritised {
        // SAFETY: integers only; musl has more of them than glibc.
        let mut first: libc::sched_param = unsafe { std::mem::zeroed() };
        first.sched_priority = 1;
        // SAFETY: the parameter is alive for the call; 0 is this thread.
        Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) })
            .context("SCHED_FIFO")?;
    }
    let mut latencies = Vec::new();
    while latencies.len() < count {
        if poll(&mut [PollFd::new(told.fd(), PollFlags::POLLIN)], PollTimeout::from(SILENCE))? == 0 {
            break;
        }
        while let Some((pid, happened)) = told.next()? {
            let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
            latencies.push((pid, now.saturating_sub(happened)));
        }
    }
    Ok(latencies)
}

const ESCAPE_ROUNDS: usize = 4;

fn escape(count: usize) -> Result<()> {
    let each = count.div_ceil(ESCAPE_ROUNDS);
    for _ in 0..ESCAPE_ROUNDS {
        for (name, prioritised) in [("prioritised ring", true), ("ring", false)] {
            let mut tracker = tracker(Scope::Lineage, Sizes::RUN)?;
            tracker.follow(std::process::id())?;
            let reader = tracker.take_reader().context("a tracker has a reader")?;
            escapes(name, prioritised, each, Told::Ring(reader))?;
        }
        escapes("connector", false, each, Told::Connector(Connector::open(Kinds::LINEAGE)?))?;
    }
    Ok(())
}

fn escapes(name: &str, prioritised: bool, count: usize, mut told: Told) -> Result<()> {
    let reader = thread::spawn(move || read_all(&mut told, prioritised, count));
    let mut ours = HashSet::new();
    for _ in 0..count {
        let part = Part::play(|| {
            // The reader sleeps by then.
            thread::sleep(Duration::from_millis(1));
            setsid()?;
            Ok(())
        })?;
        ours.insert(part.0.as_raw());
        waitpid(part.0, None)?;
        std::mem::forget(part);
    }
    let latencies = reader.join().map_err(|_| anyhow::anyhow!("the reader did not end"))??;
    let latencies: Vec<_> = latencies.into_iter().filter(|(pid, _)| ours.contains(pid)).collect();
    ensure!(!latencies.is_empty(), "{name}: no escape was told");
    for (_, latency) in latencies {
        println!("{name} {}", latency.as_nanos());
    }
    Ok(())
}

// Holders.

fn holders(count: usize) -> Result<()> {
    let (read, write) = pipe()?;
    let status = fstat(&read)?;
    let id = PipeId { dev: status.st_dev, ino: status.st_ino };
    let mut tracker = tracker(Scope::All, Sizes::NODE)?;
    let mut snapshot = Snapshot::load()?;
    let holder = Part::play(|| {
        setsid()?;
        loop {
            nix::unistd::pause();
        }
    })?;
    drop(write);
    tracker.watch(id)?;
    tracker.seed(None)?;
    let pid = holder.0.as_raw();
    for _ in 0..count {
        time("map", pid, || {
            let held = tracker.holders()?;
            let held = held.into_iter().filter(|(_, slot)| pipe_of(&slot.held) == id && writes(end_of(&slot.held)));
            let users = tracker.users(&held.collect::<Vec<_>>())?;
            Ok(users.values().flatten().map(|(pid, _)| pid.cast_signed()).collect())
        })?;
    }
    for _ in 0..count.div_ceil(10) {
        time("iterator", pid, || {
            let files = snapshot.files()?;
            let held = files.iter().filter(|row| pipe_of(&row.held) == id && writes(end_of(&row.held)));
            Ok(held.map(|row| row.pid.cast_signed()).collect())
        })?;
    }
    for _ in 0..count.div_ceil(100) {
        let lineage = Lineage { root: getpid().as_raw(), home: getpgrp().as_raw(), adopter: None };
        let mut source = Proc::new(lineage, Keep::default());
        let pipes = vec![Pipe { id, kind: PipeKind::Pipe }];
        let deadline = Instant::now() + Duration::from_secs(60);
        let question = Question { pipes, scope: Whom::Machine, except: HashSet::new(), deadline };
        time("proc", pid, || Ok(source.holders(&question)?.holders.iter().map(|holder| holder.id.pid).collect()))?;
    }
    Ok(())
}

fn writes(end: Option<End>) -> bool {
    end.is_some_and(End::writes)
}

fn time(name: &str, holder: i32, ask: impl FnOnce() -> Result<Vec<i32>>) -> Result<()> {
    let started = Instant::now();
    let found = ask()?;
    let took = started.elapsed();
    ensure!(found == [holder], "{name}: {found:?} instead of {holder}");
    println!("{name} {}", took.as_nanos());
    Ok(())
}

// Operations.

/// How many make one sample: short enough that most samples are not interrupted.
const BATCH: u32 = 500;
const FORKS: u32 = 10;
const OPERATION_ROUNDS: usize = 5;

fn operations(count: usize) -> Result<()> {
    let count = count.div_ceil(OPERATION_ROUNDS);
    for _ in 0..OPERATION_ROUNDS {
        Operator::start("none", count)?.operate(&mut || {})?;
        let empty = Empty::attach()?;
        Operator::start("empty", count)?.operate(&mut || {})?;
        drop(empty);
        let mut tracker = Tracker::attach(Rung::Tracepoint, Scope::Lineage, Sizes::RUN)?;
        Operator::start("untracked", count)?.operate(&mut || {})?;
        let operator = Operator::start("tracked", count)?;
        tracker.follow(operator.0.id())?;
        tracker.seed(None)?;
        // Somebody reads what is told, as in a run.
        let mut reader = tracker.take_reader().context("a tracker has a reader")?;
        operator.operate(&mut || while reader.next_record().is_some() {})?;
        ensure!(tracker.losses().slots == 0, "{:?}", tracker.losses());
    }
    Ok(())
}

/// A process of its own, because a fork costs what its parent's memory does, and ours grows with what we attach. It
/// waits for a word, and says one after each round.
struct Operator(Child);

impl Operator {
    fn start(condition: &str, count: usize) -> Result<Operator> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["batches", condition, &count.to_string()]).stdin(Stdio::piped()).stderr(Stdio::piped());
        Ok(Operator(command.spawn()?))
    }

    fn operate(mut self, between: &mut dyn FnMut()) -> Result<()> {
        drop(self.0.stdin.take());
        let mut rounds = self.0.stderr.take().context("its stderr is a pipe")?;
        while rounds.read(&mut [0])? > 0 {
            between();
        }
        ensure!(self.0.wait()?.success(), "the operator failed");
        Ok(())
    }
}

fn batches(condition: &str, count: usize) -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    let (read, write) = pipe()?;
    let copy = nix::unistd::dup(&write)?;
    let (from, over, null) = (write.as_raw_fd(), copy.as_raw_fd(), c"/dev/null".as_ptr());
    for _ in 0..count {
        batch(condition, "getppid", BATCH, || {
            std::hint::black_box(getppid());
        });
        batch(condition, "dup+close", BATCH, || {
            // SAFETY: integers; what is closed was made just before.
            unsafe { libc::close(libc::dup(from)) };
        });
        batch(condition, "dup2-over", BATCH, || {
            // SAFETY: integers; `over` is ours and stays open.
            unsafe { libc::dup2(from, over) };
        });
        batch(condition, "pipe2+2close", BATCH, || {
            let mut ends = [0; 2];
            // SAFETY: there is room for two descriptors; they are ours to close.
            unsafe {
                libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC);
                libc::close(ends[0]);
                libc::close(ends[1]);
            }
        });
        batch(condition, "open+close", BATCH, || {
            // SAFETY: a C string and integers; what is closed was opened just before.
            unsafe { libc::close(libc::open(null, libc::O_RDONLY | libc::O_CLOEXEC)) };
        });
        // SAFETY: the child makes one system call, which does not return.
        batch(condition, "fork+exit", FORKS, || match unsafe { libc::fork() } {
            // SAFETY: as above.
            0 => unsafe { libc::_exit(0) },
            child => {
                // SAFETY: integers and a null pointer.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
        });
        io::stderr().write_all(b".")?;
    }
    drop(read);
    Ok(())
}

fn batch(condition: &str, operation: &str, count: u32, mut once: impl FnMut()) {
    let started = Instant::now();
    for _ in 0..count {
        once();
    }
    println!("{condition} {operation} {}", started.elapsed().as_nanos() / u128::from(count));
}

// Attaching.

fn attach(count: usize) -> Result<()> {
    for _ in 0..count {
        let mut tracker = tracker(Scope::Lineage, Sizes::RUN)?;
        let attached = Instant::now();
        tracker.follow(std::process::id())?;
        let part = Part::play(|| Ok(()))?;
        let mut reader = tracker.take_reader().context("a tracker has a reader")?;
        while reader.next_record().is_none() {
            let came = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], PollTimeout::from(SILENCE))?;
            ensure!(came > 0, io::Error::from(io::ErrorKind::TimedOut));
        }
        println!("first-event {}", attached.elapsed().as_nanos());
        drop((part, reader));
        let cost = tracker.cost();
        println!("load {}", cost.load.as_nanos());
        println!("attach {}", cost.attach.as_nanos());
        println!("detach {}", tracker.detach().as_nanos());
    }
    Ok(())
}
