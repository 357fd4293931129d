//! The hang explained: who holds a pipe, what a process waits for, and what would release it.
//!
//! Everything here only looks: nothing is attached to, stopped or signalled. What was seen is of a moment
//! that is already over, and what could not be seen is named.
//!
//! - [`aside`]: looking from a process that nobody has to wait for;
//! - [`machine`], [`sockets`], [`channel`], [`flight`]: who has which end of what;
//! - [`calls`], [`waits`]: what a thread waits for;
//! - [`graph`]: who waits for whom, and the circles in it; [`frozen`]: cgroups that hold processes still;
//! - [`verdict`], [`why`]: the conclusion and its picture;
//! - [`holders`], [`fifo`]: the other two questions.

pub mod aside;
pub mod calls;
pub mod channel;
pub mod fifo;
pub mod flight;
pub mod frozen;
pub mod graph;
mod guess;
pub mod holders;
pub mod machine;
pub mod remedy;
pub mod sockets;
pub mod target;
pub mod verdict;
pub mod waits;
pub mod why;

use std::sync::OnceLock;

/// The source that answers, as long as no node watches this machine.
pub const SOURCE: &str = "proc";

/// The device numbers of the kernel's own file systems for pipes and for sockets: each has one.
fn devices() -> (u64, u64) {
    static DEVICES: OnceLock<(u64, u64)> = OnceLock::new();
    *DEVICES.get_or_init(|| {
        let of = |fd: &std::os::fd::OwnedFd| nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_dev);
        let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_or(0, |(read, _)| of(&read));
        let socket = std::os::unix::net::UnixDatagram::unbound().map_or(0, |socket| of(&socket.into()));
        (pipe, socket)
    })
}
