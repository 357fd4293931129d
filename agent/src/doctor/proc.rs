//! Whether `/proc` answers: a child of ours is found as one, and by the pipe that it holds.

use std::io;

use anyhow::{Context, ensure};
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2};

use crate::pipe::{Pipe, PipeId, PipeKind};
use crate::process::children::children;
use crate::process::table::{Sought, look};

/// Makes the child, looks, and lets it go.
///
/// # Errors
///
/// What `/proc` did not tell.
pub fn probe() -> anyhow::Result<String> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child only reads, and exits: both are async-signal-safe.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(write); // else it would wait for itself
            let mut byte = [0];
            let _ = nix::unistd::read(&read, &mut byte);
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(0) }
        }
    };
    let seen = look_for(child.as_raw(), &read);
    drop(write);
    waitpid(child, None)?;
    seen
}

fn look_for(child: i32, read: &impl std::os::fd::AsFd) -> anyhow::Result<String> {
    let us = nix::unistd::getpid().as_raw();
    let listed = children(us).context("children cannot be listed")?;
    ensure!(listed.contains(&child), "a child of ours is not listed");
    let stat = nix::sys::stat::fstat(read).map_err(io::Error::from)?;
    let pipe = Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Pipe };
    let found = look(child, &Sought { pipes: vec![pipe], hidden: false }).context("tables cannot be read")?;
    ensure!(found.holds.iter().any(|hold| hold.pipe == pipe.id), "a pipe that a child of ours holds is not seen");
    Ok("found a child of ours, and the pipe that it holds".to_owned())
}
