//! Who connected: a process, for as long as it is the same one running the same program, and what pids mean to
//! it.
//!
//! The kernel tells who connected, and not who speaks. Nothing is allowed because of who speaks, so it does not
//! matter that the connection can be passed on; but answers are in the pid namespace of who connected, and what
//! it costs is counted there. So a connection ends with that process, with its program and with its user: a
//! program that was started with more rights than who connected never speaks for those.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use sha2::{Digest, Sha256};

use super::quota::Who;
use crate::pipe::ProcessId;
use crate::process::stat::Stat;

/// `SO_PEERPIDFD` of include/uapi/asm-generic/socket.h, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// `NS_GET_PARENT` of include/uapi/linux/nsfs.h.
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// A process that connected.
#[derive(Debug)]
pub(super) struct Peer {
    /// Who, in our own pid namespace.
    pub(super) id: ProcessId,
    /// Whose share it uses up.
    pub(super) who: Who,
    pidfd: OwnedFd,
    program: Program,
    /// Its pid namespace, where it is not ours.
    namespace: Option<Namespace>,
}

/// What an exec changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    /// The `Uid:` line of `/proc/PID/status`: all four.
    uids: String,
    /// Where its code and stack begin (fields 26 and 28 of `/proc/PID/stat`), by chance for each exec.
    begins: [u64; 2],
}

/// A pid namespace below ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Namespace {
    /// The inode number of `/proc/PID/ns/pid`.
    ino: u64,
    /// How many pids its processes have, with ours.
    depth: usize,
}

impl Peer {
    /// Who is at the other end of a connection.
    ///
    /// Before Linux 6.5 the kernel tells a pid alone: then it is whoever has that pid and user by now.
    ///
    /// # Errors
    ///
    /// When that process is gone, or may not be looked at.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Peer> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let credentials = getsockopt(&socket.as_fd(), PeerCredentials)?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(gone()); // in no pid namespace of ours
        }
        let pidfd = match peer_pidfd(socket.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => open_pidfd(pid)?,
            other => other?,
        };
        let stat = Stat::read(pid)?;
        let status = status(pid)?;
        let program = Program { uids: field(&status, "Uid:").to_owned(), begins: begins(pid)? };
        let uid = program.uids.split_whitespace().nth(1).and_then(|uid| uid.parse().ok());
        let ours = fs::read_link("/proc/self/ns/pid")?;
        let namespace = match fs::read_link(format!("/proc/{pid}/ns/pid"))? {
            its if its == ours => None,
            _ => Some(Namespace {
                ino: fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino(),
                depth: field(&status, "NSpid:").split_whitespace().count(),
            }),
        };
        let cgroup = fs::read(format!("/proc/{pid}/cgroup"))?;
        // All that was read is of the process of the pidfd if that lives still.
        if uid != Some(credentials.uid()) || has_ended(pidfd.as_fd()) {
            return Err(gone());
        }
        let who = Who { uid: credentials.uid(), cgroup: digest(&cgroup) };
        Ok(Peer { id: stat.id, who, pidfd, program, namespace })
    }

    /// Whether it lives, and runs the program that connected as the user that connected.
    pub(super) fn is_the_same(&self) -> bool {
        let pid = self.id.pid;
        let now = status(pid)
            .and_then(|status| Ok(Program { uids: field(&status, "Uid:").to_owned(), begins: begins(pid)? }));
        now.is_ok_and(|now| now == self.program) && !has_ended(self.pidfd.as_fd())
    }

    /// The pid that a process or thread of ours has for this peer. None where it is not in the peer's pid
    /// namespace, nor in one below that.
    pub(super) fn translate(&self, pid: i32, tid: i32) -> Option<i32> {
        let Some(namespace) = self.namespace else { return Some(tid) };
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let pids = field(&text, "NSpid:").split_whitespace().collect::<Vec<_>>();
        let below = pids.len().checked_sub(namespace.depth)?;
        let mut its = File::open(format!("/proc/{pid}/ns/pid")).ok()?;
        for _ in 0..below {
            its = parent(&its)?;
        }
        (its.metadata().ok()?.ino() == namespace.ino).then(|| pids.get(namespace.depth - 1)?.parse().ok())?
    }

    /// The process group of a process of ours, as this peer knows it; 0 where it does not.
    pub(super) fn group_of(&self, pid: i32) -> i32 {
        match self.namespace {
            None => Stat::read(pid).map_or(0, |stat| stat.pgid),
            Some(namespace) => {
                let text = status(pid).unwrap_or_default();
                let groups = field(&text, "NSpgid:").split_whitespace().nth(namespace.depth - 1);
                groups.and_then(|group| group.parse().ok()).unwrap_or(0)
            }
        }
    }
}

/// A pidfd of a process of ours, if that is this one and lives.
pub(super) fn pidfd_of(id: ProcessId) -> Option<OwnedFd> {
    let pidfd = open_pidfd(id.pid).ok()?;
    let is_it = Stat::read(id.pid).is_ok_and(|stat| stat.id == id && !stat.is_dead());
    (is_it && !has_ended(pidfd.as_fd())).then_some(pidfd)
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let fd = nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of_val(&fd)).unwrap_or(4);
    // SAFETY: an int and its length, both alive for the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut length)
    };
    nix::errno::Errno::result(result)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
}

fn parent(namespace: &File) -> Option<File> {
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    // SAFETY: the kernel just made it for us.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
}

/// A name may be any bytes.
fn status(pid: i32) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/status"))?).into_owned())
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

/// Where a process's code and stack begin; zeroes where we may not know.
fn begins(pid: i32) -> io::Result<[u64; 2]> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    Ok([26, 28].map(|number: usize| fields.get(number - 3).and_then(|field| field.parse().ok()).unwrap_or(0)))
}

/// A number that stands for a text, and that nobody can choose.
fn digest(text: &[u8]) -> u64 {
    let digest = Sha256::digest(text);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn who_connected_is_known_and_stays_the_same() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let us = nix::unistd::getpid().as_raw();
        assert_eq!((peer.id.pid, peer.who.uid), (us, nix::unistd::geteuid().as_raw()));
        assert!(peer.is_the_same());
        assert_eq!(peer.translate(us, us), Some(us));
        assert_eq!(peer.group_of(us), nix::unistd::getpgrp().as_raw());
        let other = Program { begins: [1, 2], ..peer.program.clone() };
        assert!(!Peer { program: other, ..peer }.is_the_same(), "another program by now");
    }

    #[test]
    fn a_pidfd_is_of_the_process_that_was_meant() {
        let stat = Stat::read(nix::unistd::getpid().as_raw()).unwrap();
        assert!(pidfd_of(stat.id).is_some());
        assert!(pidfd_of(ProcessId { start_ticks: stat.id.start_ticks + 1, ..stat.id }).is_none());
    }
}
