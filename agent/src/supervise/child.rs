//! One run of a command, seen from the manager: a child of ours that is a supervisor of its own.
//!
//! The child is forked, not executed: it goes on in `become_run` with the descriptors that are its
//! command's business and no other, in a session of its own, and ends there. What it has to say comes
//! through a pipe of which it holds the only write end; so do the lines that are to be prefixed. When
//! it has exited and these pipes are at EOF, nothing is left of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};

use super::output::{Line, Outputs, Route, Way};
use crate::act::{pidfd_open, signal_child};
use crate::pipe::{Action, ExitStatus};
use crate::run::options::Options;
use crate::run::signals::{Inherited, Signals};
use crate::run::supervisor::ONE_REQUEST;
use crate::run::{self, Finished, inherited, stdio};

/// What a run says to the manager, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The command was started.
    Started {
        /// Its pid.
        pid: i32,
    },
    /// It came to its end, and its streams to theirs.
    Finished {
        /// What `run` would exit with.
        code: u8,
        /// How the command exited.
        exit_status: ExitStatus,
        /// How many holders were ended.
        holders_ended: u64,
        /// What `run` would say on stderr.
        said: String,
    },
    /// It was not started, or the run broke.
    Failed {
        /// What `run` would exit with.
        code: u8,
        /// Why.
        error: String,
    },
}

/// Where one of a command's output streams goes.
pub enum Destination {
    /// To a descriptor that the run has as its own.
    Direct(OwnedFd),
    /// To a standard descriptor of ours, as it is.
    Ours(RawFd),
    /// Through us, line by line.
    Lines(Route),
    /// The same pipe as the other stream.
    SameAsStdout,
}

/// What a run starts with.
pub struct Start<'a> {
    /// What is asked of it.
    pub options: &'a Options,
    /// Its standard input, where it is not ours.
    pub stdin: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: Destination,
    /// Its standard error.
    pub stderr: Destination,
    /// The signal mask and dispositions that the command gets.
    pub inherited: Inherited,
    /// The process in front of the manager, which adopts what is nobody's.
    pub front: Option<i32>,
}

/// A run under way, or what is left of one.
pub struct Child {
    /// The pid of the run.
    pub pid: i32,
    /// The pid of its command, once that is started.
    pub command: Option<i32>,
    /// Its last word.
    pub result: Option<Word>,
    /// How the run itself exited, once it was reaped.
    pub exit: Option<ExitStatus>,
    /// When that was.
    pub exited: Option<Instant>,
    /// When we asked it to end.
    pub asked: Option<Instant>,
    /// When the request is to be repeated.
    urge_at: Option<Instant>,
    /// Whether we gave it up.
    pub killed: bool,
    /// The longest that its ending may take once it was asked for; none: for ever.
    pub bound: Option<Duration>,
    /// How long its last lines wait for our readers; none: for ever.
    pub delivery: Option<Duration>,
    pidfd: OwnedFd,
    words: Option<Words>,
    lines: Vec<Line>,
}

/// What the run's own bound is exceeded by before we give it up: it takes some time to act too.
const MARGIN: Duration = Duration::from_secs(5);

/// A run takes requests that come close together for one, so the second is repeated until it is over.
const URGE: Duration = ONE_REQUEST.saturating_add(Duration::from_millis(10));

