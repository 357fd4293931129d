//! What we were started with, noted before Rust's runtime changes it.
//!
//! The runtime ignores SIGPIPE and opens `/dev/null` on closed descriptors 0, 1 and 2 before `main`
//! runs. The command must see neither, so both are read in a constructor that runs before.

use std::sync::atomic::{AtomicU8, Ordering};

const CLOSED: [u8; 3] = [1, 2, 4];
const SIGPIPE_IGNORED: u8 = 8;
const NOTED: u8 = 128;

static STATE: AtomicU8 = AtomicU8::new(0);

/// Placed where both glibc and musl call it before `main`, and so before the runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE: extern "C" fn() = note;

extern "C" fn note() {
    let mut state = NOTED;
    for (fd, bit) in (0..).zip(CLOSED) {
        // SAFETY: fcntl(F_GETFD) on any number is safe; it touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            state |= bit;
        }
    }
    // SAFETY: sigaction is plain data, for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `action` is alive for the call.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) };
    if asked == 0 && action.sa_sigaction == libc::SIG_IGN {
        state |= SIGPIPE_IGNORED;
    }
    STATE.store(state, Ordering::Relaxed);
}

/// Whether descriptor 0, 1 or 2 was closed when we were started.
#[must_use]
pub fn was_closed(fd: usize) -> bool {
    CLOSED.get(fd).is_some_and(|bit| STATE.load(Ordering::Relaxed) & bit != 0)
}

/// Notes that we put something else in the place of descriptors 0, 1 and 2: whoever is started from
/// here on gets that.
pub fn standard_were_replaced() {
    STATE.fetch_and(!CLOSED.iter().fold(0, |bits, bit| bits | bit), Ordering::Relaxed);
}

/// Whether SIGPIPE was ignored when we were started.
#[must_use]
pub fn sigpipe_was_ignored() -> bool {
    STATE.load(Ordering::Relaxed) & SIGPIPE_IGNORED != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constructor_ran() {
        assert_ne!(STATE.load(Ordering::Relaxed) & NOTED, 0, "the linker dropped the constructor");
        assert!(!was_closed(2));
    }
}
