//! What both threads of a run know of its node: the one that hears events, and the one that asks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::wire::Wire;
use crate::pipe::Pipe;

/// How long an answer is waited for, before `/proc` is read instead. It takes tens of microseconds.
pub const HEDGE: Duration = Duration::from_millis(50);

/// What both know.
#[derive(Debug)]
pub struct Shared {
    line: Mutex<Line>,
    /// The pipes that are to be watched.
    wanted: Mutex<Vec<Pipe>>,
    /// Whether somebody waits for an answer, and hears what is told meanwhile.
    waiting: AtomicBool,
    /// Readable when it has stopped to.
    over: EventFd,
}

/// The connection, for who has it in hand.
#[derive(Debug)]
pub struct Line {
    /// It.
    pub wire: Wire,
    /// Since when an answer is overdue: then nobody waits for the next one.
    pub overdue: Option<Instant>,
    /// What is wrong and was not told yet.
    pub untold: Option<String>,
    /// Why there will be nothing more.
    pub broken: Option<io::Error>,
}

impl Line {
    /// Does something that may break the connection; none when it does.
    pub fn attempt<T>(&mut self, act: impl FnOnce(&mut Wire) -> io::Result<T>) -> Option<T> {
        if self.broken.is_some() {
            return None;
        }
        match act(&mut self.wire) {
            Ok(done) => Some(done),
            Err(error) => {
                self.broken = Some(error);
                None
            }
        }
    }

    /// Notes that everything was answered, where it was.
    pub fn settle(&mut self) {
        if self.wire.owes_nothing() {
            self.overdue = None;
        }
    }

    /// Notes that an answer is.
    pub fn is_overdue(&mut self, how: &str) {
        self.overdue = Some(Instant::now());
        self.untold = Some(format!("{how}; /proc is read instead"));
    }

    /// Waits for more to read and takes it, unless that takes too long from `asked` on: then the answer is
    /// overdue. None when the connection breaks.
    pub fn read_more(&mut self, asked: Instant) -> Option<()> {
        let left = HEDGE.saturating_sub(asked.elapsed());
        if left.is_zero() && !self.attempt(|wire| wire.wait(Duration::ZERO))? {
            self.is_overdue("the node does not answer");
            return Some(());
        }
        if self.attempt(|wire| wire.wait(left))? {
            self.attempt(Wire::read)?;
        }
        Some(())
    }
}

impl Shared {
    /// For a connection on which we were let in.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had.
    pub fn new(wire: Wire) -> io::Result<Shared> {
        Ok(Shared {
            line: Mutex::new(Line { wire, overdue: None, untold: None, broken: None }),
            wanted: Mutex::default(),
            waiting: AtomicBool::new(false),
            over: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// The connection, unless somebody waits with it in hand.
    pub fn try_line(&self) -> Option<MutexGuard<'_, Line>> {
        let _ = self.over.read(); // what it said is known from here on
        match self.line.try_lock() {
            Ok(line) => Some(self.watching(line)),
            Err(TryLockError::Poisoned(poisoned)) => Some(self.watching(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The same for who waits with it in hand.
    pub fn line(&self) -> MutexGuard<'_, Line> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(true, Ordering::Release);
        self.watching(line)
    }

    /// Gives that back.
    pub fn give_back(&self, line: MutexGuard<'_, Line>) {
        self.waiting.store(false, Ordering::Release);
        drop(line);
        let _ = self.over.write(1);
    }

    /// Says what is to be watched from here on.
    pub fn want(&self, pipes: &[Pipe]) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = pipes.to_vec();
    }

    fn watching<'a>(&self, mut line: MutexGuard<'a, Line>) -> MutexGuard<'a, Line> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        line.attempt(|wire| wire.watch(&wanted));
        line
    }

    /// What becomes readable when there is something to hear: what a node says, unless somebody hears that
    /// already.
    pub fn fd<'a>(&'a self, wire: BorrowedFd<'a>) -> BorrowedFd<'a> {
        if self.waiting.load(Ordering::Acquire) { self.over.as_fd() } else { wire }
    }
}
