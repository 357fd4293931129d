//! One connection: what came and is not served yet, and what is to be sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use super::exchange::Asked;
use super::peer::Peer;
use super::say::Draft;
use super::wire::{self, Received};
use crate::ownership::node::frame::Lines;
use crate::ownership::node::protocol::{Code, LONGEST, Message, Tell};
use crate::pipe::Pipe;

/// What is read at once.
const PART: usize = 16 * 1024;
/// Who has more than this to take is not listened to; beyond the second he is slow.
const HIGH: usize = LONGEST;
const TOO_HIGH: usize = 4 * LONGEST;
/// Questions to the map that have no answer yet.
const QUESTIONS: usize = 8;
/// Descriptors that were sent and may not have been received.
const GIVEN: usize = 512;

/// What to send.
#[derive(Debug)]
enum Parcel {
    Line {
        bytes: Vec<u8>,
        sent: usize,
        fds: Vec<OwnedFd>,
    },
    /// Its pidfds are made when it is its turn: nobody has more of them than one message's.
    Draft(Box<Draft>),
}

impl Parcel {
    fn size(&self) -> usize {
        match self {
            Parcel::Line { bytes, .. } => bytes.len(),
            Parcel::Draft(draft) => draft.size(),
        }
    }
}

/// What has to be done once a passed descriptor is closed.
#[derive(Debug)]
pub(super) enum Then {
    Ask(Asked),
    Refuse(u64, Code, String),
}

/// How sending went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything was, or waits for room in the socket.
    Fine,
    /// The other side has to take what was passed before more is.
    Later,
    /// It is gone.
    Over,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    pub(super) peer: Peer,
    lines: Lines<OwnedFd>,
    parcels: VecDeque<Parcel>,
    /// Bytes in `parcels`.
    to_send: usize,
    /// What all this was counted as last.
    pub(super) counted: usize,
    /// Descriptors that were sent since everything was known to be received.
    pub(super) given: usize,
    /// Whether it said hello.
    pub(super) greeted: bool,
    pub(super) watches: HashMap<u64, Pipe>,
    pub(super) next_watch: u64,
    /// Questions to the map that have no answer yet.
    pub(super) questions: usize,
    /// What waits for a descriptor to be closed.
    pub(super) then: Option<Then>,
    /// Not listened to until then.
    pub(super) paused: Option<Instant>,
    /// Since when it has been owing us something: a hello, or the rest of a line.
    pub(super) owing: Option<Instant>,
    /// Nothing is read any more, and what is left is sent.
    pub(super) last: bool,
    /// What it is registered for.
    pub(super) interest: EpollFlags,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, peer: Peer, now: Instant) -> Connection {
        Connection {
            socket,
            peer,
            lines: Lines::default(),
            parcels: VecDeque::new(),
            to_send: 0,
            counted: 0,
            given: 0,
            greeted: false,
            watches: HashMap::new(),
            next_watch: 1,
            questions: 0,
            then: None,
            paused: None,
            owing: Some(now),
            last: false,
            interest: EpollFlags::empty(),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the next line may be served.
    pub(super) fn listens(&self) -> bool {
        let free = self.then.is_none() && self.paused.is_none() && self.questions < QUESTIONS;
        free && !self.last && self.to_send <= HIGH
    }

    /// What it should be registered for.
    pub(super) fn wanted(&self, stuck: bool) -> EpollFlags {
        let mut wanted = EpollFlags::empty();
        if self.listens() {
            wanted |= EpollFlags::EPOLLIN;
        }
        if !self.parcels.is_empty() && !stuck {
            wanted |= EpollFlags::EPOLLOUT;
        }
        wanted
    }

    /// Reads once. Nothing at all is the end.
    pub(super) fn receive(&mut self) -> io::Result<(Received, Vec<u8>)> {
        let mut buffer = vec![0; PART];
        let received = wire::receive(&self.socket, &mut buffer)?;
        buffer.truncate(received.bytes);
        Ok((received, buffer))
    }

    pub(super) fn lines(&mut self) -> &mut Lines<OwnedFd> {
        &mut self.lines
    }

    /// Bytes that it takes up.
    pub(super) fn size(&self) -> usize {
        self.lines.pending() + self.to_send
    }

    /// Puts a message among those to be sent.
    pub(super) fn tell(&mut self, id: u64, tell: Tell) {
        self.put_line(Message::answer(id, tell).line());
    }

    pub(super) fn put_line(&mut self, bytes: Vec<u8>) {
        self.put(Parcel::Line { bytes, sent: 0, fds: Vec::new() });
    }

    pub(super) fn put_draft(&mut self, draft: Draft) {
        self.put(Parcel::Draft(Box::new(draft)));
    }

    fn put(&mut self, parcel: Parcel) {
        self.to_send += parcel.size();
        self.parcels.push_back(parcel);
    }

    /// Whether it leaves too much untaken.
    pub(super) fn is_slow(&self) -> bool {
        self.to_send > TOO_HIGH
    }

    /// Whether nothing is left to be sent.
    pub(super) fn is_sent(&self) -> bool {
        self.parcels.is_empty()
    }

    /// What is to be closed, by somebody who can wait: the socket, and what was passed for no whole line.
    pub(super) fn into_parts(mut self) -> (OwnedFd, Vec<OwnedFd>) {
        let passed = self.lines.take_passed();
        (self.socket, passed)
    }

    /// Sends what can be sent. `may_give` says whether so many more descriptors may be passed to this peer.
    pub(super) fn send(&mut self, mut may_give: impl FnMut(&mut usize, usize) -> bool) -> Sent {
        while let Some(parcel) = self.parcels.front_mut() {
            if let Parcel::Draft(draft) = parcel {
                let number = draft.fds();
                if self.given > 0 && self.given + number > GIVEN && !wire::all_received(&self.socket) {
                    return Sent::Later;
                }
                if !may_give(&mut self.given, number) {
                    return Sent::Later;
                }
                let Some(Parcel::Draft(draft)) = self.parcels.pop_front() else { return Sent::Over };
                self.to_send -= draft.size();
                let (bytes, fds) = draft.finish();
                self.to_send += bytes.len();
                self.parcels.push_front(Parcel::Line { bytes, sent: 0, fds });
                continue;
            }
            let Parcel::Line { bytes, sent, fds } = parcel else { return Sent::Over };
            match wire::send(&self.socket, &bytes[*sent..], fds) {
                Ok(number) => {
                    *sent += number;
                    fds.clear();
                    if *sent == bytes.len() {
                        self.to_send -= bytes.len();
                        self.parcels.pop_front();
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Sent::Fine,
                    Some(libc::EINTR) => {}
                    // The kernel has too many descriptors of ours under way already.
                    Some(libc::ETOOMANYREFS | libc::ENOMEM | libc::ENOBUFS) => return Sent::Later,
                    _ => return Sent::Over,
                },
            }
        }
        Sent::Fine
    }

    /// Whether everything that was passed is received.
    pub(super) fn all_received(&self) -> bool {
        wire::all_received(&self.socket)
    }
}