impl Child {
    /// Forks a run.
    ///
    /// Must be called from the main thread: the child is told of our death by the death of this thread.
    ///
    /// # Errors
    ///
    /// When there is no process or descriptor to be had: nothing was started.
    pub fn start(start: Start<'_>) -> io::Result<Child> {
        let (words, say) = stdio::stream_pipe()?;
        let mut lines = Vec::new();
        let mut open = |destination: Destination, ours: RawFd| -> io::Result<Standard> {
            Ok(match destination {
                Destination::Direct(fd) => Standard::Own(fd),
                Destination::Ours(fd) => Standard::Fd(fd),
                Destination::SameAsStdout => Standard::Fd(1),
                Destination::Lines(route) => {
                    let (read, write) = stdio::stream_pipe()?;
                    lines.push(Line::new(read, route, ours));
                    Standard::Own(write)
                }
            })
        };
        let stdin = start.stdin.map_or(Standard::Fd(0), Standard::Own);
        let standard = [stdin, open(start.stdout, 1)?, open(start.stderr, 2)?];
        let manager = nix::unistd::getpid();
        // SAFETY: beside this thread there are at most those that write what is put out and that look
        // who opens a FIFO. What they lock is theirs, and the child uses nothing of it; but for the
        // allocator, and libc takes that one over the fork. The child never returns.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => become_run(start.options, &standard, &say, start.inherited, start.front, manager),
            ForkResult::Parent { child } => {
                let pidfd = pidfd_open(child.as_raw()).inspect_err(|_| {
                    // It is our child and not yet reaped: it ends whatever it has started by then.
                    let _ = nix::sys::signal::kill(child, Signal::SIGTERM);
                })?;
                let options = start.options;
                let bound =
                    options.max_deliver.map(|deliver| options.kill_after + options.max_drain + deliver + MARGIN);
                Ok(Child {
                    pid: child.as_raw(),
                    command: None,
                    result: None,
                    exit: None,
                    exited: None,
                    delivery: options.max_deliver,
                    asked: None,
                    urge_at: None,
                    killed: false,
                    bound,
                    pidfd,
                    words: Some(Words { fd: words, carry: Vec::new() }),
                    lines,
                })
            }
        }
    }

    /// Asks the run for its ending.
    pub fn ask_to_end(&mut self, now: Instant) {
        if self.exit.is_none() {
            self.asked.get_or_insert(now);
            signal_child(&self.pidfd, libc::SIGTERM);
        }
    }

    /// Has it over with: the run kills its command, and whoever holds its pipes.
    pub fn hurry(&mut self, now: Instant) {
        self.ask_to_end(now);
        self.urge_at = Some(now + URGE);
    }

    /// When to repeat the request of who is in a hurry.
    #[must_use]
    pub fn urge_at(&self) -> Option<Instant> {
        self.urge_at.filter(|_| self.exit.is_none())
    }

    /// Repeats it, if it is time.
    pub fn urge(&mut self, now: Instant) {
        if self.urge_at().is_some_and(|at| now >= at) {
            self.hurry(now);
        }
    }

    /// When its ending has taken longer than it can.
    #[must_use]
    pub fn overdue_at(&self) -> Option<Instant> {
        self.asked.filter(|_| !self.killed && self.exit.is_none()).and_then(|asked| Some(asked + self.bound?))
    }

    /// Gives the run up. What it leaves behind becomes ours.
    pub fn kill(&mut self) {
        self.killed = true;
        signal_child(&self.pidfd, libc::SIGKILL);
    }

    /// The descriptors to poll, where something may come.
    pub fn interests(&self, room: impl Fn(Way) -> bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        let words = self.words.as_ref().map(|words| words.fd.as_fd());
        let lines = self.lines.iter().filter(move |line| room(line.way())).map(Line::fd);
        words.into_iter().chain(lines)
    }

    /// Reads what the run says; what it started is told once.
    pub fn listen(&mut self) -> Option<i32> {
        let words = self.words.as_mut()?;
        let (said, ended) = words.read();
        if ended {
            self.words = None;
        }
        let mut started = None;
        for word in said {
            match word {
                Word::Started { pid } => {
                    self.command = Some(pid);
                    started = Some(pid);
                }
                last => self.result = Some(last),
            }
        }
        started
    }

    /// The streams that come through us.
    pub fn lines(&mut self) -> &mut Vec<Line> {
        &mut self.lines
    }

    /// When our readers have had their time to take the last lines.
    #[must_use]
    pub fn undelivered_at(&self) -> Option<Instant> {
        let exited = self.exited.filter(|_| self.words.is_none() && !self.lines.is_empty())?;
        Some(exited + self.delivery?)
    }

    /// Once the run has exited: forgets streams in which nothing is left, and after the time for
    /// delivery the others too. How many bytes were lost.
    pub fn finish_lines(&mut self, now: Instant, outputs: &mut Outputs) -> usize {
        if self.exit.is_none() {
            return 0;
        }
        let late = self.undelivered_at().is_some_and(|at| now >= at);
        let mut lost = 0;
        // It held the only write ends: what is not there now does not come.
        self.lines.retain_mut(|line| {
            let waiting = line.waiting();
            if waiting > 0 && !late {
                return true;
            }
            lost += waiting;
            line.end(outputs);
            false
        });
        lost
    }

    /// Whether the run has exited, and every pipe from it is at its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.exit.is_some() && self.words.is_none() && self.lines.is_empty()
    }
}

/// What the run writes its words to.
struct Words {
    fd: OwnedFd,
    carry: Vec<u8>,
}

impl Words {
    /// What has come, and whether it was the last.
    fn read(&mut self) -> (Vec<Word>, bool) {
        let mut buffer = [0; 4096];
        let ended = loop {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) => break true,
                Ok(read) => self.carry.extend_from_slice(&buffer[..read]),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break false,
                Err(_) => break true,
            }
        };
        let Some(end) = self.carry.iter().rposition(|byte| *byte == b'\n') else { return (Vec::new(), ended) };
        let rest = self.carry.split_off(end + 1);
        let lines = std::mem::replace(&mut self.carry, rest);
        let words = lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        (words.collect(), ended)
    }
}

