//! The descriptor tables of every process that we may look at, as of one look.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::channel::{Channel, Id};
use super::sockets::Sockets;
use crate::pipe::{End, PipeId};
use crate::process::open::{self, Table};
use crate::process::stat::{Stat, Terminal};
use crate::process::{describe, is_denied, pids};

/// A process and its tables.
#[derive(Debug)]
pub struct Member {
    /// The process.
    pub pid: i32,
    /// One, unless a thread unshared its own.
    pub tables: Vec<Table>,
}

/// By which way a process has a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// A descriptor. Since when, and how it came there, only a node that was watching could know.
    Descriptor,
    /// A file registered with an io_uring; the descriptors are the rings'.
    IoUring,
}

/// A process's descriptors on one end of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The process.
    pub pid: i32,
    /// The thread in whose table they are.
    pub tid: i32,
    /// Which side, and of a pipe which end.
    pub place: Place,
    /// The descriptors.
    pub fds: Vec<i32>,
    /// How.
    pub via: Via,
}

/// Where on a channel a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// For a pipe, the end. Sockets and terminals carry both ways.
    pub end: EndOrd,
    /// For a socket: the inode of the side. For a terminal: 1 is the master. Else 0.
    pub side: u64,
}

/// [`End`] in an order, to sort rows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndOrd {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Both.
    Both,
}

impl From<End> for EndOrd {
    fn from(end: End) -> EndOrd {
        match end {
            End::Read => EndOrd::Read,
            End::Write => EndOrd::Write,
            End::Both => EndOrd::Both,
        }
    }
}

impl EndOrd {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EndOrd::Read => "read",
            EndOrd::Write => "write",
            EndOrd::Both => "both",
        }
    }

    /// Whether it reads.
    #[must_use]
    pub fn reads(self) -> bool {
        self != EndOrd::Write
    }

    /// Whether it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        self != EndOrd::Read
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    member: usize,
    table: usize,
    fd: i32,
}

/// All that was seen.
#[derive(Debug)]
pub struct Machine {
    members: Vec<Member>,
    by_link: HashMap<Box<[u8]>, Vec<Slot>>,
    /// Who is connected to whom.
    pub sockets: Sockets,
    /// How many processes we may not look at, by user.
    pub denied: BTreeMap<u32, usize>,
    /// Whether every process was looked at before the deadline.
    pub complete: bool,
}

