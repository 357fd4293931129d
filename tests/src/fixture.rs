//! A fixture's side: what a small misbehaving program needs to tell the test who it is.
//!
//! Every process that matters to a test announces itself: it connects to the test's socket, says
//! its role, and goes on when the test knows it by a pidfd. Nothing stays open, so announcing
//! changes nothing about what the process holds. Run by hand, without a test that listens, a
//! fixture does the same and announces nothing.
//!
//! Options that every fixture takes:
//!
//! | option | meaning |
//! |---|---|
//! | `--bytes N` | first write the first N bytes of [`pattern`] to stdout |
//! | `--exit N` | exit with N |
//! | `--die-by N` | instead of exiting, die by signal N |
//! | `--gate` | ask the test before the last line, as role [`GATE`] |
//! | `--as ROLE` | announce the holder as ROLE |
//! | `--socket PATH` | the test's socket, where the environment was cleared |

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::unistd::{ForkResult, Pid, fork as fork_process};

/// Names the test's socket to its fixtures.
pub const SOCKET: &str = "PIPEWARDEN_FIXTURE_SOCKET";

/// The role of a fixture's first process.
pub const COMMAND: &str = "command";

/// The role of what a fixture leaves behind, unless `--as` says otherwise.
pub const HOLDER: &str = "holder";

/// What a command with `--gate` asks for before its last line.
pub const GATE: &str = "gate";

/// What every command writes to stdout before it ends: the line that must not be lost.
pub const LAST_LINE: &[u8] = b"the last line\n";

/// What [`write_when_told`] writes.
pub const LATE_LINE: &[u8] = b"a late line\n";

/// Nothing that a fixture leaves behind outlives this, whatever goes wrong. It is far longer than
/// any test waits, so that no test passes because of it.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// The first `length` bytes of the lines `0000000`, `0000001`, ...
#[must_use]
pub fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    for line in 0.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend_from_slice(format!("{line:07}\n").as_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The running fixture: its options.
#[derive(Debug)]
pub struct Fixture {
    socket: Option<PathBuf>,
    role: String,
    exit: i32,
    die_by: Option<Signal>,
    gate: bool,
    arguments: Vec<String>,
}

impl Fixture {
    /// Begins a command: reads the options, announces [`COMMAND`] and writes what `--bytes` asks for.
    ///
    /// # Errors
    ///
    /// An unknown option, a test that does not answer, or a stdout that takes nothing.
    pub fn begin() -> Result<Fixture> {
        let (fixture, bytes) = Self::from_arguments()?;
        fixture.announce(COMMAND)?;
        say(&pattern(bytes))?;
        Ok(fixture)
    }

    /// Begins a process that is not the command: nothing is announced or written yet.
    ///
    /// # Errors
    ///
    /// An unknown option.
    pub fn begin_silently() -> Result<Fixture> {
        Ok(Self::from_arguments()?.0)
    }

    fn from_arguments() -> Result<(Fixture, usize)> {
        // Rust's runtime ignores SIGPIPE; the programs that fixtures stand for do not.
        default_action(Signal::SIGPIPE)?;
        let mut fixture = Fixture {
            socket: std::env::var_os(SOCKET).map(PathBuf::from),
            role: HOLDER.to_owned(),
            exit: 0,
            die_by: None,
            gate: false,
            arguments: Vec::new(),
        };
        let mut bytes = 0;
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--bytes" => bytes = value()?.parse()?,
                "--exit" => fixture.exit = value()?.parse()?,
                "--die-by" => fixture.die_by = Some(Signal::try_from(value()?.parse::<i32>()?)?),
                "--gate" => fixture.gate = true,
                "--as" => fixture.role = value()?,
                "--socket" => fixture.socket = Some(PathBuf::from(value()?)),
                option if option.starts_with("--") => bail!("unknown option {option}"),
                _ => fixture.arguments.push(word),
            }
        }
        Ok((fixture, bytes))
    }

    /// The arguments that are no options.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Whether one of the arguments is this word.
    #[must_use]
    pub fn says(&self, word: &str) -> bool {
        self.arguments.iter().any(|argument| argument == word)
    }

    /// The role of what the fixture leaves behind.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Tells the test that this process plays `role` and has settled; returns when the test knows it.
    ///
    /// # Errors
    ///
    /// A test that does not answer.
    pub fn announce(&self, role: &str) -> Result<()> {
        self.ask("here", role).map(drop)
    }

    /// Waits until another process announced itself as `role`.
    ///
    /// # Errors
    ///
    /// A test that does not answer.
    pub fn after(&self, role: &str) -> Result<()> {
        self.ask("after", role).map(drop)
    }

    /// Announces `role` by a connection that stays open: the test sees it close when the last
    /// process that inherited it is gone, and by closing it tells those processes to go.
    /// `None` without a test.
    ///
    /// # Errors
    ///
    /// A test that does not answer.
    pub fn lifeline(&self, role: &str) -> Result<Option<UnixStream>> {
        self.ask("line", role)
    }

    fn ask(&self, verb: &str, role: &str) -> Result<Option<UnixStream>> {
        let Some(path) = &self.socket else { return Ok(None) };
        let mut stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.write_all(format!("{verb} {role}\n").as_bytes())?;
        let mut answer = [0];
        ensure!(stream.read(&mut answer)? == 1, "the test did not answer `{verb} {role}`");
        Ok(Some(stream))
    }

    /// Leaves a process behind that settles, announces itself and stays; returns when it has.
    ///
    /// # Errors
    ///
    /// Those of fork(2), or a test that does not answer.
    pub fn leave(&self, settle: impl FnOnce() -> Result<()>) -> Result<Pid> {
        let pid = fork(|| {
            settle()?;
            self.announce(&self.role)?;
            stay()
        })?;
        self.after(&self.role)?;
        Ok(pid)
    }

    /// Becomes this program anew, with an empty environment and one more argument.
    ///
    /// # Errors
    ///
    /// Those of execve(2).
    pub fn become_anew_without_environment(&self, argument: &str) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env_clear().args(["--as", &self.role, argument]);
        if let Some(path) = &self.socket {
            command.args([OsString::from("--socket"), path.clone().into_os_string()]);
        }
        Err(command.exec().into())
    }

    /// Ends the command as the options say: the gate, the last line, the exit.
    ///
    /// # Errors
    ///
    /// A test that does not answer, or a stdout that takes nothing.
    pub fn end(self) -> Result<()> {
        if self.gate {
            self.announce(GATE)?;
        }
        say(LAST_LINE)?;
        self.leave_the_scene()
    }

    /// Ends the command without its last line: its stdout may be closed.
    ///
    /// # Errors
    ///
    /// Those of raise(3).
    pub fn leave_the_scene(self) -> Result<()> {
        if let Some(signal) = self.die_by {
            if signal != Signal::SIGKILL {
                default_action(signal)?;
            }
            raise(signal)?;
        }
        std::process::exit(self.exit)
    }
}

