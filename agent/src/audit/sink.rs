//! Where records go: one write(2) per record, so that many runs share a file without a lock.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::rotate::{Rotating, Rotation};

/// What `--audit` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-`: our standard error, shared with whoever else writes there.
    Stderr,
    /// A file, which is appended to, or a FIFO or a character device.
    Path(PathBuf),
}

impl From<OsString> for Target {
    fn from(argument: OsString) -> Target {
        if argument == "-" { Target::Stderr } else { Target::Path(argument.into()) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Stderr => f.write_str("-"),
            Target::Path(path) => path.display().fmt(f),
        }
    }
}

/// Why there is no log where one was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or created.
    #[error("--audit {target}: {error}; name a file that can be written, or - for stderr")]
    Open {
        /// What was asked for.
        target: Target,
        /// What the kernel said.
        error: io::Error,
    },
    /// It is a FIFO, and nobody reads it.
    #[error("--audit {0}: nobody reads this FIFO; start its reader first")]
    NoReader(Target),
    /// It is something that cannot be appended to.
    #[error("--audit {0}: this is neither a file nor a FIFO nor a character device; name one of these")]
    WrongKind(Target),
    /// Standard error is closed.
    #[error("--audit -: stderr is closed; name a file")]
    StderrClosed,
    /// There can be no thread for it.
    #[error("--audit {target}: no thread for the log: {error}; raise the limit on processes (ulimit -u)")]
    Thread {
        /// What was asked for.
        target: Target,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The target has it.
    Whole,
    /// The target has nothing of it, or a part that it cannot complete.
    Lost,
}

/// An open target.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    /// A regular file takes a record at once or is full. Everything else may take it in parts.
    regular: bool,
    /// The last line was cut short: the next one has to begin on a line of its own.
    owes_newline: bool,
    /// When the file is put aside, if it ever is.
    rotating: Option<Rotating>,
}

impl Sink {
    /// Opens a target without ever blocking; a file that is not there is created, mode 0600.
    ///
    /// # Errors
    ///
    /// One line that names the option and the path.
    pub fn open(target: &Target) -> Result<Sink, OpenError> {
        let failed = |error: io::Error| OpenError::Open { target: target.clone(), error };
        let Target::Path(path) = target else { return Sink::stderr() };
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY) // std adds O_CLOEXEC
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENXIO) if is_fifo(path) => OpenError::NoReader(target.clone()),
                _ => failed(error),
            })?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !(kind.is_file() || kind.is_fifo() || kind.is_char_device()) {
            return Err(OpenError::WrongKind(target.clone())); // a block device above all
        }
        // O_NONBLOCK was for the open. The description is ours alone, so it may go: the writer has
        // nothing to do but wait, and a pipe takes a record as a whole only from a blocking writer.
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|error| failed(error.into()))?;
        let blocking = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(blocking)).map_err(|error| failed(error.into()))?;
        Ok(Sink { fd: file.into(), regular: kind.is_file(), owes_newline: false, rotating: None })
    }

    /// The same for a file that is put aside before it grows beyond a size. What is no regular file grows
    /// nowhere, and is not.
    ///
    /// # Errors
    ///
    /// As for [`open`](Sink::open).
    pub fn open_rotated(target: &Target, rotation: Rotation) -> Result<Sink, OpenError> {
        let mut sink = Sink::open(target)?;
        if let (Target::Path(path), true) = (target, sink.regular) {
            let size = nix::sys::stat::fstat(&sink.fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            sink.rotating = Some(Rotating::new(path.clone(), rotation, size));
        }
        Ok(sink)
    }

    /// A duplicate of descriptor 2. Its flags are shared with strangers and stay as they are.
    fn stderr() -> Result<Sink, OpenError> {
        let fd = io::stderr().as_fd().try_clone_to_owned().map_err(|_| OpenError::StderrClosed)?;
        let file = File::from(fd);
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Ok(Sink { fd: file.into(), regular, owes_newline: false, rotating: None })
    }

    /// Writes one line, which ends with a newline. May block for as long as the target does.
    pub fn put(&mut self, line: &[u8]) -> Put {
        if let Some(fresh) = self.rotating.as_mut().and_then(|rotating| rotating.before(line.len())) {
            self.fd = fresh.into();
            self.owes_newline = false;
        }
        let mut with_newline = Vec::new();
        let owed = usize::from(self.owes_newline);
        let bytes = if self.owes_newline {
            with_newline.reserve_exact(line.len() + 1);
            with_newline.push(b'\n');
            with_newline.extend_from_slice(line);
            &with_newline
        } else {
            line
        };
        let done = self.write(bytes);
        if let Some(rotating) = &mut self.rotating {
            rotating.grew(done);
        }
        // All but the newline is the whole record, and a line that is only begun owes its end.
        self.owes_newline = if done <= owed { self.owes_newline && done < owed } else { done < bytes.len() };
        if done + 1 >= bytes.len() { Put::Whole } else { Put::Lost }
    }

    /// How many bytes the target took.
    fn write(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match nix::unistd::write(&self.fd, &bytes[done..]) {
                Ok(0) => break,
                // A second write could land behind another run's record.
                Ok(n) if self.regular => return n,
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                // Somebody else made our shared standard error non-blocking.
                Err(Errno::EAGAIN) => self.wait_until_writable(),
                Err(_) => break,
            }
        }
        done
    }

    fn wait_until_writable(&self) {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        // An error here is found again by the write.
        let _ = nix::poll::poll(&mut fds, PollTimeout::NONE);
    }
}

fn is_fifo(path: &std::path::Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open(path: &std::path::Path) -> Result<Sink, OpenError> {
        Sink::open(&Target::Path(path.to_owned()))
    }

    #[test]
    fn a_new_file_is_for_its_owner_alone_and_an_old_one_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert_eq!(open(&path).unwrap().put(b"one\n"), Put::Whole);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(open(&path).unwrap().put(b"two\n"), Put::Whole);
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640, "the owner's choice");
    }

    #[test]
    fn what_cannot_be_a_log_is_refused_in_one_line_that_names_the_option_and_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [folder.path().to_owned(), fifo, socket, folder.path().join("no/such/folder")] {
            let message = open(&path).unwrap_err().to_string();
            assert!(message.starts_with(&format!("--audit {}: ", path.display())), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_full_device_loses_the_line_and_says_so() {
        assert_eq!(open("/dev/full".as_ref()).unwrap().put(b"one\n"), Put::Lost);
        assert_eq!(open("/dev/null".as_ref()).unwrap().put(b"one\n"), Put::Whole);
    }
}
