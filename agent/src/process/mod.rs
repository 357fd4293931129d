//! What `/proc` says about one process: its identity, its descriptors, its children.
//!
//! Everything here reads fresh; nothing is cached. Only [`describe`] can block (on the memory map
//! of a process in D state), so it is never called on the path that pumps bytes.

pub mod children;
pub mod describe;
pub mod memory;
pub mod open;
pub mod redact;
pub mod stat;
pub mod table;
pub mod wait;
mod walk;

use std::fs::File;
use std::io::{self, Read as _};

/// Most files of `/proc/PID` are smaller, in bytes.
const USUAL: usize = 4096;

/// Reads a file of `/proc`. The standard library's way asks for its size, which is 0, and so begins with
/// 32 bytes: three times as many system calls.
fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL);
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text. A program's name can be any bytes.
fn read_text(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}

/// Whether an error from a file of `/proc/PID` says that the process is gone.
///
/// `ENOENT` comes from the open, `ESRCH` from a read after the process was reaped.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether an error says that we may not look (`PR_SET_DUMPABLE`, setuid programs, another user).
#[must_use]
pub fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// The pids of all processes, in our pid namespace, as of now.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn pids() -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}
