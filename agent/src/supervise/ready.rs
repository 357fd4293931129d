//! Whether a command that was started is ready.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, connect, getsockopt, socket,
    sockopt::SocketError,
};

use super::config::{Address, Ready};

/// How often a file or a socket is looked for: no event tells of a socket that begins to listen.
const PAUSE: Duration = Duration::from_millis(20);

/// The look-out for one start of a command.
pub enum Probe {
    /// The exit with 0 is the readiness, or there is none to wait for: nothing to look at.
    Nothing,
    /// As soon as the command is started.
    Started,
    /// The stream that the line comes through tells.
    Line,
    /// A file, and what it was before the start.
    File(PathBuf, Option<Mark>),
    /// A socket, and a connection that is being made.
    Socket(Address, Option<OwnedFd>),
    /// A moment, once the command is started.
    Delay(Duration, Option<Instant>),
}

/// What tells one state of a file from another.
pub type Mark = (u64, u64, i64, i64, u64);

fn mark(path: &Path) -> Option<Mark> {
    let data = fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.ctime(), data.ctime_nsec(), data.size()))
}

impl Probe {
    /// Begins to look, before the command is started.
    #[must_use]
    pub fn new(ready: &Ready) -> Probe {
        match ready {
            Ready::Started => Probe::Started,
            Ready::Finished => Probe::Nothing,
            Ready::Line(_) => Probe::Line,
            Ready::File(path) => Probe::File(path.clone(), mark(path)),
            Ready::Socket(address) => Probe::Socket(address.clone(), None),
            Ready::Delay(delay) => Probe::Delay(*delay, None),
        }
    }

    /// The command was started; whether that is all.
    pub fn started(&mut self, now: Instant) -> bool {
        if let Probe::Delay(delay, until) = self {
            *until = Some(now + *delay);
        }
        matches!(self, Probe::Started)
    }

    /// The command is gone: nothing is left to be looked for.
    pub fn exited(&mut self) {
        *self = Probe::Nothing;
    }

    /// When to look next.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        match self {
            Probe::Nothing | Probe::Started | Probe::Line => None,
            Probe::File(..) | Probe::Socket(..) => Some(now + PAUSE),
            Probe::Delay(_, until) => *until,
        }
    }

    /// Whether it is ready now. Never waits.
    pub fn look(&mut self, now: Instant) -> bool {
        match self {
            Probe::Nothing | Probe::Started | Probe::Line => false,
            Probe::File(path, before) => {
                let after = mark(path);
                after.is_some() && after != *before
            }
            Probe::Socket(address, pending) => answers(address, pending),
            Probe::Delay(_, until) => until.is_some_and(|until| now >= until),
        }
    }
}

/// Whether somebody accepts connections: one is begun, or the one that was begun is looked at.
fn answers(address: &Address, pending: &mut Option<OwnedFd>) -> bool {
    if let Some(fd) = pending.take() {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 0) {
            *pending = Some(fd);
            return false;
        }
        return getsockopt(&fd, SocketError).is_ok_and(|error| error == 0);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = match address {
        Address::Path(_) => AddressFamily::Unix,
        Address::Port(port) if port.is_ipv4() => AddressFamily::Inet,
        Address::Port(_) => AddressFamily::Inet6,
    };
    let Ok(fd) = socket(family, SockType::Stream, flags, None) else { return false };
    let result = match address {
        Address::Path(path) => UnixAddr::new(path).and_then(|path| connect(fd.as_raw_fd(), &path)),
        Address::Port(SocketAddr::V4(port)) => connect(fd.as_raw_fd(), &SockaddrIn::from(*port)),
        Address::Port(SocketAddr::V6(port)) => connect(fd.as_raw_fd(), &SockaddrIn6::from(*port)),
    };
    match result {
        // A unix socket whose queue is full has somebody who listens.
        Ok(()) | Err(nix::errno::Errno::EAGAIN) => true,
        Err(nix::errno::Errno::EINPROGRESS) => {
            *pending = Some(fd);
            false
        }
        Err(_) => false,
    }
}
