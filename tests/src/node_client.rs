//! A client of a node's socket that can be rude, and one that is a process of its own.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use pipewarden::ownership::node::frame::Lines;
use pipewarden::ownership::node::protocol::{Ask, Code, Holders, Message, Request, Tell};
use serde_json::Value;

use crate::binaries::binary;
use crate::deadline::Deadline;

/// What came in answer.
#[derive(Debug)]
pub struct Answer {
    /// What is said.
    pub tell: Tell,
    /// What was passed with it.
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// What an error says.
    #[must_use]
    pub fn error(&self) -> (Code, &str) {
        match &self.tell {
            Tell::Error { code, message } => (*code, message),
            other => panic!("no error: {other:?}"),
        }
    }
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    /// The connection itself.
    pub stream: UnixStream,
    lines: Lines<OwnedFd>,
    /// Events that came while an answer was waited for.
    events: VecDeque<Tell>,
    next: u64,
}

impl Client {
    /// Connects, and says nothing.
    #[must_use]
    pub fn mute(socket: &Path) -> Client {
        Client::over(UnixStream::connect(socket).unwrap())
    }

    /// Speaks over a connection that somebody made.
    #[must_use]
    pub fn over(stream: UnixStream) -> Client {
        Client { stream, lines: Lines::default(), events: VecDeque::new(), next: 1 }
    }

    /// Connects and says hello.
    #[must_use]
    pub fn greeting(socket: &Path) -> Client {
        let mut client = Client::mute(socket);
        let answer = client.ask(Ask::Hello { program: "test".into() }, &[]);
        assert!(matches!(answer.tell, Tell::Hello { .. }), "{answer:?}");
        client
    }

    /// Sends bytes, with descriptors: how many bytes.
    ///
    /// # Errors
    ///
    /// Those of sendmsg(2).
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

    /// Watches a pipe; the number of the watch.
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

    /// The same for a question that was sent already.
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

    /// Sends a request, and listens until the node hangs up: the errors that it says.
    pub fn request_and_listen(&mut self, ask: Ask) -> Vec<(u64, Code)> {
        let line = Request::new(self.next, ask).line();
        let _ = self.send(&line, &[]);
        self.last_words()
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

/// A copy of one of our programs that other users may run. Another process makes it: nobody could run what a
/// child of another test still has open for writing.
#[must_use]
pub fn for_everybody(program: &str, folder: &Path, mode: &str) -> PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.join(format!("{program}-{mode}"));
    let mut install = Command::new("install");
    install.args(["-m", mode]).arg(binary(program)).arg(&path);
    assert!(install.status().unwrap().success());
    path
}

/// `ask_node` at work.
#[derive(Debug)]
pub struct Answers {
    child: Child,
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
    folder: Option<tempfile::TempDir>,
}

impl Answers {
    /// Started by this command, with these descriptors under these numbers.
    #[must_use]
    pub fn started(mut command: Command, fds: &[(i32, OwnedFd)]) -> Answers {
        // Out of the way of the numbers.
        let copy = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap();
        let copies: Vec<(RawFd, RawFd)> = fds.iter().map(|(number, fd)| (copy(fd), *number)).collect();
        let given = copies.clone();
        // SAFETY: dup2 is a system call and nothing else.
        unsafe {
            command.pre_exec(move || {
                for (fd, number) in &given {
                    Errno::result(libc::dup2(*fd, *number))?;
                }
                Ok(())
            });
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        for (fd, _) in copies {
            // SAFETY: it is ours, and nobody else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let (orders, said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Answers { child, orders, said, folder: None }
    }

    /// Of a user who is nobody, about a pipe of his own.
    #[must_use]
    pub fn of_nobody(socket: &Path) -> Answers {
        let folder = tempfile::tempdir().unwrap();
        let program = for_everybody("ask_node", folder.path(), "0755");
        let mut command = Command::new(program);
        command.arg(socket).current_dir("/").uid(65534).gid(65534);
        let mut answers = Answers::started(command, &[]);
        answers.folder = Some(folder);
        answers
    }

    /// Asks once more.
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub fn another(&mut self) -> Value {
        self.orders.write_all(b"\n").unwrap();
        let there = Deadline::patient().wait(self.said.get_ref().as_fd(), PollFlags::POLLIN);
        assert!(there, "ask_node says nothing");
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.folder.take());
    }
}
