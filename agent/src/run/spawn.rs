//! Starting the command, so that nothing about us shows in it.

use std::ffi::{CString, OsString};
use std::io::{self, Read};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

use super::inherited::{sigpipe_was_ignored, was_closed};
use super::options::User;
use super::signals::Inherited;
use crate::act::pidfd_open;

/// What the command starts with.
pub struct Setup<'a> {
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// Its descriptors 0, 1 and 2, where they are not ours.
    pub stdio: [Option<RawFd>; 3],
    /// The signal mask and dispositions that we were started with.
    pub inherited: Inherited,
    /// Whether it gets a process group of its own.
    pub own_group: bool,
    /// The signal that it gets when we die.
    pub pdeathsig: Option<Signal>,
    /// Its environment, where it is not ours.
    pub environment: Option<&'a [(OsString, OsString)]>,
    /// Its working directory, where it is not ours.
    pub directory: Option<&'a Path>,
    /// Whom it runs as, where it is not us.
    pub user: Option<&'a User>,
}

/// The command, running.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, and its group's where it has one of its own.
    pub pid: i32,
    /// What becomes readable when it exits.
    pub pidfd: OwnedFd,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// An argument has a NUL byte in it.
    #[error("an argument, a variable or the directory contains a NUL byte: no program can be given it")]
    Nul,
    /// There is no such program.
    #[error("{0}: not found; is it installed, and in PATH?")]
    NotFound(String),
    /// The program cannot be executed.
    #[error("{0}: cannot be executed: {1}")]
    NotExecutable(String, io::Error),
    /// We could not start it.
    #[error("cannot start the command: {0} {1}")]
    System(&'static str, io::Error),
}

impl SpawnError {
    /// The exit status by which shells, env(1) and timeout(1) tell this.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            SpawnError::NotFound(_) => 127,
            SpawnError::NotExecutable(..) => 126,
            SpawnError::Nul | SpawnError::System(..) => 125,
        }
    }
}

/// The steps between fork and exec that can fail, in the byte that the child reports.
const STEPS: [&str; 8] =
    ["execvp", "setpgid", "dup2", "prctl(PR_SET_PDEATHSIG)", "setgroups", "setgid", "setuid", "chdir"];

/// The step that has a path to be named with it.
const CHDIR: u8 = 7;

unsafe extern "C" {
    /// environ(7), in which execvp(3) looks for PATH.
    static mut environ: *const *const libc::c_char;
}

/// Forks and executes the command. When this returns it is executing, or nothing of it is left.
///
/// Call it from the main thread: the death signal is that of the forking *thread*.
///
/// # Errors
///
/// As [`SpawnError`] says.
pub fn spawn(setup: &Setup<'_>) -> Result<Spawned, SpawnError> {
    let arguments = strings(setup.command.iter().map(|argument| argument.as_bytes().to_vec()))?;
    let environment = setup.environment.map(|variables| strings(variables.iter().map(definition))).transpose()?;
    let directory = setup.directory.map(|path| strings([path.as_os_str().as_bytes().to_vec()])).transpose()?;
    let (arguments, environment) = (pointers(&arguments), environment.as_deref().map(pointers));
    let prepared = Prepared {
        arguments: &arguments,
        environment: environment.as_deref(),
        directory: directory.as_ref().and_then(|path| path.first()).map(|path| path.as_ptr()),
    };
    let (mut said, say) = report_pipe().map_err(|error| SpawnError::System("pipe", error))?;
    let supervisor = nix::unistd::getpid();

    // SAFETY: between fork and exec the child calls only async-signal-safe functions, on memory that
    // was made before (`prepared`, `setup`), and it never returns.
    match unsafe { nix::unistd::fork() } {
        Err(error) => Err(SpawnError::System("fork", error.into())),
        Ok(ForkResult::Child) => become_command(setup, &prepared, supervisor, say.into_raw_fd()),
        Ok(ForkResult::Parent { child }) => {
            drop(say);
            if setup.own_group {
                // The child does the same: whoever comes first, the group exists before we go on.
                let _ = nix::unistd::setpgid(child, child);
            }
            let mut words = [0_u8; 5];
            match said.read_exact(&mut words) {
                Err(_) => watch(child), // closed by exec
                Ok(()) => {
                    let _ = nix::sys::wait::waitpid(child, None);
                    Err(explain(setup, words))
                }
            }
        }
    }
}

