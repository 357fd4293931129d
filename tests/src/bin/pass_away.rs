//! Passes its stdout to a daemon that somebody else started, and exits: `screen`, `tmux` and `emacs
//! --daemon` clients do that. `pass_away PATH`: the daemon's socket, see `foreign_daemon`.

use std::io::{IoSlice, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let mut daemon = UnixStream::connect(fixture.arguments().first().context("to which socket?")?)?;
    let message = [IoSlice::new(b"x")];
    sendmsg::<()>(daemon.as_raw_fd(), &message, &[ControlMessage::ScmRights(&[1])], MsgFlags::empty(), None)?;
    ensure!(daemon.read(&mut [0])? == 1, "the daemon did not take it");
    drop(daemon);
    fixture.end()
}
