//! Somebody who listens where a node should, and answers as a test wants: a node that lies, or is broken.

use std::fs;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::fstat;
use pipewarden::ownership::node::frame::Lines;
use pipewarden::ownership::node::protocol::{Ask, Message, Named, Request, Tell};
use pipewarden::pipe::PipeKind;

use crate::stage::Stage;

/// What is answered to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This.
    Tell(Tell),
    /// Bytes that need not be a message.
    Bytes(Vec<u8>),
    /// Nothing, for ever.
    Nothing,
    /// The end of the connection.
    Close,
}

/// Answers requests; the pipe is the one whose read end came along, or of which the only watch is.
type Manner = dyn Fn(&Request, Option<Named>) -> Reply + Send + Sync;

/// A listener that is no node.
pub struct StandIn {
    path: PathBuf,
    over: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    listener: Option<JoinHandle<()>>,
}

impl StandIn {
    /// One that answers so.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    #[must_use]
    pub fn new(stage: &Stage, manner: impl Fn(&Request, Option<Named>) -> Reply + Send + Sync + 'static) -> StandIn {
        let path = stage.path("stand-in.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (over, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::<UnixStream>::new())));
        let manner: Arc<Manner> = Arc::new(manner);
        let accept = {
            let (over, streams) = (Arc::clone(&over), Arc::clone(&streams));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if over.load(Ordering::Acquire) {
                        return;
                    }
                    let Ok(copy) = stream.try_clone() else { continue };
                    streams.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                    let manner = Arc::clone(&manner);
                    thread::spawn(move || serve(&stream, &*manner));
                }
            }
        };
        StandIn { path, over, streams, listener: Some(thread::spawn(accept)) }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &PathBuf {
        &self.path
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        for stream in &*self.streams.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// What a node answers that is friendly and knows nobody: for every request that a test does not care about.
///
/// # Panics
///
/// Where there is no `/proc`.
#[must_use]
pub fn friendly(request: &Request, pipe: Option<Named>) -> Reply {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    Reply::Tell(match (&request.ask, pipe) {
        (Ask::Hello { .. }, _) => Tell::Hello { version: "0".into(), rung: "bpf-tracepoint".into(), boot },
        (Ask::Watch, Some(pipe)) => Tell::Watching { watch: pipe.ino, pipe },
        _ => return Reply::Nothing,
    })
}

fn serve(mut stream: &UnixStream, manner: &Manner) {
    let mut lines = Lines::<OwnedFd>::default();
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 8]);
    let mut watched = Vec::<Named>::new();
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags) else { return };
        let (count, mut passed) = (message.bytes, Vec::new());
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel just made them for us.
                passed.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if count == 0 {
            return;
        }
        lines.push(&bytes[..count], passed);
        while let Ok(Some(line)) = lines.next_line() {
            let request = Request::parse(&line.bytes).unwrap();
            let named = |fd: &OwnedFd| {
                let stat = fstat(fd).unwrap();
                Named { dev: stat.st_dev, ino: stat.st_ino, kind: PipeKind::Pipe }
            };
            let mut pipe = line.passed.first().map(named);
            watched.extend(pipe);
            if let Ask::Resolve { watch: Some(watch) } = request.ask {
                pipe = watched.iter().find(|pipe| pipe.ino == watch).copied();
            }
            let sent = match manner(&request, pipe) {
                Reply::Tell(tell) => stream.write_all(&Message::answer(request.id, tell).line()),
                Reply::Bytes(bytes) => stream.write_all(&bytes),
                Reply::Nothing => Ok(()),
                Reply::Close => return drop(stream.shutdown(std::net::Shutdown::Both)),
            };
            if sent.is_err() {
                return;
            }
        }
    }
}
