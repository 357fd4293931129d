//! Who holds a pipe: the answer of `pipewarden holders`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use super::channel::{Channel, Id, Told};
use super::flight::{Carries, in_flight};
use super::graph::lineage;
use super::machine::{Hold, Machine, Via};
use super::target::Target;
use super::waits::{For, Need, Reader, is_fifo_open};
use crate::pipe::PipeId;
use crate::process::open::{self, borrow};
use crate::process::stat::Stat;
use crate::process::wait::{threads, tids, wchan};
use crate::process::{describe, pids};

/// What only somebody who was watching could say.
pub const BEFORE: &str = "before we looked";

/// A pipe and everybody who holds it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The pipe, FIFO, socket or terminal.
    pub pipe: Told,
    /// A row for each process and end.
    pub holders: Vec<Row>,
    /// Sockets in whose queues this pipe is, or may be: no process received it yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_flight: Vec<Flight>,
    /// What waits inside to be read.
    pub waiting: Vec<Bytes>,
    /// What answered.
    pub source: &'static str,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

/// A process's hold of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// `read`, `write` or `both`.
    pub end: &'static str,
    /// Of a socket or terminal: which side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// The descriptors; an io_uring's are those of the ring, and a blocked opener has none.
    pub fds: Vec<i32>,
    /// The thread in whose table they are, where that is not the process's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<i32>,
    /// Since when.
    pub since: &'static str,
    /// By which way: `io_uring`, `opening`, or `unknown` where nobody was watching.
    pub via: &'static str,
    /// What a thread of it does with the pipe at this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<For>,
    /// When the process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// Its real user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its command line, redacted, if we may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Its parents, the nearest first.
    pub lineage: Vec<Ancestor>,
}

/// A parent, or a parent's parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
}

/// A socket that descriptors wait in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flight {
    /// A process that holds the socket.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its descriptor.
    pub fd: i32,
    /// The socket's inode number.
    pub socket: u64,
    /// How many descriptors wait there.
    pub count: u32,
    /// Whether this pipe was seen among them; else not all could be looked at.
    pub certain: bool,
}

/// Bytes inside, to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Of a socket: the side that they are to be read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// How many.
    pub bytes: u64,
    /// How many fit, if we could ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
}

/// The channels that a target names.
///
/// # Errors
///
/// In one line: when it names nothing.
pub fn channels(target: &Target, machine: &Machine) -> Result<Vec<Channel>, String> {
    match target {
        Target::Pipe(ino) => Ok(vec![Channel::unnamed(Id::Pipe(PipeId { dev: super::devices().0, ino: *ino }))]),
        Target::Socket(ino) => {
            let peer = machine.sockets.get(*ino).and_then(|socket| socket.peer);
            Ok(vec![Channel::unnamed(Id::Socket { ino: *ino, peer })])
        }
        Target::Path(path) => named(path).map(|channel| vec![channel]),
        Target::Process(pid, fd) => of_process(*pid, *fd, machine),
    }
}

/// The FIFO or terminal at a path.
///
/// # Errors
///
/// In one line: when there is nothing, or something else.
pub fn named(path: &Path) -> Result<Channel, String> {
    let file = std::fs::metadata(path).map_err(|error| format!("{}: {}", path.display(), said(&error)))?;
    let id = if file.file_type().is_fifo() {
        Id::Fifo(PipeId { dev: file.dev(), ino: file.ino() })
    } else if let Some(index) = super::machine::slave(file.rdev()).filter(|_| file.file_type().is_char_device()) {
        Id::Pty { dev: file.dev(), index, master: false }
    } else {
        return Err(format!("{} is {}, and no FIFO or /dev/pts/N", path.display(), kind(file.file_type())));
    };
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(Channel { id, path: Some(path.to_string_lossy().into_owned()) })
}

