//! A FIFO that the supervisor owns: `--stdin fifo:PATH`.
//!
//! We hold both of its ends, so no writer ever waits in open(2), none is told that it was the last,
//! and the command never sees an EOF because one of them left. It is closed once: see
//! `feed::Closing`.

mod control;
mod who;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::poll::PollFlags;
use nix::sys::stat::{Mode, fstat, fstatat};

pub use control::{Ask, At, Client, Status, Use, owner};

use super::feed::{Closing, readable};
use crate::audit;
use crate::audit::detail::FifoUse;
use crate::audit::evidence::PipeSeen;
use crate::audit::record::{OnFifo, Time};
use crate::pipe::{End, Pipe, PipeId, PipeKind};
use crate::process::describe::Description;
use control::Server;
use who::Lookout;

/// Why a FIFO cannot be owned. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// It is something else.
    #[error("{0} is {1}, not a FIFO; remove it, or name a path that does not exist yet")]
    NotAFifo(String, &'static str),
    /// It belongs to somebody else, who could read or replace what goes through it.
    #[error("{0} belongs to user {1}; use a FIFO of your own")]
    Foreign(String, u32),
    /// Another run has it.
    #[error("{0} is owned by another run (pipewarden {1}); end that one, or use another path")]
    Owned(String, i32),
    /// The system said no.
    #[error("cannot {1} {0}: {2}")]
    System(String, &'static str, io::Error),
}

/// Something happened to the FIFO, for the audit log.
#[derive(Clone, Debug)]
pub struct Event {
    /// Opened, or closed.
    pub opened: bool,
    /// Which end.
    pub end: End,
    /// Who did it, where that could be seen.
    pub process: Option<Description>,
    /// Processes that write to it now, where they could be counted.
    pub writers: Option<u32>,
    /// Why, where it was our doing.
    pub why: Option<String>,
}

/// How a moment lies to the command's life: what one wants to know when it hangs.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since the command was started.
    pub since_start: Duration,
    /// Since it last wrote anything, if it has.
    pub quiet: Option<Duration>,
}

impl Event {
    /// The record of it.
    #[must_use]
    pub fn recorded(self, path: &Path, pipe: Pipe, moment: Option<Moment>) -> audit::Event {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let detail = FifoUse {
            path: path.display().to_string(),
            end: self.end,
            writers: self.writers,
            why: self.why,
            since_start_us: moment.map(|moment| micros(moment.since_start)),
            quiet_us: moment.and_then(|moment| moment.quiet).map(micros),
        };
        let what = Box::new(OnFifo { process: self.process, pipe: PipeSeen::new(pipe, None), detail });
        if self.opened { audit::Event::FifoOpened(what) } else { audit::Event::FifoClosed(what) }
    }
}

/// The FIFO.
pub struct Fifo {
    /// The path that it was named by.
    pub path: PathBuf,
    /// Its identity.
    pub pipe: Pipe,
    /// Bytes that were read from it.
    pub taken: u64,
    /// The file, whatever its name means meanwhile.
    file: OwnedFd,
    ends: Option<(OwnedFd, OwnedFd)>,
    created: bool,
    opened_at: Time,
    closed: Option<(Time, Closing)>,
    server: Option<Server>,
    lookout: Option<Lookout>,
    /// Who has it open, beside us, by what the events say.
    present: Vec<(End, At)>,
    uses: Vec<Use>,
    events: Vec<Event>,
}

/// How many openings and closings `fifo status` tells.
const USES: usize = 64;

