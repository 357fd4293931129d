//! Events without BPF: the proc connector, a netlink multicast (Documentation/driver-api/connector.rst).
//!
//! Since Linux 6.6 anybody may listen, and say to which events; before, it takes `CAP_NET_ADMIN` and
//! gives all of them. It exists in the initial network namespace, for the initial user namespace. It
//! delivers the initial pid namespace's numbers whoever listens, so nothing is usable before the
//! self-test. Every listener costs every fork of the machine some time.

mod trial;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recvfrom, send, setsockopt, sockopt};

use super::facts;
use super::self_test::{Leave, act};
pub use trial::Trial;

/// Why there is no connector.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The socket could not be made or bound.
    #[error("{call}: {source}{}", hint(.source))]
    Socket {
        /// The system call.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The kernel answered with an error.
    #[error("the kernel refused to send events: {source}{}", hint(.source))]
    Refused {
        /// Its answer.
        source: io::Error,
    },
    /// The kernel did not answer: it ignores who is not in the initial pid and user namespaces.
    #[error("the kernel does not answer (it ignores listeners in other pid and user namespaces)")]
    NoAnswer,
    /// The self-test could not run.
    #[error("the self-test could not run: {0}")]
    Io(#[from] io::Error),
    /// Something that happened was not told with the pids that we know.
    #[error("the {0} of a child of ours was not told with its pid")]
    Untold(&'static str),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (before linux 6.6 it wants CAP_NET_ADMIN)",
        Some(libc::ECONNREFUSED) => " (there is none in this network namespace)",
        _ => "",
    }
}

/// What the connector tells. Pids as the initial namespace numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectorEvent {
    /// A process forked.
    Fork {
        /// Its parent: whose child it is, not always who called.
        parent: i32,
        /// The new process.
        child: i32,
    },
    /// A process runs another program.
    Exec(i32),
    /// A process made itself a session.
    Setsid(i32),
    /// A process's first thread exited.
    Exit(i32),
    /// Events were lost: whatever was built on them must be read anew.
    Lost,
}

/// Which events to ask for. Before Linux 6.6 the answer is always all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// What changes a lineage, and what leaves it.
    pub const LINEAGE: Kinds = Kinds(what::FORK | what::EXEC | what::SID | what::EXIT);
}

/// `enum proc_cn_event` of include/uapi/linux/cn_proc.h.
mod what {
    pub(super) const NONE: u32 = 0;
    pub(super) const FORK: u32 = 1;
    pub(super) const EXEC: u32 = 2;
    pub(super) const SID: u32 = 0x80;
    pub(super) const EXIT: u32 = 0x8000_0000;
}

const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
/// nlmsghdr, then cn_msg.
const HEADERS: usize = 16 + 20;
/// `NLMSG_DONE`, as wide as it is in a message.
const NLMSG_DONE: u16 = 3;
/// Room for what comes while we are busy: an event takes about 800 bytes of it, and a machine that
/// builds software forks a thousand times a second.
const BUFFER: usize = 4 << 20;
/// An exit is told after its parent could see it: by how much is the scheduler's business.
const TOLD: Duration = Duration::from_secs(2);

/// Tells the connectors of one process apart, where its pid tells processes apart.
static NONCE: AtomicU32 = AtomicU32::new(0);

/// An open connector that the kernel agreed to feed.
pub struct Connector {
    socket: OwnedFd,
    /// Marks what we ask, so that we know its answer.
    nonce: u32,
    /// Read and not yet given out.
    waiting: Option<ConnectorEvent>,
    /// When that which was given out last happened (`CLOCK_MONOTONIC`).
    happened: Duration,
    /// The last sequence number from each processor.
    sequence: Vec<Option<u32>>,
    /// Whether the kernel leaves out what we did not ask for: then numbers are missing rightly.
    filtered: bool,
}

impl Connector {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// [`ConnectorError`].
    pub fn open(kinds: Kinds) -> Result<Self, ConnectorError> {
        Self::open_with(kinds, BUFFER)
    }

