//! Which unix socket is connected to which: `sock_diag(7)`, the only place where the kernel says it.
//!
//! One request and one dump of fixed structures, so it is spoken here directly: a netlink crate would
//! bring more code than it saves.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// What the kernel says about a unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// The inode number of the socket it is connected to; none when that is closed.
    pub peer: Option<u64>,
    /// Bytes that wait in it to be read; of a listening one, connections that wait to be accepted.
    pub waiting: Option<u32>,
    /// Whether it is of a type that keeps no message boundaries or never sends empty messages, so that
    /// nothing waiting means an empty queue.
    pub stream: bool,
}

/// The unix sockets of one network namespace, or of several.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    by_number: HashMap<u64, Socket>,
    /// What kept us from asking, in one line.
    pub failure: Option<String>,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20; // include/uapi/linux/sock_diag.h
const UDIAG_SHOW_PEER: u32 = 4; // include/uapi/linux/unix_diag.h
const UDIAG_SHOW_RQLEN: u32 = 16;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const HEADER: usize = 16; // sizeof(struct nlmsghdr)
const MESSAGE: usize = 16; // sizeof(struct unix_diag_msg)

impl Sockets {
    /// The sockets of our own network namespace.
    #[must_use]
    pub fn ours() -> Sockets {
        let mut sockets = Sockets::default();
        if let Err(error) = open().and_then(|asked| sockets.dump(&asked)) {
            sockets.failure = Some(format!("unix sockets: the kernel does not say who is connected ({error})"));
        }
        sockets
    }

    /// Adds those of the network namespace of a process, where it is not ours.
    ///
    /// Changes the calling thread's namespace for a moment.
    ///
    /// # Errors
    ///
    /// When we may not enter that namespace.
    pub fn add_those_of(&mut self, pid: i32) -> io::Result<()> {
        let path = |of: &str| format!("/proc/{of}/ns/net");
        if std::fs::read_link(path("self"))? == std::fs::read_link(path(&pid.to_string()))? {
            return Ok(());
        }
        let ours = File::open(path("self"))?;
        setns(File::open(path(&pid.to_string()))?, CloneFlags::CLONE_NEWNET)?;
        let asked = open();
        setns(ours, CloneFlags::CLONE_NEWNET)?;
        self.dump(&asked?)
    }

    /// What is known of a socket; nothing for one that is no unix socket or in another namespace.
    #[must_use]
    pub fn get(&self, ino: u64) -> Option<Socket> {
        self.by_number.get(&ino).copied()
    }

    /// Whether a socket may have something in its queue: false only when the kernel says so.
    #[must_use]
    pub fn may_have_queue(&self, ino: u64) -> bool {
        self.get(ino).is_none_or(|socket| !socket.stream || socket.waiting != Some(0))
    }

    fn dump(&mut self, asked: &OwnedFd) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = recv(asked.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..count];
            while rest.len() >= HEADER {
                let length = number32(rest, 0) as usize;
                let (Some(message), kind) = (rest.get(HEADER..length), number16(rest, 4)) else { return malformed() };
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(number32(message, 0).to_ne_bytes());
                        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                    }
                    _ => self.add(message),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
            if count == 0 {
                return malformed();
            }
        }
    }

    fn add(&mut self, message: &[u8]) {
        if message.len() < MESSAGE {
            return;
        }
        let kind = i32::from(message[1]);
        let mut socket = Socket { stream: kind != libc::SOCK_DGRAM, ..Socket::default() };
        let mut rest = &message[MESSAGE..];
        while rest.len() >= 4 {
            let length = usize::from(number16(rest, 0));
            let Some(value) = rest.get(4..length) else { break };
            match number16(rest, 2) {
                UNIX_DIAG_PEER => socket.peer = Some(u64::from(number32(value, 0))).filter(|peer| *peer != 0),
                UNIX_DIAG_RQLEN => socket.waiting = Some(number32(value, 0)),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.by_number.insert(u64::from(number32(message, 4)), socket);
    }
}

fn malformed() -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has an unknown form"))
}

/// A socket in the namespace that we are in now, with the question sent.
fn open() -> io::Result<OwnedFd> {
    let asked = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut request = Vec::with_capacity(HEADER + 24);
    // struct nlmsghdr, then struct unix_diag_req.
    request.extend_from_slice(&40_u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    request.extend_from_slice(&flags.to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence and port: one question, one answer
    request.extend_from_slice(&[u8::try_from(libc::AF_UNIX).unwrap_or(1), 0, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes()); // in any state
    request.extend_from_slice(&0_u32.to_ne_bytes()); // any inode
    request.extend_from_slice(&(UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN).to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // no cookie
    sendto(asked.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(asked)
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    fn number(socket: &UnixStream) -> u64 {
        nix::sys::stat::fstat(socket).unwrap().st_ino
    }

    #[test]
    fn the_two_sides_of_a_socketpair_know_each_other_and_their_bytes() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"12345").unwrap();
        let sockets = Sockets::ours();
        assert_eq!(sockets.failure, None);
        let (of_a, of_b) = (sockets.get(number(&a)).unwrap(), sockets.get(number(&b)).unwrap());
        assert_eq!((of_a.peer, of_b.peer), (Some(number(&b)), Some(number(&a))));
        assert_eq!((of_a.waiting, of_b.waiting), (Some(0), Some(5)));
        assert!(!sockets.may_have_queue(number(&a)) && sockets.may_have_queue(number(&b)));
        let ino = number(&a);
        drop(b);
        // A child that another test forked in between has a copy of it, until it executes or ends.
        let deadline = Instant::now() + Duration::from_secs(30);
        while Sockets::ours().get(ino).unwrap().peer.is_some() {
            assert!(Instant::now() < deadline, "whom it was connected to is gone");
            std::thread::yield_now();
        }
    }
}
