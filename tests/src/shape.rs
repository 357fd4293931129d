//! What a standard descriptor can be, and what arrives behind it.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;

use crate::stage::Stage;
use crate::terminal::Terminal;

/// What an output descriptor can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A terminal.
    Terminal,
    /// A pipe.
    Pipe,
    /// A pipe that somebody made non-blocking.
    NonBlockingPipe,
    /// A FIFO.
    Fifo,
    /// One of a pair of stream sockets, as Node gives its children.
    Socket,
    /// One of a pair of sockets that keep messages apart.
    Messages,
    /// A file.
    File,
    /// A file that is appended to.
    Append,
    /// `/dev/null`.
    Null,
    /// `/dev/full`.
    Full,
    /// A pipe's read end, which nobody can write to.
    ReadOnly,
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 11] = [
        Shape::Terminal,
        Shape::Pipe,
        Shape::NonBlockingPipe,
        Shape::Fifo,
        Shape::Socket,
        Shape::Messages,
        Shape::File,
        Shape::Append,
        Shape::Null,
        Shape::Full,
        Shape::ReadOnly,
    ];

    /// Whether a reader waits for its EOF, so that what is written to it goes through us.
    #[must_use]
    pub fn is_pumped(self) -> bool {
        matches!(self, Shape::Pipe | Shape::NonBlockingPipe | Shape::Fifo | Shape::Socket)
    }
}

/// An output descriptor, and who reads behind it.
#[derive(Debug)]
pub struct Outlet {
    fd: OwnedFd,
    end: End,
}

#[derive(Debug)]
enum End {
    Reader(JoinHandle<Vec<u8>>),
    File(std::path::PathBuf),
    Screen(Terminal),
    Nothing(#[allow(dead_code, reason = "only to keep it open")] Option<OwnedFd>),
}

impl Outlet {
    /// Makes one. A file is named after `name` and has one line already.
    #[must_use]
    pub fn new(stage: &Stage, name: &str, shape: Shape) -> Outlet {
        let pipe = |flags| nix::unistd::pipe2(OFlag::O_CLOEXEC | flags).unwrap();
        let path = stage.path(name);
        match shape {
            Shape::Terminal => {
                let terminal = Terminal::new();
                Outlet { fd: terminal.descriptor(), end: End::Screen(terminal) }
            }
            Shape::Pipe | Shape::NonBlockingPipe => {
                let (read, write) = pipe(OFlag::empty());
                if shape == Shape::NonBlockingPipe {
                    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
                }
                Outlet { fd: write, end: reader(read) }
            }
            Shape::Fifo => {
                nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
                let read =
                    nix::fcntl::open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
                let read = read.unwrap();
                let fd = OpenOptions::new().write(true).open(&path).unwrap().into();
                fcntl(&read, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
                Outlet { fd, end: reader(read) }
            }
            Shape::Socket | Shape::Messages => {
                let kind = if shape == Shape::Socket { SockType::Stream } else { SockType::SeqPacket };
                let pair = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
                Outlet { fd: pair.0, end: reader(pair.1) }
            }
            Shape::File | Shape::Append => {
                std::fs::write(&path, "a line from before, which is longer than what follows\n").unwrap();
                let mut options = OpenOptions::new();
                let fd = options.write(true).append(shape == Shape::Append).open(&path).unwrap().into();
                Outlet { fd, end: End::File(path) }
            }
            Shape::Null | Shape::Full => {
                let path = if shape == Shape::Null { "/dev/null" } else { "/dev/full" };
                Outlet { fd: OpenOptions::new().write(true).open(path).unwrap().into(), end: End::Nothing(None) }
            }
            Shape::ReadOnly => {
                let (read, write) = pipe(OFlag::empty());
                Outlet { fd: read, end: End::Nothing(Some(write)) }
            }
        }
    }

    /// A descriptor of the same description, for a program.
    #[must_use]
    pub fn stream(&self) -> Stdio {
        self.fd.try_clone().unwrap().into()
    }

    /// The flags of the description, which we share with the program.
    #[must_use]
    pub fn flags(&self) -> OFlag {
        OFlag::from_bits_retain(fcntl(self.fd.as_fd(), FcntlArg::F_GETFL).unwrap())
    }

    /// What arrived, once every program is gone that had it; messages with a mark after each.
    #[must_use]
    pub fn arrived(self) -> Vec<u8> {
        drop(self.fd);
        match self.end {
            End::Reader(reader) => reader.join().unwrap(),
            End::File(path) => {
                let mut bytes = Vec::new();
                File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            }
            End::Screen(mut terminal) => {
                terminal.settle();
                terminal.screen().into_bytes()
            }
            End::Nothing(_) => Vec::new(),
        }
    }
}

fn reader(fd: OwnedFd) -> End {
    let messages = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType) == Ok(SockType::SeqPacket);
    End::Reader(std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match nix::unistd::read(&fd, &mut buffer) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => panic!("reading what arrives: {error}"),
            }
            if messages {
                all.extend_from_slice(b"|");
            }
        }
    }))
}