    /// The same with room for so many bytes of events. Never waits.
    pub(crate) fn open_with(kinds: Kinds, buffer: usize) -> Result<Self, ConnectorError> {
        let mut connector = Self::bind()?;
        connector.make_room(buffer);
        // Without a filter first: an acknowledgement is an event too, and no filter lets it through.
        connector.ask(None)?;
        connector.answer()?;
        // Before 6.6 the kernel ignores this.
        connector.ask(Some(kinds))?;
        connector.filtered = facts::version() >= (6, 6);
        Ok(connector)
    }

    /// One whose socket is none any more: every reading fails.
    #[cfg(test)]
    pub(crate) fn dead() -> Self {
        let socket = std::fs::File::open("/dev/null").map(OwnedFd::from).unwrap();
        let (sequence, happened) = (Vec::new(), Duration::ZERO);
        Connector { socket, nonce: 0, waiting: None, happened, sequence, filtered: true }
    }

    fn bind() -> Result<Self, ConnectorError> {
        let error = |call| move |error: Errno| ConnectorError::Socket { call, source: error.into() };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: three integers; the result is checked. (nix does not know this protocol.)
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_CONNECTOR) };
        let fd = Errno::result(fd).map_err(error("socket"))?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // Port 0: the kernel chooses, so that a process can have several.
        let nonce = std::process::id() ^ NONCE.fetch_add(0x0100_0000, Ordering::Relaxed);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CN_IDX_PROC)).map_err(error("bind"))?;
        let (sequence, happened) = (Vec::new(), Duration::ZERO);
        Ok(Connector { socket, nonce, waiting: None, happened, sequence, filtered: false })
    }

    /// As much as asked for where we may (`CAP_NET_ADMIN`), else as much as anybody gets
    /// (`net.core.rmem_max`). What does not fit in is lost, which is told.
    fn make_room(&self, bytes: usize) {
        if setsockopt(&self.socket, sockopt::RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(&self.socket, sockopt::RcvBuf, &bytes);
        }
    }

    /// How many events did not fit in since it was opened. 0 before Linux 4.12, which does not say.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        // SO_MEMINFO gives SK_MEMINFO_VARS words (include/uapi/linux/sock_diag.h).
        const SK_MEMINFO_DROPS: usize = 8;
        let mut words = [0_u32; 9];
        let mut length = libc::socklen_t::try_from(size_of_val(&words)).unwrap_or_default();
        // SAFETY: the kernel writes at most `length` bytes to `words`, which has them, and both live
        // for the call.
        let said = unsafe {
            let words = words.as_mut_ptr().cast();
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, words, &raw mut length)
        };
        if said == 0 { words[SK_MEMINFO_DROPS].into() } else { 0 }
    }

    /// Sends nlmsghdr, cn_msg and proc_input (or, without a filter, only its first half).
    fn ask(&self, filter: Option<Kinds>) -> Result<(), ConnectorError> {
        let body: Vec<u32> = [PROC_CN_MCAST_LISTEN].into_iter().chain(filter.map(|Kinds(events)| events)).collect();
        let mut message = Vec::with_capacity(HEADERS + 8);
        let words = |message: &mut Vec<u8>, words: &[u32]| {
            message.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        };
        let (size, size16) = if filter.is_some() { (8, 8_u16) } else { (4, 4) };
        words(&mut message, &[16 + 20 + size]); // the headers and the body
        message.extend(NLMSG_DONE.to_ne_bytes());
        message.extend(0_u16.to_ne_bytes());
        words(&mut message, &[0, 0]); // sequence, port: the kernel knows
        words(&mut message, &[CN_IDX_PROC, CN_VAL_PROC, 0, self.nonce]);
        message.extend(size16.to_ne_bytes());
        message.extend(0_u16.to_ne_bytes());
        words(&mut message, &body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())
            .map_err(|error| ConnectorError::Socket { call: "send", source: error.into() })?;
        Ok(())
    }

    /// Takes the kernel's acknowledgement. It comes within the call that asks (Linux 3.1); where it is
    /// not there after it, it never will be.
    fn answer(&mut self) -> Result<(), ConnectorError> {
        loop {
            match self.receive()? {
                // Everybody hears everybody's: ours is the one after our number.
                Some(Message::Acknowledged { to, .. }) if to != self.nonce.wrapping_add(1) => {}
                Some(Message::Acknowledged { error: 0, .. }) => return Ok(()),
                Some(Message::Acknowledged { error, .. }) => {
                    let source = io::Error::from_raw_os_error(error.cast_signed().abs());
                    return Err(ConnectorError::Refused { source });
                }
                Some(Message::Event(_)) => {} // of another listener's asking
                None => return Err(ConnectorError::NoAnswer),
            }
        }
    }

    /// Waits until there may be a message. False when the deadline came first.
    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {} // rounded down to a millisecond, or a signal
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next event, if there is one. The descriptor is readable (poll it) when there may be.
    ///
    /// # Errors
    ///
    /// From the socket. Loss is no error but [`ConnectorEvent::Lost`].
    pub fn next_event(&mut self) -> io::Result<Option<ConnectorEvent>> {
        loop {
            if let Some(event) = self.waiting.take() {
                return Ok(Some(event));
            }
            match self.receive()? {
                Some(Message::Event(event)) => return Ok(Some(event)),
                Some(Message::Acknowledged { .. }) => {}
                None => return Ok(None),
            }
        }
    }

    /// When the event that was given out last happened, by `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn happened(&self) -> Duration {
        self.happened
    }

    /// One message from the kernel that is about something.
    fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            let mut buffer = [0_u8; 512]; // the kernel sends one event a message, of less than 100 bytes
            let (length, from) = match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => return Ok(Some(Message::Event(ConnectorEvent::Lost))),
                Err(error) => return Err(error.into()),
            };
            // Anybody may send to our port; only the kernel has port 0.
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            let Some(parsed) = Parsed::read(&buffer[..length.min(buffer.len())]) else { continue };
            self.happened = parsed.happened;
            let lost = self.gap(parsed.processor, parsed.sequence, parsed.acknowledges());
            match parsed.message() {
                Some(Message::Event(event)) if lost => {
                    self.waiting = Some(event);
                    return Ok(Some(Message::Event(ConnectorEvent::Lost)));
                }
                Some(message) => return Ok(Some(message)),
                None if lost => return Ok(Some(Message::Event(ConnectorEvent::Lost))),
                None => {}
            }
        }
    }

    /// Whether a number is missing before this one. Each processor counts for itself, and a filter
    /// leaves holes of its own; then only the socket's overflow tells of loss.
    fn gap(&mut self, processor: u32, sequence: u32, acknowledgement: bool) -> bool {
        const MOST_PROCESSORS: usize = 8192; // CONFIG_NR_CPUS' upper bound
        let index = processor as usize;
        if self.filtered || acknowledgement || index >= MOST_PROCESSORS {
            return false;
        }
        if self.sequence.len() <= index {
            self.sequence.resize(index + 1, None);
        }
        let before = self.sequence[index].replace(sequence);
        before.is_some_and(|before| before.wrapping_add(1) != sequence)
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message that is meant for us.
enum Message {
    /// The answer to what somebody asked.
    Acknowledged {
        /// The number of what was asked, plus one.
        to: u32,
        /// 0, or an error number.
        error: u32,
    },
    /// An event.
    Event(ConnectorEvent),
}

/// A proc_event, as far as we read it.
struct Parsed {
    sequence: u32,
    acknowledged: u32,
    what: u32,
    processor: u32,
    happened: Duration,
    /// The words of the event's own part.
    data: [u32; 4],
}

impl Parsed {
    /// nlmsghdr (16 bytes), cn_msg (20), proc_event: what, processor, time (8), data.
    fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        if (word(16)?, word(20)?) != (CN_IDX_PROC, CN_VAL_PROC) {
            return None;
        }
        let data = [0, 4, 8, 12].map(|at| word(HEADERS + 16 + at).unwrap_or(0));
        Some(Parsed {
            sequence: word(24)?,
            acknowledged: word(28)?,
            what: word(HEADERS)?,
            processor: word(HEADERS + 4)?,
            happened: bytes
                .get(HEADERS + 8..HEADERS + 16)
                .and_then(|bytes| bytes.try_into().ok())
                .map(|bytes| Duration::from_nanos(u64::from_ne_bytes(bytes)))?,
            data,
        })
    }

    fn acknowledges(&self) -> bool {
        self.what == what::NONE
    }

    fn message(&self) -> Option<Message> {
        let [first, second, third, fourth] = self.data.map(u32::cast_signed);
        Some(match self.what {
            what::NONE => Message::Acknowledged { to: self.acknowledged, error: self.data[0] },
            // parent's thread and process, child's thread and process: a new thread is no fork.
            what::FORK if third == fourth => Message::Event(ConnectorEvent::Fork { parent: second, child: fourth }),
            what::EXEC => Message::Event(ConnectorEvent::Exec(second)),
            what::SID => Message::Event(ConnectorEvent::Setsid(second)),
            what::EXIT if first == second => Message::Event(ConnectorEvent::Exit(second)),
            _ => return None,
        })
    }
}

