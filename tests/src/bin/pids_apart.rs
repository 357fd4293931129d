//! Two children whose pids are so far apart: `pids_apart DISTANCE`. Told `fork` on stdin it makes them and says their
//! pids, or `none`; told `end` it ends the first; told `dup` it lets the second put its stdout into slot 200. It says
//! `.` when that is done. At stdin's end all of them end.

#![allow(clippy::print_stdout, reason = "what it says is read by a test")]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

const SLOT: i32 = 200;

fn main() -> Result<()> {
    let distance: i32 = std::env::args().nth(1).context("how far?")?.parse()?;
    let mut lines = std::io::stdin().lines();
    let (said, mut say) = std::io::pipe()?;
    let (mut hear, answer) = std::io::pipe()?;
    let mut children = None;
    while let Some(line) = lines.next().transpose()? {
        match (line.as_str(), children) {
            ("fork", _) => {
                children = (2000..distance).rev().find_map(|pid| {
                    let first = child_of_pid(pid, || {
                        loop {
                            nix::unistd::pause();
                        }
                    })?;
                    let second = child_of_pid(pid + distance, || waits_and_dups(&said, &answer));
                    if second.is_none() {
                        end(first);
                    }
                    Some((first, second?))
                });
                match children {
                    Some((first, second)) => println!("{first} {second}"),
                    None => println!("none"),
                }
            }
            ("end", Some((first, _))) => {
                end(first);
                println!(".");
            }
            ("dup", Some(_)) => {
                say.write_all(b".")?;
                hear.read_exact(&mut [0])?;
                println!(".");
            }
            (line, _) => anyhow::bail!("{line}?"),
        }
    }
    if let Some((_, second)) = children {
        end(second);
    }
    Ok(())
}

fn end(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
}

fn waits_and_dups(mut said: &std::io::PipeReader, mut answer: &std::io::PipeWriter) {
    while said.read_exact(&mut [0]).is_ok() {
        // SAFETY: plain descriptors; the slot is nobody's.
        unsafe { libc::dup2(std::io::stdout().as_raw_fd(), SLOT) };
        let _ = answer.write_all(b".");
    }
}

/// A child of that pid, which somebody may have; wishing takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
fn child_of_pid(pid: i32, does: impl FnOnce()) -> Option<Pid> {
    let wished = [pid];
    // SAFETY: zeroes are a value of it: nothing is asked for but a child.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = wished.as_ptr() as u64;
    arguments.set_tid_size = 1;
    // SAFETY: as fork, and this process has one thread.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) } {
        0 => {
            does();
            std::process::exit(0)
        }
        child => (child == i64::from(pid)).then_some(Pid::from_raw(pid)),
    }
}
