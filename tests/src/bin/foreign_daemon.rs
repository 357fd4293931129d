//! A daemon outside every run, which takes one descriptor from a client and keeps it.
//! `foreign_daemon PATH [ignore-sigpipe]`: where it listens. It announces `daemon` when it listens
//! and `received` when it has the descriptor. It writes there when the test tells it to,
//! see `write_when_told`.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use pipewarden_tests::fixture::{Fixture, ignore, stay, write_when_told};

fn main() -> Result<()> {
    let fixture = Fixture::begin_silently()?;
    if fixture.says("ignore-sigpipe") {
        ignore(Signal::SIGPIPE)?;
    }
    let listener = UnixListener::bind(fixture.arguments().first().context("listen where?")?)?;
    fixture.announce("daemon")?;
    let (mut client, _) = listener.accept()?;
    let taken = receive(client.as_raw_fd())?;
    client.write_all(b"x")?;
    fixture.announce("received")?;
    write_when_told(&fixture, &taken)?;
    stay()
}

fn receive(socket: i32) -> Result<OwnedFd> {
    let mut space = cmsg_space!([i32; 1]);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let fds = message.cmsgs()?.find_map(|m| if let ControlMessageOwned::ScmRights(fds) = m { Some(fds) } else { None });
    let fd = fds.and_then(|fds| fds.first().copied()).context("the client sent no descriptor")?;
    // SAFETY: the kernel just installed it for us, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
