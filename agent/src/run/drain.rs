//! The sink: a tiny process that keeps a read end, discards what comes, and exits at EOF.
//!
//! It lets downstream have its EOF while a spared holder goes on writing, unharmed by SIGPIPE.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::unistd::ForkResult;

use super::stdio::dev_null;

/// Hands a read end to a new sink; its process id.
///
/// The sink outlives us on purpose: it is a session leader with `/dev/null` as its standard
/// descriptors and nothing else of ours.
///
/// # Errors
///
/// When there is no process or descriptor to be had.
pub fn start(source: &OwnedFd) -> io::Result<i32> {
    let null = dev_null()?;
    // SAFETY: the child calls only async-signal-safe functions, on integers and its own stack.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => discard(source.as_raw_fd(), null.as_raw_fd()),
    }
}

fn discard(source: i32, null: i32) -> ! {
    // SAFETY: all of these are async-signal-safe, and the buffer is this function's own.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"pipewarden-sink".as_ptr());
        // Moved out of the way first: it could be where the others go.
        let source = libc::fcntl(source, libc::F_DUPFD, 3);
        for fd in 0..=2 {
            libc::dup2(null, fd);
        }
        // To 3, then everything above is closed.
        if source != 3 {
            libc::dup2(source, 3);
        }
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
        let flags = libc::fcntl(3, libc::F_GETFL);
        libc::fcntl(3, libc::F_SETFL, flags & !libc::O_NONBLOCK);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::chdir(c"/".as_ptr());
        let mut buffer = [0_u8; 16 * 1024];
        loop {
            let read = libc::read(3, buffer.as_mut_ptr().cast(), buffer.len());
            let interrupted = read < 0 && nix::errno::Errno::last() == nix::errno::Errno::EINTR;
            if read == 0 || (read < 0 && !interrupted) {
                libc::_exit(0);
            }
        }
    }
}
