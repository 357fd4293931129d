//! Processes and pipes that a chore made: watched, and ended without touching anybody else's.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// A pipe whose reader we are; nobody else knows of it until the write end is given away.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")
}

/// Reads what is there, without waiting for more than the first byte; empty at end-of-file.
pub(crate) fn read_some(source: &OwnedFd) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match nix::unistd::read(source, &mut buffer) {
            Ok(read) => {
                buffer.truncate(read);
                return Ok(buffer);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot read from a pipe"),
        }
    }
}

/// Waits until one of the descriptors has something to read (or its end), at most until the deadline.
pub(crate) fn wait_for(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        let left = TimeSpec::from_duration(deadline.saturating_duration_since(Instant::now()));
        match ppoll(&mut polled, Some(left), None) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for a pipe"),
        }
    }
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(false)).collect())
}

/// A process held by a descriptor: whoever gets its pid later is not meant.
pub(crate) struct Pidfd {
    pub(crate) pid: i32,
    fd: OwnedFd,
}

impl Pidfd {
    /// Takes hold of a process.
    pub(crate) fn open(pid: i32) -> io::Result<Pidfd> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let Ok(fd @ 0..) = i32::try_from(fd) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel just made it, and nobody else knows of it.
        Ok(Pidfd { pid, fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Takes hold of a child that was not waited for: its pid is still its own.
    pub(crate) fn of(child: &Child) -> Result<Pidfd> {
        let pid = i32::try_from(child.id())?;
        Pidfd::open(pid).with_context(|| format!("cannot take hold of process {pid}"))
    }

    /// Sends SIGKILL; that it is gone already is no failure.
    pub(crate) fn kill(&self) -> Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) with no siginfo takes integers and a null pointer.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), libc::SIGKILL, none, 0) };
        let error = io::Error::last_os_error();
        if sent == 0 || error.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(error).with_context(|| format!("cannot end process {}", self.pid))
    }
}

impl AsFd for Pidfd {
    /// Readable once the process has exited.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A process that holds the write end of a pipe of ours.
pub(crate) struct Holder {
    pub(crate) process: Pidfd,
    pub(crate) fd: i32,
    pub(crate) link: String,
    pub(crate) command_line: String,
}

/// Who else holds the write end of a pipe that we made: whatever does, we started (or it was given
/// the pipe by what we started).
pub(crate) fn holders_of(read_end: &OwnedFd) -> Result<Vec<Holder>> {
    let number = fstat(read_end).context("cannot look at a pipe")?.st_ino;
    let link = format!("pipe:[{number}]");
    let us = std::process::id();
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if u32::try_from(pid) == Ok(us) {
            continue;
        }
        // Held before it is looked at: what is seen is then true of whom the descriptor means.
        let Ok(process) = Pidfd::open(pid) else { continue };
        if let Some(fd) = writing_descriptor(pid, &link) {
            holders.push(Holder { process, fd, link: link.clone(), command_line: command_line(pid) });
        }
    }
    Ok(holders)
}

fn writing_descriptor(pid: i32, link: &str) -> Option<i32> {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let target = fs::read_link(entry.path());
        // The link's own permission bits are the descriptor's open mode (proc_pid_fd(5)).
        let writes = || fs::symlink_metadata(entry.path()).is_ok_and(|link| link.mode() & libc::S_IWUSR != 0);
        if target.is_ok_and(|target| target.as_os_str() == link) && writes() {
            return entry.file_name().to_str()?.parse().ok();
        }
    }
    None
}

fn command_line(pid: i32) -> String {
    let mut text = String::new();
    let read = fs::File::open(format!("/proc/{pid}/cmdline")).and_then(|mut file| file.read_to_string(&mut text));
    match read {
        Ok(_) if !text.is_empty() => text.trim_end_matches('\0').replace('\0', " "),
        _ => format!("process {pid}"),
    }
}

/// Forked processes of ours that end with this value, or with us.
#[derive(Default)]
pub(crate) struct Forked {
    pids: Vec<Pid>,
}

impl Forked {
    /// Forks one more; it does what `body` does and nothing else.
    ///
    /// `body` must be async-signal-safe: nothing that allocates, locks or unwinds.
    pub(crate) fn fork(&mut self, body: fn()) -> Result<()> {
        let us = nix::unistd::getpid();
        // SAFETY: the child makes system calls and runs `body`, which is async-signal-safe; it never
        // returns, so that no destructor of ours runs twice.
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Parent { child } => self.pids.push(child),
            ForkResult::Child => {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                // We may have died before that was set.
                if nix::unistd::getppid() == us {
                    body();
                }
                // SAFETY: _exit(2) ends the process here.
                unsafe { libc::_exit(0) }
            }
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.pids.len()
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // Children that were not waited for: their numbers are still theirs.
        for pid in &self.pids {
            let _ = nix::sys::signal::kill(*pid, Signal::SIGKILL);
        }
        for pid in &self.pids {
            let _ = waitpid(*pid, None);
        }
    }
}

/// Waits for a child that has been told to end or that ends by itself; kills it after `patience`.
pub(crate) fn finish(child: &mut Child, patience: Duration) -> Result<std::process::ExitStatus> {
    let process = Pidfd::of(child)?;
    if !wait_for(&[process.as_fd()], Instant::now() + patience)?.contains(&true) {
        process.kill()?;
        let _ = child.wait();
        bail!("process {} did not exit within {patience:?}, and was killed", process.pid);
    }
    Ok(child.wait()?)
}
