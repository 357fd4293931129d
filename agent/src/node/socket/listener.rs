//! Where supervisors connect: the socket's file, which is never missing while a node takes another's place.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, accept4, bind, connect, socket};

use crate::node::config::Socket;

/// Connections that nobody has accepted yet; the kernel's own limit is net.core.somaxconn. (A number of our
/// own, because the constant of a libc is 128 where it is musl.)
const BACKLOG: libc::c_int = 4096;

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Of the file, so that another's is left alone.
    file: (u64, u64),
}

impl Listener {
    /// Opens the socket in the place of one that nobody listens to any more.
    ///
    /// # Errors
    ///
    /// One line that names the path and the key.
    pub fn open(config: &Socket) -> io::Result<Listener> {
        let path = &config.path;
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}; see path, mode and group in [socket]", path.display()))
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(named)?;
        }
        match fs::symlink_metadata(path) {
            Ok(data) if !data.file_type().is_socket() => {
                return Err(named(io::Error::other("there is a file that is no socket")));
            }
            Ok(_) if is_listened_to(path) => return Err(named(io::Error::other("another node listens here"))),
            _ => {}
        }
        // Under another name first: who finds it under its own may connect.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let listener = listen(&new, config).and_then(|fd| {
            let data = fs::symlink_metadata(&new)?;
            fs::rename(&new, path)?;
            Ok(Listener { fd, path: path.clone(), file: (data.dev(), data.ino()) })
        });
        listener.map_err(|error| {
            let _ = fs::remove_file(&new);
            named(error)
        })
    }

    /// The next one who connected. Never waits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        use std::os::fd::FromRawFd;
        let fd = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: the kernel just made it for us, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Unless another one has taken the place.
        if fs::symlink_metadata(&self.path).is_ok_and(|data| (data.dev(), data.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether somebody would accept a connection here.
fn is_listened_to(path: &Path) -> bool {
    let Ok(address) = UnixAddr::new(path) else { return false };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(fd) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return true };
    // One that nobody accepts from, and whose backlog is full, is somebody's all the same.
    connect(fd.as_raw_fd(), &address) != Err(Errno::ECONNREFUSED)
}

/// A socket at `path` that has its permissions before anybody can connect.
fn listen(path: &Path, config: &Socket) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path).map_err(|error| match error {
        Errno::ENAMETOOLONG => io::Error::other("the path is too long for a socket; use at most 100 bytes"),
        error => error.into(),
    })?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // what another node left half done
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(fd.as_raw_fd(), &address)?;
    std::os::unix::fs::lchown(path, None, config.group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(config.mode))?;
    // SAFETY: listen takes two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn config(path: PathBuf) -> Socket {
        Socket { path, mode: 0o640, group: None }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/node.sock");
        let first = Listener::open(&config(path.clone())).unwrap();
        let data = fs::symlink_metadata(&path).unwrap();
        assert_eq!(data.permissions().mode() & 0o7777, 0o640);
        let error = Listener::open(&config(path.clone())).unwrap_err().to_string();
        assert!(error.contains("node.sock: another node listens here; see path"), "{error}");

        let second = folder.path().join("run/second.sock");
        fs::rename(&path, &second).unwrap(); // as if it had been killed: nobody takes it away
        fs::write(&path, "").unwrap();
        let error = Listener::open(&config(path.clone())).unwrap_err().to_string();
        assert!(error.contains("a file that is no socket"), "{error}");
        fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let third = Listener::open(&config(path.clone())).unwrap();
        assert!(UnixStream::connect(&path).is_ok() && third.accept().is_ok());
        drop(first);
        drop(third);
        assert!(!path.exists(), "it takes its file away");
        let left: Vec<_> = fs::read_dir(folder.path().join("run")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn another_ones_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let listener = Listener::open(&config(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_one_line() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let error = Listener::open(&config(path)).unwrap_err().to_string();
        assert!(error.contains("too long for a socket; use at most 100 bytes; see path"), "{error}");
        assert!(!error.contains('\n'));
        let path = PathBuf::from("/proc/nowhere/node.sock");
        assert!(Listener::open(&config(path)).unwrap_err().to_string().starts_with("/proc/nowhere/node.sock: "));
    }
}