/// What the child needs, made before the fork: after it nothing may be allocated.
struct Prepared<'a> {
    arguments: &'a [*const libc::c_char],
    environment: Option<&'a [*const libc::c_char]>,
    directory: Option<*const libc::c_char>,
}

fn strings(texts: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, SpawnError> {
    texts.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| SpawnError::Nul)
}

/// `NAME=VALUE`.
fn definition((name, value): &(OsString, OsString)) -> Vec<u8> {
    [name.as_bytes(), b"=", value.as_bytes()].concat()
}

fn pointers(strings: impl AsRef<[CString]>) -> Vec<*const libc::c_char> {
    strings.as_ref().iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

fn watch(child: Pid) -> Result<Spawned, SpawnError> {
    match pidfd_open(child.as_raw()) {
        Ok(pidfd) => Ok(Spawned { pid: child.as_raw(), pidfd }),
        Err(error) => {
            // We cannot supervise what we cannot watch: it is our own child, not yet reaped.
            let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(child, None);
            Err(SpawnError::System("pidfd_open", error))
        }
    }
}

fn report_pipe() -> io::Result<(std::fs::File, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((read.into(), write))
}

fn explain(setup: &Setup<'_>, words: [u8; 5]) -> SpawnError {
    let [step, number @ ..] = words;
    let error = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
    if let (CHDIR, Some(directory)) = (step, setup.directory) {
        let error = io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        return SpawnError::System("chdir", error);
    }
    if step != 0 {
        return SpawnError::System(STEPS.get(usize::from(step)).copied().unwrap_or("start"), error);
    }
    let name = setup.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match error.raw_os_error() {
        Some(libc::ENOENT) => SpawnError::NotFound(name),
        _ => SpawnError::NotExecutable(name, error),
    }
}

/// The child's way from fork to exec.
fn become_command(setup: &Setup<'_>, prepared: &Prepared<'_>, supervisor: Pid, say: RawFd) -> ! {
    let failed = |step: u8| -> ! {
        let number = nix::errno::Errno::last_raw().to_ne_bytes();
        let words = [step, number[0], number[1], number[2], number[3]];
        // SAFETY: writes five bytes that are on our stack, then ends this process without any cleanup.
        unsafe {
            libc::write(say, words.as_ptr().cast(), words.len());
            libc::_exit(125)
        }
    };
    // SAFETY: every call below is async-signal-safe, and gets either integers or memory that was
    // prepared before the fork.
    unsafe {
        if setup.own_group && libc::setpgid(0, 0) != 0 {
            failed(1);
        }
        for (fd, ours) in (0..).zip(setup.stdio) {
            match ours {
                Some(ours) if libc::dup2(ours, fd) < 0 => failed(2),
                None if was_closed(usize::try_from(fd).unwrap_or(usize::MAX)) => {
                    libc::close(fd);
                }
                _ => {}
            }
        }
        if let Some(user) = setup.user {
            if libc::setgroups(user.groups.len(), user.groups.as_ptr()) != 0 {
                failed(4);
            }
            if libc::setgid(user.gid) != 0 {
                failed(5);
            }
            if libc::setuid(user.uid) != 0 {
                failed(6);
            }
        }
        // As that user: where it may not go, the command must not start either.
        if let Some(directory) = prepared.directory
            && libc::chdir(directory) != 0
        {
            failed(CHDIR);
        }
        // After the change of user, which clears it.
        if let Some(signal) = setup.pdeathsig {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                failed(3);
            }
            if libc::getppid() != supervisor.as_raw() {
                libc::_exit(125); // it died before it could have been told
            }
        }
        let sigpipe = if sigpipe_was_ignored() { libc::SIG_IGN } else { libc::SIG_DFL };
        libc::signal(libc::SIGPIPE, sigpipe);
        if setup.inherited.sigchld_ignored {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        }
        libc::sigprocmask(libc::SIG_SETMASK, setup.inherited.mask.as_ref(), std::ptr::null_mut());
        if let Some(environment) = prepared.environment {
            environ = environment.as_ptr();
        }
        libc::execvp(prepared.arguments[0], prepared.arguments.as_ptr());
    }
    failed(0)
}
