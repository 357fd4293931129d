//! One `pipewarden supervise` on a stage: its configuration, its log line by line, its socket.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{PipeReader, Read as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use nix::sys::signal::Signal;
use pipewarden::supervise::control::{self, CommandStatus, Reply, Request, Status};

use crate::binaries::{UNDER_TEST, binary};
use crate::deadline::Deadline;
use crate::fixture::SOCKET;
use crate::process::Process;
use crate::stage::Stage;

/// The variable by which everybody is found who was started from a stage.
pub const MARK: &str = "PIPEWARDEN_TEST_STAGE";

/// A supervision to be started.
#[derive(Debug)]
pub struct Supervise<'a> {
    stage: &'a Stage,
    options: Vec<OsString>,
    wrapper: Vec<OsString>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
}

impl<'a> Supervise<'a> {
    /// One with this configuration and a control socket, both on the stage.
    #[must_use]
    pub fn on(stage: &'a Stage, config: &str) -> Supervise<'a> {
        fs::write(stage.path("supervise.toml"), config).unwrap();
        Supervise { stage, options: Vec::new(), wrapper: Vec::new(), stdin: None, stdout: None }
    }

    /// Further options, as words.
    #[must_use]
    pub fn options(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.options.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Started by this command, which executes its arguments.
    #[must_use]
    pub fn wrapped_in(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.wrapper.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Instead of /dev/null.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Instead of a pipe that the test reads as it fills.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(self) -> Supervised {
        let mut words = self.wrapper;
        words.push(binary(UNDER_TEST).into());
        words.extend(["supervise", "--config"].map(OsString::from));
        words.push(self.stage.path("supervise.toml").into());
        words.push("--socket".into());
        words.push(self.stage.path("control").into());
        words.extend(self.options);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(SOCKET, self.stage.socket()).env(MARK, self.stage.folder()).process_group(0);
        command.stdin(self.stdin.unwrap_or_else(Stdio::null));
        let (log_reader, log_writer) = std::io::pipe().unwrap();
        command.stderr(log_writer);
        let stdout = match self.stdout {
            Some(stdout) => {
                command.stdout(stdout);
                Text::of_nobody()
            }
            None => {
                let (reader, writer) = std::io::pipe().unwrap();
                command.stdout(writer);
                Text::of(reader)
            }
        };
        let child = command.spawn().unwrap();
        drop(command); // it has the write ends
        let process = Process::open(child.id().try_into().unwrap()).unwrap();
        let (config, socket) = (self.stage.path("supervise.toml"), self.stage.path("control"));
        Supervised { process, config, socket, log: Text::of(log_reader), stdout, child }
    }
}

/// Text that grows, and that a test can wait for.
#[derive(Clone, Debug, Default)]
pub struct Text(Arc<(Mutex<Grown>, Condvar)>);

#[derive(Debug, Default)]
struct Grown {
    bytes: Vec<u8>,
    eof: bool,
}

impl Text {
    fn of_nobody() -> Text {
        let text = Text::default();
        text.0.0.lock().unwrap().eof = true;
        text
    }

    fn of(mut reader: PipeReader) -> Text {
        let text = Text::default();
        let ours = text.clone();
        std::thread::spawn(move || {
            let mut part = [0; 1 << 16];
            loop {
                let read = reader.read(&mut part).unwrap_or(0);
                let mut grown = ours.0.0.lock().unwrap();
                grown.bytes.extend_from_slice(&part[..read]);
                grown.eof = read == 0;
                ours.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        text
    }

    /// What has come so far.
    #[must_use]
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// How often this has come so far.
    #[must_use]
    pub fn count(&self, wanted: &str) -> usize {
        self.so_far().matches(wanted).count()
    }

    /// Waits until this has come so often.
    ///
    /// # Panics
    ///
    /// When it does not come in time, or cannot come any more.
    pub fn wait_for(&self, times: usize, wanted: &str) {
        let deadline = Deadline::patient();
        let mut grown = self.0.0.lock().unwrap();
        // What was looked through once is not looked through again with every line that comes.
        let (mut count, mut from) = (0, 0);
        loop {
            while let Some(at) = memchr::memmem::find(&grown.bytes[from..], wanted.as_bytes()) {
                (count, from) = (count + 1, from + at + wanted.len());
            }
            if count >= times {
                return;
            }
            from = from.max((grown.bytes.len() + 1).saturating_sub(wanted.len()));
            let over = grown.eof || deadline.left().is_zero();
            assert!(!over, "`{wanted}` did not come {times} times in:\n{}", String::from_utf8_lossy(&grown.bytes));
            grown = self.0.1.wait_timeout(grown, deadline.left()).unwrap().0;
        }
    }

    /// Waits for its end; whether it came.
    #[must_use]
    pub fn ends(&self) -> bool {
        let deadline = Deadline::patient();
        let mut grown = self.0.0.lock().unwrap();
        while !grown.eof && !deadline.left().is_zero() {
            grown = self.0.1.wait_timeout(grown, deadline.left()).unwrap().0;
        }
        grown.eof
    }
}

/// A supervision that was started. When it is dropped before its end, it is killed.
#[derive(Debug)]
pub struct Supervised {
    /// The process that was started: the manager, or what stands in front of it.
    pub process: Process,
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// What it says on stderr.
    pub log: Text,
    /// What it puts out.
    pub stdout: Text,
    child: Child,
}

impl Supervised {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until its log says this.
    pub fn says(&self, wanted: &str) {
        self.log.wait_for(1, wanted);
    }

    /// Waits until its log has said this so often.
    pub fn says_times(&self, times: usize, wanted: &str) {
        self.log.wait_for(times, wanted);
    }

    /// Another configuration, which it reads when it is told.
    pub fn rewrite(&self, config: &str) {
        fs::write(&self.config, config).unwrap();
    }

    /// Asks through the socket, and waits for the answer.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn ask(&self, request: &Request) -> Reply {
        self.says("control socket");
        control::ask(&self.socket, request).unwrap_or_else(|error| panic!("{error}; log:\n{}", self.log.so_far()))
    }

    /// Asks for something that has to be done.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn does(&self, request: &Request) {
        match self.ask(request) {
            Reply::Done(_) => {}
            other => panic!("{request:?}: {other:?}; log:\n{}", self.log.so_far()),
        }
    }

    /// The status of everything.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// The status of one command.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    #[must_use]
    pub fn status_of(&self, name: &str) -> CommandStatus {
        let status = self.status();
        status.commands.into_iter().find(|command| command.name == name).unwrap()
    }

    /// Waits until a command is in this state.
    ///
    /// # Panics
    ///
    /// When it does not come there in time.
    pub fn comes_to(&self, name: &str, state: &str) {
        let mut last = String::new();
        let came = Deadline::patient().until(|| {
            last = self.status_of(name).state;
            last == state
        });
        assert!(came, "{name} is {last} and not {state}; log:\n{}", self.log.so_far());
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end in time, or a pipe of it is left open.
    #[must_use]
    pub fn end(mut self) -> EndedSupervision {
        let ended = self.process.dies(Deadline::patient());
        if !ended {
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        assert!(ended, "it does not end; log:\n{}", self.log.so_far());
        assert!(self.log.ends(), "its stderr is still held; log:\n{}", self.log.so_far());
        assert!(self.stdout.ends(), "its stdout is still held; log:\n{}", self.log.so_far());
        EndedSupervision { status, log: self.log.so_far(), stdout: self.stdout.clone() }
    }

    /// Asks it to end, and waits for that.
    #[must_use]
    pub fn terminate(self) -> EndedSupervision {
        self.signal(Signal::SIGTERM);
        self.end()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A supervision that ended.
#[derive(Debug)]
pub struct EndedSupervision {
    /// How.
    pub status: ExitStatus,
    /// All that it said on stderr.
    pub log: String,
    /// All that it put out.
    pub stdout: Text,
}

impl EndedSupervision {
    /// Its exit code.
    ///
    /// # Panics
    ///
    /// When a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{}; log:\n{}", self.status, self.log))
    }
}

/// One `[command.NAME]`, with a line of bash and further lines of TOML. It is ended quickly.
#[must_use]
pub fn bash(name: &str, line: &str, more: &str) -> String {
    command(name, &["bash".as_ref(), "-c".as_ref(), line.as_ref()], more)
}

/// The same with a fixture.
#[must_use]
pub fn fixture(name: &str, program: &str, words: &[&str], more: &str) -> String {
    let path = binary(program);
    let words: Vec<&OsStr> = std::iter::once(path.as_os_str()).chain(words.iter().map(OsStr::new)).collect();
    command(name, &words, more)
}

fn command(name: &str, words: &[&OsStr], more: &str) -> String {
    let mut text = format!("[command.{name}]\nrun = [");
    for word in words {
        let word = word.to_str().unwrap();
        let _ = write!(text, "{}, ", serde_json::to_string(word).unwrap());
    }
    text + "]\nholder_grace = 0\nbackoff = 0\n" + more + "\n"
}

/// Everybody who was started from this stage and lives: found by the variable that all of them have.
#[must_use]
pub fn left_of(stage: &Stage) -> Vec<(i32, String)> {
    let mark = format!("{MARK}={}", stage.folder().display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    })
    .map(|pid| (pid, comm(pid)))
    .collect()
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Waits until nobody is left who was started from this stage.
///
/// # Panics
///
/// When somebody stays.
pub fn nobody_is_left(stage: &Stage) {
    let gone = Deadline::patient().until(|| left_of(stage).is_empty());
    assert!(gone, "left: {:?}", left_of(stage));
}

/// What a process has, in numbers that must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Children, zombies among them.
    pub children: usize,
    /// Zombies.
    pub zombies: usize,
    /// Resident memory, in KiB.
    pub resident_kib: usize,
}

impl Holdings {
    /// What a process has now.
    #[must_use]
    pub fn of(pid: i32) -> Holdings {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let children = children(pid);
        let zombie = |child: &&i32| crate::kernel::stat(**child, 3).is_some_and(|state| state == "Z");
        Holdings {
            fds: crate::kernel::descriptors(pid),
            threads: field("Threads:"),
            children: children.len(),
            zombies: children.iter().filter(zombie).count(),
            resident_kib: field("VmRSS:"),
        }
    }

    /// The same without what may vary by pages.
    #[must_use]
    pub fn exact(self) -> Holdings {
        Holdings { resident_kib: 0, ..self }
    }
}

/// The children of a process.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>())
        .collect()
}
