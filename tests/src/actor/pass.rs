//! Descriptors that come from elsewhere: by a unix socket's message, or taken out of a process.

use super::Task;
use super::board::FOLDER_MAX;
use super::sys::{self, Answer, Word};

/// The descriptor of the first mailbox.
pub const MAILBOX: u32 = 40;

/// Room for a control message with a few descriptors.
const CONTROL: usize = 128;
/// A control message's header: length, level, type (cmsg(3), 64-bit).
const HEADER: usize = 16;

/// Binds a mailbox at its number's descriptor.
pub fn open_mailbox(task: Task, number: u32) -> Answer {
    let socket = sys::numbers(libc::SYS_socket, &[libc::AF_UNIX as u32, libc::SOCK_DGRAM as u32, 0]);
    let Ok(fd) = u32::try_from(socket) else { return socket };
    let (address, length) = address_of(task, number);
    // SAFETY: the address lives through the call.
    let bound =
        sys::short(unsafe { sys::call(libc::SYS_bind, [fd as Word, (&raw const address) as Word, length, 0, 0, 0]) });
    let result = if bound < 0 { bound } else { sys::numbers(libc::SYS_dup3, &[fd, MAILBOX + number, 0]) };
    if fd != MAILBOX + number {
        let _ = sys::numbers(libc::SYS_close, &[fd]);
    }
    result
}

/// The abstract name of a mailbox: the troupe's folder and its number.
fn address_of(task: Task, number: u32) -> (libc::sockaddr_un, Word) {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let path = task.board().path(b"mailbox", Some(number));
    for (place, byte) in address.sun_path.iter_mut().skip(1).zip(path) {
        *place = byte as libc::c_char;
    }
    (address, 2 + 1 + FOLDER_MAX + 32)
}

/// Sends descriptors to a mailbox, from a socket that is closed again.
pub fn send(task: Task, number: u32, fds: &[u32]) -> Answer {
    let socket = sys::numbers(libc::SYS_socket, &[libc::AF_UNIX as u32, libc::SOCK_DGRAM as u32, 0]);
    let Ok(socket) = u32::try_from(socket) else { return socket };
    let (mut address, length) = address_of(task, number);
    let mut message = Message::new();
    message.header.msg_name = (&raw mut address).cast();
    message.header.msg_namelen = length as u32;
    let result = message.with(fds, |header| {
        let a = [socket as Word, header, libc::MSG_DONTWAIT as Word, 0, 0, 0];
        // SAFETY: the message and all that it names live through the call.
        sys::short(unsafe { sys::call(libc::SYS_sendmsg, a) })
    });
    let _ = sys::numbers(libc::SYS_close, &[socket]);
    result
}

/// Receives one message, if there is one.
pub fn receive(number: u32, cloexec: bool) -> Answer {
    receive_with(|header| {
        let a = [(MAILBOX + number) as Word, header, receive_flags(cloexec), 0, 0, 0];
        // SAFETY: as above.
        sys::short(unsafe { sys::call(libc::SYS_recvmsg, a) })
    })
}

/// Lets `receive` use a message with room for descriptors: it is given the address of a `msghdr`.
pub fn receive_with(receive: impl FnOnce(Word) -> Answer) -> Answer {
    Message::new().with(&[], receive)
}

fn receive_flags(cloexec: bool) -> Word {
    (libc::MSG_DONTWAIT | if cloexec { libc::MSG_CMSG_CLOEXEC } else { 0 }) as Word
}

/// Receives up to two messages by one call.
pub fn receive_many(number: u32, cloexec: bool) -> Answer {
    let mut first = Message::new();
    let mut second = Message::new();
    first.with(&[], |one| {
        second.with(&[], |two| {
            // SAFETY: both addresses are those of the headers that `with` filled in.
            let headers = unsafe { [*(one as *const libc::msghdr), *(two as *const libc::msghdr)] };
            let mut many = headers.map(|msg_hdr| libc::mmsghdr { msg_hdr, msg_len: 0 });
            let a = [(MAILBOX + number) as Word, many.as_mut_ptr() as Word, 2, receive_flags(cloexec), 0, 0];
            // SAFETY: as above.
            sys::short(unsafe { sys::call(libc::SYS_recvmmsg, a) })
        })
    })
}

/// A message of one byte, with room for descriptors.
struct Message {
    header: libc::msghdr,
    control: [u64; CONTROL / 8],
    part: libc::iovec,
    byte: u8,
}

impl Message {
    fn new() -> Message {
        // SAFETY: both are plain data, for which all zeroes is a value.
        unsafe { Message { header: std::mem::zeroed(), control: [0; CONTROL / 8], part: std::mem::zeroed(), byte: 0 } }
    }

    /// Fills it in, with these descriptors to send or with empty room, and passes its address on.
    fn with(&mut self, fds: &[u32], use_it: impl FnOnce(Word) -> Answer) -> Answer {
        self.part = libc::iovec { iov_base: (&raw mut self.byte).cast(), iov_len: 1 };
        self.header.msg_iov = &raw mut self.part;
        self.header.msg_iovlen = 1;
        self.header.msg_control = self.control.as_mut_ptr().cast();
        let used = if fds.is_empty() { CONTROL } else { (HEADER + 4 * fds.len()).next_multiple_of(8) };
        self.header.msg_controllen = used as _;
        if !fds.is_empty() {
            self.control[0] = (HEADER + 4 * fds.len()) as u64;
            self.control[1] = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
            for (at, fd) in fds.iter().enumerate() {
                let shift = 32 * (at % 2) as u32;
                self.control[2 + at / 2] |= u64::from(*fd) << shift; // little-endian, as every machine of ours
            }
        }
        use_it((&raw mut self.header) as Word)
    }
}

/// Takes a copy of a descriptor out of a process, by a pidfd that is closed again.
pub fn get_fd(pid: u32, fd: u32) -> Answer {
    if pid == 0 {
        return -libc::ESRCH;
    }
    let pidfd = sys::numbers(libc::SYS_pidfd_open, &[pid, 0]);
    let Ok(open) = u32::try_from(pidfd) else { return pidfd };
    let result = sys::numbers(libc::SYS_pidfd_getfd, &[open, fd, 0]);
    let _ = sys::numbers(libc::SYS_close, &[open]);
    result
}
