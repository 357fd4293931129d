//! A real `pipewarden node` for one test or for several: with a tracker lock, a socket and a log of its own.
//! It sees the whole machine all the same.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binaries::{UNDER_TEST, binary};
use crate::deadline::Deadline;
use crate::own_lock;
use crate::process::Process;
use crate::skip::{Need, skip, skipped};

/// A node at work. When it is dropped, it is killed.
#[derive(Debug)]
pub struct Node {
    child: Child,
    process: Process,
    folder: tempfile::TempDir,
    /// How much it had said before it was started last.
    heard: usize,
}

/// The one that tests of this program share while they run.
static SHARED: Mutex<Weak<Node>> = Mutex::new(Weak::new());

impl Node {
    /// One with the default configuration: everybody may connect to its socket, and it has no policy.
    /// None where there can be none, which is said.
    ///
    /// # Panics
    ///
    /// When it does not start, and no rung is to blame.
    #[must_use]
    pub fn start(test: &str) -> Option<Node> {
        Node::with(test, "")
    }

    /// One with further tables in its configuration, such as `[[policy]]`.
    ///
    /// # Panics
    ///
    /// As for [`start`](Node::start).
    #[must_use]
    pub fn with(test: &str, more: &str) -> Option<Node> {
        Node::configured(test, "mode = \"0666\"\n", more)
    }

    /// One with further lines in its `[socket]`, and further tables.
    ///
    /// # Panics
    ///
    /// As for [`start`](Node::start).
    #[must_use]
    pub fn configured(test: &str, socket: &str, more: &str) -> Option<Node> {
        Node::of(test, socket, "listen = \"off\"\n", more)
    }

    /// One that answers HTTP on a port of its own: with further lines in its `[http]`, and further tables.
    ///
    /// # Panics
    ///
    /// As for [`start`](Node::start).
    #[must_use]
    pub fn with_http(test: &str, http: &str, more: &str) -> Option<Node> {
        Node::of(test, "mode = \"0666\"\n", &format!("listen = \"127.0.0.1:0\"\n{http}"), more)
    }

    fn of(test: &str, socket: &str, http: &str, more: &str) -> Option<Node> {
        if skip(test, &[Need::Root]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap(); // other users come here, too
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[socket]\npath = \"{}\"\n{socket}[http]\n{http}[audit]\npath = \"{}\"\n{more}",
            at("node.sock"),
            at("audit.jsonl")
        );
        fs::write(at("node.toml"), text).unwrap();
        let child = spawn(folder.path()).unwrap();
        let process = Process::open(child.id().cast_signed()).unwrap();
        let mut node = Node { child, process, folder, heard: 0 };
        node.comes_up().then_some(()).or_else(|| {
            // What it has to say about a machine without a rung is the same in every test.
            assert!(node.said().contains("see pipewarden doctor"), "{}", node.said());
            // That it does not hear its own child is no machine's fault.
            assert!(!node.said().contains("was not told"), "{}", node.said());
            skipped(test, &node.said());
            None
        })?;
        Some(node)
    }

    /// The one that tests of this program share: for tests that count nothing of it.
    ///
    /// # Panics
    ///
    /// As for [`start`](Node::start).
    #[must_use]
    pub fn shared(test: &str) -> Option<Arc<Node>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = shared.upgrade() {
            return Some(node);
        }
        let node = Arc::new(Node::start(test)?);
        *shared = Arc::downgrade(&node);
        Some(node)
    }

    /// Where it answers HTTP.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        let said = self.said();
        let mut address = said.lines().filter_map(|line| line.split_once("node: http://")?.1.strip_suffix("/metrics"));
        address.next_back().unwrap_or_else(|| panic!("it says of no port: {said}")).parse().unwrap()
    }

    /// Waits until somebody answers at its socket. False when it ends instead.
    fn comes_up(&mut self) -> bool {
        let mut ended = false;
        // Where it answers HTTP, it says so last.
        let by_http = !fs::read_to_string(self.config()).unwrap().contains("listen = \"off\"");
        let is_up = |node: &Node| match by_http {
            true => node.said()[node.heard..].contains("/metrics\n"),
            false => UnixStream::connect(node.socket()).is_ok(),
        };
        let came = Deadline::patient().until(|| {
            ended = self.child.try_wait().unwrap().is_some();
            ended || is_up(self)
        });
        assert!(came, "nobody listens at {}: {}", self.socket().display(), self.said());
        !ended
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Where its socket is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    /// Where its configuration is.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("node.toml")
    }

    /// Where its audit log is.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    /// What it said on stderr.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// The records of an event in its audit log. A last line that is half there is none yet.
    #[must_use]
    pub fn records(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.audit()).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let records = whole.map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| record["event"] == event).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it by SIGKILL. What it left is there still.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it by SIGTERM.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let ended = Deadline::patient().until(|| self.child.try_wait().unwrap().is_some());
        assert!(ended, "it does not end: {}", self.said());
        self.child.wait().unwrap()
    }

    /// Starts it again, at the same place. It must have ended.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn start_again(&mut self) {
        self.heard = self.said().len();
        self.child = spawn(self.folder.path()).unwrap();
        self.process = Process::open(self.child.id().cast_signed()).unwrap();
        assert!(self.comes_up(), "{}", self.said());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a node on what is in a folder.
fn spawn(folder: &Path) -> io::Result<Child> {
    let said = File::options().append(true).create(true).open(folder.join("said"))?;
    let mut command = Command::new(binary(UNDER_TEST));
    command.args(["node", "--config"]).arg(folder.join("node.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    // Some are stopped, and the kernel sends SIGHUP to all of a group that has a stopped member and is orphaned.
    command.process_group(0);
    own_lock::instead_of_the_machines(&mut command, &folder.join("tracker.lock"));
    command.spawn()
}
