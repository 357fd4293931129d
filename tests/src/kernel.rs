//! What the kernel says, asked without any of pipewarden's code: the other opinion.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::deadline::Deadline;
use crate::process::Process;

/// Where the v1 freezer is.
pub const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// Where FUSE servers attach.
pub const FUSE: &str = "/dev/fuse";

/// One descriptor of one thread's table that is on a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnPipe {
    /// The thread.
    pub tid: i32,
    /// The descriptor.
    pub fd: i32,
    /// Whether it was opened for reading.
    pub reads: bool,
    /// Whether it was opened for writing.
    pub writes: bool,
}

/// The descriptors of all threads that are on this pipe. Nothing when the process is gone.
#[must_use]
pub fn on_pipe(pid: i32, pipe: &impl AsFd) -> Vec<OnPipe> {
    let sought = format!("pipe:[{}]", nix::sys::stat::fstat(pipe).unwrap().st_ino);
    let mut found = Vec::new();
    for task in entries(format!("/proc/{pid}/task")) {
        for fd in entries(task.join("fd")) {
            if fs::read_link(&fd).is_ok_and(|target| target.as_os_str() == sought.as_str())
                && let Ok(link) = fs::symlink_metadata(&fd)
            {
                found.push(OnPipe {
                    tid: number(&task),
                    fd: number(&fd),
                    reads: link.mode() & 0o400 != 0,
                    writes: link.mode() & 0o200 != 0,
                });
            }
        }
    }
    found
}

/// The processes that have this pipe at all, without ourselves.
#[must_use]
pub fn holders(pipe: &impl AsFd) -> Vec<i32> {
    let us = i32::try_from(std::process::id()).unwrap();
    everybody().into_iter().filter(|pid| *pid != us && !on_pipe(*pid, pipe).is_empty()).collect()
}

/// How many descriptors the first thread's table has; `/proc/PID/fd` is that table.
#[must_use]
pub fn descriptors(pid: i32) -> usize {
    entries(format!("/proc/{pid}/fd")).len()
}

/// Whether a line of one of the process's fdinfo files contains this.
#[must_use]
pub fn fdinfo_says(pid: i32, text: &str) -> bool {
    entries(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .any(|file| fs::read_to_string(file).is_ok_and(|info| info.lines().any(|line| line.contains(text))))
}

/// Whether the kernel names a pipe that is registered with an io_uring in the ring's fdinfo: some do not before
/// Linux 6.13. True where there is no io_uring.
///
/// # Panics
///
/// When there are no descriptors to be had.
#[must_use]
pub fn names_registered_pipes() -> bool {
    let Ok(ring) = io_uring::IoUring::new(2) else { return true };
    let (read, _write) = std::io::pipe().unwrap();
    ring.submitter().register_files(&[read.as_raw_fd()]).unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ring.as_raw_fd())).unwrap();
    info.lines().any(|line| line.contains(": pipe:["))
}

/// A field of `/proc/PID/stat`, by its number in proc_pid_stat(5): 3 is the state, 4 the parent,
/// 5 the process group, 6 the session.
#[must_use]
pub fn stat(pid: i32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(field.checked_sub(3)?).map(str::to_owned)
}

/// Every process that we can see.
#[must_use]
pub fn everybody() -> Vec<i32> {
    entries("/proc").into_iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

/// The processes of a session.
#[must_use]
pub fn session(leader: i32) -> Vec<i32> {
    everybody().into_iter().filter(|pid| stat(*pid, 6) == Some(leader.to_string())).collect()
}

/// A process's name, as the kernel has it; empty when it is gone.
#[must_use]
pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Whether a process is a program of this name that waits for a key of its terminal.
#[must_use]
pub fn reads_keys(pid: i32, name: &str) -> bool {
    let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = syscall.split(' ');
    let number = words.next().and_then(|word| word.parse::<i64>().ok());
    let fd = words.next().and_then(|word| i32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let on_terminal = fd.is_some_and(|fd| {
        fs::read_link(format!("/proc/{pid}/fd/{fd}"))
            .is_ok_and(|path| path.starts_with("/dev/pts") || path.starts_with("/dev/tty"))
    });
    self::name(pid) == name && number == Some(libc::SYS_read) && on_terminal
}

/// How long a process computed, also one that ended and was not waited for.
#[must_use]
pub fn cpu_time(pid: i32) -> Duration {
    let ticks: u32 = [14, 15].into_iter().filter_map(|field| stat(pid, field)?.parse::<u32>().ok()).sum();
    Duration::from_secs(1) * ticks / 100 // USER_HZ, the same on every architecture that we run on
}

fn entries(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn number(path: &Path) -> i32 {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap()
}

/// A file system that never answers, as an NFS server that went away: a FUSE mount without a
/// server. It is in a mount namespace of the calling thread's own, and answers with an error once
/// this is dropped.
#[derive(Debug)]
pub struct DeadMount {
    _server: fs::File,
}

impl DeadMount {
    /// Mounts it on a folder.
    ///
    /// # Panics
    ///
    /// When FUSE is not to be had; see [`Need::Fuse`](crate::skip::Need::Fuse).
    #[must_use]
    pub fn on(folder: &Path) -> DeadMount {
        own_mounts();
        let server = fs::OpenOptions::new().read(true).write(true).open(FUSE).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("dead"), folder, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        DeadMount { _server: server }
    }
}

/// Gives the calling thread, and what it starts, a mount namespace of its own.
///
/// # Panics
///
/// When it is not root.
pub fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>).unwrap();
}

/// A process in D state, by the v1 freezer: no signal ends it. It thaws when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    group: PathBuf,
}

impl Frozen {
    /// Freezes a process.
    #[must_use]
    pub fn new(process: &Process) -> Frozen {
        let group = Path::new(FREEZER).join(format!("pipewarden-test-{}", process.pid));
        fs::create_dir(&group).unwrap();
        let frozen = Frozen { group };
        fs::write(frozen.group.join("cgroup.procs"), process.pid.to_string()).unwrap();
        fs::write(frozen.group.join("freezer.state"), "FROZEN").unwrap();
        let state = frozen.group.join("freezer.state");
        let reached = Deadline::patient().until(|| fs::read_to_string(&state).is_ok_and(|s| s.trim() == "FROZEN"));
        assert!(reached, "the freezer does not freeze");
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("freezer.state"), "THAWED");
        // A group can go when its last process has; a thawed one may still be dying of a signal.
        let Ok(processes) = fs::read_to_string(self.group.join("cgroup.procs")) else { return };
        for pid in processes.lines() {
            let _ = fs::write(Path::new(FREEZER).join("cgroup.procs"), pid);
        }
        let _ = Deadline::patient().until(|| fs::remove_dir(&self.group).is_ok());
    }
}
