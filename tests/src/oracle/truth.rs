//! What /proc says: every thread of a tree of processes, which of them share a table, and every
//! descriptor on a pipe or FIFO. None of pipewarden's code is used: this is the other opinion.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use pipewarden_common::{END_READ, END_WRITE};

use super::task::{self, Task};

/// One descriptor on a pipe or FIFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hold {
    /// `st_dev`, as `makedev` makes it.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// [`END_READ`] and [`END_WRITE`].
    pub ends: u32,
}

/// One table, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its threads, as indices into [`Truth::tasks`].
    pub owners: Vec<usize>,
    /// Its descriptors.
    pub holds: BTreeMap<u32, Hold>,
}

/// Everything, at one point in time if nothing moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The threads.
    pub tasks: Vec<Task>,
    /// Their tables.
    pub tables: Vec<Table>,
}

/// Why there is no truth to be told: something moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving;

impl Truth {
    /// Reads it for a process and what descends from it.
    ///
    /// # Errors
    ///
    /// When something went away or changed while it was read.
    ///
    /// # Panics
    ///
    /// When the kernel does not tell which threads share a table.
    pub fn read(root: u32) -> Result<Truth, Moving> {
        let tasks = task::tree(root).map_err(|_| Moving)?;
        let mut tables: Vec<Table> = Vec::new();
        for (index, task) in tasks.iter().enumerate().filter(|(_, task)| !task.dead) {
            let mut shared = None;
            for (at, table) in tables.iter().enumerate() {
                let Some(first) = table.owners.first().and_then(|owner| tasks.get(*owner)) else { continue };
                if same_table(first.tid, task.tid)? {
                    shared = Some(at);
                    break;
                }
            }
            match shared {
                Some(at) => tables[at].owners.push(index),
                None => tables.push(Table { owners: vec![index], holds: holds(task)? }),
            }
        }
        Ok(Truth { tasks, tables })
    }

    /// The table of a thread.
    #[must_use]
    pub fn table_of(&self, task: usize) -> Option<usize> {
        self.tables.iter().position(|table| table.owners.contains(&task))
    }
}

/// Whether two threads share one table.
fn same_table(a: u32, b: u32) -> Result<bool, Moving> {
    const KCMP_FILES: libc::c_int = 2; // include/uapi/linux/kcmp.h
    // SAFETY: kcmp(2) takes five integers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_FILES, 0, 0) } {
        -1 if Errno::last() == Errno::ESRCH => Err(Moving),
        -1 => panic!("kcmp: {}", Errno::last()),
        order => Ok(order == 0),
    }
}

fn holds(task: &Task) -> Result<BTreeMap<u32, Hold>, Moving> {
    let path = format!("/proc/{}/task/{}/fd", task.pid, task.tid);
    let mut dir = Dir::open(path.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|_| Moving)?;
    let mut fds = Vec::new();
    for entry in dir.iter() {
        let entry = entry.map_err(|_| Moving)?;
        fds.extend(entry.file_name().to_str().ok().filter(|name| !name.starts_with('.')).map(str::to_owned));
    }
    let mut found = BTreeMap::new();
    for fd in fds {
        if let Some((dev, ino)) = pipe_behind(&dir, &fd)? {
            let ends = ends(&dir, &fd)?;
            if opened(task, &fd)? != ends {
                return Err(Moving); // the number was used anew between the two
            }
            if ends != 0 {
                found.insert(fd.parse().map_err(|_| Moving)?, Hold { dev, ino, ends });
            }
        }
    }
    Ok(found)
}

/// Device and inode of a pipe or FIFO; nothing for what is neither.
fn pipe_behind(dir: &Dir, fd: &str) -> Result<Option<(u64, u64)>, Moving> {
    let link = readlinkat(dir.as_fd(), fd).map_err(|_| Moving)?;
    let link = link.as_encoded_bytes();
    if !link.starts_with(b"pipe:[") && !link.starts_with(b"/") {
        return Ok(None);
    }
    let name = std::ffi::CString::new(fd).map_err(|_| Moving)?;
    // SAFETY: statx is plain data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_TYPE | libc::STATX_INO;
    // SAFETY: the name is a C string and `stat` a statx, both alive for the call.
    if unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut stat) } != 0 {
        return Err(Moving);
    }
    let is_fifo = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFIFO;
    Ok(is_fifo.then(|| (libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)))
}

/// The link's own permission bits are the descriptor's open mode (proc_pid_fd(5)); `O_PATH` has none.
fn ends(dir: &Dir, fd: &str) -> Result<u32, Moving> {
    let mode = fstatat(dir.as_fd(), fd, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| Moving)?.st_mode;
    Ok(if mode & libc::S_IRUSR != 0 { END_READ } else { 0 } | if mode & libc::S_IWUSR != 0 { END_WRITE } else { 0 })
}

/// The same by fdinfo: the flags that it was opened with.
fn opened(task: &Task, fd: &str) -> Result<u32, Moving> {
    let info = fs::read_to_string(format!("/proc/{}/task/{}/fdinfo/{fd}", task.pid, task.tid)).map_err(|_| Moving)?;
    let flags = info.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    let flags = flags.ok_or(Moving)?;
    Ok(match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH == libc::O_PATH => 0,
        libc::O_RDONLY => END_READ,
        libc::O_WRONLY => END_WRITE,
        _ => END_READ | END_WRITE,
    })
}
