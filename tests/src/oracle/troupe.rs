//! The controller's side of a troupe of actors.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::compare::Known;
use super::task::{self, Task};
use super::truth::{Moving, Truth};
use crate::actor::board::{Board, ENDED, FREE, PLACES, Place, READY, wait_for};
use crate::actor::op::{Arg, Hole, Kind, Op};
use crate::binaries::binary;
use crate::deadline::Deadline;
use crate::process::Process;

/// FIFOs in a troupe's folder: the first four for any open, the others for openers that block.
pub const FIFOS: u32 = 6;

/// Actors, and what they had so far. They end with it.
#[derive(Debug)]
pub struct Troupe {
    _folder: tempfile::TempDir,
    board: NonNull<Board>,
    outer: Child,
    keeper: Process,
    known: Known,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nobody is there to perform it, or a place is taken, or this machine cannot.
    PassedOver,
    /// It was performed: what the call gave; an error is below 0.
    Answered(i32),
    /// Several tasks performed so many operations in all.
    Burst {
        /// All of them.
        performed: u32,
        /// Those that succeeded.
        succeeded: u32,
    },
    /// It ended the task that performed it.
    Ended,
    /// The task waits in it for somebody.
    Blocks,
}

impl Troupe {
    /// Starts one actor, with /dev/null at 0, 1 and 2.
    ///
    /// # Panics
    ///
    /// Without root.
    #[must_use]
    pub fn start() -> Troupe {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..FIFOS {
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            nix::unistd::mkfifo(&folder.path().join(format!("fifo{number}")), mode).unwrap();
        }
        let path = folder.path().join("board");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(u64::try_from(size_of::<Board>()).unwrap()).unwrap();
        let board = Board::map(&file).unwrap();
        // SAFETY: just mapped, and never unmapped before the troupe is dropped.
        unsafe { board.as_ref() }.set_folder(folder.path().as_os_str().as_bytes()).unwrap();
        let mut command = Command::new(binary("fd_actor"));
        command.arg("keep").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: prctl(2) with integers is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut outer = command.spawn().unwrap();
        // SAFETY: as above.
        let all = unsafe { board.as_ref() };
        let first = &all.places[0];
        let up = Deadline::patient()
            .until(|| first.state.load(Ordering::Acquire) == READY || outer.try_wait().unwrap().is_some());
        assert!(up && outer.try_wait().unwrap().is_none(), "fd_actor does not come up (it needs root)");
        let keeper = Process::open(all.keeper.load(Ordering::Acquire).cast_signed()).unwrap();
        Troupe { _folder: folder, board, outer, keeper, known: Known::default() }
    }

    fn board(&self) -> &Board {
        // SAFETY: mapped until we are dropped; all of it is atomic.
        unsafe { self.board.as_ref() }
    }

    /// What it ever had.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Whether 32-bit calls are answered on this machine.
    #[must_use]
    pub fn has_compat(&self) -> bool {
        self.board().compat.load(Ordering::Acquire) != 0
    }

    /// Keeps bursts away from these holes.
    pub fn leave_out(&self, holes: &[Hole]) {
        let bits = holes.iter().fold(0, |bits, hole| bits | hole.bit());
        self.board().left_out.store(bits, Ordering::Release);
    }

    /// The places of tasks that wait to be told something.
    #[must_use]
    pub fn idle(&self) -> Vec<u32> {
        self.places(|place| place.state.load(Ordering::Acquire) == READY && place.is_idle())
    }

    /// The places of tasks that are there.
    #[must_use]
    pub fn present(&self) -> Vec<u32> {
        self.places(|place| place.state.load(Ordering::Acquire) == READY)
    }

    /// The places where nobody is.
    #[must_use]
    pub fn free(&self) -> Vec<u32> {
        self.places(|place| place.state.load(Ordering::Acquire) == FREE)
    }

    fn places(&self, wanted: impl Fn(&Place) -> bool) -> Vec<u32> {
        (0..).zip(&self.board().places).filter(|(_, place)| wanted(place)).map(|(number, _)| number).collect()
    }

    /// Process and thread of the task in a place.
    #[must_use]
    pub fn at(&self, number: u32) -> Option<(u32, u32)> {
        let place = self.board().places.get(usize::try_from(number).ok()?)?;
        let there = place.state.load(Ordering::Acquire) == READY;
        there.then(|| (place.pid.load(Ordering::Relaxed), place.tid.load(Ordering::Relaxed)))
    }

