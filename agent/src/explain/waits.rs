//! What a thread waits for: a pipe, a child, an opener, something else.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::calls::{Asks, classify};
use super::channel::{Channel, Id};
use super::machine::Machine;
use crate::pipe::PipeId;
use crate::process::stat::Stat;
use crate::process::wait::Thread;
use crate::process::{children, memory, open};

/// The kind of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum For {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// The other end of a FIFO that it opens.
    Open,
    /// A child, or the process of a pidfd.
    Child,
    /// The end of another thread of the same process (as far as a futex tells).
    Thread,
    /// A lock or a condition inside the process.
    Futex,
    /// Any of some descriptors, by poll or select.
    Poll,
    /// Any of some descriptors, by epoll.
    Epoll,
    /// A connection.
    Connection,
    /// A completion of an io_uring.
    IoUring,
    /// A file lock.
    Lock,
    /// A signal.
    Signal,
    /// Time.
    Sleep,
    /// To be continued: a signal stopped it.
    Stopped,
    /// A debugger.
    Traced,
    /// To be thawed: its cgroup is frozen.
    Frozen,
    /// The kernel; no signal ends it.
    Uninterruptible,
    /// Nothing: it runs.
    Running,
    /// Nothing: it has exited.
    Exited,
    /// Something that we cannot tell.
    Unknown,
}

/// What a thread needs of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Bytes, or EOF.
    Read,
    /// Room, or nobody left to read.
    Write,
    /// Somebody who opens the read end.
    Reader,
    /// Somebody who opens the write end.
    Writer,
}

/// One thing that would end a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct On {
    /// The descriptor, except for an open.
    pub fd: Option<i32>,
    /// What is needed.
    pub need: Need,
    /// The channel; none when the other end is no process that we could name (a network, a device).
    pub channel: Option<Channel>,
    /// What the descriptor's link says, or the path.
    pub name: String,
}

/// What one thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The thread.
    pub tid: i32,
    /// The kind.
    pub what: For,
    /// The system call, if we know.
    pub call: Option<&'static str>,
    /// The kernel function, if we know.
    pub wchan: Option<String>,
    /// Any of these ends it.
    pub on: Vec<On>,
    /// Any of these processes ends it.
    pub children: Vec<i32>,
    /// Whether time alone ends it.
    pub timed: bool,
    /// Whether `on` is what it may be, rather than what it is: the system call was hidden from us.
    pub guessed: bool,
}

/// Reads waits, with what it takes to name them.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// All tables.
    pub machine: &'a Machine,
    /// Whether to make readings that may block: epolls, and arguments in memory.
    pub full: bool,
}

