//! The descriptor tables of a process: which of the sought pipes it holds, and by which descriptor.
//!
//! Tables are read by readlink and lstat of `/proc/PID/task/TID/fd/N`, never by a stat through the
//! link: that would wait for the file system behind it, which may be dead.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::walk::{Table, each_table};
use crate::pipe::{End, Pipe, PipeId, PipeKind};

/// What to look for in a table.
#[derive(Clone, Debug, Default)]
pub struct Sought {
    /// The pipes.
    pub pipes: Vec<Pipe>,
    /// Also read the fdinfo of sockets and io_urings, which name what no table shows.
    pub hidden: bool,
}

/// By which way a process holds a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A descriptor in the table of this thread.
    Descriptor,
    /// A file registered with an io_uring (`UserFiles` of its fdinfo); `fds` are the rings'.
    /// The kernel does not show which end it is.
    IoUring,
}

/// A process's hold of one pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The pipe.
    pub pipe: PipeId,
    /// The end, or both.
    pub end: End,
    /// The thread in whose table the descriptors are.
    pub tid: i32,
    /// The descriptors.
    pub fds: Vec<i32>,
    /// How.
    pub via: Via,
}

/// What a look at a process found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its holds of the sought pipes.
    pub holds: Vec<Hold>,
    /// Files that may be one of the pipes, and are not told apart: descriptors in flight in the receive queues
    /// of its unix sockets (`scm_fds`), and files without a name that are registered with its io_urings, where
    /// the kernel does not name pipes there (before Linux 6.13 or so). Always 0 when the hidden was not sought.
    pub in_flight: u32,
}

/// Looks through all descriptor tables of a process.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when it ended, [`is_denied`](super::is_denied) when we may not
/// read its tables: then nothing may be concluded from not having seen it hold.
pub fn look(pid: i32, sought: &Sought) -> io::Result<Found> {
    let mut found = Found::default();
    each_table(pid, |table| {
        let tid = table.tid;
        table.each(|dir, fd, target| look_at(dir, pid, tid, fd, target, sought, &mut found))
    })?;
    Ok(found)
}

fn look_at(
    dir: BorrowedFd<'_>,
    pid: i32,
    tid: i32,
    fd: i32,
    target: &[u8],
    sought: &Sought,
    found: &mut Found,
) -> io::Result<()> {
    if let Some(ino) = pipe_number(target) {
        for pipe in sought.pipes.iter().filter(|p| p.kind == PipeKind::Pipe && p.id.ino == ino) {
            if let Some(end) = end_of(dir, fd)? {
                found.add(pipe.id, end, tid, fd, Via::Descriptor);
            }
        }
    } else if target.first() == Some(&b'/') {
        for pipe in sought.pipes.iter().filter(|p| p.kind == PipeKind::Fifo) {
            if is_fifo(dir, pid, tid, fd, pipe.id)
                && let Some(end) = end_of(dir, fd)?
            {
                found.add(pipe.id, end, tid, fd, Via::Descriptor);
            }
        }
    } else if sought.hidden && target.starts_with(b"socket:[") {
        found.in_flight = found.in_flight.saturating_add(in_flight(pid, tid, fd));
    } else if sought.hidden && target == b"anon_inode:[io_uring]" {
        let files = registered(&fdinfo(pid, tid, fd).unwrap_or_default(), &sought.pipes);
        for pipe in files.pipes {
            found.add(pipe, End::Both, tid, fd, Via::IoUring);
        }
        found.in_flight = found.in_flight.saturating_add(files.nameless);
    }
    Ok(())
}

impl Found {
    fn add(&mut self, pipe: PipeId, end: End, tid: i32, fd: i32, via: Via) {
        match self.holds.iter_mut().find(|h| h.pipe == pipe && h.tid == tid && h.via == via) {
            Some(hold) => {
                hold.end = hold.end.and(end);
                hold.fds.push(fd);
            }
            None => self.holds.push(Hold { pipe, end, tid, fds: vec![fd], via }),
        }
    }
}

