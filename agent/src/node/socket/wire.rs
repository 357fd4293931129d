//! Bytes and descriptors over a socket that never waits.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// As many descriptors as can come with one message (`SCM_MAX_FD` of include/net/scm.h), in bytes.
const FDS: libc::c_uint = 4 * 253;

/// What one read brought.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// How many bytes; 0 is the end.
    pub(super) bytes: usize,
    /// Descriptors, close-on-exec.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether the kernel had to leave descriptors out.
    pub(super) truncated: bool,
}

/// Reads once. There is room for all descriptors that can come: those for which there is none would be closed
/// by the kernel in this thread, which may wait.
///
/// # Errors
///
/// `WouldBlock` when there is nothing.
pub(super) fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: CMSG_SPACE computes a length.
    let length = unsafe { libc::CMSG_SPACE(FDS) } as usize;
    // Of words, because control messages begin where words do.
    let mut control = vec![0_u64; length.div_ceil(size_of::<u64>())];
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr is plain data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = length as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: all that the message points to is alive for the call, with the lengths that it says.
    let bytes = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) })?;
    let mut received = Received { bytes: bytes.cast_unsigned(), ..Received::default() };
    received.truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    // nix gives no descriptors where some were left out, and those that came would be lost.
    // SAFETY: the kernel filled the message, whose control buffer is alive and aligned.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: as above; what CMSG_FIRSTHDR and CMSG_NXTHDR give is a whole header in the buffer, or null.
    while let Some(part) = unsafe { header.as_ref() } {
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data follow the header, and its length covers both.
            let (data, empty) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0) as usize) };
            #[allow(clippy::unnecessary_cast, reason = "the length is a socklen_t where the libc is musl")]
            let number = (part.cmsg_len as usize).saturating_sub(empty) / size_of::<RawFd>();
            for index in 0..number {
                // SAFETY: there are so many descriptors, which the kernel just made for us alone.
                let fd = unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(index).read_unaligned()) };
                received.fds.push(fd);
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(received)
}

/// Sends what fits, with the descriptors at its first byte: how many bytes that were.
///
/// # Errors
///
/// `WouldBlock` when nothing fits.
pub(super) fn send(socket: &impl AsFd, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Whether the other side has received everything (`SIOCOUTQ`): what it has not still holds what was passed.
pub(super) fn all_received(socket: &impl AsFd) -> bool {
    let mut left: libc::c_int = 0;
    // SAFETY: the request writes one int, which is alive for the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    result < 0 || left == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_come_with_the_bytes_that_they_were_sent_with() {
        let (one, other) = UnixStream::pair().unwrap();
        let passed: Vec<OwnedFd> = (0..253).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        assert_eq!(send(&one, b"first", &[]).unwrap(), 5);
        assert_eq!(send(&one, b"second", &passed).unwrap(), 6);
        assert_eq!(send(&one, b"third", &[]).unwrap(), 5);
        assert!(!all_received(&one));
        let mut buffer = [0; 100];
        let received = receive(&other, &mut buffer).unwrap();
        assert_eq!((received.bytes, received.fds.len(), received.truncated), (11, 253, false));
        let received = receive(&other, &mut buffer).unwrap();
        assert_eq!((received.bytes, received.fds.len()), (5, 0));
        assert!(all_received(&one));
        assert_eq!(receive(&other, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert_eq!(receive(&other, &mut buffer).unwrap().bytes, 0);
    }
}
