//! Where the processes of one test announce themselves.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::binaries::binary;
use crate::deadline::{Deadline, PATIENCE};
use crate::fixture::{SOCKET, default_action};
use crate::process::Process;

/// A folder, a socket, and everybody who announced themselves there. When it goes, so do they.
#[derive(Debug)]
pub struct Stage {
    folder: tempfile::TempDir,
    roll: Arc<Roll>,
    stop: Option<OwnedFd>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Roll {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    present: HashMap<String, Process>,
    everybody: Vec<Process>,
    lines: HashMap<String, UnixStream>,
    held: HashSet<String>,
    waiting: Vec<(Wish, String, UnixStream)>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// "I play this role."
    Here,
    /// "I play this role, for as long as this connection is open anywhere."
    Line,
    /// "Tell me when somebody plays this role."
    After,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// An empty stage.
    #[must_use]
    pub fn new() -> Stage {
        inherit_nothing();
        let folder = tempfile::tempdir().unwrap();
        // Rows run as another user too.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let listener = UnixListener::bind(folder.path().join("roll")).unwrap();
        std::fs::set_permissions(folder.path().join("roll"), std::fs::Permissions::from_mode(0o777)).unwrap();
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let roll = Arc::new(Roll::default());
        let server = std::thread::spawn({
            let roll = Arc::clone(&roll);
            move || serve(&listener, &stopped, &roll)
        });
        Stage { folder, roll, stop: Some(stop), server: Some(server) }
    }

    /// A path in the test's own folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket where processes announce themselves.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("roll")
    }

    /// The test's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A fixture that announces itself here, to be started without pipewarden.
    #[must_use]
    pub fn fixture(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        self.announced(&mut command);
        command
    }

    /// Lets a command announce itself here.
    pub fn announced<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(SOCKET, self.socket())
    }

    /// Waits until a role is played.
    ///
    /// # Panics
    ///
    /// When nobody plays it in time.
    #[must_use]
    pub fn wait(&self, role: &str) -> Process {
        let deadline = Deadline::patient();
        let mut state = self.roll.state.lock().unwrap();
        loop {
            if let Some(process) = state.present.get(role) {
                return process.clone();
            }
            assert!(
                !deadline.left().is_zero(),
                "nobody announced `{role}`; present: {:?}",
                state.present.keys().collect::<Vec<_>>()
            );
            state = self.roll.changed.wait_timeout(state, deadline.left()).unwrap().0;
        }
    }

    /// Whoever plays a role by now.
    #[must_use]
    pub fn present(&self, role: &str) -> Option<Process> {
        self.roll.state.lock().unwrap().present.get(role).cloned()
    }

    /// Keeps whoever announces this role waiting until [`Stage::release`]. The role counts as
    /// played meanwhile.
    pub fn hold(&self, role: &str) {
        self.roll.state.lock().unwrap().held.insert(role.to_owned());
    }

    /// Lets those go on who wait in this role, and whoever comes later.
    pub fn release(&self, role: &str) {
        let mut state = self.roll.state.lock().unwrap();
        state.held.remove(role);
        answer(&mut state);
        drop(state);
        self.roll.changed.notify_all();
    }

    /// Waits until the last process that inherited a lifeline is gone.
    #[must_use]
    pub fn line_ends(&self, role: &str, deadline: Deadline) -> bool {
        let state = self.roll.state.lock().unwrap();
        let line = state.lines.get(role).map(|line| line.try_clone().unwrap());
        drop(state);
        // A lifeline carries no bytes: readable is closed.
        line.is_some_and(|line| deadline.wait(line.as_fd(), PollFlags::POLLIN))
    }

    /// Ends a process when the stage goes, as if it had announced itself.
    pub fn adopt(&self, process: &Process) {
        self.roll.state.lock().unwrap().everybody.push(process.clone());
    }
}

/// Keeps what whoever started the tests left us from becoming a fixture's: an open descriptor would
/// hold pipes that are no part of its row, and a shell's background job ignores SIGINT.
fn inherit_nothing() {
    // SAFETY: close_range takes three integers, and with this flag closes nothing.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM] {
        default_action(signal).unwrap();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        // After the server, so that nobody comes late; by pidfd, so that nobody else is meant.
        if let Ok(mut state) = self.roll.state.lock() {
            state.lines.clear();
            for process in &state.everybody {
                process.signal(Signal::SIGKILL);
            }
        }
    }
}

fn serve(listener: &UnixListener, stopped: &OwnedFd, roll: &Roll) {
    loop {
        let mut watched =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::NONE).is_err() {
            continue; // interrupted
        }
        if watched[1].any() == Some(true) {
            return;
        }
        if let Ok((stream, _)) = listener.accept() {
            receive(stream, roll);
        }
    }
}

/// Takes one announcement. What cannot be read comes from a process that was just killed.
fn receive(stream: UnixStream, roll: &Roll) {
    let mut line = String::new();
    if BufReader::new(&stream).read_line(&mut line).is_err() {
        return;
    }
    let Some((verb, role)) = line.trim_end().split_once(' ') else { return };
    let wish = match verb {
        "after" => Wish::After,
        "line" => Wish::Line,
        _ => Wish::Here,
    };
    let mut state = roll.state.lock().unwrap();
    if wish != Wish::After {
        let Some(process) = Process::peer(&stream) else { return };
        state.everybody.push(process.clone());
        // Who is held plays the role already; who is not does so when the connection is gone.
        if state.held.contains(role) {
            state.present.insert(role.to_owned(), process);
        }
    }
    state.waiting.push((wish, role.to_owned(), stream));
    answer(&mut state);
    drop(state);
    roll.changed.notify_all();
}

/// Answers everybody who need not wait any longer.
fn answer(state: &mut State) {
    let waiting = std::mem::take(&mut state.waiting);
    let (here, after): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(wish, ..)| *wish != Wish::After);
    for (wish, role, mut stream) in here {
        if state.held.contains(&role) {
            state.waiting.push((wish, role, stream));
            continue;
        }
        let Some(process) = Process::peer(&stream) else { continue };
        let _ = stream.write_all(b"!"); // it may have been killed while it waited
        if wish == Wish::Line {
            state.lines.insert(role.clone(), stream);
        } else {
            // Once the connection is closed, announcing has changed nothing about what it holds.
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.read(&mut [0]);
        }
        state.present.insert(role, process);
    }
    for (wish, role, mut stream) in after {
        if state.present.contains_key(&role) && !state.held.contains(&role) {
            let _ = stream.write_all(b"!");
        } else {
            state.waiting.push((wish, role, stream));
        }
    }
}
