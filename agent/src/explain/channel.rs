//! What processes wait for each other through: pipes and FIFOs, connected unix sockets, pseudo-terminals.

use std::fmt;

use serde::Serialize;

use crate::pipe::{Pipe, PipeId, PipeKind};

/// A channel, as seen from one of its sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// An anonymous pipe.
    Pipe(PipeId),
    /// A FIFO.
    Fifo(PipeId),
    /// A unix socket, and the one it is connected to, if that is still there and the kernel told us.
    Socket {
        /// The inode number of this side.
        ino: u64,
        /// The inode number of the other side.
        peer: Option<u64>,
    },
    /// A pseudo-terminal.
    Pty {
        /// The device number of its devpts.
        dev: u64,
        /// `N` in `/dev/pts/N`.
        index: u32,
        /// Whether this is the master's side: the terminal emulator, sshd, script(1).
        master: bool,
    },
}

impl Id {
    /// The same channel whichever side it is seen from.
    #[must_use]
    pub fn whole(self) -> Id {
        match self {
            Id::Socket { ino, peer: Some(peer) } if peer < ino => Id::Socket { ino: peer, peer: Some(ino) },
            Id::Pty { dev, index, .. } => Id::Pty { dev, index, master: false },
            other => other,
        }
    }

    /// As a pipe or FIFO, if it is one.
    #[must_use]
    pub fn pipe(self) -> Option<Pipe> {
        match self {
            Id::Pipe(id) => Some(Pipe { id, kind: PipeKind::Pipe }),
            Id::Fifo(id) => Some(Pipe { id, kind: PipeKind::Fifo }),
            Id::Socket { .. } | Id::Pty { .. } => None,
        }
    }
}

/// A channel with the path by which it was met, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Which.
    pub id: Id,
    /// Of a FIFO or terminal.
    pub path: Option<String>,
}

impl Channel {
    /// A channel without a path.
    #[must_use]
    pub fn unnamed(id: Id) -> Channel {
        Channel { id, path: None }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.id) {
            (Some(path), _) => f.write_str(path),
            (None, Id::Pipe(pipe)) => write!(f, "{pipe}"),
            (None, Id::Fifo(fifo)) => write!(f, "fifo:[{}]", fifo.ino),
            (None, Id::Socket { ino, .. }) => write!(f, "socket:[{ino}]"),
            (None, Id::Pty { index, .. }) => write!(f, "/dev/pts/{index}"),
        }
    }
}

/// A channel as JSON tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// `st_dev`; of a pseudo-terminal, its devpts's.
    pub dev: u64,
    /// `st_ino`; of a pseudo-terminal, `N` in `/dev/pts/N`.
    pub ino: u64,
    /// `pipe`, `fifo`, `socket` or `pty`.
    pub kind: &'static str,
    /// Of a FIFO or pseudo-terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of a socket: the inode number that it is connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<u64>,
}

impl From<&Channel> for Told {
    fn from(channel: &Channel) -> Told {
        let (dev, ino, kind, peer) = match channel.id {
            Id::Pipe(id) => (id.dev, id.ino, "pipe", None),
            Id::Fifo(id) => (id.dev, id.ino, "fifo", None),
            Id::Socket { ino, peer } => (super::devices().1, ino, "socket", peer),
            Id::Pty { dev, index, .. } => (dev, u64::from(index), "pty", None),
        };
        let path = match channel.id {
            Id::Pty { .. } => Some(channel.to_string()),
            _ => channel.path.clone(),
        };
        Told { dev, ino, kind, path, peer }
    }
}
