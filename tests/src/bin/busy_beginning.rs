//! Does at once what somebody who looks later has to find: leaves holders of its stdout that got it in
//! every way, processes that had it and have it no more, and one that forks, dups and closes all the time.
//!
//! | role | |
//! |---|---|
//! | `duped` | in a session of its own, with stdout as descriptor 70 alone |
//! | `daemon` | its parent has exited; with stdout as descriptors 1 and 500 |
//! | `passed` | had closed its stdout, and got it back by `SCM_RIGHTS` |
//! | `left it` | in a session of its own, and has no stdout any more |
//! | `reader` | the same; has a FIFO open at both ends |
//! | `storm` | the same; forks, dups, and makes pipes until it is ended |
//!
//! `busy_beginning FIFO`: where to make the FIFO.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{dup, mkfifo, pipe, setsid};
use pipewarden_tests::fixture::{Fixture, fork, put, stay, to_null};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let fifo = fixture.arguments().first().context("where is the FIFO to be?")?;
    mkfifo(fifo.as_str(), Mode::S_IRWXU)?;
    leave(&fixture, "duped", || {
        put(1, 70)?;
        to_null(&[1, 2])
    })?;
    leave(&fixture, "left it", || {
        put(1, 70)?;
        to_null(&[1, 2, 70])
    })?;
    leave(&fixture, "reader", || {
        to_null(&[1, 2])?;
        let _kept = std::mem::ManuallyDrop::new(open(fifo.as_str(), OFlag::O_RDWR, Mode::empty())?);
        Ok(())
    })?;
    let middle = fork(|| {
        fork(|| {
            setsid()?;
            put(1, 500)?;
            to_null(&[2])?;
            fixture.announce("daemon")?;
            stay()
        })?;
        Ok(())
    })?;
    waitpid(middle, None)?;
    fixture.after("daemon")?;
    pass_on(&fixture)?;
    fork(|| {
        setsid()?;
        to_null(&[1, 2])?;
        fixture.announce("storm")?;
        loop {
            storm()?;
            // For as long as a test takes, and beside others: not all that the machine can.
            std::thread::sleep(Duration::from_micros(500));
        }
    })?;
    fixture.after("storm")?;
    fixture.end()
}

fn leave(fixture: &Fixture, role: &str, settle: impl FnOnce() -> Result<()>) -> Result<()> {
    fork(|| {
        setsid()?;
        settle()?;
        fixture.announce(role)?;
        stay()
    })?;
    fixture.after(role)
}

/// Passes stdout to a child that has none.
fn pass_on(fixture: &Fixture) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    fork(|| {
        setsid()?;
        to_null(&[1, 2])?;
        let (mut byte, mut space) = ([0], nix::cmsg_space!([i32; 1]));
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(theirs.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::empty())?;
        ensure!(message.cmsgs()?.count() == 1, "a descriptor was to come");
        fixture.announce("passed")?;
        stay()
    })?;
    let rights = [ControlMessage::ScmRights(&[1])];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    fixture.after("passed")
}

fn storm() -> Result<()> {
    let (read, write) = pipe()?;
    let copy = dup(&write)?;
    let child = fork(|| Ok(()))?;
    drop((read, write, copy));
    waitpid(child, None)?;
    Ok(())
}
