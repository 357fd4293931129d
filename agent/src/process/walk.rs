//! Going through the descriptor tables of a process.
//!
//! A look at a whole machine does this for each of its processes, so it asks the kernel for no more than
//! it must: for a process of one thread one stat, one folder, and a readlink for each descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, stat};

use super::stat::Stat;

/// A descriptor table, by one of the threads that share it.
pub(super) struct Table {
    /// The thread.
    pub tid: i32,
    folder: Dir,
}

/// Visits every descriptor table of a process: one, unless a thread unshared its own.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when it ended, [`is_denied`](super::is_denied) when we may not read its
/// tables, and what `visit` says.
pub(super) fn each_table(pid: i32, mut visit: impl FnMut(&mut Table) -> io::Result<()>) -> io::Result<()> {
    let mut look = |tid, path: String| match Table::open(tid, &path).and_then(|mut table| visit(&mut table)) {
        Ok(()) => Ok(true),
        // A thread that ended while we looked took its part of the table with it.
        Err(error) if super::is_gone(&error) => Ok(false),
        // What is left of a first thread that ended before the others has no table, and is no longer
        // ours to look at.
        Err(error) if super::is_denied(&error) && Stat::thread_has_ended(pid, tid) => Ok(false),
        Err(error) => Err(error),
    };
    if has_one_thread(pid)? {
        return look(pid, format!("/proc/{pid}/fd")).map(drop);
    }
    let mut seen: Vec<i32> = Vec::new();
    let tids = super::wait::tids(pid)?;
    for tid in &tids {
        let known = seen.iter().any(|other| same_table(*other, *tid));
        if !known && look(*tid, format!("/proc/{pid}/task/{tid}/fd"))? {
            seen.push(*tid);
        }
    }
    if tids.is_empty() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
}

/// Whether a process has one thread alone: the kernel counts threads as links of their folder, beside
/// the two that every folder has.
pub(super) fn has_one_thread(pid: i32) -> io::Result<bool> {
    Ok(stat(format!("/proc/{pid}/task").as_str())?.st_nlink == 3)
}

/// Whether two threads share one table, as far as the kernel tells us: "no" only costs time.
fn same_table(a: i32, b: i32) -> bool {
    const KCMP_FILES: libc::c_int = 2; // include/uapi/linux/kcmp.h
    // SAFETY: kcmp(2) takes five integers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_FILES, 0, 0) };
    order == 0
}

impl Table {
    /// The table that a thread of a process has.
    pub fn of(pid: i32, tid: i32) -> io::Result<Table> {
        Table::open(tid, &format!("/proc/{pid}/task/{tid}/fd"))
    }

    fn open(tid: i32, path: &str) -> io::Result<Table> {
        let folder = Dir::open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Table { tid, folder })
    }

    /// Visits every descriptor, with what its link says and the folder that it is in.
    pub fn each(&mut self, mut visit: impl FnMut(BorrowedFd<'_>, i32, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut fds = Vec::new();
        for entry in self.folder.iter() {
            if let Some(fd) = entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) {
                fds.push(fd);
            }
        }
        for fd in fds {
            match self.link(fd) {
                Ok(target) => visit(self.as_fd(), fd, &target)?,
                Err(Errno::ENOENT) => {} // closed meanwhile
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What a descriptor's link says: `pipe:[4711]`, `socket:[7]`, `anon_inode:[io_uring]`, or a path.
    pub fn link(&self, fd: i32) -> Result<Vec<u8>, Errno> {
        readlinkat(&self.folder, fd.to_string().as_str()).map(|target| target.as_bytes().to_vec())
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
