//! Judging a descriptor that somebody passed: whether it is the read end of a pipe, and which. Nothing here
//! waits for a file system, however the descriptor was come by.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::pipe::{Pipe, PipeId, PipeKind};

/// Which pipe this is the read end of.
///
/// # Errors
///
/// One line for people.
pub(super) fn judge(fd: BorrowedFd<'_>, pipefs: u64) -> Result<Pipe, &'static str> {
    // SAFETY: F_GETFL takes a descriptor and nothing else.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err("the descriptor cannot be looked at; pass the read end of a pipe or FIFO");
    }
    if flags & libc::O_PATH != 0 {
        return Err("an O_PATH descriptor has nothing open; pass the read end of a pipe or FIFO");
    }
    let Some(stat) = stat(fd) else {
        return Err("the descriptor cannot be looked at; pass the read end of a pipe or FIFO");
    };
    if libc::mode_t::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFIFO {
        return Err("that is no pipe; pass the read end of a pipe or FIFO");
    }
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => {}
        libc::O_WRONLY => return Err("that is the write end; pass the read end, which proves that you may ask"),
        _ => return Err("that is open for writing too; pass a read end (O_RDONLY)"),
    }
    let dev = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let kind = if dev == pipefs { PipeKind::Pipe } else { PipeKind::Fifo };
    Ok(Pipe { id: PipeId { dev, ino: stat.stx_ino }, kind })
}

/// What the kernel has cached of the file: fstat(2) would ask a network's or a user's file system.
fn stat(fd: BorrowedFd<'_>) -> Option<libc::statx> {
    // SAFETY: statx is plain data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty C string, and a statx, both alive for the call.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE | libc::STATX_INO,
            &raw mut stat,
        )
    };
    (result == 0).then_some(stat)
}

/// The device of anonymous pipes.
pub(super) fn pipefs() -> std::io::Result<u64> {
    let (read, _write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok(nix::sys::stat::fstat(&read)?.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};

    #[test]
    fn only_read_ends_of_pipes_are_taken() {
        let pipefs = pipefs().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let stat = fstat(&read).unwrap();
        let pipe = Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Pipe };
        assert_eq!(judge(read.as_fd(), pipefs), Ok(pipe));
        assert!(judge(write.as_fd(), pipefs).unwrap_err().contains("the write end"));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let fifo = |flags| -> OwnedFd { open(&path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap() };
        let of_fifo = judge(fifo(OFlag::O_RDONLY | OFlag::O_NONBLOCK).as_fd(), pipefs).unwrap();
        assert_eq!((of_fifo.kind, of_fifo.id.ino), (PipeKind::Fifo, nix::sys::stat::stat(&path).unwrap().st_ino));
        assert!(judge(fifo(OFlag::O_RDWR).as_fd(), pipefs).unwrap_err().contains("for writing too"));
        assert!(judge(fifo(OFlag::O_PATH).as_fd(), pipefs).unwrap_err().contains("O_PATH"));

        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let others = [File::open("/dev/null").unwrap(), File::open("/").unwrap(), tempfile::tempfile().unwrap()];
        for other in others.iter().map(AsFd::as_fd).chain([socket.as_fd()]) {
            assert!(judge(other, pipefs).unwrap_err().contains("no pipe"), "{other:?}");
        }
    }
}