impl Reader<'_> {
    /// What a thread waits for.
    #[must_use]
    pub fn wait(&self, pid: i32, thread: &Thread) -> Wait {
        let mut wait = Wait {
            tid: thread.tid,
            what: For::Unknown,
            call: None,
            wchan: thread.wchan.clone(),
            on: Vec::new(),
            children: Vec::new(),
            timed: false,
            guessed: false,
        };
        match thread.call {
            Some(call) => {
                let (asks, name) = classify(&call, thread.wchan.as_deref());
                wait.call = name;
                self.fill(&mut wait, pid, asks);
            }
            None => self.guess(&mut wait, pid),
        }
        let frozen = thread.wchan.as_deref().is_some_and(|name| name.contains("refrigerator"));
        wait.what = match thread.state {
            'T' => For::Stopped,
            't' => For::Traced,
            'Z' | 'X' => For::Exited,
            'R' => For::Running,
            'D' if frozen => For::Frozen,
            'D' if wait.what != For::Child => For::Uninterruptible,
            _ => wait.what,
        };
        wait
    }

    fn fill(&self, wait: &mut Wait, pid: i32, asks: Asks) {
        let tid = wait.tid;
        wait.what = match asks {
            Asks::Read(fd) => {
                self.on(wait, pid, fd, Need::Read);
                For::Read
            }
            Asks::Write(fd) => {
                self.on(wait, pid, fd, Need::Write);
                For::Write
            }
            Asks::Move(from, to) => {
                // Only the kernel's function tells which of the two has nothing or no room.
                if wait.wchan.as_deref().is_some_and(|name| name.contains("writable") || name.contains("opipe")) {
                    self.on(wait, pid, to, Need::Write);
                    For::Write
                } else {
                    self.on(wait, pid, from, Need::Read);
                    For::Read
                }
            }
            Asks::Open { folder, path, flags } => self.opening(wait, pid, folder, path, flags),
            Asks::Child(which) => {
                wait.children = waited_for(pid, which);
                For::Child
            }
            Asks::Pidfd(fd) => {
                wait.children.extend(open::info_number::<i32>(pid, tid, fd, "Pid:"));
                For::Child
            }
            Asks::Vfork => {
                wait.children = waited_for(pid, -1);
                For::Child
            }
            Asks::Poll { array, count, timed } => {
                wait.timed = timed;
                self.poll(wait, pid, array, count);
                For::Poll
            }
            Asks::Select { count, read, write, timed } => {
                wait.timed = timed;
                self.select(wait, pid, count, [(read, Need::Read), (write, Need::Write)]);
                For::Poll
            }
            Asks::Epoll { fd, timed } => {
                wait.timed = timed;
                self.epoll(wait, pid, fd, 0);
                For::Epoll
            }
            // pthread_join waits on the joined thread's id, until the kernel clears it.
            Asks::Futex(value) if value > 0 && value != pid && is_thread_of(pid, value) => For::Thread,
            Asks::Futex(_) => For::Futex,
            Asks::Connection(_) => For::Connection,
            Asks::IoUring(_) => For::IoUring,
            Asks::Lock(_) => For::Lock,
            Asks::Signal => For::Signal,
            Asks::Sleep => {
                wait.timed = true;
                For::Sleep
            }
            Asks::Other => For::Unknown,
        };
    }

    fn on(&self, wait: &mut Wait, pid: i32, fd: i32, need: Need) {
        let Some(link) = open::target(pid, wait.tid, fd) else { return };
        if link == b"anon_inode:[pidfd]" {
            wait.children.extend(open::info_number::<i32>(pid, wait.tid, fd, "Pid:"));
            return;
        }
        if link == b"anon_inode:[eventpoll]" {
            self.epoll(wait, pid, fd, 1);
            return;
        }
        // What only the process itself or time makes ready: nobody else is waited for.
        if [&b"anon_inode:[eventfd]"[..], b"anon_inode:[signalfd]", b"anon_inode:inotify"].contains(&&link[..]) {
            return;
        }
        if link == b"anon_inode:[timerfd]" {
            wait.timed = true;
            return;
        }
        let channel = self.machine.channel_of(pid, wait.tid, fd, &link);
        let name = channel.as_ref().map_or_else(|| String::from_utf8_lossy(&link).into_owned(), ToString::to_string);
        let on = On { fd: Some(fd), need, channel, name };
        if !wait.on.contains(&on) {
            wait.on.push(on);
        }
    }

    fn opening(&self, wait: &mut Wait, pid: i32, folder: i32, address: u64, flags: Option<i32>) -> For {
        if !is_fifo_open(wait.wchan.as_deref()) {
            return For::Unknown;
        }
        let need = match flags.map(|flags| flags & libc::O_ACCMODE) {
            Some(libc::O_WRONLY) => Need::Reader,
            _ => Need::Writer,
        };
        let path = if self.full { memory::string(pid, address) } else { None };
        let Some(path) = path else {
            wait.on.push(On { fd: None, need, channel: None, name: "a FIFO".to_owned() });
            return For::Open;
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(&path)).to_owned();
        let (id, shown) = resolve(pid, wait.tid, folder, &path);
        let channel = id.map(|id| Channel { id: Id::Fifo(id), path: Some(shown.clone()) });
        wait.on.push(On { fd: None, need, channel, name: shown });
        For::Open
    }

    fn poll(&self, wait: &mut Wait, pid: i32, array: u64, count: u64) {
        const SIZE: usize = size_of::<libc::pollfd>();
        let count = usize::try_from(count).unwrap_or(0).min(4096);
        if count == 0 {
            return; // a way to sleep
        }
        let Some(bytes) = self.full.then(|| memory::read(pid, array, count * SIZE)).flatten() else {
            return self.guess_polled(wait, pid);
        };
        for entry in bytes.chunks_exact(SIZE) {
            let [a, b, c, d, low, high, ..] = *entry else { continue };
            let (fd, events) = (i32::from_ne_bytes([a, b, c, d]), i16::from_ne_bytes([low, high]));
            if fd < 0 {
                continue;
            }
            if events & libc::POLLOUT != 0 {
                self.on(wait, pid, fd, Need::Write);
            }
            if events & libc::POLLIN != 0 || events & libc::POLLOUT == 0 {
                self.on(wait, pid, fd, Need::Read);
            }
        }
    }

    fn select(&self, wait: &mut Wait, pid: i32, count: i32, sets: [(u64, Need); 2]) {
        let count = usize::try_from(count).unwrap_or(0).min(1 << 16);
        for (address, need) in sets.into_iter().filter(|(address, _)| *address != 0) {
            let length = count.div_ceil(64) * 8;
            let Some(bytes) = self.full.then(|| memory::read(pid, address, length)).flatten() else {
                return self.guess_polled(wait, pid);
            };
            // An fd_set is an array of longs; byte by byte it is one of bits on little endian only.
            let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_ne_bytes);
            for (at, bits) in bytes.chunks_exact(8).map(word).enumerate() {
                for bit in (0..64).filter(|bit| bits & 1 << bit != 0) {
                    if let Ok(fd) = i32::try_from(at * 64 + bit) {
                        self.on(wait, pid, fd, need);
                    }
                }
            }
        }
    }

    /// What an epoll watches: the `tfd:` lines of its fdinfo, which name the descriptor under which a
    /// file was added and the file's own number. The descriptor may be another file's by now.
    fn epoll(&self, wait: &mut Wait, pid: i32, fd: i32, depth: u32) {
        if !self.full {
            return self.guess_polled(wait, pid);
        }
        let Some(info) = open::info(pid, wait.tid, fd) else { return };
        for line in info.lines().filter(|line| line.starts_with("tfd:")) {
            let field = |key: &str| line.split_once(key)?.1.split_ascii_whitespace().next();
            let Some(watched) = field("tfd:").and_then(|n| n.parse::<i32>().ok()) else { continue };
            let events = field("events:").and_then(|n| u32::from_str_radix(n, 16).ok()).unwrap_or(0);
            let ino = field(" ino:").and_then(|n| u64::from_str_radix(n, 16).ok());
            let now: Option<u64> = open::info_number(pid, wait.tid, watched, "ino:");
            if ino.is_some() && now.is_some() && ino != now {
                continue; // closed under this number, and another file has it
            }
            if depth > 0 && open::target(pid, wait.tid, watched).is_some_and(|link| link == b"anon_inode:[eventpoll]") {
                continue; // epolls of epolls of epolls
            }
            // EPOLLERR and EPOLLHUP are always set; an entry with nothing else (EPOLLONESHOT spent) waits for no bytes.
            if events & libc::EPOLLIN.cast_unsigned() != 0 {
                self.on(wait, pid, watched, Need::Read);
            }
            // Edge-triggered event loops ask for room once and for all; that is no wait, unless it is all they ask for.
            if events & libc::EPOLLOUT.cast_unsigned() != 0 && events & libc::EPOLLIN.cast_unsigned() == 0 {
                self.on(wait, pid, watched, Need::Write);
            }
        }
    }
}

