//! Threads, as /proc tells of them.

use std::fs;
use std::io;

/// One thread, alive or a zombie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Whether it has ended, and has no table any more.
    pub dead: bool,
    /// Its parent.
    pub parent: u32,
    /// Its process group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// When its thread started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Task {
    /// Reads one; `None` when it is gone.
    #[must_use]
    pub fn read(pid: u32, tid: u32) -> Option<Task> {
        Task::parse(pid, tid, &stat(pid, tid).ok()?)
    }

    fn parse(pid: u32, tid: u32, stat: &str) -> Option<Task> {
        let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect(); // from field 3 of proc_pid_stat(5) on
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Task {
            pid,
            tid,
            name: name.to_owned(),
            dead: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: number(4)?,
            pgid: number(5)?,
            sid: number(6)?,
            start_ticks: fields.get(22 - 3)?.parse().ok()?,
        })
    }

    /// Whether it is a worker of the kernel's for an `io_uring`, with its process's table.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.name.starts_with("iou-")
    }

    /// Whether it waits in an open(2) for somebody at the other end of a FIFO.
    #[must_use]
    pub fn blocks_in_open(&self) -> bool {
        let syscall = fs::read_to_string(format!("/proc/{}/task/{}/syscall", self.pid, self.tid));
        let number = syscall.ok().and_then(|text| text.split(' ').next()?.parse::<i64>().ok());
        number == Some(libc::SYS_openat)
    }
}

fn stat(pid: u32, tid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))
}

/// Whether a thread has ended: its table is no longer its. That we cannot look (we may have no descriptor
/// left for a moment) says nothing.
#[must_use]
pub fn is_gone(pid: u32, tid: u32) -> bool {
    match stat(pid, tid) {
        Ok(stat) => Task::parse(pid, tid, &stat).is_none_or(|task| task.dead),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// All threads of a process and of what descends from it, in the order of their numbers. What comes or
/// goes meanwhile may be missing.
///
/// # Errors
///
/// When the first process is gone.
pub fn tree(root: u32) -> io::Result<Vec<Task>> {
    let mut found = Vec::new();
    let mut processes = vec![root];
    while let Some(pid) = processes.pop() {
        let threads = match fs::read_dir(format!("/proc/{pid}/task")) {
            Ok(threads) => threads,
            Err(error) if pid == root => return Err(error),
            Err(_) => continue,
        };
        for entry in threads.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            found.extend(Task::read(pid, tid));
            let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    found.sort_by_key(|task| (task.pid, task.tid));
    found.dedup_by_key(|task| (task.pid, task.tid));
    Ok(found)
}

/// Whether no thread of a process has a table any more.
#[must_use]
pub fn is_gone_with_threads(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).all(|tid| is_gone(pid, tid))
}
