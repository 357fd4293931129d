//! Leaves stdout in flight: sent by SCM_RIGHTS to a child that never receives. No descriptor table
//! anywhere shows it; the `scm_fds` of the receiving socket's fdinfo does.

use std::io::IoSlice;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    fixture.leave(|| {
        setsid()?;
        to_null(&[0, 1, 2, ours.as_raw_fd()])
    })?;
    drop(theirs);
    let message = [IoSlice::new(b"x")];
    sendmsg::<()>(ours.as_raw_fd(), &message, &[ControlMessage::ScmRights(&[1])], MsgFlags::empty(), None)?;
    fixture.end()
}
