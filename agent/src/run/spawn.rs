//! Starting the command, so that nothing about us shows in it.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::inherited::{sigpipe_was_ignored, was_closed};
use super::options::User;
use super::signals::Inherited;

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

/// The steps of the child that can fail.
#[derive(Clone, Copy)]
enum Step {
    Setpgid,
    Dup2,
    Setgroups,
    Setgid,
    Setuid,
    Chdir,
    Pdeathsig,
    Exec,
}

impl Step {
    /// The call, as it is documented.
    fn call(self) -> &'static str {
        match self {
            Step::Setpgid => "setpgid",
            Step::Dup2 => "dup2",
            Step::Setgroups => "setgroups",
            Step::Setgid => "setgid",
            Step::Setuid => "setuid",
            Step::Chdir => "chdir",
            Step::Pdeathsig => "prctl(PR_SET_PDEATHSIG)",
            Step::Exec => "execvp",
        }
    }
}

unsafe extern "C" {
    /// environ(7), in which execvp(3) looks for PATH.
    static mut environ: *const *const libc::c_char;
}

/// Starts the command. When this returns it is executing, or nothing of it is left.
///
/// The child borrows our memory until it executes, as that of posix_spawn(3) does: to copy it, and to
/// have every page that we then touch copied, would cost each start a tenth of its time.
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
    let mut prepared = Prepared {
        setup,
        supervisor: nix::unistd::getpid(),
        arguments: &arguments,
        environment: environment.as_deref(),
        directory: directory.as_ref().and_then(|path| path.first()).map(|path| path.as_ptr()),
        failed: None,
    };
    let command = start(&mut prepared).map_err(|error| SpawnError::System("clone", error))?;
    match prepared.failed {
        None => Ok(command),
        Some((step, error)) => {
            let _ = nix::sys::wait::waitpid(Pid::from_raw(command.pid), None);
            Err(explain(setup, step, error))
        }
    }
}

/// What execvp(3) puts on the stack beside a copy of the arguments (of a script without `#!`): a path.
const STACK_BYTES: usize = 64 * 1024;

/// Makes the child, and returns when it has executed or ended. Its pidfd is had with it: where no
/// descriptor is left there is no child either, not even for a moment.
fn start(prepared: &mut Prepared<'_>) -> io::Result<Spawned> {
    let mut stack: Vec<u128> = Vec::with_capacity((STACK_BYTES + 16 * prepared.arguments.len()) / size_of::<u128>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let mut pidfd: RawFd = -1;
    // SAFETY: `environ` is only read, as a pointer.
    let variables = unsafe { environ };
    // SAFETY: the stack is the child's alone, aligned, and grows down from its end; it and `prepared`
    // live until this thread goes on (CLONE_VFORK), when the child has memory of its own or is gone.
    // Until then it calls only async-signal-safe functions, and never returns. The kernel writes one
    // integer to `pidfd`, which is where clone(2) takes it with CLONE_PIDFD.
    let child = unsafe {
        libc::clone(
            become_command,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            std::ptr::from_mut(prepared).cast(),
            &raw mut pidfd,
        )
    };
    let child = Errno::result(child);
    // SAFETY: the child may have put the command's there; no other thread of ours looks at it.
    unsafe { environ = variables };
    // SAFETY: `child?` says that there is one, so the kernel just made its pidfd, and nobody else knows it.
    Ok(Spawned { pid: child?, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// What the child needs, made before there is one: it may not allocate. And what it has to say.
struct Prepared<'a> {
    setup: &'a Setup<'a>,
    supervisor: Pid,
    arguments: &'a [*const libc::c_char],
    environment: Option<&'a [*const libc::c_char]>,
    directory: Option<*const libc::c_char>,
    /// The step that failed, and why.
    failed: Option<(Step, Errno)>,
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

fn explain(setup: &Setup<'_>, step: Step, error: Errno) -> SpawnError {
    let error = io::Error::from(error);
    match (step, setup.directory) {
        (Step::Exec, _) => {}
        (Step::Chdir, Some(directory)) => {
            let error = io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
            return SpawnError::System("chdir", error);
        }
        _ => return SpawnError::System(step.call(), error),
    }
    let name = setup.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match error.raw_os_error() {
        Some(libc::ENOENT) => SpawnError::NotFound(name),
        _ => SpawnError::NotExecutable(name, error),
    }
}

/// The child's way to exec. It comes back only by what it leaves in [`Prepared`].
extern "C" fn become_command(prepared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes its `Prepared`, which nobody else touches while we run.
    let prepared = unsafe { &mut *prepared.cast::<Prepared<'_>>() };
    let step = execute(prepared);
    prepared.failed = Some((step, Errno::last()));
    // SAFETY: ends this process without any cleanup: what there is to clean up is our parent's.
    unsafe { libc::_exit(125) }
}

/// Executes the command; returns with the step that failed, whose error is errno.
fn execute(prepared: &Prepared<'_>) -> Step {
    let setup = prepared.setup;
    // SAFETY: every call below is async-signal-safe, and gets either integers or memory that was
    // prepared before. None but `environ` changes memory that our parent has after us.
    unsafe {
        if setup.own_group && libc::setpgid(0, 0) != 0 {
            return Step::Setpgid;
        }
        for (fd, ours) in (0..).zip(setup.stdio) {
            match ours {
                Some(ours) if libc::dup2(ours, fd) < 0 => return Step::Dup2,
                None if was_closed(usize::try_from(fd).unwrap_or(usize::MAX)) => {
                    libc::close(fd);
                }
                _ => {}
            }
        }
        if let Some(user) = setup.user
            && let Err(step) = become_user(user)
        {
            return step;
        }
        // As that user: where it may not go, the command must not start either.
        if let Some(directory) = prepared.directory
            && libc::chdir(directory) != 0
        {
            return Step::Chdir;
        }
        // After the change of user, which clears it.
        if let Some(signal) = setup.pdeathsig {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                return Step::Pdeathsig;
            }
            if libc::getppid() != prepared.supervisor.as_raw() {
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
    Step::Exec
}

/// By the system calls themselves: the library's functions would take all threads along, and those
/// that it knows are our parent's.
fn become_user(user: &User) -> Result<(), Step> {
    // SAFETY: setgroups reads as many group ids as there are; the others take integers.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) != 0 {
            return Err(Step::Setgroups);
        }
        if libc::syscall(libc::SYS_setgid, user.gid) != 0 {
            return Err(Step::Setgid);
        }
        if libc::syscall(libc::SYS_setuid, user.uid) != 0 {
            return Err(Step::Setuid);
        }
    }
    Ok(())
}