/// Announces `may write`; once the test answers, writes a line to this descriptor and announces
/// `wrote` or, where nobody reads any more, `refused`.
///
/// # Errors
///
/// A test that does not answer.
pub fn write_when_told(fixture: &Fixture, fd: &impl AsFd) -> Result<()> {
    fixture.announce("may write")?;
    fixture.announce(if say_to(fd, LATE_LINE).is_ok() { "wrote" } else { "refused" })
}

/// Forks; the child runs `child` and exits.
///
/// # Errors
///
/// Those of fork(2).
pub fn fork(child: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: fixtures fork before they start a thread, so the child may do all that its parent could.
    match unsafe { fork_process() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit_after(child),
    }
}

/// Runs what a child is for, and exits without what only the parent may do at its exit.
pub fn exit_after(child: impl FnOnce() -> Result<()>) -> ! {
    let code = match child() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("fixture: {error:#}");
            1
        }
    };
    // SAFETY: _exit(2) ends the process and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Ends this process after [`LIFETIME`], whatever it waits for.
///
/// # Errors
///
/// None that can happen.
pub fn live_no_longer() -> Result<()> {
    nix::unistd::alarm::set(u32::try_from(LIFETIME.as_secs())?);
    Ok(())
}

/// Stays until it is signalled, or until [`LIFETIME`] is over.
///
/// # Errors
///
/// None: it does not return.
pub fn stay() -> Result<()> {
    live_no_longer()?;
    loop {
        nix::unistd::pause();
    }
}

/// Gives a signal its default action.
///
/// # Errors
///
/// Those of sigaction(2).
pub fn default_action(signal: Signal) -> Result<(), Errno> {
    set_action(signal, SigHandler::SigDfl)
}

/// Ignores a signal.
///
/// # Errors
///
/// Those of sigaction(2).
pub fn ignore(signal: Signal) -> Result<(), Errno> {
    set_action(signal, SigHandler::SigIgn)
}

fn set_action(signal: Signal, handler: SigHandler) -> Result<(), Errno> {
    // SAFETY: neither "default" nor "ignore" runs code of ours.
    unsafe { sigaction(signal, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) }.map(drop)
}

/// Puts /dev/null in the place of these descriptors.
///
/// # Errors
///
/// Those of open(2) and dup2(2).
pub fn to_null(fds: &[RawFd]) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for &fd in fds {
        put(null.as_raw_fd(), fd)?;
    }
    Ok(())
}

/// dup2(2), by number.
///
/// # Errors
///
/// Those of dup2(2).
pub fn put(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 takes two integers. What was open as `to` is a standard stream or nobody's.
    Errno::result(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Closes every descriptor but one.
///
/// # Errors
///
/// Those of close_range(2).
pub fn close_all_but(kept: Option<RawFd>) -> Result<(), Errno> {
    let Some(kept) = kept.and_then(|fd| libc::c_uint::try_from(fd).ok()) else {
        return close_from(0, libc::c_uint::MAX);
    };
    if kept > 0 {
        close_from(0, kept - 1)?;
    }
    close_from(kept + 1, libc::c_uint::MAX)
}

fn close_from(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: close_range takes three integers. A fixture that closes all uses none of it later.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Writes all of it to descriptor 1, at once: no buffer of ours is left for a child to inherit.
///
/// # Errors
///
/// Those of write(2).
pub fn say(bytes: &[u8]) -> Result<(), Errno> {
    say_to(&std::io::stdout(), bytes)
}

/// Writes all of it to a descriptor, at once.
///
/// # Errors
///
/// Those of write(2).
pub fn say_to(fd: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens what descriptor 1 is on once more, with these flags: a new open file description.
///
/// # Errors
///
/// Those of open(2).
pub fn reopen_stdout(flags: nix::fcntl::OFlag) -> Result<OwnedFd, Errno> {
    nix::fcntl::open("/proc/self/fd/1", flags, nix::sys::stat::Mode::empty())
}

/// A deadline for loops that no signal ends.
#[must_use]
pub fn end_of_life() -> Instant {
    Instant::now() + LIFETIME / 2
}
