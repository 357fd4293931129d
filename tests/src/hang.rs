//! The hang that a node is for: a command that has ended, and a helper of it that keeps its reader waiting.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipewarden::process::stat::Stat;

use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::run::copied;

/// A shell that waits for the output of a command, which has put a helper into a session of its own and
/// ends when it is told to.
#[derive(Debug)]
pub struct Hang {
    shell: Child,
    helper: i32,
    name: String,
    folder: tempfile::TempDir,
}

impl Hang {
    /// With a helper of this name, of which there is no other on the machine.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn new(name: &str) -> Hang {
        Hang::of(name, &mut Command::new("sh"))
    }

    /// The same in a cgroup: shell, command and helper.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn within(name: &str, cgroup: &Cgroup) -> Hang {
        let mut shell = Command::new("sh");
        cgroup.holds(&mut shell);
        Hang::of(name, &mut shell)
    }

    fn of(name: &str, shell: &mut Command) -> Hang {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        copied(Path::new("/bin/sleep"), &at(name));
        nix::unistd::mkfifo(&at("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let command = format!("setsid ./{name} 600 & echo $! >helper.new; mv helper.new helper; read line <go\n");
        fs::write(at("command"), command).unwrap();
        let shell = shell.args(["-c", "output=$(sh command)"]).current_dir(folder.path()).spawn().unwrap();
        let helper = || fs::read_to_string(at("helper")).ok()?.trim().parse().ok();
        let runs = |pid: i32| Stat::read(pid).is_ok_and(|stat| stat.comm == name);
        assert!(Deadline::patient().until(|| helper().is_some_and(runs)), "the helper does not start");
        let helper = helper().unwrap();
        Hang { shell, helper, name: name.to_owned(), folder }
    }

    /// The command ends.
    pub fn begin(&self) {
        fs::write(self.folder.path().join("go"), "go\n").unwrap();
    }

    /// The helper's pid.
    #[must_use]
    pub fn helper(&self) -> i32 {
        self.helper
    }

    /// Where the helper's program is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the shell has had its end of file.
    pub fn is_over(&mut self) -> bool {
        self.shell.try_wait().unwrap().is_some()
    }

    /// Whether the helper lives.
    #[must_use]
    pub fn helper_lives(&self) -> bool {
        Stat::read(self.helper).is_ok_and(|stat| stat.comm == self.name && !stat.is_dead())
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        if self.helper_lives() {
            let _ = kill(Pid::from_raw(self.helper), Signal::SIGKILL);
        }
    }
}

/// A name for this test's helpers alone, short enough for comm.
#[must_use]
pub fn name(of: &str) -> String {
    format!("{of}{}", std::process::id())
}
