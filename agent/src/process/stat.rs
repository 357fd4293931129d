//! `/proc/PID/stat`: identity, parent, group, session, CPU time.

use std::fs;
use std::io;

use crate::pipe::ProcessId;

/// `PF_KTHREAD` of include/linux/sched.h, as field 9 of `/proc/PID/stat` shows it.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_EXITING`, as above.
const PF_EXITING: u64 = 0x4;

/// The fields of `/proc/PID/stat` that we use (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Pid and start time.
    pub id: ProcessId,
    /// The program's name, at most 15 bytes; any byte may be in it.
    pub comm: String,
    /// One letter: `R`, `S`, `D`, `T`, `Z`, ...
    pub state: char,
    /// The parent as of now.
    pub ppid: i32,
    /// The process group.
    pub pgid: i32,
    /// The session.
    pub sid: i32,
    /// User plus system time of all threads, in clock ticks.
    pub cpu_ticks: u64,
    /// Threads that were not yet reaped, the first one included even when it has exited.
    pub threads: u64,
    /// Whether this is a kernel thread.
    pub kernel_thread: bool,
    /// Whether its first thread is on its way out. Without its memory such a process belongs to root, as
    /// far as `/proc` is concerned, and to nobody else its tables are closed.
    pub exiting: bool,
}

impl Stat {
    /// Reads the stat of a process.
    ///
    /// # Errors
    ///
    /// [`is_gone`](super::is_gone) when there is no such process; `InvalidData` when the kernel's
    /// answer has not the form of proc_pid_stat(5).
    pub fn read(pid: i32) -> io::Result<Stat> {
        let bytes = super::read(&format!("/proc/{pid}/stat"))?;
        Stat::parse(pid, &bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has an unknown form")))
    }

    /// Reads the stat of one thread: its own state and name, the process's parent, group and session.
    ///
    /// # Errors
    ///
    /// As for [`Stat::read`].
    pub fn read_thread(pid: i32, tid: i32) -> io::Result<Stat> {
        let path = format!("/proc/{pid}/task/{tid}/stat");
        Stat::parse(tid, &super::read(&path)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path} has an unknown form")))
    }

    /// Whether the whole process has exited and only waits to be reaped.
    ///
    /// A process whose first thread exited shows as a zombie while its other threads run: then the
    /// number of threads is more than one.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// Whether a thread of the process runs, or is ready to: the process's own state is only that of
    /// its first thread.
    #[must_use]
    pub fn is_ready_to_run(&self) -> bool {
        self.state == 'R'
            || self.threads > 1
                && fs::read_dir(format!("/proc/{}/task", self.id.pid)).into_iter().flatten().flatten().any(|task| {
                    let tid = task.file_name().to_str().and_then(|name| name.parse().ok());
                    tid.and_then(|tid| Stat::read_thread(self.id.pid, tid).ok())
                        .is_some_and(|thread| thread.state == 'R')
                })
    }

    /// Whether one thread of a process has ended.
    #[must_use]
    pub fn thread_has_ended(pid: i32, tid: i32) -> bool {
        super::read(&format!("/proc/{pid}/task/{tid}/stat"))
            .is_ok_and(|bytes| Stat::parse(tid, &bytes).is_some_and(|stat| matches!(stat.state, 'Z' | 'X')))
    }

    fn parse(pid: i32, bytes: &[u8]) -> Option<Stat> {
        let (comm, fields) = split(bytes)?;
        let field = |number: usize| fields.get(number - 3).copied();
        let flags: u64 = field(9)?.parse().ok()?;
        Some(Stat {
            id: ProcessId { pid, start_ticks: field(22)?.parse().ok()? },
            comm,
            state: field(3)?.chars().next()?,
            ppid: field(4)?.parse().ok()?,
            pgid: field(5)?.parse().ok()?,
            sid: field(6)?.parse().ok()?,
            cpu_ticks: field(14)?.parse::<u64>().ok()?.saturating_add(field(15)?.parse().ok()?),
            threads: field(20)?.parse().ok()?,
            kernel_thread: flags & PF_KTHREAD != 0,
            exiting: flags & PF_EXITING != 0,
        })
    }
}

/// A process's controlling terminal (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its device number (field 7, decoded).
    pub device: u64,
    /// The process group in its foreground; -1 for none (field 8).
    pub foreground: i32,
}

impl Terminal {
    /// The controlling terminal of a process, if it has one.
    #[must_use]
    pub fn of(pid: i32) -> Option<Terminal> {
        let bytes = super::read(&format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = split(&bytes)?;
        let encoded = fields.get(7 - 3)?.parse::<i32>().ok().filter(|device| *device != 0)?.cast_unsigned();
        Some(Terminal {
            // MKDEV of include/linux/kdev_t.h, as new_encode_dev() packs it.
            device: libc::makedev(encoded >> 8 & 0xfff, encoded & 0xff | encoded >> 12 & 0xf_ff00),
            foreground: fields.get(8 - 3)?.parse().ok()?,
        })
    }
}

/// The name, and the fields from the third on.
fn split(bytes: &[u8]) -> Option<(String, Vec<&str>)> {
    // The name is in parentheses and may itself contain `) `: the last one closes it.
    let open = bytes.iter().position(|b| *b == b'(')?;
    let close = bytes.iter().rposition(|b| *b == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    Some((comm, rest.split_ascii_whitespace().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"71 (a) R (b)) S 1 70 69 0 -1 4194560 0 0 0 0 7 5 0 0 20 0 1 0 4242 0 0";
        let stat = Stat::parse(71, line).unwrap();
        assert_eq!(stat.comm, "a) R (b)");
        assert_eq!((stat.state, stat.ppid, stat.pgid, stat.sid), ('S', 1, 70, 69));
        assert_eq!((stat.cpu_ticks, stat.id.start_ticks), (12, 4242));
        assert!(!stat.kernel_thread && !stat.exiting);
    }

    #[test]
    fn a_truncated_answer_is_an_error_and_not_a_process() {
        assert_eq!(Stat::parse(71, b"71 (sh) S 1 2"), None);
        assert_eq!(Stat::parse(71, b""), None);
    }

    #[test]
    fn our_own_stat_agrees_with_the_system_calls() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::read(pid).unwrap();
        assert_eq!(stat.ppid, nix::unistd::getppid().as_raw());
        assert_eq!(stat.pgid, nix::unistd::getpgrp().as_raw());
        assert!(!stat.is_dead());
    }
}