/// The inode number in `pipe:[N]`.
fn pipe_number(target: &[u8]) -> Option<u64> {
    let number = target.strip_prefix(b"pipe:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The link's own permission bits are the descriptor's open mode (proc_pid_fd(5)).
pub(super) fn end_of(dir: BorrowedFd<'_>, fd: i32) -> io::Result<Option<End>> {
    let mode = match fstatat(dir, fd.to_string().as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat.st_mode,
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(match (mode & libc::S_IRUSR != 0, mode & libc::S_IWUSR != 0) {
        (true, true) => Some(End::Both),
        (true, false) => Some(End::Read),
        (false, true) => Some(End::Write),
        (false, false) => None, // O_PATH: no end at all
    })
}

/// Whether a descriptor is on that FIFO.
///
/// fdinfo gives the inode number without asking the file system (since Linux 5.14); only where that
/// fits, or is not told, statx with `AT_STATX_DONT_SYNC` gives the device from what is cached.
fn is_fifo(dir: BorrowedFd<'_>, pid: i32, tid: i32, fd: i32, fifo: PipeId) -> bool {
    match fdinfo_number(pid, tid, fd, "ino:") {
        Some(ino) if ino != fifo.ino => false,
        _ => identity_without_sync(dir, fd) == Some((fifo, libc::S_IFIFO)),
    }
}

fn identity_without_sync(dir: BorrowedFd<'_>, fd: i32) -> Option<(PipeId, libc::mode_t)> {
    let stat = statx_without_sync(dir, fd)?;
    let dev = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Some((PipeId { dev, ino: stat.stx_ino }, libc::mode_t::from(stat.stx_mode) & libc::S_IFMT))
}

/// What the kernel has cached about the file behind a descriptor: no file system is asked.
pub(super) fn statx_without_sync(dir: BorrowedFd<'_>, fd: i32) -> Option<libc::statx> {
    let name = std::ffi::CString::new(fd.to_string()).ok()?;
    // SAFETY: statx is plain data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string and `stat` a statx, both alive for the call.
    let result = unsafe {
        libc::statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_TYPE | libc::STATX_INO,
            &raw mut stat,
        )
    };
    (result == 0).then_some(stat)
}

pub(super) fn fdinfo(pid: i32, tid: i32, fd: i32) -> Option<String> {
    super::read_text(&format!("/proc/{pid}/task/{tid}/fdinfo/{fd}")).ok()
}

fn fdinfo_number(pid: i32, tid: i32, fd: i32, key: &str) -> Option<u64> {
    let text = fdinfo(pid, tid, fd)?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// Descriptors that wait in the receive queue of a unix socket.
fn in_flight(pid: i32, tid: i32, fd: i32) -> u32 {
    fdinfo_number(pid, tid, fd, "scm_fds:").and_then(|n| n.try_into().ok()).unwrap_or(0)
}

/// The files that are registered with an io_uring.
#[derive(Debug, PartialEq, Eq)]
struct Registered {
    /// The sought anonymous pipes among them.
    pipes: Vec<PipeId>,
    /// How many have no name: pipes, and others.
    nameless: u32,
}

/// Reads them in its fdinfo (`    0: pipe:[15778920]`, or `    0: ` where the kernel gives the name of a
/// directory entry, which a pipe has not).
fn registered(fdinfo: &str, pipes: &[Pipe]) -> Registered {
    let mut found = Registered { pipes: Vec::new(), nameless: 0 };
    for line in fdinfo.lines() {
        let Some((index, name)) = line.split_once(':') else { continue };
        if index.trim().parse::<u32>().is_err() {
            continue;
        }
        if name.trim().is_empty() {
            found.nameless += 1;
        } else if let Some(ino) = pipe_number(name.trim().as_bytes()) {
            let sought = pipes.iter().find(|p| p.kind == PipeKind::Pipe && p.id.ino == ino);
            found.pipes.extend(sought.map(|pipe| pipe.id));
        }
    }
    found.pipes.dedup();
    found
}

/// Whether the process holds a writing end of the pipe right now: first by the descriptors where it
/// was last seen, then by all its tables.
///
/// # Errors
///
/// As for [`look`].
pub fn still_writes(pid: i32, pipe: Pipe, seen: &Hold) -> io::Result<bool> {
    if seen.via == Via::Descriptor
        && pipe.kind == PipeKind::Pipe
        && let Ok(table) = Table::of(pid, seen.tid)
    {
        for fd in &seen.fds {
            if table.link(*fd).ok().and_then(|t| pipe_number(&t)) == Some(pipe.id.ino)
                && end_of(table.as_fd(), *fd).ok().flatten().is_some_and(End::writes)
            {
                return Ok(true);
            }
        }
    }
    let found = look(pid, &Sought { pipes: vec![pipe], hidden: seen.via == Via::IoUring })?;
    Ok(found.holds.iter().any(|hold| hold.pipe == pipe.id && hold.end.writes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;

    fn us() -> i32 {
        nix::unistd::getpid().as_raw()
    }

    fn pipe_of(fd: &OwnedFd, kind: PipeKind) -> Pipe {
        let stat = nix::sys::stat::fstat(fd).unwrap();
        Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind }
    }

    #[test]
    fn both_ends_of_a_pipe_are_told_apart() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let pipe = pipe_of(&read, PipeKind::Pipe);
        let sought = Sought { pipes: vec![pipe], hidden: false };
        let found = look(us(), &sought).unwrap();
        assert_eq!(found.holds.len(), 1, "one hold, of both ends: {found:?}");
        assert_eq!(found.holds[0].end, End::Both);
        drop(write);
        let found = look(us(), &sought).unwrap();
        assert_eq!((found.holds[0].end, found.holds[0].fds.clone()), (End::Read, vec![read.as_raw_fd()]));
    }

    #[test]
    fn a_fifo_is_known_by_device_and_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let file: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap().into();
        let pipe = pipe_of(&file, PipeKind::Fifo);
        let found = look(us(), &Sought { pipes: vec![pipe], hidden: false }).unwrap();
        assert_eq!((found.holds.len(), found.holds[0].end), (1, End::Both));
        let elsewhere = Pipe { id: PipeId { dev: pipe.id.dev + 1, ino: pipe.id.ino }, kind: PipeKind::Fifo };
        let found = look(us(), &Sought { pipes: vec![elsewhere], hidden: false }).unwrap();
        assert_eq!(found.holds, vec![], "the same number on another device is another FIFO");
    }

    #[test]
    fn a_pipe_that_is_registered_with_an_io_uring_is_named_or_may_be_one_without_a_name() {
        let pipe = Pipe { id: PipeId { dev: 13, ino: 4711 }, kind: PipeKind::Pipe };
        let named = "pos:\t0\nflags:\t02\nSqMask:\t0x1\nUserFiles:\t2\n    0: pipe:[4711]\n    1: /dev/null\n";
        let other = Pipe { id: PipeId { dev: 13, ino: 4712 }, kind: PipeKind::Pipe };
        assert_eq!(registered(named, &[other, pipe]), Registered { pipes: vec![pipe.id], nameless: 0 });
        assert_eq!(registered(named, &[other]), Registered { pipes: vec![], nameless: 0 });
        // Linux 5.10 to 6.12; the second was unregistered again.
        let nameless = "pos:\t0\nUserFiles:\t3\n    0: \n    1: <none>\n    2: null\nUserBufs:\t0\nPollList:\n";
        assert_eq!(registered(nameless, &[pipe]), Registered { pipes: vec![], nameless: 1 });
        assert_eq!(registered("", &[pipe]), Registered { pipes: vec![], nameless: 0 });
    }

    #[test]
    fn a_descriptor_in_flight_is_seen_in_the_receivers_queue() {
        use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let sought = Sought { pipes: vec![], hidden: true };
        let before = look(us(), &sought).unwrap().in_flight;
        let fds = [ours.as_raw_fd()];
        let message = [io::IoSlice::new(b"x")];
        sendmsg::<()>(ours.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None).unwrap();
        assert_eq!(look(us(), &sought).unwrap().in_flight, before + 1);
        drop(theirs);
    }
}
