//! wait(2), with the signals that the standard wrappers do not know.

use std::io;

use crate::pipe::ExitStatus;

/// A child that exited.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// Who.
    pub pid: i32,
    /// How.
    pub status: ExitStatus,
}

/// A child that has exited, if there is one, without reaping it.
///
/// # Errors
///
/// Nothing that happens on a sound system; no children at all is no error.
pub fn peek() -> io::Result<Option<Death>> {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Whether we have children at all: running, stopped or not yet reaped.
#[must_use]
pub fn has_children() -> bool {
    let any = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is alive for the call, which only writes to it.
    let asked = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, any) };
    asked == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}

/// Whether a child has exited, without reaping it.
#[must_use]
pub fn has_exited(pid: i32) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else { return false };
    matches!(wait(libc::P_PID, id, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT), Ok(Some(_)))
}

/// Reaps a child if it has exited; whether it had.
#[must_use]
pub fn reap(pid: i32) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else { return false };
    matches!(wait(libc::P_PID, id, libc::WEXITED | libc::WNOHANG), Ok(Some(_)))
}

/// The signal that stopped a child, if it is stopped and this was not yet told.
///
/// # Errors
///
/// Nothing that happens on a sound system; that there is no such child is no error.
pub fn stopped(pid: i32) -> io::Result<Option<i32>> {
    let Ok(id) = libc::id_t::try_from(pid) else { return Ok(None) };
    Ok(wait_for(libc::P_PID, id, libc::WSTOPPED | libc::WNOHANG)?.map(|(_, _, signal)| signal))
}

fn wait(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> io::Result<Option<Death>> {
    Ok(wait_for(kind, id, flags)?.map(|(pid, code, status)| {
        let exited = code == libc::CLD_EXITED;
        Death { pid, status: if exited { ExitStatus::Code(status) } else { ExitStatus::Signal(status) } }
    }))
}

/// waitid(2): pid, code and status.
fn wait_for(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> io::Result<Option<(i32, i32, i32)>> {
    loop {
        // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is alive for the call, which only writes to it.
        if unsafe { libc::waitid(kind, id, &raw mut info, flags) } == 0 {
            // SAFETY: waitid succeeded, so the SIGCHLD fields are the ones that are set (or all are 0).
            let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
            return Ok((pid != 0).then_some((pid, info.si_code, status)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
}