impl Machine {
    /// Looks at every process but ourselves.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`.
    pub fn look(deadline: Instant) -> io::Result<Machine> {
        let us = [nix::unistd::getpid().as_raw(), nix::unistd::getppid().as_raw()];
        let pids: Vec<i32> = pids()?.into_iter().filter(|pid| !us.contains(pid)).collect();
        let sockets = Sockets::ours();
        let complete = AtomicBool::new(true);
        let next = AtomicUsize::new(0);
        // Two hands: the kernel's part of the work is per process and takes no common lock.
        let hand = || {
            let mut seen = Vec::new();
            while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                if Instant::now() >= deadline {
                    complete.store(false, Ordering::Relaxed);
                    break;
                }
                seen.push((*pid, open::tables(*pid)));
            }
            seen
        };
        let mut seen = std::thread::scope(|scope| {
            let other = scope.spawn(hand);
            let mut seen = hand();
            seen.extend(other.join().unwrap_or_default());
            seen
        });
        seen.sort_by_key(|(pid, _)| *pid);
        let mut machine = Machine {
            members: Vec::with_capacity(seen.len()),
            by_link: HashMap::new(),
            sockets,
            denied: BTreeMap::new(),
            complete: complete.into_inner(),
        };
        for (pid, tables) in seen {
            match tables {
                Ok(tables) => machine.members.push(Member { pid, tables }),
                // Kernel threads have no descriptors to hide.
                Err(error) if is_denied(&error) && !Stat::read(pid).is_ok_and(|stat| stat.kernel_thread) => {
                    *machine.denied.entry(describe::uid(pid).unwrap_or(0)).or_default() += 1;
                }
                Err(_) => {} // it has ended
            }
        }
        machine.index();
        Ok(machine)
    }

    fn index(&mut self) {
        for (m, member) in self.members.iter().enumerate() {
            for (t, table) in member.tables.iter().enumerate() {
                for (fd, link) in &table.entries {
                    if !link.starts_with(b"/") {
                        let slot = Slot { member: m, table: t, fd: *fd };
                        match self.by_link.get_mut(link) {
                            Some(slots) => slots.push(slot),
                            None => drop(self.by_link.insert(link.clone(), vec![slot])),
                        }
                    }
                }
            }
        }
    }

    /// The tables of a process, if it was seen.
    #[must_use]
    pub fn tables(&self, pid: i32) -> Option<&[Table]> {
        let at = self.members.binary_search_by_key(&pid, |member| member.pid).ok()?;
        Some(&self.members[at].tables)
    }

    /// Everybody who holds a channel, on whatever side and end.
    #[must_use]
    pub fn held(&self, id: Id) -> Vec<Hold> {
        let mut found = Vec::new();
        match id {
            Id::Pipe(pipe) => self.at_link(&format!("pipe:[{}]", pipe.ino), 0, &mut found),
            Id::Socket { ino, peer } => {
                for side in [Some(ino), peer].into_iter().flatten() {
                    self.at_link(&format!("socket:[{side}]"), side, &mut found);
                }
            }
            Id::Fifo(fifo) => self.at_paths(&mut found, |pid, tid, fd, link| {
                if link == b"/dev/null" || link.starts_with(b"/dev/pts/") {
                    return None;
                }
                // fdinfo first: it asks no file system (Linux 5.14).
                let ino: Option<u64> = open::info_number(pid, tid, fd, "ino:");
                let fits = ino.is_none_or(|ino| ino == fifo.ino)
                    && open::file(pid, tid, fd)
                        .is_some_and(|file| file.kind == libc::S_IFIFO && (file.dev, file.ino) == (fifo.dev, fifo.ino));
                fits.then_some(0)
            }),
            Id::Pty { dev, index, .. } => {
                self.at_paths(&mut found, |pid, tid, fd, link| match pty(pid, tid, fd, link)? {
                    Id::Pty { dev: d, index: i, master } if i == index && d == dev => Some(u64::from(master)),
                    _ => None,
                });
            }
        }
        if let Some(pipe) = id.pipe() {
            self.registered(pipe.id, &mut found);
        }
        found.sort_by_key(|hold| (hold.pid, hold.place, hold.via));
        found
    }

    fn at_link(&self, link: &str, side: u64, found: &mut Vec<Hold>) {
        for slot in self.by_link.get(link.as_bytes()).into_iter().flatten() {
            let member = &self.members[slot.member];
            add(found, member.pid, member.tables[slot.table].tid, slot.fd, side);
        }
    }

    /// Adds the descriptors with a path for which `side` knows a side.
    fn at_paths(&self, found: &mut Vec<Hold>, side: impl Fn(i32, i32, i32, &[u8]) -> Option<u64>) {
        for member in &self.members {
            for table in &member.tables {
                for (fd, link) in table.entries.iter().filter(|(_, link)| link.starts_with(b"/")) {
                    if let Some(side) = side(member.pid, table.tid, *fd, link) {
                        add(found, member.pid, table.tid, *fd, side);
                    }
                }
            }
        }
    }

    /// Adds the io_urings that have the pipe among their registered files.
    fn registered(&self, pipe: PipeId, found: &mut Vec<Hold>) {
        let needle = format!(" pipe:[{}]", pipe.ino);
        for slot in self.by_link.get(&b"anon_inode:[io_uring]"[..]).into_iter().flatten() {
            let member = &self.members[slot.member];
            let tid = member.tables[slot.table].tid;
            let text = open::info(member.pid, tid, slot.fd).unwrap_or_default();
            if text.lines().any(|line| line.ends_with(&needle)) {
                // The kernel does not show which end it is.
                let place = Place { end: EndOrd::Both, side: 0 };
                found.push(Hold { pid: member.pid, tid, place, fds: vec![slot.fd], via: Via::IoUring });
            }
        }
    }

    /// Every descriptor on a socket: the socket's inode number, the process, the thread, the descriptor.
    pub fn on_sockets(&self) -> impl Iterator<Item = (u64, i32, i32, i32)> {
        self.by_link.iter().filter_map(|(link, slots)| Some((number_in(link, b"socket:[")?, slots))).flat_map(
            move |(socket, slots)| {
                slots.iter().map(move |slot| {
                    let member = &self.members[slot.member];
                    (socket, member.pid, member.tables[slot.table].tid, slot.fd)
                })
            },
        )
    }

    /// What a descriptor of a process is on, if that is a channel.
    #[must_use]
    pub fn channel(&self, pid: i32, tid: i32, fd: i32) -> Option<Channel> {
        self.channel_of(pid, tid, fd, &open::target(pid, tid, fd)?)
    }

    /// As [`Machine::channel`], for a link that was read before.
    #[must_use]
    pub fn channel_of(&self, pid: i32, tid: i32, fd: i32, link: &[u8]) -> Option<Channel> {
        if let Some(ino) = number_in(link, b"pipe:[") {
            return Some(Channel::unnamed(Id::Pipe(PipeId { dev: super::devices().0, ino })));
        }
        if let Some(ino) = number_in(link, b"socket:[") {
            let socket = self.sockets.get(ino)?;
            return Some(Channel::unnamed(Id::Socket { ino, peer: socket.peer }));
        }
        if !link.starts_with(b"/") {
            return None;
        }
        if let Some(id) = pty(pid, tid, fd, link) {
            return Some(Channel::unnamed(id));
        }
        let file = open::file(pid, tid, fd).filter(|file| file.kind == libc::S_IFIFO)?;
        let path = String::from_utf8_lossy(link).into_owned();
        Some(Channel { id: Id::Fifo(PipeId { dev: file.dev, ino: file.ino }), path: Some(path) })
    }

    /// What we could not see, one line each.
    #[must_use]
    pub fn unseen(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (uid, count) in &self.denied {
            let noun = if *count == 1 { "process" } else { "processes" };
            lines.push(format!("opaque: {count} {noun} of uid {uid}"));
        }
        if !self.complete {
            lines.push("late: the deadline came before every process was looked at".to_owned());
        }
        lines.extend(self.sockets.failure.clone());
        lines
    }
}

