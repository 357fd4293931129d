//! The operations that an actor performs, as numbers, as text, and as what their arguments mean.
//!
//! An operation names the task that performs it by its place on the board. Operations of a task that
//! is not there, and births in a place that is taken, are passed over: so any part of a list of
//! operations is a list of operations too, and a failing list can be made shorter.

use std::fmt;
use std::str::FromStr;

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A descriptor to use.
    Fd,
    /// A descriptor to put something at.
    Target,
    /// The last descriptor of a range.
    Last,
    /// A free place on the board, for a new task.
    Child,
    /// A task on the board.
    Peer,
    /// One of the FIFOs in the troupe's folder.
    Fifo,
    /// One of the FIFOs at which openers block.
    Blocking,
    /// One of the troupe's mailboxes: a unix socket with a name.
    Mailbox,
    /// One of the numbers where rings are kept.
    Ring,
    /// By which call to open: 0 openat, 1 open, 2 openat2.
    Way,
    /// How an `io_uring` executes it: 0 at once, 1 by a worker (`IOSQE_ASYNC`), 2 by the polling thread.
    How,
    /// The flags of `close_range`: 2 unshare, 4 close on exec.
    RangeFlags,
    /// The flags of `pipe2`: 1 close on exec, 2 non-blocking.
    PipeFlags,
    /// 0 or 1.
    Bit,
    /// Any number.
    Number,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $word:literal ($($arg:ident)*) $weight:literal;)*) => {
        /// The kinds of operations.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// Its word in text.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Kind::$name => $word,)* }
            }

            /// What its arguments are.
            #[must_use]
            pub fn arguments(self) -> &'static [Arg] {
                match self { $(Kind::$name => &[$(Arg::$arg,)*],)* }
            }

            /// How often it is generated, relative to the others.
            #[must_use]
            pub fn weight(self) -> u32 {
                match self { $(Kind::$name => $weight,)* }
            }
        }
    };
}

