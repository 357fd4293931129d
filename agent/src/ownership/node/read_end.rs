//! The read end of a pipe, to be passed to a node: who has it may know who else holds the pipe.
//!
//! Of a pumped stream we have it. Of an inherited one we have the write end only; through
//! `/proc/self/fd` the kernel opens the other one for whoever may read the pipe. Neither is kept: a read end
//! that stays open in a queue would keep writers from their SIGPIPE.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};

use crate::pipe::{Pipe, PipeKind};

/// A read end of a pipe of which this process has some end open: to be passed on at once, and dropped.
///
/// Other threads may close and open descriptors meanwhile.
///
/// # Errors
///
/// `NotFound` when no end of it is open here, `EACCES` when it is another user's and only a write end is.
pub fn of(pipe: Pipe) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no end of the pipe is open here");
    for fd in candidates(pipe)? {
        match read_end_by(fd, pipe) {
            Ok(Some(end)) => return Ok(end),
            Ok(None) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Descriptors of ours that may be ends of the pipe. A FIFO is looked for only where a stream of ours can be:
/// to ask a descriptor what it is can wait for the file system behind it.
fn candidates(pipe: Pipe) -> io::Result<Vec<i32>> {
    if pipe.kind == PipeKind::Fifo {
        return Ok(vec![1, 2]);
    }
    let target = format!("pipe:[{}]", pipe.id.ino);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == &*target)
            && let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            found.push(fd);
        }
    }
    Ok(found)
}

/// The read end of the pipe, if that is what is behind the number by now.
fn read_end_by(fd: i32, pipe: Pipe) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the number is only duplicated. Whatever another thread has put there or has closed, the copy is
    // ours, and is looked at before it is used.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = borrowed.try_clone_to_owned()?;
    let is_it = |fd: BorrowedFd<'_>| {
        fstat(fd).is_ok_and(|stat| {
            (stat.st_dev, stat.st_ino) == (pipe.id.dev, pipe.id.ino) && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
        })
    };
    if !is_it(copy.as_fd()) {
        return Ok(None);
    }
    let flags = OFlag::from_bits_truncate(fcntl(&copy, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Ok(Some(copy));
    }
    // Without O_NONBLOCK a FIFO that nobody writes to would keep us waiting.
    let again = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let end = open(again.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(is_it(end.as_fd()).then_some(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::PipeId;

    fn pipe_of(fd: impl AsFd) -> Pipe {
        let stat = fstat(fd).unwrap();
        Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Pipe }
    }

    fn is_read_end(fd: &OwnedFd, pipe: Pipe) -> bool {
        let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        pipe_of(fd) == pipe && flags & OFlag::O_ACCMODE == OFlag::O_RDONLY
    }

    #[test]
    fn the_read_end_that_we_have_is_passed() {
        let (read, _write) = std::io::pipe().unwrap();
        let pipe = pipe_of(&read);
        assert!(is_read_end(&of(pipe).unwrap(), pipe));
    }

    #[test]
    fn of_a_write_end_the_other_one_is_opened() {
        let (read, write) = std::io::pipe().unwrap();
        let pipe = pipe_of(&write);
        drop(read);
        assert!(is_read_end(&of(pipe).unwrap(), pipe));
    }

    #[test]
    fn of_a_pipe_of_others_there_is_none() {
        let (read, write) = std::io::pipe().unwrap();
        let pipe = pipe_of(&read);
        drop((read, write));
        assert_eq!(of(pipe).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
