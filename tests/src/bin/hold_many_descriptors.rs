//! Holds one pipe by many descriptors, in many processes: `hold_many_descriptors DESCRIPTORS PROCESSES`. Says a
//! line when all of them hold; they end when stdin does.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, fork};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().context("how many?")?.parse::<usize>().context("no number");
    let (descriptors, processes) = (number()?, number()?);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let (read, _write) = std::io::pipe()?;
    let _held = (2..descriptors).map(|_| read.try_clone().map(OwnedFd::from)).collect::<Result<Vec<_>, _>>()?;
    for _ in 1..processes {
        // SAFETY: this program has one thread.
        if let ForkResult::Child = unsafe { fork() }? {
            return until_told();
        }
    }
    std::io::stdout().write_all(b"held\n")?;
    until_told()
}

fn until_told() -> anyhow::Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
