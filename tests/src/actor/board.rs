//! The board: memory that controller and actors share, and through which they speak.
//!
//! No descriptor is needed for it, in no table: an actor's table is the kernel's and the operations'
//! alone. A program that was just executed maps the board's file and closes it before it answers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};

use super::op::{Kind, Op};
use super::sys;

/// Places for tasks.
pub const PLACES: usize = 24;

/// The longest path of a troupe's folder.
pub const FOLDER_MAX: usize = 64;

/// In [`Place::state`]: nobody is here.
pub const FREE: u32 = 0;
/// In [`Place::state`]: a task is here and waits for operations, or performs one.
pub const READY: u32 = 1;
/// In [`Place::state`]: the task that was here ended by another's exec.
pub const ENDED: u32 = 2;

/// What all of a troupe see.
#[repr(C)]
pub struct Board {
    /// The pid of who reaps, as its tests see it.
    pub keeper: AtomicU32,
    /// Whether 32-bit calls are answered here.
    pub compat: AtomicU32,
    /// Holes that bursts stay away from, as bits.
    pub left_out: AtomicU32,
    folder: [AtomicU8; FOLDER_MAX],
    /// The tasks.
    pub places: [Place; PLACES],
}

/// One task's.
#[repr(C, align(64))]
pub struct Place {
    /// [`FREE`], [`READY`] or [`ENDED`].
    pub state: AtomicU32,
    /// Counts what it was told to do.
    pub asked: AtomicU32,
    /// The last that it did.
    pub done: AtomicU32,
    /// What came of it.
    pub result: AtomicI32,
    /// The process, as its tests see it.
    pub pid: AtomicU32,
    /// The thread, as its tests see it.
    pub tid: AtomicU32,
    /// The process, as it sees itself.
    pub own_pid: AtomicU32,
    /// Becomes 0 when a short-lived thread of this task has left its stack.
    pub thread: AtomicU32,
    /// What a seccomp supervisor and its child say to each other.
    pub listener: AtomicI32,
    /// The first of the places that its births in a burst may take.
    pub births_from: AtomicU32,
    /// The first that they may not.
    pub births_to: AtomicU32,
    /// Counts operations of a burst that were performed.
    pub performed: AtomicU32,
    /// Counts those of them that succeeded.
    pub succeeded: AtomicU32,
    /// What the task says to a child that shares its memory.
    pub scratch: [AtomicU32; 3],
    kind: AtomicU32,
    with: [AtomicU32; 3],
}

impl Board {
    /// Maps the board in an open file of the right length.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn map(file: &File) -> io::Result<NonNull<Board>> {
        // SAFETY: a new mapping somewhere free.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
    }

    /// Names the troupe's folder.
    ///
    /// # Errors
    ///
    /// When its path is longer than [`FOLDER_MAX`].
    pub fn set_folder(&self, path: &[u8]) -> io::Result<()> {
        if path.len() >= FOLDER_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        for (to, from) in self.folder.iter().zip(path) {
            to.store(*from, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A path in the troupe's folder, ended by a zero: the name, and a number after it.
    #[must_use]
    pub fn path(&self, name: &[u8], number: Option<u32>) -> [u8; FOLDER_MAX + 32] {
        let mut path = [0; FOLDER_MAX + 32];
        let mut at = 0;
        let mut put = |byte: u8| {
            if let Some(place) = path.get_mut(at).filter(|_| byte != 0) {
                *place = byte;
                at += 1;
            }
        };
        self.folder.iter().for_each(|byte| put(byte.load(Ordering::Relaxed)));
        put(b'/');
        name.iter().copied().for_each(&mut put);
        if let Some(number) = number {
            decimal(number).into_iter().for_each(put);
        }
        path
    }
}

impl Place {
    /// Tells the task here what to do.
    pub fn ask(&self, op: &Op) {
        self.kind.store(op.kind as u32, Ordering::Relaxed);
        for (place, value) in self.with.iter().zip(op.with) {
            place.store(value, Ordering::Relaxed);
        }
        self.asked.fetch_add(1, Ordering::Release);
        wake(&self.asked);
    }

    /// What it was told to do.
    #[must_use]
    pub fn op(&self, task: u32) -> Option<Op> {
        let with = [&self.with[0], &self.with[1], &self.with[2]].map(|value| value.load(Ordering::Relaxed));
        Some(Op { task, kind: Kind::of(self.kind.load(Ordering::Relaxed))?, with })
    }

    /// Whether it did all that it was told.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.asked.load(Ordering::Relaxed)
    }

    /// Says that it did all that it was told.
    pub fn answer(&self, result: i32) {
        self.result.store(result, Ordering::Relaxed);
        self.done.store(self.asked.load(Ordering::Acquire), Ordering::Release);
        wake(&self.done);
    }

    /// Makes the place free.
    pub fn clear(&self) {
        for word in [&self.pid, &self.tid, &self.own_pid, &self.asked, &self.done, &self.thread] {
            word.store(0, Ordering::Relaxed);
        }
        self.state.store(FREE, Ordering::Release);
    }
}

/// A number's digits, with zero bytes before them.
#[must_use]
pub fn decimal(mut number: u32) -> [u8; 10] {
    let mut digits = [0; 10];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits
}

/// Waits until a word may have another value than this one, or a second is over.
pub fn wait(word: &AtomicU32, value: u32) {
    wait_for(word, value, libc::timespec { tv_sec: 1, tv_nsec: 0 });
}

/// As [`wait`], for at most so long.
pub fn wait_for(word: &AtomicU32, value: u32, time: libc::timespec) {
    let arguments = [
        word.as_ptr() as usize,
        libc::FUTEX_WAIT.cast_unsigned() as usize,
        value as usize,
        (&raw const time) as usize,
        0,
        0,
    ];
    // SAFETY: the word and the time live through the call.
    unsafe { sys::call(libc::SYS_futex, arguments) };
}

/// Wakes all who wait for this word.
pub fn wake(word: &AtomicU32) {
    let all = i32::MAX.cast_unsigned() as usize;
    // SAFETY: the word lives through the call.
    unsafe {
        sys::call(libc::SYS_futex, [word.as_ptr() as usize, libc::FUTEX_WAKE.cast_unsigned() as usize, all, 0, 0, 0])
    };
}