fn add(found: &mut Vec<Hold>, pid: i32, tid: i32, fd: i32, side: u64) {
    // Closed meanwhile, or opened with O_PATH: no end at all.
    let Some(end) = open::end(pid, tid, fd) else { return };
    let place = Place { end: end.into(), side };
    match found.iter_mut().rev().find(|hold| hold.pid == pid && hold.place == place && hold.via == Via::Descriptor) {
        Some(hold) if hold.fds.contains(&fd) => {} // the same table, seen through another thread
        Some(hold) => hold.fds.push(fd),
        None => found.push(Hold { pid, tid, place, fds: vec![fd], via: Via::Descriptor }),
    }
}

/// The number in `pipe:[N]`.
#[must_use]
pub fn number_in(link: &[u8], prefix: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(prefix)?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// UNIX98_PTY_SLAVE_MAJOR and the seven after it (include/uapi/linux/major.h).
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// The pseudo-terminal that a descriptor is on.
fn pty(pid: i32, tid: i32, fd: i32, link: &[u8]) -> Option<Id> {
    if link.starts_with(b"/dev/pts/") && !link.ends_with(b"/ptmx") {
        let file = open::file(pid, tid, fd).filter(|file| file.kind == libc::S_IFCHR)?;
        return Some(Id::Pty { dev: file.dev, index: slave(file.device)?, master: false });
    }
    if link == b"/dev/tty" {
        let index = slave(Terminal::of(pid)?.device)?;
        return Some(Id::Pty { dev: devpts_of(pid)?, index, master: false });
    }
    if link.ends_with(b"/ptmx") {
        let index = open::info_number(pid, tid, fd, "tty-index:")?;
        return Some(Id::Pty { dev: devpts_of(pid)?, index, master: true });
    }
    None
}

/// `N` in `/dev/pts/N` of a device number.
#[must_use]
pub fn slave(device: u64) -> Option<u32> {
    let major = libc::major(device);
    SLAVES.contains(&major).then(|| (major - SLAVES.start()) * 256 + libc::minor(device))
}

/// The devpts that a process sees. No file system is asked that could be dead: devpts is the kernel's own.
fn devpts_of(pid: i32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}/root/dev/pts")).ok().map(|folder| folder.dev())
}
