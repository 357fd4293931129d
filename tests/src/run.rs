//! One `pipewarden run` on a stage, with a reader at the end of each of its streams.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use pipewarden::ownership::node::protocol::ENVIRONMENT;

use crate::binaries::{UNDER_TEST, binary};
use crate::deadline::{Deadline, PATIENCE};
use crate::fixture::SOCKET;
use crate::kernel;
use crate::node::Node;
use crate::own_lock;
use crate::process::Process;
use crate::reader::{Pace, Read, read_to_end};
use crate::report::Report;
use crate::stage::Stage;

/// Names a backend for every run of the suite that asks for none itself.
pub const BACKEND: &str = "PIPEWARDEN_TEST_BACKEND";

/// Whether the suite's runs have this backend.
#[must_use]
pub fn backend_is(backend: &str) -> bool {
    is_root() && std::env::var_os(BACKEND).is_some_and(|asked| asked == backend)
}

/// What a run is given that says nothing of these itself. The defaults are for whoever waits; a test is about
/// what happens, and where a holder that was signalled gets no time to die for a second, that is no test's matter.
/// Each is longer than a starved machine needs, and shorter than a test's patience.
const UNHURRIED: [[&str; 2]; 2] = [["--kill-after", "30s"], ["--max-drain", "60s"]];

/// What a run says that is to have the live map, of which the machine has one.
const BPF: &str = "--backend=bpf";

/// What one says that is to ask a node.
const NODE: &str = "--backend=node";

/// A run to be started.
#[derive(Debug)]
pub struct Run<'a> {
    stage: &'a Stage,
    options: Vec<OsString>,
    command: Vec<OsString>,
    report: &'static str,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    pace: Pace,
    patience: Duration,
    uid: Option<u32>,
    limits: Vec<(Resource, u64)>,
    wrapper: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    terminal: bool,
    elsewhere: bool,
    lock: Option<PathBuf>,
}

