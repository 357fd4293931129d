//! The control socket of a FIFO that a run owns: `fifo-<dev>-<ino>.sock`.
//!
//! One line of JSON each way: an [`Ask`], and the [`Status`] as the answer.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::Event;
use crate::audit::record::Time;
use crate::pipe::{End, PipeId};

/// Where sockets are without `XDG_RUNTIME_DIR`.
const RUN: &str = "/run/pipewarden";

/// The longest request, in bytes.
const REQUEST: usize = 256;

/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many clients are attended to at once.
const CLIENTS: usize = 8;

/// How long a client waits for the answer: a supervisor answers between two reads.
const ANSWER: Duration = Duration::from_secs(5);

/// What is asked of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How it stands.
    Status,
    /// Close it.
    Close,
}

#[derive(Serialize, Deserialize)]
struct Request {
    ask: Ask,
}

/// How it stands with an owned FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The path that the run was given.
    pub path: String,
    /// The FIFO's device.
    pub dev: u64,
    /// The FIFO's inode.
    pub ino: u64,
    /// The supervisor that owns it.
    pub pid: i32,
    /// The command that it feeds; 0 between two tries.
    pub command: i32,
    /// Whether it still takes input.
    pub open: bool,
    /// Since when it is owned.
    pub opened_at: Time,
    /// Since when it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Time>,
    /// Why it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_because: Option<String>,
    /// Bytes that were read from it.
    pub bytes_taken: u64,
    /// Bytes that the command has not read: in the FIFO, in the supervisor and in the command's pipe.
    pub bytes_waiting: u64,
    /// Who writes to it, beside its owner.
    pub writers: Vec<At>,
    /// Who reads from it, beside its owner.
    pub readers: Vec<At>,
    /// Who opened and closed it, the latest last.
    pub uses: Vec<Use>,
}

/// A process that has it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Its process id.
    pub pid: i32,
    /// Its program's name.
    pub comm: String,
    /// When it was first seen to have it open.
    pub since: Time,
}

/// One opening or closing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// When it was noticed.
    pub at: Time,
    /// Opened, or closed.
    pub opened: bool,
    /// Which end.
    pub end: End,
    /// Who, where that could be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its program's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Why, where it was the supervisor's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Use {
    /// Of an event that happens now.
    #[must_use]
    pub fn new(event: &Event) -> Use {
        Use {
            at: Time::now(),
            opened: event.opened,
            end: event.end,
            pid: event.process.as_ref().map(|process| process.pid),
            comm: event.process.as_ref().map(|process| process.comm.clone()),
            why: event.why.clone(),
        }
    }
}

/// Why there is no socket.
#[derive(Debug)]
pub enum ServerError {
    /// This process owns the FIFO already.
    Taken(i32),
    /// It cannot be made there.
    System(PathBuf, io::Error),
}

/// The owner's side.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Waiting>,
}

struct Waiting {
    stream: UnixStream,
    request: Vec<u8>,
    since: Instant,
    asked: bool,
}

impl Server {
    /// Opens the socket of a FIFO, unless another run answers there.
    ///
    /// # Errors
    ///
    /// As [`ServerError`] says.
    pub fn start(fifo: PipeId) -> Result<Server, ServerError> {
        let folder = runtime().map_or_else(|| PathBuf::from(RUN), |runtime| runtime.join("pipewarden"));
        let path = folder.join(file_name(fifo));
        let system = |error| ServerError::System(path.clone(), error);
        std::fs::create_dir_all(&folder).map_err(system)?;
        let reach = Reach::new(&folder).map_err(system)?;
        if let Ok(stream) = UnixStream::connect(reach.to(fifo)) {
            return Err(ServerError::Taken(peer(&stream).map_or(0, |(pid, _)| pid)));
        }
        // Nobody answers: what is left of a run that was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(reach.to(fifo)).map_err(system)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        Ok(Server { listener, path: path.clone(), clients: Vec::new() })
    }

    /// What to poll for.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = (self.clients.len() < CLIENTS).then(|| self.listener.as_fd());
        let clients = self.clients.iter().filter(|client| !client.asked).map(|client| client.stream.as_fd());
        listener.into_iter().chain(clients).map(|fd| (fd, PollFlags::POLLIN))
    }

    /// What is asked by now. Never waits.
    pub fn asked(&mut self) -> Vec<Ask> {
        while self.clients.len() < CLIENTS
            && let Ok((stream, _)) = self.listener.accept()
        {
            // The file's mode says so already; root may, as root may everything.
            let us = nix::unistd::geteuid().as_raw();
            let allowed = peer(&stream).is_some_and(|(_, uid)| uid == us || uid == 0);
            if allowed && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Waiting { stream, request: Vec::new(), since: Instant::now(), asked: false });
            }
        }
        let mut asked = Vec::new();
        self.clients.retain_mut(|client| match client.read() {
            Ok(Some(ask)) => {
                client.asked = true;
                asked.push(ask);
                true
            }
            Ok(None) => client.since.elapsed() < PATIENCE,
            Err(_) => false,
        });
        asked
    }

    /// Answers everybody who asked.
    pub fn answer(&mut self, status: &Status) {
        let Ok(line) = serde_json::to_string(status).map(|line| line + "\n") else { return };
        for mut client in self.clients.extract_if(.., |client| client.asked) {
            // A few kilobytes fit into a socket's buffer; who lets it run full is not waited for.
            let _ = client.stream.write_all(line.as_bytes());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Waiting {
    fn read(&mut self) -> io::Result<Option<Ask>> {
        let mut chunk = [0; REQUEST];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.request.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        if !self.request.contains(&b'\n') {
            let too_long = self.request.len() >= REQUEST;
            return if too_long { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
        }
        let request: Request = serde_json::from_slice(self.request.trim_ascii())?;
        Ok(Some(request.ask))
    }
}

/// Pid and user at the other end.
fn peer(stream: &UnixStream) -> Option<(i32, u32)> {
    getsockopt(stream, PeerCredentials).ok().map(|peer| (peer.pid(), peer.uid()))
}

fn runtime() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

fn file_name(fifo: PipeId) -> String {
    format!("fifo-{}-{}.sock", fifo.dev, fifo.ino)
}

/// A way to a socket in a folder however long the folder's path is: an address holds 107 bytes.
struct Reach {
    folder: std::fs::File,
}

impl Reach {
    fn new(folder: &Path) -> io::Result<Reach> {
        Ok(Reach { folder: std::fs::File::open(folder)? })
    }

    fn to(&self, fifo: PipeId) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(file_name(fifo))
    }
}

/// A line to the run that owns a FIFO.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

/// The run that owns the FIFO at a path, if one does.
#[must_use]
pub fn owner(path: &Path) -> Option<Client> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_fifo())?;
    let fifo = PipeId { dev: metadata.dev(), ino: metadata.ino() };
    let folders = runtime().map(|runtime| runtime.join("pipewarden")).into_iter().chain([PathBuf::from(RUN)]);
    let mut streams = folders.filter_map(|folder| UnixStream::connect(Reach::new(&folder).ok()?.to(fifo)).ok());
    streams.next().map(|stream| Client { stream })
}

impl Client {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// When the run does not answer in time, or ends meanwhile.
    pub fn ask(self, ask: Ask) -> io::Result<Status> {
        self.stream.set_read_timeout(Some(ANSWER))?;
        self.stream.set_write_timeout(Some(ANSWER))?;
        let request = serde_json::to_string(&Request { ask })? + "\n";
        (&self.stream).write_all(request.as_bytes())?;
        let mut line = String::new();
        BufReader::new(&self.stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}