impl Fifo {
    /// Makes the FIFO if there is none, and takes it. Never waits.
    ///
    /// # Errors
    ///
    /// As [`FifoError`] says.
    pub fn own(path: &Path) -> Result<Fifo, FifoError> {
        match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) => Fifo::take(path, true).inspect_err(|_| drop(std::fs::remove_file(path))),
            Err(Errno::EEXIST) => Fifo::take(path, false),
            Err(error) => Err(FifoError::System(path.display().to_string(), "make the FIFO", error.into())),
        }
    }

    fn take(path: &Path, created: bool) -> Result<Fifo, FifoError> {
        let name = path.display().to_string();
        let system = |what| {
            let name = name.clone();
            move |error: Errno| FifoError::System(name, what, error.into())
        };
        // First a handle that opens nothing: to open a device, say, would have effects.
        let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.map_err(system("open"))?;
        let stat = fstat(&file).map_err(system("look at"))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return Err(FifoError::NotAFifo(name, kind(stat.st_mode)));
        }
        if stat.st_uid != nix::unistd::geteuid().as_raw() {
            return Err(FifoError::Foreign(name, stat.st_uid));
        }
        let pipe = Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Fifo };
        let server = match Server::start(pipe.id) {
            Ok(server) => Some(server),
            Err(control::ServerError::Taken(pid)) => return Err(FifoError::Owned(name, pid)),
            Err(control::ServerError::System(place, error)) => {
                // The run can do without; whoever wants to close the FIFO must know that it cannot.
                eprintln!("pipewarden: `fifo close {name}` will not reach this run: {}: {error}", place.display());
                None
            }
        };
        // Reading first: the writing end of a FIFO without a reader does not open.
        let read = reopen(&file, OFlag::O_RDONLY).map_err(system("open"))?;
        let write = reopen(&file, OFlag::O_WRONLY).map_err(system("open"))?;
        let lookout = Lookout::start(&file, pipe).ok();
        let mut fifo = Fifo {
            path: path.to_owned(),
            pipe,
            taken: 0,
            file,
            ends: Some((read, write)),
            created,
            opened_at: Time::now(),
            closed: None,
            server,
            lookout,
            present: Vec::new(),
            uses: Vec::new(),
            events: Vec::new(),
        };
        let why = Some("--stdin".to_owned());
        let us = crate::process::describe::describe(nix::unistd::getpid().as_raw()).ok();
        fifo.note(Event { opened: true, end: End::Both, process: us, writers: None, why });
        Ok(fifo)
    }

    /// What to read from, while it is open.
    #[must_use]
    pub fn reading(&self) -> Option<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(read, _)| read.as_fd())
    }

    /// What to poll for, beside [`reading`](Fifo::reading).
    #[must_use]
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let lookout = self.lookout.as_ref().map(|lookout| (lookout.fd(), PollFlags::POLLIN));
        lookout.into_iter().chain(self.server.iter().flat_map(Server::interests)).collect()
    }

    /// Takes what happened and what was asked; whether it is to be closed.
    #[must_use]
    pub fn attend(&mut self, command: i32, in_hand: u64) -> bool {
        self.take_events();
        let Some(mut server) = self.server.take() else { return false };
        let asked = server.asked();
        let close = self.closed.is_none() && asked.contains(&Ask::Close);
        let mut status = (!asked.is_empty()).then(|| self.status(command, in_hand));
        if let Some(status) = &mut status {
            // Closing is done before anybody reads that it is.
            status.open &= !close;
            server.answer(status);
        }
        self.server = Some(server);
        close
    }

    fn take_events(&mut self) {
        let events = self.lookout.as_mut().map(Lookout::events).unwrap_or_default();
        for event in events {
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        if self.uses.len() == USES {
            self.uses.remove(0);
        }
        if let Some(process) = event.process.as_ref().filter(|_| event.why.is_none()) {
            self.present.retain(|(_, at)| at.pid != process.pid);
            if event.opened {
                let at = At { pid: process.pid, comm: process.comm.clone(), since: Time::now() };
                self.present.push((event.end, at));
            }
        }
        self.uses.push(Use::new(&event));
        self.events.push(event);
    }

    /// What happened since the last time, for the audit log.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn status(&self, command: i32, in_hand: u64) -> Status {
        Status {
            path: self.path.display().to_string(),
            dev: self.pipe.id.dev,
            ino: self.pipe.id.ino,
            pid: nix::unistd::getpid().as_raw(),
            command,
            open: self.ends.is_some(),
            opened_at: self.opened_at,
            closed_at: self.closed.map(|(at, _)| at),
            closed_because: self.closed.map(|(_, why)| why.reason().to_owned()),
            bytes_taken: self.taken,
            bytes_waiting: in_hand + self.reading().map_or(0, readable),
            writers: self.at(End::writes),
            readers: self.at(|end| end != End::Write),
            uses: self.uses.clone(),
        }
    }

    fn at(&self, which: impl Fn(End) -> bool) -> Vec<At> {
        self.present.iter().filter(|(end, _)| which(*end)).map(|(_, at)| at.clone()).collect()
    }

    /// Closes both ends, once: writers get SIGPIPE or EPIPE, and readers EOF.
    pub fn close(&mut self, why: Closing) {
        if self.ends.is_none() {
            return;
        }
        if self.created {
            self.remove();
        }
        self.ends = None;
        self.closed = Some((Time::now(), why));
        let us = crate::process::describe::describe(nix::unistd::getpid().as_raw()).ok();
        let why = Some(why.reason().to_owned());
        self.note(Event { opened: false, end: End::Both, process: us, writers: None, why });
    }

    /// Looks a last time who opened and closed it.
    pub fn settle(&mut self) {
        for event in self.lookout.take().map(Lookout::finish).unwrap_or_default() {
            self.note(event);
        }
    }

    /// Removes what we made, so that no later writer waits there for a reader that will not come.
    fn remove(&self) {
        let here = fstatat(nix::fcntl::AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_NOFOLLOW);
        if here.is_ok_and(|stat| PipeId { dev: stat.st_dev, ino: stat.st_ino } == self.pipe.id) {
            let _ = nix::unistd::unlink(&self.path);
        }
    }
}

impl Drop for Fifo {
    /// Lets everybody go on who came after the closing and waits in open(2) for the other end.
    fn drop(&mut self) {
        self.close(Closing::RunOver);
        let read = reopen(&self.file, OFlag::O_RDONLY);
        let _write = read.is_ok().then(|| reopen(&self.file, OFlag::O_WRONLY));
    }
}

/// Opens the file behind a handle, whatever its path means by now, without waiting.
fn reopen(file: &OwnedFd, mode: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    open(path.as_str(), mode | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
}

fn kind(mode: libc::mode_t) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a folder",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFSOCK => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests;
