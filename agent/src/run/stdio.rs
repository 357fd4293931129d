//! What our standard descriptors are, and so which of the command's streams are pumped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use super::inherited::was_closed;
use super::options::Stdio;
use crate::pipe::{Pipe, PipeId, PipeKind, Stream};

/// What a descriptor is, as far as streams care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Closed when we were started, or not open for writing.
    Closed,
    /// A pipe or FIFO.
    Pipe,
    /// A socket of bytes.
    Socket,
    /// A terminal, regular file or device: no reader waits for its EOF. A socket of messages: a pipe
    /// would not keep them apart.
    Other,
}

/// How one of the command's output streams is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The command has what we have, and its holders are nobody's business.
    Inherited,
    /// The command has what we have; the pipe behind it is watched through descriptor tables.
    Watched(Pipe),
    /// The command has a pipe of ours.
    Pumped,
    /// Like the other stream, through the same pipe, so that their interleaving survives.
    SharedWithStdout,
}

/// How both output streams are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Descriptor 1.
    pub stdout: Treatment,
    /// Descriptor 2.
    pub stderr: Treatment,
}

impl Plan {
    /// Looks at descriptors 1 and 2. What somebody must see passes through us whatever it is.
    ///
    /// # Errors
    ///
    /// What fstat(2) says of an open descriptor: nothing on a sound system.
    pub fn new(stdio: Stdio, split: bool, sees: [bool; 2]) -> io::Result<Plan> {
        let (out, err) = (kind(1)?, kind(2)?);
        let how = |sees| if sees && stdio == Stdio::Auto { Stdio::Pump } else { stdio };
        let stdout = treatment(how(sees[0]), 1, out)?;
        let mut stderr = treatment(how(sees[1]), 2, err)?;
        if !split && stdout == Treatment::Pumped && stderr == Treatment::Pumped && one_destination(out) {
            stderr = Treatment::SharedWithStdout;
        }
        Ok(Plan { stdout, stderr })
    }

    /// The pipes behind streams that are inherited and watched.
    #[must_use]
    pub fn watched(&self) -> Vec<(Stream, Pipe)> {
        [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)]
            .into_iter()
            .filter_map(|(stream, treatment)| match treatment {
                Treatment::Watched(pipe) => Some((stream, *pipe)),
                _ => None,
            })
            .collect()
    }
}

fn treatment(stdio: Stdio, fd: RawFd, kind: Kind) -> io::Result<Treatment> {
    Ok(match (stdio, kind) {
        (_, Kind::Closed) | (Stdio::Auto | Stdio::Inherit, Kind::Other) | (Stdio::Inherit, Kind::Socket) => {
            Treatment::Inherited
        }
        (Stdio::Inherit, Kind::Pipe) => Treatment::Watched(pipe_behind(standard(fd))?),
        _ => Treatment::Pumped,
    })
}

/// A standard descriptor of ours. All three are open for our whole life: the runtime opens
/// `/dev/null` on those that were closed.
#[must_use]
pub fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // In unit tests there are others, which outlive what the test does with them.
    debug_assert!(cfg!(test) || (0..=2).contains(&fd));
    // SAFETY: 0, 1 and 2 are open from before `main` (see above), and we replace them only by dup2.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Whether a standard descriptor is a pipe, FIFO or socket: what has an end that somebody must send.
#[must_use]
pub fn flows(fd: RawFd) -> bool {
    let open = !usize::try_from(fd).is_ok_and(was_closed);
    open && fstat(standard(fd)).is_ok_and(|stat| matches!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK))
}

/// What a standard descriptor is.
///
/// # Errors
///
/// What fstat(2) says.
pub fn kind(fd: RawFd) -> io::Result<Kind> {
    if usize::try_from(fd).is_ok_and(was_closed) {
        return Ok(Kind::Closed);
    }
    // What nobody can write to, nobody can pump to: the command's writes fail as they would anyway.
    let flags = nix::fcntl::fcntl(standard(fd), nix::fcntl::F_GETFL)?;
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Ok(Kind::Closed);
    }
    Ok(match fstat(standard(fd))?.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Pipe,
        libc::S_IFSOCK if is_stream(fd) => Kind::Socket,
        _ => Kind::Other,
    })
}

fn is_stream(fd: RawFd) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    getsockopt(&standard(fd), sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

/// The identity of the pipe or FIFO behind a descriptor.
///
/// # Errors
///
/// What fstat(2) and readlink(2) say.
pub fn pipe_behind(fd: BorrowedFd<'_>) -> io::Result<Pipe> {
    use std::os::fd::AsRawFd;
    let stat = fstat(fd)?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let anonymous = link.as_os_str().as_encoded_bytes().starts_with(b"pipe:[");
    let kind = if anonymous { PipeKind::Pipe } else { PipeKind::Fifo };
    Ok(Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind })
}

/// Whether what is written to 1 and to 2 arrives in the order of the writes, both being of this kind.
fn one_destination(kind: Kind) -> bool {
    const KCMP_FILE: libc::c_int = 0; // include/uapi/linux/kcmp.h
    if matches!(kind, Kind::Other | Kind::Closed) {
        // A file has a position in each of its descriptions, and only one of them makes an order.
        let us = nix::unistd::getpid().as_raw();
        // SAFETY: kcmp(2) takes five integers and touches no memory of ours.
        let order = unsafe { libc::syscall(libc::SYS_kcmp, us, us, KCMP_FILE, 1, 2) };
        if order >= 0 {
            return order == 0;
        }
        // No kcmp here (a seccomp filter, or CONFIG_KCMP is off): one file is near enough.
    }
    // A pipe or socket is one queue, however often it was opened.
    match (fstat(standard(1)), fstat(standard(2))) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// A pipe for one of the command's streams: our end does not block, the command's does.
///
/// # Errors
///
/// `EMFILE` and `ENFILE`.
pub fn stream_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&read, nix::fcntl::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Puts `/dev/null` in the place of a standard descriptor, so that whoever reads from it gets EOF
/// while we still run.
///
/// # Errors
///
/// When `/dev/null` cannot be opened.
pub fn release(fd: RawFd) -> io::Result<()> {
    let null = dev_null()?;
    // SAFETY: dup2 onto a standard descriptor: it stays open, as `standard` promises.
    let result = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null.as_fd()), fd) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `/dev/null`, for reading and writing.
///
/// # Errors
///
/// When it cannot be opened.
pub fn dev_null() -> io::Result<OwnedFd> {
    // SAFETY: the path is a C string, and the kernel makes a new descriptor that nobody else knows of.
    let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
