//! A FIFO that belongs to nobody in particular: who has it open, who waits to open it, and how to release
//! those who wait without touching those who hold.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use serde::Serialize;

use super::channel::{Channel, Id, Told};
use super::holders::{self, Bytes, Row, report};
use super::machine::Machine;
use super::waits::is_fifo_open;
use crate::pipe::PipeId;
use crate::process::wait::wchan;

/// A FIFO and everybody at it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The FIFO.
    pub pipe: Told,
    /// Who reads.
    pub readers: Vec<Row>,
    /// Who keeps EOF from the readers.
    pub writers: Vec<Row>,
    /// Who waits in open(2) for the other end.
    pub blocked: Vec<Row>,
    /// What waits inside to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Bytes>,
    /// What answered.
    pub source: &'static str,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

/// What `close` did.
#[derive(Clone, Debug, Serialize)]
pub struct Closed {
    /// The acts, one line each.
    pub did: Vec<String>,
    /// Who was released from open(2).
    pub released: Vec<Row>,
    /// The FIFO as it is now: whoever is still there has to close it by itself.
    pub left: Status,
}

/// The FIFO at a path: its own inode, where the path is no symbolic link, else what that means.
///
/// # Errors
///
/// In one line: when it is something else.
pub fn find(path: &Path) -> Result<(PathBuf, PipeId), String> {
    let told = |error: &std::io::Error| format!("{}: {}", path.display(), holders::said(error));
    let real = std::fs::canonicalize(path).map_err(|error| told(&error))?;
    let file = std::fs::symlink_metadata(&real).map_err(|error| told(&error))?;
    if !file.file_type().is_fifo() {
        return Err(format!("{} is {}, not a FIFO", path.display(), holders::kind(file.file_type())));
    }
    Ok((real, PipeId { dev: file.dev(), ino: file.ino() }))
}

/// Everybody at the FIFO.
#[must_use]
pub fn status(path: &Path, fifo: PipeId, machine: &Machine, full: bool) -> Status {
    let channel = Channel { id: Id::Fifo(fifo), path: Some(path.to_string_lossy().into_owned()) };
    let report = report(&channel, machine, full);
    let (blocked, open): (Vec<Row>, Vec<Row>) = report.holders.into_iter().partition(|row| row.via == "opening");
    let at = |end: &str| open.iter().filter(|row| row.end == end || row.end == "both").cloned().collect();
    Status {
        pipe: report.pipe,
        readers: at("read"),
        writers: at("write"),
        blocked,
        waiting: report.waiting.into_iter().next(),
        source: report.source,
        unseen: report.unseen,
    }
}

/// Releases everybody who waits in open(2), by opening and closing the end that they wait for.
///
/// Nobody is signalled, and whoever has the FIFO open keeps it. A writer that is released so finds no
/// reader, and gets SIGPIPE at its write; a reader finds no writer, and gets EOF.
///
/// # Errors
///
/// In one line: when the FIFO is another one by now, or we may not open it.
pub fn release(
    path: &Path,
    fifo: PipeId,
    before: &Status,
    patience: Duration,
) -> Result<(Vec<String>, Vec<Row>), String> {
    let mut did = Vec::new();
    for (waiting, flags, other) in [("write", OFlag::O_RDONLY, "read"), ("read", OFlag::O_WRONLY, "write")] {
        let count = before.blocked.iter().filter(|row| row.end == waiting).count();
        if count > 0 {
            match open(path, fifo, flags)? {
                Some(end) => {
                    drop(end);
                    did.push(format!(
                        "opened and closed the {other} end, for {count} blocked in opening it to {waiting}"
                    ));
                }
                None => did.push(format!("found nobody any more who opens it to {waiting}")),
            }
        }
    }
    let released = before.blocked.iter().filter(|row| leaves_open(row, patience)).cloned().collect();
    Ok((did, released))
}

/// Opens an end of exactly this FIFO without waiting; nothing when a write end has no reader.
fn open(path: &Path, fifo: PipeId, flags: OFlag) -> Result<Option<OwnedFd>, String> {
    let told = |error: Errno| format!("{}: {}", path.display(), error.desc().to_lowercase());
    let is_it = |fd: &OwnedFd| {
        fstat(fd).is_ok_and(|file| {
            file.st_mode & libc::S_IFMT == libc::S_IFIFO && (file.st_dev, file.st_ino) == (fifo.dev, fifo.ino)
        })
    };
    let changed = || format!("{} is not the FIFO any more that it was; ask again", path.display());
    // First the place alone, which opens nothing: what was put there meanwhile must not notice us.
    let place =
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map_err(told)?;
    if !is_it(&place) {
        return Err(changed());
    }
    let inside = format!("/proc/self/fd/{}", place.as_raw_fd());
    match nix::fcntl::open(inside.as_str(), flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(end) if is_it(&end) => Ok(Some(end)),
        Ok(_) => Err(changed()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(told(error)),
    }
}

/// Whether a blocked opener has left open(2), in this time: it was woken, and needs a moment to run.
fn leaves_open(row: &Row, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let tid = row.tid.unwrap_or(row.pid);
    loop {
        if !is_fifo_open(wchan(row.pid, tid).as_deref()) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        // The kernel has no event for another process's leaving a system call.
        std::thread::sleep(Duration::from_millis(1));
    }
}