/// What becomes one of the run's standard descriptors.
enum Standard {
    Own(OwnedFd),
    Fd(RawFd),
}

impl Standard {
    fn raw(&self) -> RawFd {
        match self {
            Standard::Own(fd) => fd.as_raw_fd(),
            Standard::Fd(fd) => *fd,
        }
    }
}

/// The forked child's life: a run, and nothing else.
fn become_run(
    options: &Options,
    standard: &[Standard; 3],
    say: &OwnedFd,
    inherited: Inherited,
    front: Option<i32>,
    manager: nix::unistd::Pid,
) -> ! {
    let raw = [standard[0].raw(), standard[1].raw(), standard[2].raw()];
    let code = match settle(raw, say.as_raw_fd(), manager) {
        Ok(mut say) => supervise(options, inherited, front, &mut say),
        Err(_) => libc::EXIT_FAILURE,
    };
    // SAFETY: ends this process at once: what the manager would do at its exit is not ours to do.
    unsafe { libc::_exit(code) }
}

/// Keeps of the manager's descriptors what is ours, and leaves its session: the terminal's signals
/// are for the manager, which ends us in our turn. Returns what our words are written to.
fn settle(standard: [RawFd; 3], say: RawFd, manager: nix::unistd::Pid) -> io::Result<File> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    if nix::unistd::getppid() != manager {
        return Err(io::Error::other("the manager is gone"));
    }
    nix::unistd::setsid()?;
    // SAFETY: every call takes integers, and all descriptors but the four that are put in place here
    // are closed: nothing that owns one of them is used or dropped in this process any more.
    unsafe {
        // Out of the way first: each could be where another goes.
        let high = standard.map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10));
        let say = libc::fcntl(say, libc::F_DUPFD_CLOEXEC, 10);
        if high.contains(&-1) || say < 0 {
            return Err(io::Error::last_os_error());
        }
        // "The same as stdout" and "ours" are told apart by what is in place by then.
        let stderr = if standard[2] == 1 { high[1] } else { high[2] };
        for (fd, from) in (0..).zip([high[0], high[1], stderr]) {
            libc::dup2(from, fd);
        }
        libc::dup3(say, 3, libc::O_CLOEXEC);
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
    }
    inherited::standard_were_replaced();
    // SAFETY: put in place just now, and owned by nobody else.
    Ok(File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(3) }))
}

/// The run; the exit status of this process is what `run` would exit with.
fn supervise(options: &Options, inherited: Inherited, front: Option<i32>, say: &mut File) -> i32 {
    let signals = match Signals::after_fork(inherited) {
        Ok(signals) => signals,
        Err(error) => return fail(say, 125, &format!("cannot take over signals: {error}")),
    };
    let mut book = match say.try_clone() {
        Ok(book) => book,
        Err(error) => return fail(say, 125, &format!("cannot speak to the manager: {error}")),
    };
    let told = Box::new(move |pid| tell(&mut book, &Word::Started { pid }));
    // This process is its session's leader: the command gets a group of its own.
    match run::run_here(options, signals, true, front, told) {
        Ok(Finished::Supervised(report, None, _)) => {
            let code = report.exit_code(options);
            let ended = |action| matches!(action, Action::Term | Action::Kill);
            let holders_ended = report.holders.iter().filter(|holder| ended(holder.action)).count() as u64;
            let said = report.text(options);
            tell(say, &Word::Finished { code, exit_status: report.exit_status, holders_ended, said });
            i32::from(code)
        }
        Ok(Finished::Supervised(_, Some(error), _)) => fail(say, 125, &error.to_string()),
        Ok(Finished::Relayed(status)) => i32::from(status.shell_code()),
        Err(error) => fail(say, error.exit_code(), &error.to_string()),
    }
}

fn fail(say: &mut File, code: u8, error: &str) -> i32 {
    tell(say, &Word::Failed { code, error: error.to_owned() });
    i32::from(code)
}

/// Nobody is left to be told when this fails.
fn tell(say: &mut File, word: &Word) {
    if let Ok(mut line) = serde_json::to_vec(word) {
        line.push(b'\n');
        let _ = say.write_all(&line);
    }
}

/// Opens a file that a command's output is appended to. Never waits: a FIFO needs its reader first.
///
/// # Errors
///
/// What open(2) says, with the path.
pub fn append_to(path: &Path) -> io::Result<OwnedFd> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(named)?;
    // The flag was for the open; the description is ours alone.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    Ok(file.into())
}
