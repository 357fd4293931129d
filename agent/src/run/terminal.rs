//! Our place in a terminal's job control, and so the command's.
//!
//! A terminal signals process groups: ctrl-C, ctrl-Z and a new window size go to the foreground
//! group, and only its members may read. A shell moves whole groups between foreground and
//! background. So where there is a terminal the command stays in our group: everything reaches it
//! once and directly, `fg` and `bg` move both, and we have nothing to forward. (A group of its own
//! would be stopped by its first read after `fg`, and to hand it the terminal would take the terminal
//! from whoever stands beside us in a pipeline.) We never call tcsetpgrp(3).
//!
//! Job control's stops (ctrl-Z, SIGTTIN, or one of them sent to us) stop us as well as the command,
//! and SIGCONT to us continues both. A command that is stopped alone, by itself or by a debugger or a
//! CPU limiter, does not stop us: whoever continues it would not continue us, and `--timeout` has to
//! end a command whatever state it is in.
//!
//! Where there is none (CI, containers, services) the command gets a group of its own, which an
//! ending can signal as one.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Whether our session has a terminal: `/dev/tty` is that one, whatever 0, 1 and 2 are.
#[must_use]
pub fn is_ours() -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").is_ok()
}
