//! The thread that serves: it accepts, reads lines, judges descriptors and sends answers, and never waits for
//! anybody but for all of them. What only the map knows is asked of the thread that has it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Connection, Sent, Then};
use super::counts::Counts;
use super::exchange::{Asked, Post, Question, Said, Word};
use super::hands::{Hands, Token};
use super::listener::Listener;
use super::peer::Peer;
use super::quota::{Quota, What, Who};
use super::{descriptor, say, wire};
use crate::ownership::node::protocol::{Ask, Code, Message, Request, Tell};

/// In the epoll's events, what is no connection.
const LISTENER: u64 = 0;
const WAKE: u64 = 1;
/// Whose closes are nobody's in particular.
const NOBODY: Who = Who { uid: u32::MAX, cgroup: 0 };
/// Closes that wait; while there are more, nobody is accepted.
const CLOSES: usize = 1024;
/// Accepted at once, before anybody else is served.
const ACCEPTS: usize = 16;
/// Words that are passed on at once.
const WORDS: usize = 1024;
/// Lines of one connection that are served at once.
const LINES: usize = 16;
/// Who owes a hello, or the rest of a line, for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at, and how soon what could not be done is tried again.
const SWEEP: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(5);
/// The most watches of one connection.
const WATCHES: usize = 256;

/// What the thread has.
pub(super) struct Server {
    pub(super) listener: Listener,
    pub(super) questions: Arc<Post<Question>>,
    pub(super) words: Arc<Post<Word>>,
    pub(super) counts: Arc<Counts>,
    pub(super) hands: Hands,
    /// How the live map is attached, and this boot of the machine.
    pub(super) rung: &'static str,
    pub(super) boot: String,
    pub(super) pipefs: u64,
    pub(super) epoll: Epoll,
    pub(super) connections: HashMap<u64, Connection>,
    pub(super) quota: Quota,
    pub(super) next: u64,
    /// Connections to be tried again soon.
    pub(super) again: Vec<u64>,
    pub(super) next_sweep: Instant,
    /// Nobody is accepted until then, because there was no descriptor.
    pub(super) full_until: Option<Instant>,
}

impl Server {
    /// Registers what there is from the beginning.
    ///
    /// # Errors
    ///
    /// When there is no epoll to be had.
    pub(super) fn epoll(listener: &Listener, words: &Post<Word>) -> io::Result<Epoll> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(words.wake().as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(epoll)
    }

