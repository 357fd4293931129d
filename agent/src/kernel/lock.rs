//! Who carries the machine's tracker.
//!
//! Trackers do not stack: each one taxes every process of the machine, and a tracepoint takes no more
//! than 64 programs. So there is at most one, and a lock says who. The lock is an open file
//! description's (fcntl(2)): it goes when its owner does, however that happens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the lock is.
pub const PATH: &str = "/run/pipewarden/tracker.lock";

// F_WRLCK and F_UNLCK (include/uapi/asm-generic/fcntl.h), as wide as `l_type` is.
const WRITE_LOCK: libc::c_short = 1;
const UNLOCKED: libc::c_short = 2;

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct TrackerLock {
    _file: File,
}

/// What the lock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Nobody holds it.
    Nobody,
    /// Somebody holds it, and wrote down who.
    Process {
        /// Its pid, in its own namespace.
        pid: i32,
        /// What it is: `node` or `run`.
        role: String,
    },
    /// Somebody holds it who wrote nothing that we understand.
    Unknown,
}

impl TrackerLock {
    /// Takes the lock, and writes down who has it. `None` if somebody else does.
    ///
    /// # Errors
    ///
    /// When the file cannot be made, or not be locked for another reason.
    pub fn take(path: &Path, role: &str) -> io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Not truncated: until we have the lock, the words in it are another's.
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
        match fcntl(&file, libc::F_OFD_SETLK) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(None),
            Err(error) => return Err(error),
        }
        file.set_len(0)?;
        writeln!(file, "{} {role}", std::process::id())?;
        Ok(Some(TrackerLock { _file: file }))
    }
}

/// Asks who holds the lock, without taking it.
///
/// # Errors
///
/// When the file is there and cannot be asked.
pub fn carrier(path: &Path) -> io::Result<Carrier> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Carrier::Nobody),
        file => file?,
    };
    if fcntl(&file, libc::F_OFD_GETLK)?.l_type == UNLOCKED {
        return Ok(Carrier::Nobody);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(said(&text).unwrap_or(Carrier::Unknown))
}

fn said(text: &str) -> Option<Carrier> {
    let (pid, role) = text.trim_end().split_once(' ')?;
    Some(Carrier::Process { pid: pid.parse().ok()?, role: role.to_owned() })
}

/// [`PATH`], as a path.
#[must_use]
pub fn path() -> PathBuf {
    PathBuf::from(PATH)
}

/// A command about a write lock on the whole file.
fn fcntl(file: &File, command: libc::c_int) -> io::Result<libc::flock> {
    // SAFETY: a flock is plain data, for which all zeroes is a value (the whole file, and l_pid 0 as
    // these commands want it).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = WRITE_LOCK;
    // SAFETY: the descriptor is open, and the lock alive for the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_the_next_is_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/tracker.lock");
        assert_eq!(carrier(&path).unwrap(), Carrier::Nobody);
        let lock = TrackerLock::take(&path, "node").unwrap().unwrap();
        assert!(TrackerLock::take(&path, "run").unwrap().is_none());
        let us = std::process::id().cast_signed();
        assert_eq!(carrier(&path).unwrap(), Carrier::Process { pid: us, role: "node".into() });
        drop(lock);
        assert_eq!(carrier(&path).unwrap(), Carrier::Nobody, "the words of a past owner are not believed");
        assert!(TrackerLock::take(&path, "run").unwrap().is_some());
    }
}
