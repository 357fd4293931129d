//! The control socket: who may open it may see and steer. One JSON line in, one JSON line out.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use crate::pipe::ExitStatus;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How everything is.
    Status,
    /// Run this command; answered when it is ready.
    Start(String),
    /// End this command; answered when nothing of it is left.
    Stop(String),
    /// Start this command anew; answered when it is ready again.
    Restart(String),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How everything is.
    Status(Status),
    /// It was done.
    Done(String),
    /// It was not, and why.
    Refused(String),
}

/// How everything is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The manager's pid.
    pub pid: i32,
    /// The configuration file.
    pub config: String,
    /// Whether everything is being ended.
    pub shutting_down: bool,
    /// The commands, in the order of the file.
    pub commands: Vec<CommandStatus>,
}

/// How one command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `starting`, `running`, `stopping`, `backoff`, `stopped`, `finished` or `failed`.
    pub state: String,
    /// The command's pid, while it runs.
    pub pid: Option<i32>,
    /// The pid of the run that supervises it.
    pub run_pid: Option<i32>,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// When it is started again, in milliseconds from now.
    pub starts_in_ms: Option<u64>,
    /// How often it was started after the first time.
    pub restarts: u64,
    /// How it exited last.
    pub last_exit: Option<ExitStatus>,
    /// How many processes had to be ended because they held its pipes, in all its runs.
    pub holders_ended: u64,
    /// Whether everything ends with it.
    pub essential: bool,
}

/// The most that is waiting to be served; more are turned away.
const CLIENTS: usize = 64;
/// How long a client may take for its question, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest question, in bytes.
const LONGEST: usize = 4096;

/// Where the socket is if nobody says otherwise.
#[must_use]
pub fn default_path() -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    folder.map_or(PathBuf::from("/run"), PathBuf::from).join("pipewarden/supervise.sock")
}

/// The socket, and who is connected to it.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    clients: Vec<Client>,
    next: u64,
}

/// A client, for as long as it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u64);

struct Client {
    id: ClientId,
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    turn: Turn,
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It asks.
    Asks,
    /// It waits for us.
    Waits,
    /// It takes the answer.
    Takes,
    /// It is gone, or served.
    Over,
}

impl Server {
    /// Opens the socket, mode 0600, in the place of one that nobody listens to any more.
    ///
    /// # Errors
    ///
    /// One line that names the path.
    pub fn open(path: &Path) -> io::Result<Server> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}; name another with --socket", path.display()))
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(named)?;
        }
        let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
        if is_socket {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(named)?;
                }
                _ => return Err(named(io::Error::other("another supervise listens here"))),
            }
        }
        // There is one thread at this time, so nobody else makes a file meanwhile.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(named)?;
        listener.set_nonblocking(true).map_err(named)?;
        let inode = fs::symlink_metadata(path).map_err(named)?.ino();
        Ok(Server { listener, path: path.to_owned(), inode, clients: Vec::new(), next: 0 })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to poll for.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|client| {
            (client.stream.as_fd(), if client.turn == Turn::Takes { PollFlags::POLLOUT } else { PollFlags::POLLIN })
        });
        std::iter::once((self.listener.as_fd(), PollFlags::POLLIN)).chain(clients)
    }

    /// When a client has had its time.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.clients.iter().filter(|client| client.turn != Turn::Waits).map(|client| client.until).min()
    }

    /// Serves whoever is there, and gives what is asked.
    pub fn turn(&mut self, now: Instant) -> Vec<(ClientId, Request)> {
        let mut asked = Vec::new();
        for client in &mut self.clients {
            match client.turn {
                Turn::Asks => asked.extend(client.listen().map(|request| (client.id, request))),
                Turn::Waits => client.still_there(),
                Turn::Takes => client.write(),
                Turn::Over => {}
            }
            if client.turn != Turn::Waits && now >= client.until {
                client.turn = Turn::Over;
            }
        }
        // First those who have gone make room.
        self.clients.retain(|client| client.turn != Turn::Over);
        self.accept(now, &mut asked);
        asked
    }

    /// Lets in whoever is still there, as long as there is room.
    fn accept(&mut self, now: Instant, asked: &mut Vec<(ClientId, Request)>) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next += 1;
            let (id, inbox, outbox) = (ClientId(self.next), Vec::new(), Vec::new());
            let mut client = Client { id, stream, inbox, outbox, turn: Turn::Asks, until: now + PATIENCE };
            let request = client.listen();
            if client.turn != Turn::Over && self.clients.len() < CLIENTS {
                asked.extend(request.map(|request| (id, request)));
                self.clients.push(client);
            }
        }
    }

    /// Whether a client still waits for its answer.
    #[must_use]
    pub fn waits(&self, id: ClientId) -> bool {
        self.clients.iter().any(|client| client.id == id && client.turn == Turn::Waits)
    }

    /// Answers.
    pub fn reply(&mut self, id: ClientId, reply: &Reply, now: Instant) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.outbox = serde_json::to_vec(reply).unwrap_or_default();
            client.outbox.push(b'\n');
            client.turn = Turn::Takes;
            client.until = now + PATIENCE;
            client.write();
        }
        self.clients.retain(|client| client.turn != Turn::Over);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Unless another one has taken the place.
        if fs::symlink_metadata(&self.path).is_ok_and(|data| data.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Client {
    fn listen(&mut self) -> Option<Request> {
        let mut part = [0; 1024];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => {
                    self.turn = Turn::Over;
                    return None;
                }
                Ok(read) => self.inbox.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {
                    self.turn = Turn::Over;
                    return None;
                }
            }
            if let Some(end) = self.inbox.iter().position(|byte| *byte == b'\n') {
                self.turn = Turn::Waits;
                let request = serde_json::from_slice(&self.inbox[..end]);
                if request.is_err() {
                    self.turn = Turn::Over;
                }
                return request.ok();
            }
            if self.inbox.len() > LONGEST {
                self.turn = Turn::Over;
                return None;
            }
        }
    }

    /// Who has asked says no more: what can be read is that it is gone.
    fn still_there(&mut self) {
        match self.stream.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => self.turn = Turn::Over,
        }
    }

    fn write(&mut self) {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(written @ 1..) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => break,
            }
        }
        self.turn = Turn::Over;
    }
}

/// Asks a manager, and waits for its answer.
///
/// # Errors
///
/// One line that names the socket.
pub fn ask(path: &Path, request: &Request) -> io::Result<Reply> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut stream = UnixStream::connect(path).map_err(|error| {
        let hint = "is `pipewarden supervise` running, with this --socket?";
        io::Error::new(error.kind(), format!("{}: {error}; {hint}", path.display()))
    })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(named)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(named)?;
    serde_json::from_slice(&answer)
        .map_err(|_| named(io::Error::other("no answer came; it ends, or does not know this request")))
}
