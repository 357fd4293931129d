//! Descriptors in flight: sent by SCM_RIGHTS, and received by nobody yet. No table shows them.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::channel::Id;
use super::machine::Machine;
use crate::process::open;

/// A unix socket with descriptors in its receive queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// A process that holds the socket.
    pub pid: i32,
    /// Its descriptor.
    pub fd: i32,
    /// The socket's inode number.
    pub socket: u64,
    /// How many descriptors wait there.
    pub count: u32,
    /// What those are that we could look at: channels, or something else.
    seen: Vec<Option<Id>>,
}

/// Whether a channel is among what is in flight in a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// All were looked at, and it is not among them.
    No,
    /// Not all could be looked at.
    Maybe,
    /// It was seen.
    Yes,
}

impl InFlight {
    /// Whether a channel is among them.
    #[must_use]
    pub fn carries(&self, id: Id) -> Carries {
        if self.seen.iter().flatten().any(|seen| seen.whole() == id.whole()) {
            Carries::Yes
        } else if u32::try_from(self.seen.len()).is_ok_and(|seen| seen >= self.count) {
            Carries::No
        } else {
            Carries::Maybe
        }
    }
}

/// The unix sockets that have descriptors in their receive queue, and if `full`, what those are.
#[must_use]
pub fn in_flight(machine: &Machine, full: bool) -> Vec<InFlight> {
    let mut found: Vec<InFlight> = machine
        .on_sockets()
        .filter(|(socket, ..)| machine.sockets.may_have_queue(*socket))
        .filter_map(|(socket, pid, tid, fd)| {
            let count = open::info_number(pid, tid, fd, "scm_fds:").filter(|count| *count > 0)?;
            let seen = if full { peek(machine, pid, fd) } else { Vec::new() };
            Some(InFlight { pid, fd, socket, count, seen })
        })
        .collect();
    found.sort_by_key(|flight| (flight.socket, flight.pid, flight.fd));
    found
}

/// Looks at the first message that carries descriptors, and leaves it in the queue.
///
/// The socket is reached through a copy of the process's descriptor; nothing is taken or marked. What is
/// behind the first such message stays unseen.
fn peek(machine: &Machine, pid: i32, fd: i32) -> Vec<Option<Id>> {
    let Ok(socket) = open::borrow(pid, fd) else { return Vec::new() };
    const MOST: usize = 253; // SCM_MAX_FD of include/net/scm.h
    let mut space = nix::cmsg_space!([i32; MOST], libc::ucred);
    let mut bytes = vec![0; 1 << 16];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) else {
        return Vec::new();
    };
    let Ok(cmsgs) = message.cmsgs() else { return Vec::new() };
    let copies = cmsgs.filter_map(|cmsg| if let ControlMessageOwned::ScmRights(fds) = cmsg { Some(fds) } else { None });
    let us = nix::unistd::getpid().as_raw();
    copies
        .flatten()
        .map(|fd| {
            // SAFETY: the kernel just made it for us; nobody else knows its number.
            let copy = unsafe { OwnedFd::from_raw_fd(fd) };
            machine.channel(us, us, copy.as_raw_fd()).map(|channel| channel.id)
        })
        .collect()
}