kinds! {
    /// Compares the view with the kernel. The controller's, like `Burst`.
    Check "check" () 0;
    /// Several tasks run this many random operations each, at once: seed, count, tasks.
    Burst "burst" (Number Number Number) 0;
    /// A burst of operations on tables alone, which are fast: seed, count, tasks.
    Storm "storm" (Number Number Number) 0;

    /// pipe(2).
    Pipe "pipe" () 60;
    /// pipe2(2).
    Pipe2 "pipe2" (PipeFlags) 30;
    /// A descriptor on /dev/null: what is put over a pipe that is no pipe.
    Null "null" (Bit) 20;
    /// dup(2).
    Dup "dup" (Fd) 40;
    /// dup2(2).
    Dup2 "dup2" (Fd Target) 60;
    /// dup(2), so many times or until it fails: how often it did is the answer.
    DupMany "dup_many" (Fd Number) 0;
    /// The limit of descriptors.
    Limit "limit" (Number) 0;
    /// dup3(2).
    Dup3 "dup3" (Fd Target Bit) 40;
    /// `fcntl(F_DUPFD)`.
    DupFd "dupfd" (Fd Target) 30;
    /// `fcntl(F_DUPFD_CLOEXEC)`.
    DupFdCloexec "dupfd_cloexec" (Fd Target) 20;
    /// `fcntl(F_SETFD)`.
    SetCloexec "set_cloexec" (Fd Bit) 20;
    /// close(2).
    Close "close" (Fd) 80;
    /// close_range(2): first, last, flags.
    CloseRange "close_range" (Fd Last RangeFlags) 25;

    /// fork(2).
    Fork "fork" (Child) 14;
    /// clone(2) without any sharing.
    Clone "clone" (Child) 6;
    /// clone(2) with `CLONE_FILES`: another process with the same table.
    CloneFiles "clone_files" (Child) 12;
    /// clone(2) with `CLONE_PARENT`: a sibling.
    CloneParent "clone_parent" (Child) 6;
    /// Both.
    CloneFilesParent "clone_files_parent" (Child) 4;
    /// clone3(2).
    Clone3 "clone3" (Child) 5;
    /// clone3(2) with `CLONE_FILES`.
    Clone3Files "clone3_files" (Child) 4;
    /// vfork(2), dup2 in the child, and exec.
    VforkExec "vfork_exec" (Child Fd Target) 6;
    /// The same in a table that the child shares until its exec.
    VforkFilesExec "vfork_files_exec" (Child Fd Target) 4;
    /// A thread.
    Thread "thread" (Child) 18;
    /// A thread that is born with a table of its own.
    ThreadOwn "thread_own" (Child) 6;
    /// unshare(2) of the table.
    Unshare "unshare" () 12;
    /// execve(2), of the same program: its other threads end.
    Exec "exec" () 10;
    /// exit(2) of this thread alone, be it the first.
    Exit "exit" () 8;
    /// `exit_group(2)`.
    ExitGroup "exit_group" () 6;
    /// SIGKILL to a task's process.
    Kill "kill" (Peer) 6;
    /// Whether children that end stay as zombies.
    Zombies "zombies" (Bit) 4;
    /// setsid(2).
    Setsid "setsid" () 8;
    /// setpgid(2) to a group of its own.
    Setpgid "setpgid" () 8;
    /// setpgid(2) to the group of another.
    JoinGroup "join_group" (Peer) 5;

    /// Binds a mailbox, at descriptor 40 and its number.
    Mailbox "mailbox" (Mailbox) 10;
    /// Sends a descriptor to a mailbox. It is in flight until somebody receives it.
    Send "send" (Mailbox Fd) 16;
    /// Sends two at once.
    SendTwo "send_two" (Mailbox Fd Fd) 6;
    /// recvmsg(2) from a mailbox; 1 with `MSG_CMSG_CLOEXEC`.
    Receive "receive" (Mailbox Bit) 16;
    /// recvmmsg(2) of all that is there.
    ReceiveMany "receive_many" (Mailbox Bit) 6;
    /// `pidfd_getfd` from a task's process.
    GetFd "get_fd" (Peer Fd) 14;
    /// Opens /proc/PID/fd/N for reading.
    ProcRead "proc_read" (Peer Fd Way) 6;
    /// For writing.
    ProcWrite "proc_write" (Peer Fd Way) 6;
    /// For both.
    ProcBoth "proc_both" (Peer Fd Way) 6;
    /// With `O_PATH`.
    ProcPath "proc_path" (Peer Fd Way) 3;
    /// Opens a FIFO for reading; 1 closes it on exec.
    FifoRead "fifo_read" (Fifo Way Bit) 8;
    /// For writing, while there is a reader.
    FifoWrite "fifo_write" (Fifo Way Bit) 8;
    /// For both.
    FifoBoth "fifo_both" (Fifo Way Bit) 8;
    /// With `O_PATH`.
    FifoPath "fifo_path" (Fifo Way Bit) 4;
    /// Opens a FIFO for writing that nobody reads, and blocks there.
    BlockWrite "block_write" (Blocking) 3;
    /// Opens such a FIFO for reading, and closes it: who blocked there goes on.
    Unblock "unblock" (Blocking) 3;

    /// An `io_uring` opens a FIFO for both.
    UringOpen "uring_open" (Fifo How) 5;
    /// An `io_uring` closes.
    UringClose "uring_close" (Fd How) 5;
    /// An `io_uring` makes a pipe (Linux 6.16).
    UringPipe "uring_pipe" (How) 5;
    /// An `io_uring` makes a descriptor of a registered file (Linux 6.8).
    UringInstall "uring_install" (Fd How) 5;
    /// An `io_uring` receives from a mailbox.
    UringReceive "uring_receive" (Mailbox How) 4;
    /// A ring that stays, at descriptor 48 and its number, with a file registered.
    UringRegister "uring_register" (Fd Ring) 3;

    /// A new process to which a seccomp supervisor adds a descriptor: child, which, where (0: the lowest).
    AddFd "add_fd" (Child Fd Target) 4;
    /// dup(2), as a 32-bit program calls it.
    CompatDup "compat_dup" (Fd) 4;
    /// dup2(2) so.
    CompatDup2 "compat_dup2" (Fd Target) 4;
    /// `fcntl64(F_DUPFD)` so.
    CompatDupFd "compat_dupfd" (Fd Target) 3;
    /// pipe(2) so.
    CompatPipe "compat_pipe" () 3;
    /// close(2) so.
    CompatClose "compat_close" (Fd) 4;
    /// close_range(2) so.
    CompatCloseRange "compat_close_range" (Fd Last RangeFlags) 2;
    /// open(2) of a FIFO for both so.
    CompatOpen "compat_open" (Fifo) 3;
    /// fork(2) so.
    CompatFork "compat_fork" (Child) 2;
}