    /// Performs one operation, and returns when it is over and who it made or ended has come or gone.
    ///
    /// # Panics
    ///
    /// When that does not come about in time.
    pub fn perform(&mut self, op: &Op) -> Done {
        match op.kind {
            Kind::Check => return Done::PassedOver,
            kind if kind.is_burst() => return self.burst(op),
            _ => {}
        }
        let compat_is_missing = op.kind.is_compat() && !self.has_compat();
        let is = |state: u32, number: Option<u32>| {
            let place = number.map(|number| self.board().places.get(number as usize));
            place.is_none_or(|place| place.is_some_and(|place| place.state.load(Ordering::Acquire) == state))
        };
        let there = self.idle().contains(&op.task) && is(READY, op.argument(Arg::Peer));
        if !there || !is(FREE, op.argument(Arg::Child)) || compat_is_missing {
            return Done::PassedOver;
        }
        let target = if op.kind == Kind::Kill { op.with[0] } else { op.task };
        let doomed = self.at(target).map(|(pid, _)| pid);
        self.board().places[op.task as usize].ask(op);
        let done = self.wait_for_answer(op);
        if let (Some(child), Done::Answered(1..)) = (op.argument(Arg::Child), done) {
            self.wait_for_birth(child, op);
        }
        if let (Kind::Kill | Kind::ExitGroup, Some(pid)) = (op.kind, doomed) {
            // Not only the tasks that we know: the kernel's workers hold its table too.
            self.patiently(&format!("`{op}` ({done:?}) ends {pid}"), || task::is_gone_with_threads(pid));
        }
        if op.kind.ends() {
            self.bury();
        }
        done
    }

    fn wait_for_answer(&self, op: &Op) -> Done {
        let place = &self.board().places[op.task as usize];
        let (pid, tid) = (place.pid.load(Ordering::Relaxed), place.tid.load(Ordering::Relaxed));
        let deadline = Deadline::patient();
        let may_stay_out = op.kind.ends() || op.kind == Kind::BlockWrite;
        let mut slice = if may_stay_out { Duration::from_micros(100) } else { Duration::from_millis(200) };
        loop {
            let done = place.done.load(Ordering::Acquire);
            if place.is_idle() {
                return Done::Answered(place.result.load(Ordering::Relaxed));
            }
            wait(place, done, slice);
            if place.is_idle() {
                continue;
            }
            // An exec by another thread than the first: that one is gone, and its number goes on as ours.
            if task::is_gone(pid, tid) && (op.kind != Kind::Exec || task::is_gone_with_threads(pid)) {
                assert!(op.kind.ends(), "`{op}` ended its task");
                return Done::Ended;
            }
            if op.kind == Kind::BlockWrite && Task::read(pid, tid).is_some_and(|task| task.blocks_in_open()) {
                return Done::Blocks;
            }
            assert!(!deadline.left().is_zero(), "`{op}` is not answered: {}", self.state_of(pid, tid));
            slice = (slice * 2).min(Duration::from_millis(200));
        }
    }

    fn wait_for_birth(&self, child: u32, op: &Op) {
        let place = &self.board().places[child as usize];
        let deadline = Deadline::patient();
        while place.state.load(Ordering::Acquire) == FREE {
            assert!(!deadline.left().is_zero(), "`{op}`: the child does not come");
            let time = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            wait_for(&place.state, FREE, time);
        }
    }

    fn state_of(&self, pid: u32, tid: u32) -> String {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{what}")).unwrap_or_default();
        let status = read("status");
        let signals: Vec<&str> =
            status.lines().filter(|line| line.contains("Pnd:") || line.contains("State:")).collect();
        format!("{:?} {signals:?} in {} at {}", Task::read(pid, tid), read("syscall").trim(), read("wchan"))
    }

    /// Everybody, for a message.
    fn state(&self) -> String {
        let line = |task: Task| {
            let place = self.present().into_iter().find(|number| self.at(*number) == Some((task.pid, task.tid)));
            format!("\n  place {place:?}: {}", self.state_of(task.pid, task.tid))
        };
        self.tree().into_iter().map(line).collect()
    }

    fn patiently(&self, what: &str, holds: impl FnMut() -> bool) {
        assert!(Deadline::patient().until(holds), "{what}, but not in time: {}", self.state());
    }

    fn tree(&self) -> Vec<Task> {
        task::tree(self.keeper.pid.cast_unsigned()).expect("the keeper lives")
    }

