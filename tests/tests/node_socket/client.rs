//! A client that can be rude.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use pipewarden::ownership::node::frame::Lines;
use pipewarden::ownership::node::protocol::{Ask, Code, Holders, Message, Request, Tell};
use pipewarden_tests::deadline::Deadline;

/// What came in answer.
#[derive(Debug)]
pub struct Answer {
    pub tell: Tell,
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// What an error says.
    pub fn error(&self) -> (Code, &str) {
        match &self.tell {
            Tell::Error { code, message } => (*code, message),
            other => panic!("no error: {other:?}"),
        }
    }
}

pub struct Client {
    pub stream: UnixStream,
    lines: Lines<OwnedFd>,
    /// Events that came while an answer was waited for.
    events: VecDeque<Tell>,
    next: u64,
}

impl Client {
    /// Connects, and says nothing.
    pub fn mute(socket: &Path) -> Client {
        Client::over(UnixStream::connect(socket).unwrap())
    }

    pub fn over(stream: UnixStream) -> Client {
        Client { stream, lines: Lines::default(), events: VecDeque::new(), next: 1 }
    }

    /// Connects and says hello.
    pub fn greeting(socket: &Path) -> Client {
        let mut client = Client::mute(socket);
        let answer = client.ask(Ask::Hello { program: "test".into() }, &[]);
        assert!(matches!(answer.tell, Tell::Hello { .. }), "{answer:?}");
        client
    }

    /// Sends bytes, with descriptors.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
    }

    /// Sends a request; its id.
    pub fn request(&mut self, ask: Ask, fds: &[BorrowedFd<'_>]) -> u64 {
        let id = self.next;
        self.next += 1;
        self.send(&Request::new(id, ask).line(), fds).unwrap();
        id
    }

    /// Sends a request, and waits for its answer.
    pub fn ask(&mut self, ask: Ask, fds: &[BorrowedFd<'_>]) -> Answer {
        let id = self.request(ask, fds);
        self.answer(id)
    }

    pub fn watch(&mut self, read: &impl AsFd) -> u64 {
        match self.ask(Ask::Watch, &[read.as_fd()]).tell {
            Tell::Watching { watch, .. } => watch,
            other => panic!("{other:?}"),
        }
    }

    /// All parts of an answer about holders, and the pidfds in their order.
    pub fn holders(&mut self, watch: Option<u64>, fds: &[BorrowedFd<'_>]) -> (Holders, Vec<OwnedFd>) {
        let id = self.request(Ask::Resolve { watch }, fds);
        self.holders_of(id)
    }

    pub fn holders_of(&mut self, id: u64) -> (Holders, Vec<OwnedFd>) {
        let (mut all, mut pidfds) = (None::<Holders>, Vec::new());
        loop {
            let Answer { tell, fds } = self.answer(id);
            let Tell::Holders(part) = tell else { panic!("{tell:?}") };
            assert_eq!(part.holders.len(), fds.len(), "one pidfd for each holder of the part");
            pidfds.extend(fds);
            let more = part.more;
            match &mut all {
                None => all = Some(part),
                Some(all) => all.holders.extend(part.holders),
            }
            if !more {
                return (all.unwrap(), pidfds);
            }
        }
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self, id: u64) -> Answer {
        loop {
            let (message, fds) = self.message().unwrap_or_else(|| panic!("no answer to {id}: the node hung up"));
            if message.id == id {
                return Answer { tell: message.tell, fds };
            }
            assert_eq!(message.id, 0, "{message:?}");
            self.events.push_back(message.tell);
        }
    }

    /// Waits for an event that is wanted; others are passed over.
    pub fn event(&mut self, wanted: impl Fn(&Tell) -> bool) -> Tell {
        loop {
            let tell = match self.events.pop_front() {
                Some(tell) => tell,
                None => self.message().expect("the node hung up").0.tell,
            };
            if wanted(&tell) {
                return tell;
            }
        }
    }

    /// Waits for the next message. None at the end.
    pub fn message(&mut self) -> Option<(Message, Vec<OwnedFd>)> {
        loop {
            if let Some(line) = self.lines.next_line().unwrap() {
                return Some((Message::parse(&line.bytes).unwrap(), line.passed));
            }
            if !self.read() {
                return None;
            }
        }
    }

    #[allow(dead_code, reason = "the next tests need it")]
    /// Waits until the node hangs up; the errors that it says before.
    pub fn last_words(&mut self) -> Vec<(u64, Code)> {
        let mut said = Vec::new();
        while let Some((message, _)) = self.message() {
            if let Tell::Error { code, .. } = message.tell {
                said.push((message.id, code));
            }
        }
        said
    }

    fn read(&mut self) -> bool {
        assert!(Deadline::patient().wait(self.stream.as_fd(), PollFlags::POLLIN), "the node says nothing");
        let mut control = cmsg_space!([RawFd; 253]);
        let mut buffer = [0; 16384];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::ECONNRESET) => return false, // it had not read all that we sent
            Err(error) => panic!("{error}"),
        };
        let mut fds = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(passed) = part {
                // SAFETY: the kernel just made them for us.
                fds.extend(passed.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let bytes = message.bytes;
        assert!(self.lines.push(&buffer[..bytes], fds).is_empty());
        bytes > 0
    }
}