/// What a tracer that hooks system calls cannot see, or not where it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// What an `io_uring`'s polling thread does: no call is made.
    PollingThread,
    /// What an `io_uring`'s worker does: another thread, and no call.
    Worker,
    /// A seccomp supervisor's descriptor: a call of somebody else.
    AddFd,
    /// 32-bit callers, who have other numbers for the same calls.
    Compat,
}

impl Hole {
    /// Its bit in a set of holes.
    #[must_use]
    pub fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Kind {
    /// The kind of this number.
    #[must_use]
    pub fn of(number: u32) -> Option<Kind> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Whether it makes a task in a place of the board.
    #[must_use]
    pub fn births(self) -> bool {
        self.arguments().first() == Some(&Arg::Child)
    }

    /// Whether it can end a task that is on the board.
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(self, Kind::Exec | Kind::Exit | Kind::ExitGroup | Kind::Kill)
    }

    /// Whether several tasks perform many at once.
    #[must_use]
    pub fn is_burst(self) -> bool {
        matches!(self, Kind::Burst | Kind::Storm)
    }

    /// Whether it needs a kernel that answers 32-bit callers.
    #[must_use]
    pub fn is_compat(self) -> bool {
        self.word().starts_with("compat_")
    }
}

/// One operation of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its place on the board.
    pub task: u32,
    /// What it does.
    pub kind: Kind,
    /// The arguments; those that the kind has not are 0.
    pub with: [u32; 3],
}

impl Op {
    /// A comparison with the kernel.
    pub const CHECK: Op = Op { task: 0, kind: Kind::Check, with: [0; 3] };

    /// The argument of this meaning, if it has one.
    #[must_use]
    pub fn argument(&self, meaning: Arg) -> Option<u32> {
        let at = self.kind.arguments().iter().position(|arg| *arg == meaning)?;
        self.with.get(at).copied()
    }

    /// Into which hole it falls, if into one.
    #[must_use]
    pub fn hole(&self) -> Option<Hole> {
        match (self.kind, self.argument(Arg::How)) {
            (Kind::AddFd, _) => Some(Hole::AddFd),
            (kind, _) if kind.is_compat() => Some(Hole::Compat),
            (_, Some(1)) => Some(Hole::Worker),
            (_, Some(2)) => Some(Hole::PollingThread),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != Kind::Check && !self.kind.is_burst() {
            write!(f, "{} ", self.task)?;
        }
        f.write_str(self.kind.word())?;
        self.with.iter().take(self.kind.arguments().len()).try_for_each(|value| write!(f, " {value}"))
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Op, String> {
        let mut words = text.split_whitespace().peekable();
        let task = match words.peek().and_then(|word| word.parse().ok()) {
            Some(task) => {
                words.next();
                task
            }
            None => 0,
        };
        let word = words.next().ok_or("an empty operation")?;
        let kind = Kind::ALL.iter().copied().find(|kind| kind.word() == word);
        let kind = kind.ok_or_else(|| format!("`{text}`: there is no operation {word}"))?;
        let mut op = Op { task, kind, with: [0; 3] };
        for (at, word) in words.enumerate() {
            let place = op.with.get_mut(at).filter(|_| at < kind.arguments().len());
            *place.ok_or_else(|| format!("`{text}`: too many arguments"))? =
                word.parse().map_err(|_| format!("`{text}`: {word} is no number"))?;
        }
        Ok(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_read_back_from_its_text() {
        for kind in Kind::ALL {
            let mut op = Op { task: 3, kind: *kind, with: [0; 3] };
            for at in 0..kind.arguments().len() {
                op.with[at] = 7 + u32::try_from(at).unwrap();
            }
            let read: Op = op.to_string().parse().unwrap();
            assert_eq!((read.kind, read.with), (op.kind, op.with), "{op}");
            assert_eq!(Kind::of(*kind as u32), Some(*kind));
        }
        assert!("0 dup 1 2".parse::<Op>().is_err(), "dup takes one argument");
        assert!("0 fly".parse::<Op>().is_err());
    }
}