/// Whether the kernel's function is the one that waits for a FIFO's other end.
#[must_use]
pub fn is_fifo_open(wchan: Option<&str>) -> bool {
    wchan.is_some_and(|name| name.contains("wait_for_partner") || name.contains("fifo_open"))
}

fn is_thread_of(pid: i32, tid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// The FIFO that a path means to a process, and the path as we show it.
fn resolve(pid: i32, tid: i32, folder: i32, path: &Path) -> (Option<PipeId>, String) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let base = if folder == libc::AT_FDCWD {
        format!("/proc/{pid}/task/{tid}/cwd")
    } else {
        format!("/proc/{pid}/task/{tid}/fd/{folder}")
    };
    let shown =
        if path.is_absolute() { path.to_owned() } else { std::fs::read_link(&base).unwrap_or_default().join(path) };
    let inside = if path.is_absolute() {
        let mut inside = PathBuf::from(format!("/proc/{pid}/task/{tid}/root"));
        inside.extend(path.components().skip(1));
        inside
    } else {
        Path::new(&base).join(path)
    };
    let found = std::fs::metadata(inside).ok().filter(|file| file.file_type().is_fifo());
    (found.map(|file| PipeId { dev: file.dev(), ino: file.ino() }), shown.to_string_lossy().into_owned())
}

/// The children that `wait4(WHICH)` of a process waits for. `which` is a number of the process's own pid
/// namespace.
pub(super) fn waited_for(pid: i32, which: i32) -> Vec<i32> {
    let all = children::children(pid).unwrap_or_default();
    let group = |wanted: i32| move |child: &i32| Stat::read(*child).is_ok_and(|stat| stat.pgid == wanted);
    match which {
        -1 => all,
        0 => {
            let own = Stat::read(pid).map_or(0, |stat| stat.pgid);
            all.into_iter().filter(group(own)).collect()
        }
        1.. if shares_our_pids(pid) => all.into_iter().filter(|child| *child == which).collect(),
        1.. => all.into_iter().filter(|child| is_called(*child, which)).collect(),
        _ => all.into_iter().filter(group(which.saturating_neg())).collect(),
    }
}

/// Whether a process is in our pid namespace, so that its numbers are ours.
fn shares_our_pids(pid: i32) -> bool {
    let space = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    space("self").is_some() && space("self") == space(&pid.to_string())
}

/// Whether a process has this pid in some pid namespace.
fn is_called(pid: i32, name: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let names = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    names.split_ascii_whitespace().any(|word| word.parse() == Ok(name))
}