impl<'a> Run<'a> {
    /// A run without options, which reports as JSON.
    #[must_use]
    pub fn on(stage: &'a Stage) -> Run<'a> {
        Run {
            stage,
            options: Vec::new(),
            command: Vec::new(),
            report: "json",
            stdin: None,
            stdout: None,
            stderr: None,
            pace: Pace::Eager,
            patience: PATIENCE,
            uid: None,
            limits: Vec::new(),
            wrapper: Vec::new(),
            environment: Vec::new(),
            terminal: false,
            elsewhere: false,
            lock: None,
        }
    }

    /// Options of `run`, as words.
    #[must_use]
    pub fn options(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.options.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// The command, as words.
    #[must_use]
    pub fn command(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// The command is this fixture, with these arguments.
    #[must_use]
    pub fn fixture(mut self, name: &str, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.push(binary(name).into_os_string());
        self.command(words)
    }

    /// The command is this line of bash.
    #[must_use]
    pub fn bash(self, line: &str) -> Self {
        self.command(["bash", "-c", line])
    }

    /// `--report` other than json.
    #[must_use]
    pub fn report(mut self, kind: &'static str) -> Self {
        self.report = kind;
        self
    }

    /// Instead of /dev/null.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Instead of a pipe that the test reads to its end.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Instead of a pipe that the test reads to its end.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// How the reader of stdout reads.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// How long the test waits for the end of all this, where the command has much to do.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// As this user, without any capability, if we are root; as we are otherwise.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        self.uid = is_root().then_some(uid);
        self
    }

    /// With a resource limit.
    #[must_use]
    pub fn limit(mut self, resource: Resource, limit: u64) -> Self {
        self.limits.push((resource, limit));
        self
    }

    /// Started by this command, which executes its arguments.
    #[must_use]
    pub fn wrapped_in(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.wrapper.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// With the terminal that is its stdin as its controlling one, in the foreground.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// With a variable in the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// In namespaces of its own, which it does not get from a wrapper that says so.
    #[must_use]
    pub fn in_a_container(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// With a tracker's lock of its own, whoever carries the machine's tracker: `lock` is what
    /// [`own_lock::new`] gave.
    #[must_use]
    pub fn own_lock(mut self, lock: PathBuf) -> Self {
        self.lock = Some(lock);
        self
    }

    /// The words of the whole: for a run inside something else. If that is a run too, it carries the tracker, or
    /// says where the node is.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        self.line(self.backend().filter(|option| option != BPF && option != NODE))
    }

    fn line(&self, backend: Option<OsString>) -> Vec<OsString> {
        let mut words = self.wrapper.clone();
        words.push(self.reachable(binary(UNDER_TEST)).into_os_string());
        words.extend(["run", "--report", self.report].map(OsString::from));
        words.extend(self.options.clone());
        for [option, value] in UNHURRIED.iter().filter(|[option, _]| !self.says(option)) {
            words.extend([option, value].map(OsString::from));
        }
        words.extend(backend);
        words.push("--".into());
        words.extend(self.command.iter().cloned().enumerate().map(|(index, word)| {
            let path = PathBuf::from(&word);
            if index == 0 && path.is_absolute() { self.reachable(path).into_os_string() } else { word }
        }));
        words
    }

    /// Whether it has this option itself.
    fn says(&self, option: &str) -> bool {
        self.options.iter().any(|word| word == option || (option == "--kill-after" && word == "-k"))
    }

    /// What every run is to be tried with, unless it says what it wants or sits where there is none.
    fn backend(&self) -> Option<OsString> {
        let asked = std::env::var_os(BACKEND).filter(|backend| !backend.is_empty())?;
        let says = self.says("--backend");
        let unshared = self.elsewhere || self.wrapper.iter().any(|word| word == "unshare");
        let has_it = match asked.to_str() {
            Some("proc") => true,
            // Another user may not load programs.
            Some("bpf") => !unshared && self.uid.is_none() && is_root(),
            // Its socket has to be seen, and somebody who may start one.
            Some("node") => !self.elsewhere && is_root(),
            _ => !unshared,
        };
        let mut option = OsString::from("--backend=");
        option.push(&asked);
        (!says && has_it).then_some(option)
    }

    /// Another user may not reach the folder that we were built in: a copy on the stage then.
    fn reachable(&self, program: PathBuf) -> PathBuf {
        if self.uid.is_none() {
            return program;
        }
        let copy = self.stage.path(program.file_name().and_then(OsStr::to_str).unwrap());
        copied(&program, &copy);
        copy
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Running {
        let backend = self.backend();
        let asked = self.options.windows(2).any(|words| words[0] == "--backend" && words[1] == "bpf");
        // As root alone: nobody else has mount namespaces, or a live map.
        if self.lock.is_none() && (asked || backend.as_ref().is_some_and(|option| option == BPF)) && is_root() {
            self.lock = Some(own_lock::new(self.stage));
        }
        let by_name = backend.as_ref().is_some_and(|option| option == NODE);
        let node = by_name.then(|| Node::shared("a run with --backend node")).flatten();
        let words = self.line(backend.filter(|_| node.is_some() == by_name));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(SOCKET, self.stage.socket());
        if let Some(node) = &node {
            command.env(ENVIRONMENT, node.socket());
        }
        command.envs(self.environment);
        if self.terminal {
            // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and take no lock.
            unsafe { command.pre_exec(take_terminal) };
        } else {
            // Never the terminal's foreground group, whoever runs the tests.
            command.process_group(0);
        }
        if let Some(lock) = &self.lock {
            own_lock::instead_of_the_machines(&mut command, lock);
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        for (resource, limit) in self.limits {
            // SAFETY: setrlimit(2) is async-signal-safe and takes no lock.
            unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit, limit)?)) };
        }
        let deadline = Deadline::after(self.patience);
        command.stdin(self.stdin.unwrap_or_else(Stdio::null));
        let stream = |given: Option<Stdio>, pace| match given {
            Some(stdio) => (stdio, None),
            None => {
                let (reader, writer) = std::io::pipe().unwrap();
                (Stdio::from(writer), Some(read_to_end(reader, pace, deadline)))
            }
        };
        let (stdout, read_stdout) = stream(self.stdout, self.pace);
        let (stderr, read_stderr) = stream(self.stderr, Pace::Eager);
        let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        let process = Process::open(child.id().try_into().unwrap()).unwrap();
        Running { process, child, stdout: read_stdout, stderr: read_stderr, deadline, _node: node }
    }

    /// Starts it and waits for its end.
    #[must_use]
    pub fn end(self) -> Ended {
        self.start().end()
    }
}

/// Copies a program, by another process: while we had the copy open for writing, a fork of some
/// other test could inherit that, and nobody could execute it (ETXTBSY).
///
/// # Panics
///
/// When it cannot be copied.
pub fn copied(program: &Path, copy: &Path) {
    if !copy.exists() {
        assert!(Command::new("cp").arg(program).arg(copy).status().unwrap().success());
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Starts a session whose controlling terminal is descriptor 0.
fn take_terminal() -> std::io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: TIOCSCTTY takes an integer.
    nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// A run that was started. When it is dropped before its end, it is killed.
#[derive(Debug)]
pub struct Running {
    /// The supervisor.
    pub process: Process,
    child: Child,
    stdout: Option<JoinHandle<Read>>,
    stderr: Option<JoinHandle<Read>>,
    deadline: Deadline,
    /// What it asks, as long as it may.
    _node: Option<Arc<Node>>,
}

impl Running {
    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Reads stdout to its end, whether the supervisor ends or not.
    ///
    /// # Panics
    ///
    /// When the test does not read it, or did so already.
    #[must_use]
    pub fn read_stdout(&mut self) -> Read {
        self.stdout.take().expect("a stdout that the test reads").join().unwrap()
    }

    /// Waits for the end: of the supervisor, and of the streams that the test reads.
    ///
    /// # Panics
    ///
    /// When the supervisor does not end in time.
    #[must_use]
    pub fn end(mut self) -> Ended {
        let ended = self.process.dies(self.deadline);
        if !ended {
            let _ = self.child.kill(); // so that the readers below see an end, and say what they read
        }
        let cpu = kernel::cpu_time(self.process.pid);
        let status = self.child.wait().unwrap();
        let nothing = || Read { bytes: Vec::new(), eof: true };
        let stdout = self.stdout.take().map_or_else(nothing, |reader| reader.join().unwrap());
        let stderr = self.stderr.take().map_or_else(nothing, |reader| reader.join().unwrap());
        assert!(ended, "the run does not end; on stderr: {}", stderr.text());
        Ended { status, stdout, stderr, cpu }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that ended.
#[derive(Debug)]
pub struct Ended {
    /// How the supervisor itself ended.
    pub status: ExitStatus,
    /// What came out of its stdout; nothing where the test does not read it.
    pub stdout: Read,
    /// What came out of its stderr; nothing where the test does not read it.
    pub stderr: Read,
    /// How much time the supervisor itself computed, its command not included.
    pub cpu: Duration,
}

impl Ended {
    /// The supervisor's exit code.
    ///
    /// # Panics
    ///
    /// When a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = self.status.signal();
        self.status.code().unwrap_or_else(|| panic!("signal {signal:?}; on stderr: {}", self.stderr.text()))
    }

    /// Its report.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::find(&self.stderr.text())
    }
}
