//! Finding a node, and being let in by it.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};

use super::protocol::{ENVIRONMENT, PATH};
use super::wire::Wire;
use crate::kernel::rung::Rung;
use crate::ownership::events::Names;

/// How long a node may take to let us in. It takes microseconds; on a machine that has no time at all seconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How soon it is tried again where too many knock at once.
const CROWDED: Duration = Duration::from_millis(10);

/// What the file system calls the owner of whom a user namespace has no number for, unless told otherwise
/// (`/proc/sys/kernel/overflowuid`): the machine's root, to a container with root of its own.
const NOBODY: u32 = 65534;

/// Why there is no node for us.
#[derive(Debug, thiserror::Error)]
pub enum NoNode {
    /// There is no socket.
    #[error("no node listens at {}: there is no such socket", .0.display())]
    Absent(PathBuf),
    /// It cannot be connected to.
    #[error("no node can be reached at {path}: {1}", path = .0.display())]
    Unreachable(PathBuf, #[source] io::Error),
    /// Whoever listens is neither root nor we.
    #[error("who listens at {path} is user {1} and no node", path = .0.display())]
    Stranger(PathBuf, u32),
    /// It sees another kernel than we do.
    #[error("the node at {} is another machine's", .0.display())]
    Elsewhere(PathBuf),
    /// It says nothing.
    #[error("the node at {} does not answer", .0.display())]
    Silent(PathBuf),
    /// It ended the connection, or makes no sense.
    #[error("the node at {path}: {1}", path = .0.display())]
    Broken(PathBuf, #[source] io::Error),
}

/// Where the node's socket is: `PIPEWARDEN_NODE_SOCKET`, else `/run/pipewarden/node.sock`.
#[must_use]
pub fn socket_path() -> PathBuf {
    env::var_os(ENVIRONMENT).filter(|path| !path.is_empty()).map_or_else(|| PathBuf::from(PATH), PathBuf::from)
}

/// Who was let in.
#[derive(Debug)]
pub struct Client {
    /// The connection.
    pub wire: Wire,
    /// What it is called.
    pub names: Names,
}

/// What was said to who knocked.
#[derive(Debug)]
pub enum Word {
    /// Nothing yet.
    None(Knock),
    /// Come in.
    In(Client),
    /// There is no node for us.
    Out(NoNode),
}

/// Somebody who has knocked and waits to be let in.
#[derive(Debug)]
pub struct Knock {
    wire: Wire,
    path: PathBuf,
    began: Instant,
}

impl Knock {
    /// Connects and says hello. Does not wait, also where the node is stopped.
    ///
    /// # Errors
    ///
    /// [`NoNode`].
    pub fn begin(path: &Path) -> Result<Knock, NoNode> {
        let began = Instant::now();
        let unreachable = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => NoNode::Absent(path.to_owned()),
            _ => NoNode::Unreachable(path.to_owned(), error),
        };
        let stream = connected(path).map_err(unreachable)?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).map_err(|error| unreachable(error.into()))?;
        let us = nix::unistd::geteuid().as_raw();
        if ![0, us, NOBODY].contains(&peer.uid()) {
            return Err(NoNode::Stranger(path.to_owned(), peer.uid()));
        }
        let broken = |error| NoNode::Broken(path.to_owned(), error);
        let mut wire = Wire::new(stream).map_err(broken)?;
        wire.greet(concat!("pipewarden run ", env!("CARGO_PKG_VERSION"))).map_err(broken)?;
        Ok(Knock { wire, path: path.to_owned(), began })
    }

    /// The same, waiting until we are let in.
    ///
    /// # Errors
    ///
    /// [`NoNode`].
    pub fn wait(path: &Path) -> Result<Client, NoNode> {
        let until = Instant::now() + PATIENCE;
        let mut knock = loop {
            match Knock::begin(path) {
                // Its queue is full: that passes, where it is not stopped.
                Err(NoNode::Unreachable(_, error))
                    if error.raw_os_error() == Some(libc::EAGAIN) && Instant::now() < until =>
                {
                    thread::sleep(CROWDED);
                }
                knock => break knock?,
            }
        };
        loop {
            knock = match knock.listen() {
                Word::In(client) => return Ok(client),
                Word::Out(why) => return Err(why),
                Word::None(knock) => knock,
            };
            let left = knock.deadline().saturating_duration_since(Instant::now());
            knock.wire.wait(left).map_err(|error| NoNode::Broken(path.to_owned(), error))?;
        }
    }

    /// What becomes readable when we are let in.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }

    /// When it was begun.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// When it is given up.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.began + PATIENCE
    }

    /// Whether we are let in, as far as that is known by now.
    #[must_use]
    pub fn listen(mut self) -> Word {
        let path = self.path.clone();
        if let Err(error) = self.wire.read() {
            return Word::Out(NoNode::Broken(path, error));
        }
        let Some(greeting) = self.wire.greeting() else {
            let silent = Instant::now() >= self.deadline();
            return if silent { Word::Out(NoNode::Silent(path)) } else { Word::None(self) };
        };
        if this_boot().is_some_and(|boot| boot != greeting.boot) {
            return Word::Out(NoNode::Elsewhere(path));
        }
        let rung = Rung::ALL.into_iter().map(Rung::name).find(|name| *name == greeting.rung).unwrap_or("node");
        Word::In(Client { wire: self.wire, names: Names { backend: "node", rung } })
    }
}

/// This boot of this kernel.
fn this_boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|boot| boot.trim().to_owned())
}

/// A connection to a socket. Where its queue is full, `EAGAIN` at once.
fn connected(path: &Path) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path).map_err(|error| match error {
        Errno::ENAMETOOLONG => io::Error::other("a socket's path has at most 107 bytes"),
        error => error.into(),
    })?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(UnixStream::from(socket))
}