/// Puts a connector to the test: it must tell of a child of ours by the pids that we know.
///
/// # Errors
///
/// [`ConnectorError`]: then it must not be used.
pub fn self_test(connector: &mut Connector) -> Result<(), ConnectorError> {
    let acted = act(Leave::Session)?;
    let (us, child) = (std::process::id().cast_signed(), acted.child.pid);
    let mut untold = vec![
        (ConnectorEvent::Exit(child), "exit"),
        (ConnectorEvent::Exec(child), "exec"),
        (ConnectorEvent::Setsid(child), "setsid"),
        (ConnectorEvent::Fork { parent: us, child }, "fork"),
    ];
    let deadline = Instant::now() + TOLD;
    while let Some((_, name)) = untold.last() {
        match connector.next_event()? {
            Some(event) => untold.retain(|(expected, _)| *expected != event),
            None if connector.wait(deadline)? => {}
            None => return Err(ConnectorError::Untold(name)),
        }
    }
    acted.reap();
    Ok(())
}

/// How many sockets listen to the connector in this network namespace, ours included: each costs
/// every fork of the machine some time.
///
/// # Errors
///
/// When `/proc/net/netlink` cannot be read.
pub fn listeners() -> io::Result<usize> {
    let text = std::fs::read_to_string("/proc/net/netlink")?;
    Ok(text
        .lines()
        .filter(|line| {
            // sk, protocol, port, groups (hexadecimal), ...
            let mut fields = line.split_ascii_whitespace().skip(1);
            let protocol = fields.next().and_then(|field| field.parse::<i32>().ok());
            let groups = fields.nth(1).and_then(|field| u32::from_str_radix(field, 16).ok());
            protocol == Some(libc::NETLINK_CONNECTOR) && groups.is_some_and(|groups| groups & CN_IDX_PROC != 0)
        })
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector() -> Option<Connector> {
        Connector::open(Kinds::LINEAGE)
            .inspect_err(|error| crate::kernel::skipped(format_args!("needs the proc connector: {error}")))
            .ok()
    }

    #[test]
    fn it_tells_of_our_own_child() {
        let Some(mut connector) = connector() else { return };
        match self_test(&mut connector) {
            Err(ConnectorError::Untold(_)) if !crate::kernel::self_test::in_initial_pid_namespace() => {}
            verdict => verdict.unwrap(),
        }
    }

    #[test]
    fn we_are_counted_among_the_listeners() {
        let Some(connector) = connector() else { return };
        let with = listeners().unwrap();
        assert!(with >= 1);
        drop(connector);
    }

    #[test]
    fn a_hole_in_one_processors_numbers_is_a_loss_and_in_anothers_is_not() {
        let Some(mut connector) = connector() else { return };
        connector.filtered = false;
        connector.sequence.clear(); // of the events that came while it was opened
        assert!(!connector.gap(0, 7, false), "the first number says nothing");
        assert!(!connector.gap(1, 3, false));
        assert!(!connector.gap(0, 8, false));
        assert!(connector.gap(0, 10, false));
        connector.filtered = true;
        assert!(!connector.gap(0, 20, false), "a filter leaves holes");
    }

    #[test]
    fn a_new_thread_is_no_fork_and_a_threads_end_no_exit() {
        let parsed =
            |what, data| Parsed { sequence: 0, acknowledged: 0, what, processor: 0, happened: Duration::ZERO, data };
        assert!(parsed(what::FORK, [1, 1, 9, 1]).message().is_none());
        assert!(parsed(what::EXIT, [9, 1, 0, 0]).message().is_none());
        assert!(parsed(what::FORK, [1, 1, 9, 9]).message().is_some());
    }
}