/// What a file is, for an error message.
#[must_use]
pub fn kind(kind: std::fs::FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// An error in lower case, without its number.
#[must_use]
pub fn said(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn of_process(pid: i32, fd: Option<i32>, machine: &Machine) -> Result<Vec<Channel>, String> {
    let Some(tables) = machine.tables(pid) else {
        return Err(match Stat::read(pid) {
            Ok(_) => format!("the descriptors of {pid} are hidden from us; ask as its user or as root"),
            Err(_) => format!("there is no process {pid}"),
        });
    };
    let mut found: Vec<Channel> = Vec::new();
    for table in tables {
        for (number, link) in table.entries.iter().filter(|(number, _)| fd.is_none_or(|fd| fd == *number)) {
            if let Some(channel) = machine.channel_of(pid, table.tid, *number, link)
                && !found.iter().any(|other| other.id.whole() == channel.id.whole())
            {
                found.push(channel);
            }
        }
    }
    match fd {
        Some(fd) if found.is_empty() => {
            let link = open::target(pid, pid, fd).map(|link| String::from_utf8_lossy(&link).into_owned());
            Err(match link {
                Some(link) => format!("descriptor {fd} of {pid} is {link}, and no pipe, FIFO, unix socket or terminal"),
                None => format!("process {pid} has no descriptor {fd}"),
            })
        }
        _ => Ok(found),
    }
}

/// Everybody who holds a channel.
#[must_use]
pub fn report(channel: &Channel, machine: &Machine, full: bool) -> Report {
    let holds = machine.held(channel.id);
    let mut unseen = machine.unseen();
    let mut holders: Vec<Row> = holds.iter().filter_map(|hold| row(channel, hold, machine, full)).collect();
    if let Id::Fifo(fifo) = channel.id {
        holders.extend(openers(fifo, machine, full, &mut unseen));
    }
    let waiting = if full { waiting(channel, &holds, machine, &mut unseen) } else { Vec::new() };
    if !full {
        unseen.push("late: command lines and bytes waiting were not read before the deadline".to_owned());
    }
    let flights = in_flight(machine, full).into_iter();
    let in_flight = flights.filter(|flight| flight.carries(channel.id) != Carries::No).map(|flight| Flight {
        pid: flight.pid,
        comm: comm(flight.pid),
        fd: flight.fd,
        socket: flight.socket,
        count: flight.count,
        certain: flight.carries(channel.id) == Carries::Yes,
    });
    Report { pipe: channel.into(), holders, in_flight: in_flight.collect(), waiting, source: super::SOURCE, unseen }
}

fn comm(pid: i32) -> String {
    Stat::read(pid).map_or_else(|_| String::new(), |stat| stat.comm)
}

fn side(channel: &Channel, side: u64) -> Option<String> {
    match channel.id {
        Id::Socket { .. } => Some(format!("socket:[{side}]")),
        Id::Pty { .. } => Some(if side == 1 { "master" } else { "slave" }.to_owned()),
        Id::Pipe(_) | Id::Fifo(_) => None,
    }
}

/// A row about a process, without what the channel has to say.
fn about(pid: i32, full: bool) -> Option<Row> {
    let stat = Stat::read(pid).ok()?;
    let description = if full { describe::describe(pid).ok() } else { None };
    Some(Row {
        pid,
        comm: stat.comm,
        end: "",
        side: None,
        fds: Vec::new(),
        tid: None,
        since: BEFORE,
        via: "unknown",
        now: None,
        start_time: description.as_ref().map(|d| d.start_time.clone()),
        uid: describe::uid(pid),
        cmdline: description.and_then(|d| d.cmdline),
        lineage: lineage(pid).into_iter().map(|pid| Ancestor { pid, comm: comm(pid) }).collect(),
    })
}

fn row(channel: &Channel, hold: &Hold, machine: &Machine, full: bool) -> Option<Row> {
    let row = about(hold.pid, full)?;
    Some(Row {
        end: hold.place.end.name(),
        side: side(channel, hold.place.side),
        fds: hold.fds.clone(),
        tid: (hold.tid != hold.pid).then_some(hold.tid),
        via: if hold.via == Via::IoUring { "io_uring" } else { "unknown" },
        now: now(channel, hold, Reader { machine, full }),
        ..row
    })
}

/// What a thread of the holder does with the channel at this moment.
fn now(channel: &Channel, hold: &Hold, reader: Reader<'_>) -> Option<For> {
    let threads = threads(hold.pid).unwrap_or_default();
    let waits = threads.iter().map(|thread| reader.wait(hold.pid, thread)).filter(|wait| !wait.guessed);
    waits
        .filter(|wait| {
            wait.on.iter().any(|on| {
                on.channel.as_ref().is_some_and(|c| c.id.whole() == channel.id.whole())
                    && on.fd.is_some_and(|fd| hold.fds.contains(&fd))
            })
        })
        .map(|wait| wait.what)
        .next()
}

/// The processes that wait in open(2) for the FIFO's other end: no table shows them.
fn openers(fifo: PipeId, machine: &Machine, full: bool, unseen: &mut Vec<String>) -> Vec<Row> {
    let mut found = Vec::new();
    for pid in pids().unwrap_or_default() {
        let tids = tids(pid).unwrap_or_default();
        for tid in tids.into_iter().filter(|tid| is_fifo_open(wchan(pid, *tid).as_deref())) {
            let Some(thread) = crate::process::wait::thread(pid, tid) else { continue };
            let wait = Reader { machine, full }.wait(pid, &thread);
            let Some(on) = wait.on.first().filter(|_| wait.what == For::Open) else { continue };
            match &on.channel {
                Some(Channel { id: Id::Fifo(id), .. }) if *id == fifo => {
                    let Some(row) = about(pid, full) else { continue };
                    let end = if on.need == Need::Reader { "write" } else { "read" };
                    let tid = (tid != pid).then_some(tid);
                    found.push(Row { end, tid, via: "opening", now: Some(For::Open), ..row });
                }
                Some(_) => {}
                None => unseen.push(format!("opening: {} ({pid}) opens a FIFO, and we may not know which", comm(pid))),
            }
        }
    }
    found
}

fn waiting(channel: &Channel, holds: &[Hold], machine: &Machine, unseen: &mut Vec<String>) -> Vec<Bytes> {
    match channel.id {
        Id::Socket { ino, peer } => [Some(ino), peer]
            .into_iter()
            .flatten()
            .filter_map(|number| {
                let bytes = machine.sockets.get(number)?.waiting?;
                Some(Bytes { side: side(channel, number), bytes: u64::from(bytes), capacity: None })
            })
            .collect(),
        Id::Pty { .. } => Vec::new(),
        Id::Pipe(_) | Id::Fifo(_) => {
            let mut visible = holds.iter().filter(|hold| hold.via == Via::Descriptor).peekable();
            if visible.peek().is_none() {
                return Vec::new();
            }
            let found = visible.find_map(|hold| inside(hold.pid, *hold.fds.first()?));
            if found.is_none() {
                unseen.push("bytes: how many wait inside is hidden from us (it takes what ptrace(2) takes)".to_owned());
            }
            found.into_iter().collect()
        }
    }
}

/// Asks a pipe through a copy of somebody's descriptor: its counts of readers and writers stay as they are.
fn inside(pid: i32, fd: i32) -> Option<Bytes> {
    use std::os::fd::AsRawFd;
    let copy = borrow(pid, fd).ok()?;
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which is alive for the call.
    if unsafe { libc::ioctl(copy.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } != 0 {
        return None;
    }
    let capacity = nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_GETPIPE_SZ).ok();
    Some(Bytes {
        side: None,
        bytes: u64::try_from(bytes).ok()?,
        capacity: capacity.and_then(|size| u64::try_from(size).ok()),
    })
}
