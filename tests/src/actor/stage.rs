//! How the program begins: as the troupe's keeper, as a task of the board after an exec, or as
//! something that only ends.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::board::{Board, ENDED, READY, wake};
use super::sys::{self, Word};
use super::{BOARD, LOW, PLACES, STACK, STACKS, Task, birth, board, compat};

/// The keeper's process: the init of a pid namespace, so that the whole troupe ends with it. The
/// calling process only waits for its end.
///
/// # Errors
///
/// When there is no namespace to be had (it needs root), or no board.
pub fn keep(board: &Path) -> io::Result<()> {
    let us = sys::numbers(libc::SYS_getpid, &[]);
    as_many_files_as_may_be()?;
    answer_of(sys::numbers(libc::SYS_unshare, &[libc::CLONE_NEWPID as u32]))?;
    match birth::fork_briefly(false) {
        0 => {}
        pid => {
            answer_of(pid)?;
            let arguments = [pid as Word, 0, 0, 0, 0, 0];
            // SAFETY: the address among the arguments is null.
            answer_of(sys::short(unsafe { sys::call(libc::SYS_wait4, arguments) }))?;
            sys::exit_group(0);
        }
    }
    answer_of(sys::numbers(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u32, libc::SIGKILL as u32]))?;
    if sys::numbers(libc::SYS_getppid, &[]) != 0 {
        return Err(io::Error::other(format!("{us} is in our own namespace")));
    }
    only_null()?;
    attend(board)?;
    let Some(first) = Task::at(0) else { return Err(io::ErrorKind::NotFound.into()) };
    first.introduce();
    let all = first.board();
    all.compat.store(u32::from(answers_compat()), Ordering::Release);
    all.keeper.store(first.place().pid.load(Ordering::Relaxed), Ordering::Release);
    if birth::fork_briefly(false) == 0 {
        let _ = birth::keep_zombies(false);
        first.act();
    }
    loop {
        // SAFETY: as above.
        let reaped =
            sys::short(unsafe { sys::call(libc::SYS_wait4, [Word::MAX, 0, libc::__WALL as u32 as Word, 0, 0, 0]) });
        if reaped < 0 {
            board::wait(&all.keeper, all.keeper.load(Ordering::Relaxed)); // nobody is left
        }
    }
}

/// Goes on as the task of a place, after an exec.
///
/// # Errors
///
/// When the board is not to be had.
pub fn go_on(number: u32, board: &Path) -> io::Result<()> {
    attend(board)?;
    let Some(task) = Task::at(number) else { return Err(io::ErrorKind::NotFound.into()) };
    task.introduce();
    let pid = task.place().pid.load(Ordering::Relaxed);
    let others = task.board().places.iter().enumerate().filter(|(at, _)| *at != number as usize);
    for (_, place) in others {
        // Threads that our exec ended: nobody else can say it for them.
        if place.pid.load(Ordering::Relaxed) == pid && place.state.load(Ordering::Acquire) == READY {
            place.state.store(ENDED, Ordering::Release);
            wake(&place.state);
            wake(&place.done);
        }
    }
    task.place().answer(0);
    task.act()
}

/// Maps the board and what tasks need; opens nothing that stays open.
fn attend(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let board = Board::map(&file)?;
    BOARD.store(board.as_ptr(), Ordering::Release);
    STACKS.store(map((PLACES + 1) * STACK, libc::MAP_NORESERVE)?, Ordering::Release);
    // Without a page that 32 bits reach there are no compat calls with addresses: they say so.
    #[cfg(target_arch = "x86_64")]
    LOW.store(map(4096, libc::MAP_32BIT).unwrap_or(0), Ordering::Release);
    let _ = &LOW;
    Ok(())
}

fn map(size: usize, flags: libc::c_int) -> io::Result<Word> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping somewhere free.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address as Word) }
}

/// Descriptors 0 to 2 on /dev/null, and no others: nobody outside shares a pipe with the troupe.
fn only_null() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in 0..3 {
        // SAFETY: dup2 takes two integers; standard streams are replaced.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    drop(null);
    answer_of(sys::numbers(libc::SYS_close_range, &[3, u32::MAX, 0])).map(drop)
}

/// Room for the largest table that operations ask for, if we may.
fn as_many_files_as_may_be() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 20_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.max(WANTED);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most).or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))?)
}

/// A child tries: where they are not answered, it dies by a signal.
fn answers_compat() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    match birth::fork_briefly(false) {
        0 => sys::exit_group(u32::from(!compat::is_answered())),
        pid if pid > 0 => {
            let mut status = 0i32;
            let arguments = [pid as Word, (&raw mut status) as Word, 0, 0, 0, 0];
            // SAFETY: the status lives through the call.
            unsafe { sys::call(libc::SYS_wait4, arguments) };
            status == 0
        }
        _ => false,
    }
}

fn answer_of(answer: sys::Answer) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::from_raw_os_error(-answer))
}

/// A path out of an argument.
#[must_use]
pub fn path_of(argument: &std::ffi::CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(argument.to_bytes()))
}
