//! Writing to a descriptor that we inherited, without ever waiting for it.
//!
//! The descriptor is shared with whoever gave it to us, so `O_NONBLOCK` must not be set on it. A pipe
//! takes `RWF_NOWAIT`, a socket `MSG_DONTWAIT`; for everything else there is a thread that waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::stdio::{Kind, standard};
use crate::pipe::PipeKind;

/// Where a stream's bytes go.
pub struct Downstream {
    fd: RawFd,
    /// Whether poll(2) tells us that the reader is gone. A FIFO's next reader may still come.
    tells_when_gone: bool,
    way: Way,
}

enum Way {
    Pipe,
    Socket,
    Thread(Writer),
}

impl Downstream {
    /// The way to write to a standard descriptor.
    ///
    /// # Errors
    ///
    /// When the thread that some kinds need is not to be had.
    pub fn new(fd: RawFd, kind: Kind) -> io::Result<Downstream> {
        let way = match kind {
            Kind::Pipe => Way::Pipe,
            Kind::Socket => Way::Socket,
            Kind::Other | Kind::Closed => Way::Thread(Writer::start(fd)?),
        };
        let tells_when_gone = match kind {
            Kind::Pipe => super::stdio::pipe_behind(standard(fd))?.kind == PipeKind::Pipe,
            Kind::Socket => true,
            Kind::Other | Kind::Closed => false,
        };
        Ok(Downstream { fd, tells_when_gone, way })
    }

    /// The way to a pipe of a test's own.
    #[cfg(test)]
    pub fn to_pipe(fd: RawFd) -> Downstream {
        Downstream { fd, tells_when_gone: false, way: Way::Pipe }
    }

    /// Writes what fits now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing fits, `BrokenPipe` when the reader is gone, else what write(2) says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.way {
            Way::Pipe => write_now(self.fd, bytes),
            Way::Socket => send_now(self.fd, bytes),
            Way::Thread(writer) => return writer.write(bytes),
        };
        match written {
            // Pipes take RWF_NOWAIT since Linux 6.4, until somebody splices through the description.
            Err(error) if matches!(self.way, Way::Pipe) && is_unsupported(&error) => {
                self.way = Way::Thread(Writer::start(self.fd)?);
                // Now, because nothing else will wake us: a thread without bytes has nothing to tell.
                self.write(bytes)
            }
            other => other,
        }
    }

    /// Whether the last bytes that were taken are still on their way, as far as [`settle`](Downstream::settle)
    /// has seen. It changes there alone, so that whoever decides to wait for them also hears of them.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        match &self.way {
            Way::Thread(writer) => writer.unsettled,
            Way::Pipe | Way::Socket => false,
        }
    }

    /// What to poll for while bytes wait, or while there is nothing to write.
    #[must_use]
    pub fn interest(&self, waiting: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.way {
            Way::Thread(writer) if waiting => Some((writer.wake.as_fd(), PollFlags::POLLIN)),
            Way::Pipe | Way::Socket if waiting => Some((standard(self.fd), PollFlags::POLLOUT)),
            _ => self.tells_when_gone.then(|| (standard(self.fd), PollFlags::empty())),
        }
    }

    /// Whether what poll(2) said of [`interest`](Downstream::interest) means that the reader is gone.
    #[must_use]
    pub fn is_gone(&self, said: PollFlags) -> bool {
        match self.way {
            Way::Pipe | Way::Thread(_) => self.tells_when_gone && said.contains(PollFlags::POLLERR),
            Way::Socket => said.intersects(PollFlags::POLLERR | PollFlags::POLLHUP),
        }
    }

    /// What became of the last bytes that were taken, where that is told late.
    ///
    /// # Errors
    ///
    /// What write(2) said.
    pub fn settle(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Thread(writer) => {
                // Before the result is looked for: what is told after that wakes us once more.
                let _ = writer.wake.read();
                let Ok(result) = writer.results.try_recv() else { return Ok(()) };
                writer.unsettled = false;
                result
            }
            Way::Pipe | Way::Socket => Ok(()),
        }
    }

    /// Bytes that were taken by [`write`](Downstream::write) and have not arrived.
    #[must_use]
    pub fn in_hand(&self) -> usize {
        match &self.way {
            Way::Thread(writer) => writer.in_hand.load(Ordering::Acquire),
            Way::Pipe | Way::Socket => 0,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

fn write_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one iovec over `bytes`, which the kernel only reads. Offset -1 is "the current one".
    let written = unsafe { libc::pwritev2(fd, &raw const part, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A thread that writes and waits, one chunk at a time.
struct Writer {
    chunks: SyncSender<Vec<u8>>,
    results: Receiver<io::Result<()>>,
    wake: Arc<EventFd>,
    in_hand: Arc<AtomicUsize>,
    /// Whether a chunk was given whose result was not taken.
    unsettled: bool,
}

/// The thread only calls write(2).
const STACK_BYTES: usize = 64 * 1024;

impl Writer {
    fn start(fd: RawFd) -> io::Result<Writer> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let in_hand = Arc::new(AtomicUsize::new(0));
        let (chunks, given) = sync_channel::<Vec<u8>>(1);
        let (result, results) = sync_channel(1);
        let (woken, left) = (Arc::clone(&wake), Arc::clone(&in_hand));
        thread::Builder::new().name("downstream".into()).stack_size(STACK_BYTES).spawn(move || {
            // The main thread reads signals from a signalfd: none may be delivered here.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            for chunk in given {
                let written = write_all(fd, &chunk, &left);
                if result.send(written).is_err() || woken.write(1).is_err() {
                    break;
                }
            }
        })?;
        Ok(Writer { chunks, results, wake, in_hand, unsettled: false })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsettled {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.in_hand.store(bytes.len(), Ordering::Release);
        self.chunks.try_send(bytes.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.unsettled = true;
        Ok(bytes.len())
    }
}

fn write_all(fd: RawFd, mut bytes: &[u8], left: &AtomicUsize) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(standard(fd), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                left.store(bytes.len(), Ordering::Release);
            }
            Err(nix::errno::Errno::EINTR) => {}
            // Somebody else made the shared description non-blocking.
            Err(nix::errno::Errno::EAGAIN) => wait_until_writable(fd)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait_until_writable(fd: RawFd) -> io::Result<()> {
    use nix::poll::{PollFd, PollTimeout, poll};
    let mut fds = [PollFd::new(standard(fd), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl AsRawFd for Downstream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}