    /// Serves until it is told that it is over, or the kernel refuses what it needs.
    pub(super) fn serve(mut self, over: &AtomicBool) {
        let mut events = vec![EpollEvent::empty(); 128];
        while !over.load(Ordering::Relaxed) {
            let soon = !self.again.is_empty() || self.full_until.is_some() || self.words.len() > 0;
            let wait = if soon { AGAIN } else { SWEEP };
            let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO);
            let number = match self.epoll.wait(&mut events, timeout) {
                Ok(number) => number,
                Err(Errno::EINTR) => 0,
                Err(_) => return,
            };
            let now = Instant::now();
            for event in &events[..number] {
                match event.data() {
                    LISTENER => self.accept(now),
                    WAKE => {}
                    id => self.turn(id, event.events(), now),
                }
            }
            self.take_words(now);
            self.take_closed(now);
            self.try_again(now);
            self.sweep(now);
        }
    }

    /// Lets in who is there, as far as there is room.
    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            if self.hands.waiting() > CLOSES {
                return self.accept_nobody_until(now + Duration::from_millis(100));
            }
            match self.listener.accept() {
                Ok(socket) => self.let_in(socket, now),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                        return self.accept_nobody_until(now + Duration::from_millis(100));
                    }
                    Some(libc::EAGAIN) => return,
                    _ => {} // that one is gone already
                },
            }
        }
    }

    fn accept_nobody_until(&mut self, until: Instant) {
        self.full_until = Some(until);
        let _ = self.epoll.delete(self.listener.as_fd());
    }

    fn let_in(&mut self, socket: OwnedFd, now: Instant) {
        Counts::add(&self.counts.connections);
        let Ok(peer) = Peer::of(&socket) else {
            Counts::add(&self.counts.refused_peer);
            let message = "the process that connected is gone; connect from one that stays";
            return self.turn_away(socket, NOBODY, Code::Peer, message);
        };
        if !self.quota.take(peer.who, What::Connections, 1) {
            Counts::add(&self.counts.refused_busy);
            let message = "there are too many connections from this user or cgroup; close some, and try again";
            return self.turn_away(socket, peer.who, Code::Busy, message);
        }
        let id = self.next;
        self.next += 1;
        let mut connection = Connection::new(socket, peer, now);
        connection.interest = EpollFlags::EPOLLIN;
        if self.epoll.add(connection.fd(), EpollEvent::new(connection.interest, id)).is_err() {
            self.quota.give(connection.peer.who, What::Connections, 1);
            return;
        }
        Counts::add(&self.counts.open);
        self.connections.insert(id, connection);
    }

    /// Something is to be done for a connection.
    fn turn(&mut self, id: u64, events: EpollFlags, now: Instant) {
        if events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return self.end(id);
        }
        if events.contains(EpollFlags::EPOLLIN) && !self.read(id, now) {
            return self.end(id);
        }
        self.go_on(id, now);
    }

    /// Reads once; whether the connection goes on.
    fn read(&mut self, id: u64, now: Instant) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return true };
        let who = connection.peer.who;
        if !connection.listens() {
            return true;
        }
        if self.quota.is_spent(who, What::Taken) {
            // Until what it passed before is closed.
            connection.paused = Some(now + AGAIN);
            return true;
        }
        let (received, bytes) = match connection.receive() {
            Ok(received) => received,
            Err(error) => return matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)),
        };
        let number = received.fds.len();
        self.quota.add(who, What::Taken, number);
        let lost = connection.lines().push(&bytes, received.fds);
        if !lost.is_empty() {
            let token = Token { connection: 0, who, counted: (What::Taken, lost.len()) };
            self.hands.close(token, lost);
        }
        if received.truncated {
            let message = "there was no room for the descriptors that came; try again later".to_owned();
            connection.tell(0, Tell::Error { code: Code::Busy, message });
            connection.last = true;
        }
        received.bytes > 0
    }

    /// Serves what was read, and sends what there is.
    fn go_on(&mut self, id: u64, now: Instant) {
        for _ in 0..LINES {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if !connection.listens() {
                break;
            }
            match connection.lines().next_line() {
                Ok(Some(line)) => {
                    connection.owing = (!connection.greeted).then_some(connection.owing).flatten();
                    self.serve_line(id, &line.bytes, line.passed, now);
                }
                Ok(None) => {
                    let half = connection.lines().pending() > 0 || !connection.greeted;
                    connection.owing = half.then(|| connection.owing.unwrap_or(now));
                    break;
                }
                Err(error) => {
                    Counts::add(&self.counts.refused_malformed);
                    connection.tell(0, Tell::Error { code: Code::TooLong, message: error.to_string() });
                    connection.last = true;
                }
            }
        }
        self.send(id);
        // There may be another whole line.
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.listens()
            && connection.lines().has_line()
        {
            self.again.push(id);
        }
    }

    fn serve_line(&mut self, id: u64, line: &[u8], passed: Vec<OwnedFd>, now: Instant) {
        Counts::add(&self.counts.requests);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let who = connection.peer.who;
        if let Some(wait) = self.quota.request(who, now) {
            connection.paused = Some(now + wait);
        }
        let then = if connection.peer.is_the_same() {
            self.judge(id, line, &passed)
        } else {
            Counts::add(&self.counts.refused_peer);
            let message = "the process that connected runs another program by now, or is gone; connect again";
            Some(Then::Refuse(0, Code::Peer, message.to_owned()))
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if passed.is_empty() {
            if let Some(then) = then {
                self.then(id, then);
            }
        } else {
            // First they are closed; the answer comes after.
            connection.then = then;
            let counted = (What::Taken, passed.len());
            self.hands.close(Token { connection: id, who, counted }, passed);
        }
    }

    /// What a line comes to. None when all is said.
    fn judge(&mut self, id: u64, line: &[u8], passed: &[OwnedFd]) -> Option<Then> {
        let connection = self.connections.get_mut(&id)?;
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err(bad) => {
                Counts::add(&self.counts.refused_malformed);
                return Some(Then::Refuse(bad.id, bad.code, bad.message));
            }
        };
        let refuse = |code, message: &str| Some(Then::Refuse(request.id, code, message.to_owned()));
        if !connection.greeted && !matches!(request.ask, Ask::Hello { .. }) {
            return refuse(Code::NoHello, "the first request is a hello");
        }
        let pipe = match (request.ask.takes_descriptor(), passed) {
            (false, []) => None,
            (true, [one]) => match descriptor::judge(one.as_fd(), self.pipefs) {
                Ok(pipe) => Some(pipe),
                Err(why) => {
                    Counts::add(&self.counts.refused_descriptors);
                    return refuse(Code::Descriptor, why);
                }
            },
            (true, []) => {
                Counts::add(&self.counts.refused_descriptors);
                return refuse(Code::Descriptor, "no descriptor came along; pass the read end of a pipe or FIFO");
            }
            _ => {
                Counts::add(&self.counts.refused_descriptors);
                return refuse(Code::Descriptor, "too many descriptors came along; pass one where one is needed");
            }
        };
        let id = request.id;
        let asked = match (request.ask, pipe) {
            (Ask::Hello { .. }, _) => {
                connection.greeted = true;
                connection.owing = None;
                let (version, rung) = (env!("CARGO_PKG_VERSION").to_owned(), self.rung.to_owned());
                connection.tell(id, Tell::Hello { version, rung, boot: self.boot.clone() });
                return None;
            }
            (Ask::Watch, Some(pipe)) => {
                let room = connection.watches.len() < WATCHES;
                if !room || !self.quota.take(connection.peer.who, What::Watches, 1) {
                    Counts::add(&self.counts.refused_busy);
                    return refuse(Code::Busy, "there are too many watches of this user or cgroup; end some");
                }
                let watch = connection.next_watch;
                connection.next_watch += 1;
                connection.watches.insert(watch, pipe);
                Counts::add(&self.counts.watches);
                Asked::Watch { id, watch, pipe }
            }
            (Ask::Unwatch { watch }, _) => {
                if connection.watches.remove(&watch).is_none() {
                    Counts::add(&self.counts.refused_watch);
                    return refuse(Code::NoWatch, "there is no such watch on this connection");
                }
                self.quota.give(connection.peer.who, What::Watches, 1);
                Counts::take(&self.counts.watches);
                connection.tell(id, Tell::Unwatched { watch });
                Asked::Unwatch { watch }
            }
            (Ask::Resolve { watch: Some(watch) }, _) => {
                if !connection.watches.contains_key(&watch) {
                    Counts::add(&self.counts.refused_watch);
                    return refuse(Code::NoWatch, "there is no such watch on this connection");
                }
                Asked::ResolveWatch { id, watch }
            }
            (Ask::Resolve { watch: None }, Some(pipe)) => Asked::Resolve { id, pipe },
            (Ask::Why, _) => Asked::Why { id },
            (Ask::Watch | Ask::Resolve { .. }, None) => return refuse(Code::Descriptor, "no descriptor came along"),
        };
        Some(Then::Ask(asked))
    }

    /// Does what is to be done, now that nothing of the request is open any more.
    fn then(&mut self, id: u64, then: Then) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match then {
            Then::Ask(asked) => {
                connection.questions += usize::from(!matches!(asked, Asked::Unwatch { .. }));
                self.questions.put(Question { connection: id, peer: connection.peer.id, asked });
            }
            Then::Refuse(request, code, message) => {
                connection.tell(request, Tell::Error { code, message });
                connection.last |= code.is_final();
            }
        }
    }

    /// What was closed meanwhile.
    fn take_closed(&mut self, now: Instant) {
        for Token { connection: id, who, counted: (what, number) } in self.hands.closed() {
            self.quota.give(who, what, number);
            if what == What::Taken
                && let Some(then) = self.connections.get_mut(&id).and_then(|connection| connection.then.take())
            {
                self.then(id, then);
                self.go_on(id, now);
            }
        }
    }

    /// Passes on what the map's thread says.
    fn take_words(&mut self, now: Instant) {
        for Word { connection: id, said } in self.words.take(WORDS) {
            if let Said::Lost { why, missed } = said {
                let watching = self.connections.iter_mut().filter(|(_, connection)| !connection.watches.is_empty());
                let ids: Vec<u64> = watching
                    .map(|(id, connection)| {
                        connection.tell(0, Tell::Lost { why: why.clone(), missed });
                        *id
                    })
                    .collect();
                ids.into_iter().for_each(|id| self.send(id));
            } else {
                self.say(id, said);
                self.go_on(id, now);
            }
        }
    }

    fn say(&mut self, id: u64, said: Said) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let peer = &connection.peer;
        let answered =
            !matches!(said, Said::Eof { .. } | Said::Changed { .. } | Said::Escape { .. } | Said::Ended { .. });
        connection.questions = connection.questions.saturating_sub(usize::from(answered));
        match said {
            Said::Watching { id, watch, pipe } => connection.tell(id, Tell::Watching { watch, pipe: pipe.into() }),
            Said::Holding { id, pipe, holding, exact } => {
                let drafts = say::holders(peer, id, pipe, &holding, exact);
                // Who has many holders asks for more than others do.
                let (who, now) = (peer.who, Instant::now());
                for _ in 0..holding.parts.len() / 4 {
                    connection.paused = self.quota.request(who, now).map(|wait| now + wait).or(connection.paused);
                }
                drafts.into_iter().for_each(|draft| connection.put_draft(draft));
            }
            Said::Own { id, own, exact } => {
                let lines = say::own(peer, id, self.pipefs, &own, exact);
                lines.into_iter().for_each(|line| connection.put_line(line));
            }
            Said::Refused { id, code, message, watch } => {
                if watch.is_some_and(|watch| connection.watches.remove(&watch).is_some()) {
                    self.quota.give(connection.peer.who, What::Watches, 1);
                    Counts::take(&self.counts.watches);
                }
                let counts = &self.counts;
                let count = match code {
                    Code::NotHeld | Code::NoWatch => &counts.refused_watch,
                    _ => &counts.refused_unavailable,
                };
                Counts::add(count);
                connection.tell(id, Tell::Error { code, message });
                connection.last |= code.is_final();
            }
            Said::Eof { watch } if connection.watches.contains_key(&watch) => connection.tell(0, Tell::Eof { watch }),
            Said::Changed { watch } if connection.watches.contains_key(&watch) => {
                connection.tell(0, Tell::Changed { watch });
            }
            Said::Escape { watch, fled } if connection.watches.contains_key(&watch) => {
                if let Some(tell) = say::escape(peer, watch, &fled) {
                    connection.tell(0, tell);
                }
            }
            Said::Ended { watch } => {
                if connection.watches.remove(&watch).is_some() {
                    self.quota.give(connection.peer.who, What::Watches, 1);
                    Counts::take(&self.counts.watches);
                    connection.tell(0, Tell::Ended { watch });
                }
            }
            Said::Eof { .. } | Said::Changed { .. } | Said::Escape { .. } | Said::Lost { .. } => {}
        }
        Counts::add(&self.counts.messages);
    }

    /// Sends what can be sent, and registers for what is left.
    fn send(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let who = connection.peer.who;
        if connection.given > 0 && connection.all_received() {
            self.quota.give(who, What::Given, connection.given);
            connection.given = 0;
        }
        let quota = &mut self.quota;
        let sent = connection.send(|given, number| {
            let may = quota.take(who, What::Given, number);
            *given += if may { number } else { 0 };
            may
        });
        if sent == Sent::Later {
            self.again.push(id);
        }
        let size = connection.size();
        self.quota.give(who, What::Bytes, connection.counted);
        self.quota.add(who, What::Bytes, size);
        connection.counted = size;
        let greedy = size > 0 && self.quota.is_spent(who, What::Bytes);
        let slow = connection.is_slow() || greedy;
        if slow {
            Counts::add(&self.counts.slow);
        }
        if slow || sent == Sent::Over || connection.last && connection.is_sent() {
            return self.end(id);
        }
        if connection.paused.is_some() {
            self.again.push(id);
        }
        let wanted = connection.wanted(sent == Sent::Later);
        if wanted != connection.interest {
            connection.interest = wanted;
            let mut event = EpollEvent::new(wanted, id);
            if self.epoll.modify(connection.fd(), &mut event).is_err() {
                self.end(id);
            }
        }
    }

    /// What could not be done a moment ago.
    fn try_again(&mut self, now: Instant) {
        if self.full_until.is_some_and(|until| now >= until) {
            self.full_until = None;
            let _ = self.epoll.add(self.listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER));
        }
        let mut again = std::mem::take(&mut self.again);
        again.sort_unstable();
        again.dedup();
        for id in again {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.paused.is_some_and(|until| now >= until) {
                connection.paused = None;
            }
            self.go_on(id, now);
        }
    }

    /// Ends who owes us something for too long, and takes back what was received.
    fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP;
        let late = |connection: &Connection| connection.owing.is_some_and(|since| now >= since + PATIENCE);
        let ids: Vec<u64> = self.connections.iter().filter(|(_, one)| late(one)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(&id) {
                let message = "a hello, or the rest of a line, did not come within 10 s; connect again".to_owned();
                connection.tell(0, Tell::Error { code: Code::Malformed, message });
                connection.last = true;
                connection.owing = None;
                self.send(id);
            }
        }
        for connection in self.connections.values_mut() {
            if connection.given > 0 && connection.all_received() {
                self.quota.give(connection.peer.who, What::Given, connection.given);
                connection.given = 0;
            }
        }
    }

    /// Closes a connection, by somebody who can wait.
    fn end(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let _ = self.epoll.delete(connection.fd());
        let (who, counts) = (connection.peer.who, &self.counts);
        Counts::take(&counts.open);
        counts.watches.fetch_sub(connection.watches.len() as u64, Ordering::Relaxed);
        self.quota.give(who, What::Watches, connection.watches.len());
        self.quota.give(who, What::Bytes, connection.counted);
        self.quota.give(who, What::Given, connection.given);
        self.questions.put(Question { connection: id, peer: connection.peer.id, asked: Asked::Over });
        let (socket, passed) = connection.into_parts();
        if !passed.is_empty() {
            self.hands.close(Token { connection: id, who, counted: (What::Taken, passed.len()) }, passed);
        }
        self.hands.close(Token { connection: id, who, counted: (What::Connections, 1) }, vec![socket]);
    }

    /// Says why to who is not let in. What does not fit is not said.
    fn turn_away(&self, socket: OwnedFd, who: Who, code: Code, message: &str) {
        let line = Message::event(Tell::Error { code, message: message.to_owned() }).line();
        let _ = wire::send(&socket, &line, &[]);
        // He may have passed something already, so that this close may wait too.
        self.hands.close(Token { connection: 0, who, counted: (What::Connections, 0) }, vec![socket]);
    }
}
