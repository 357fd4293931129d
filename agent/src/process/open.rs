//! Everything that a process has open: all descriptors of all its tables, as their links say it.
//!
//! [`look`](super::table::look) seeks known pipes; this is for the question the other way round, which
//! begins with a process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::table::{end_of, statx_without_sync};
use super::walk::{self, each_table};
use crate::pipe::End;

/// A descriptor table, read through one of the threads that share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The thread.
    pub tid: i32,
    /// Each descriptor, and what its link says: `pipe:[4711]`, `socket:[7]`, `anon_inode:[eventpoll]`, a path.
    pub entries: Vec<(i32, Box<[u8]>)>,
}

/// All descriptor tables of a process: one, unless a thread unshared its own.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when it ended, [`is_denied`](super::is_denied) when we may not read
/// its tables.
pub fn tables(pid: i32) -> io::Result<Vec<Table>> {
    let mut found = Vec::new();
    each_table(pid, |table| {
        let mut entries = Vec::new();
        table.each(|_, fd, target| {
            entries.push((fd, target.into()));
            Ok(())
        })?;
        found.push(Table { tid: table.tid, entries });
        Ok(())
    })?;
    Ok(found)
}

/// What the link of one descriptor says now.
#[must_use]
pub fn target(pid: i32, tid: i32, fd: i32) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    fs::read_link(format!("/proc/{pid}/task/{tid}/fd/{fd}")).ok().map(|path| path.into_os_string().into_vec())
}

/// The end that a descriptor is on, by its open mode; nothing when it is closed or has none (`O_PATH`).
#[must_use]
pub fn end(pid: i32, tid: i32, fd: i32) -> Option<End> {
    end_of(walk::Table::of(pid, tid).ok()?.as_fd(), fd).ok().flatten()
}

/// The fdinfo of a descriptor.
///
/// That of an epoll waits for whoever holds the epoll's lock: not for the path that must not block.
#[must_use]
pub fn info(pid: i32, tid: i32, fd: i32) -> Option<String> {
    super::table::fdinfo(pid, tid, fd)
}

/// The number after `key` in a descriptor's fdinfo.
#[must_use]
pub fn info_number<T: std::str::FromStr>(pid: i32, tid: i32, fd: i32, key: &str) -> Option<T> {
    info(pid, tid, fd)?.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// The file behind a descriptor, as far as the kernel has it cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// The type bits of `st_mode`.
    pub kind: libc::mode_t,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// `st_rdev` of a device.
    pub device: u64,
}

/// Asks for the file behind a descriptor without asking its file system.
#[must_use]
pub fn file(pid: i32, tid: i32, fd: i32) -> Option<File> {
    let stat = statx_without_sync(walk::Table::of(pid, tid).ok()?.as_fd(), fd)?;
    Some(File {
        kind: libc::mode_t::from(stat.stx_mode) & libc::S_IFMT,
        dev: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        device: libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
    })
}

/// A copy of somebody's descriptor, of the same open file: whoever counts openings sees none.
///
/// Minimum kernel: 5.6 (`pidfd_getfd`). It attaches nothing and stops nobody.
///
/// # Errors
///
/// [`is_denied`](super::is_denied) without what ptrace(2) would need; `EBADF` when it is closed, or in the
/// table of a thread that is not the first.
pub fn borrow(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    let pidfd = owned(|| {
        // SAFETY: pidfd_open takes two integers.
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }
    })?;
    owned(|| {
        // SAFETY: pidfd_getfd takes three integers.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) }
    })
}

fn owned(make: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(make())?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just made it for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    #[test]
    fn a_table_shows_the_pipe_and_its_ends() {
        let us = nix::unistd::getpid().as_raw();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let tables = tables(us).unwrap();
        let link = target(us, us, read.as_raw_fd()).unwrap();
        let fds: Vec<i32> = tables
            .iter()
            .flat_map(|table| &table.entries)
            .filter(|(_, target)| **target == *link)
            .map(|(fd, _)| *fd)
            .collect();
        assert_eq!(fds.len(), 2, "{fds:?}");
        assert!(fds.contains(&read.as_raw_fd()) && fds.contains(&write.as_raw_fd()));
        assert_eq!(end(us, us, read.as_raw_fd()), Some(End::Read));
        assert_eq!(end(us, us, write.as_raw_fd()), Some(End::Write));
        let file = file(us, us, read.as_raw_fd()).unwrap();
        let stat = nix::sys::stat::fstat(&read).unwrap();
        assert_eq!((file.kind, file.dev, file.ino), (libc::S_IFIFO, stat.st_dev, stat.st_ino));
    }
}
