//! Our place in a terminal's job control, and so the command's.
//!
//! A terminal signals process groups: ctrl-C, ctrl-Z and a new window size go to the foreground
//! group, and only its members may read. A shell moves whole groups between foreground and
//! background. So where there is a terminal the command stays in our group: everything reaches it
//! once and directly, and `fg` and `bg` move both. (A group of its own would be stopped by its first
//! read after `fg`, and to hand it the terminal would take the terminal from whoever stands beside us
//! in a pipeline.) We never call tcsetpgrp(3).
//!
//! **Stops.** A shell takes the terminal back when its job has stopped, and its job is us. So a stop
//! signal is the command's alone: a pager still has to restore the screen, an editor may not stop at
//! all. Once the command *has* stopped by one of job control's signals, we stop by the same one, and
//! SIGCONT to the job continues both. By SIGSTOP alone (a program in raw mode that suspends itself; a
//! debugger; a CPU limiter) it stops us only where a shell with job control waits for us and would
//! have seen it: whoever else stopped the command continues it, and would not continue us.
//!
//! **Deaths.** Such a shell also wants to know the signal that ended its job, and leaves its loops
//! only if that was SIGINT. There, and after a key of the terminal, we die by the signal that the
//! command died by; `$?` is 128 and the signal's number either way.
//!
//! Where there is no terminal (CI, containers, services) the command gets a group of its own, which an
//! ending can signal as one.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use super::signals::is_stop;
use crate::process::stat::Stat;

/// Whether our session has a terminal: `/dev/tty` is that one, whatever 0, 1 and 2 are.
#[must_use]
pub fn is_ours() -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").is_ok()
}

/// Whether that process is the job of a shell with job control: its parent, in the same session, keeps
/// itself in another group.
#[must_use]
pub fn is_a_job(pid: i32) -> bool {
    let Ok(job) = Stat::read(pid) else { return false };
    Stat::read(job.ppid).is_ok_and(|shell| shell.sid == job.sid && shell.pgid != job.pgid)
}

/// Whether we, who shall look like `pid` (our own process, or the one in front of us), stop when a
/// child that shares our group stopped by that signal.
#[must_use]
pub fn stops_with(pid: i32, signal: i32) -> bool {
    is_stop(signal) || is_a_job(pid)
}