    /// Several tasks perform random operations at once; returns when all of them, and all that they
    /// made for a moment, have done so or ended.
    fn burst(&mut self, op: &Op) -> Done {
        let width = op.with[2];
        let tasks: Vec<u32> = self.idle().into_iter().take(width as usize).collect();
        let free = self.free();
        // The upper places only, in one piece for each.
        let upper: Vec<u32> = free.into_iter().filter(|number| *number as usize >= PLACES / 2).collect();
        let share = upper.len() / tasks.len().max(1);
        let mut shares = upper.chunks(share.clamp(1, 3));
        for number in &tasks {
            let place = &self.board().places[*number as usize];
            let mine = shares.next().unwrap_or_default();
            // A piece may have gaps, where somebody is already.
            let last = mine.iter().zip(mine.first().copied().unwrap_or(0)..).take_while(|(a, b)| *a == b).count();
            let first = mine.first().copied().unwrap_or(0);
            place.births_from.store(first, Ordering::Relaxed);
            place.births_to.store(first + u32::try_from(last).unwrap_or(0), Ordering::Relaxed);
        }
        for number in &tasks {
            let own = Op { task: *number, ..*op };
            let place = &self.board().places[*number as usize];
            place.performed.store(0, Ordering::Relaxed);
            place.succeeded.store(0, Ordering::Relaxed);
            place.ask(&own);
        }
        let (mut performed, mut succeeded) = (0, 0);
        for number in &tasks {
            let place = &self.board().places[*number as usize];
            // Not how long all of it takes, but how long nothing comes of it.
            let mut deadline = Deadline::patient();
            let mut so_far = u32::MAX;
            while !place.is_idle() && place.state.load(Ordering::Acquire) == READY {
                wait(place, place.done.load(Ordering::Acquire), Duration::from_millis(5));
                let (pid, tid) = (place.pid.load(Ordering::Relaxed), place.tid.load(Ordering::Relaxed));
                if !place.is_idle() && task::is_gone(pid, tid) {
                    break; // or about to go on after an exec: then it is a stranger until it does
                }
                let now = place.performed.load(Ordering::Relaxed);
                if now != so_far {
                    (so_far, deadline) = (now, Deadline::patient());
                }
                assert!(!deadline.left().is_zero(), "`{op}`: {number} is not done: {}", self.state_of(pid, tid));
            }
            performed += place.performed.load(Ordering::Relaxed);
            succeeded += place.succeeded.load(Ordering::Relaxed);
        }
        self.bury();
        Done::Burst { performed, succeeded }
    }

    /// Waits until nobody is on the way any more, and frees the places of those who ended.
    fn bury(&mut self) {
        let deadline = Deadline::patient();
        loop {
            // Who changes parents meanwhile may be missing from one look, but not from two.
            let tree = self.tree();
            if tree.iter().all(|task| self.is_expected(task)) && self.tree() == tree {
                break;
            }
            assert!(!deadline.left().is_zero(), "somebody is still on the way: {}", self.state());
            std::thread::sleep(Duration::from_micros(200));
        }
        for place in &self.board().places {
            let (pid, tid) = (place.pid.load(Ordering::Relaxed), place.tid.load(Ordering::Relaxed));
            let state = place.state.load(Ordering::Acquire);
            if state == ENDED || (state == READY && task::is_gone(pid, tid)) {
                place.clear();
            }
        }
    }

    /// Whether somebody is where they should be: dead, the keeper, the kernel's, or on the board.
    fn is_expected(&self, task: &Task) -> bool {
        let on_board = |place: &Place| {
            place.state.load(Ordering::Acquire) == READY
                && place.pid.load(Ordering::Relaxed) == task.pid
                && place.tid.load(Ordering::Relaxed) == task.tid
        };
        task.dead
            || task.pid.cast_signed() == self.keeper.pid
            || task.is_worker()
            || self.board().places.iter().any(on_board)
    }

    /// What /proc says, now that nobody who was told anything moves. Tasks that block are let finish if
    /// they can.
    ///
    /// # Panics
    ///
    /// When it does not come to rest in time.
    pub fn truth(&mut self) -> Truth {
        let deadline = Deadline::patient();
        loop {
            if self.has_come_to_rest()
                && let Ok(truth) = self.read_truth()
                && truth.tasks.iter().all(|task| self.is_expected(task))
            {
                self.known.learn(&truth);
                return truth;
            }
            assert!(!deadline.left().is_zero(), "it does not come to rest: {}", self.state());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn read_truth(&self) -> Result<Truth, Moving> {
        Truth::read(self.keeper.pid.cast_unsigned())
    }

    /// Whether every task either did what it was told, or blocks in it.
    fn has_come_to_rest(&self) -> bool {
        self.present().into_iter().all(|number| {
            let place = &self.board().places[number as usize];
            let (pid, tid) = (place.pid.load(Ordering::Relaxed), place.tid.load(Ordering::Relaxed));
            place.is_idle() || Task::read(pid, tid).is_some_and(|task| task.blocks_in_open())
        })
    }
}

fn wait(place: &Place, done: u32, time: Duration) {
    let nanoseconds = libc::c_long::from(i32::try_from(time.subsec_nanos()).unwrap_or(0));
    wait_for(&place.done, done, libc::timespec { tv_sec: 0, tv_nsec: nanoseconds });
}

impl Drop for Troupe {
    fn drop(&mut self) {
        self.keeper.signal(Signal::SIGKILL); // and with it all of its namespace
        let _ = self.outer.wait();
        // SAFETY: nothing of ours refers to the board any more.
        unsafe { libc::munmap(self.board.as_ptr().cast(), size_of::<Board>()) };
    }
}
