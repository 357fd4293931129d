//! The hang that a node is for: a command that has ended, and a helper of it that keeps its reader waiting.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use pipewarden::process::stat::Stat;

use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::process::Process;
use crate::run::copied;

/// A shell that waits for the output of a command, which has put a helper into a session of its own and
/// ends when it is told to.
#[derive(Debug)]
pub struct Hang {
    shell: Child,
    helper: Process,
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
        Hang::of(name, name, &mut Command::new("sh"))
    }

    /// With a helper that is a shell until it [turns](Self::turn) into one of this name.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn disguised(name: &str) -> Hang {
        Hang::of(name, "sh", &mut Command::new("sh"))
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
        Hang::of(name, name, &mut shell)
    }

    /// `first`: the name of the helper's first program.
    fn of(name: &str, first: &str, shell: &mut Command) -> Hang {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        copied(Path::new("/bin/sleep"), &at(name));
        nix::unistd::mkfifo(&at("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let program = match first == name {
            true => format!("./{name} 600"),
            // It waits for no longer than the test lives.
            false => format!("{first} -c 'read line <&3; exec ./{name} 600'"),
        };
        let command =
            format!("exec 3<&0; setsid {program} & echo $! >helper.new; mv helper.new helper; read line <go\n");
        fs::write(at("command"), command).unwrap();
        let shell = shell.args(["-c", "output=$(sh command)"]).current_dir(folder.path());
        let shell = shell.stdin(Stdio::piped()).spawn().unwrap();
        let helper = || fs::read_to_string(at("helper")).ok()?.trim().parse().ok();
        let runs = |pid: i32| Stat::read(pid).is_ok_and(|stat| stat.comm == first && stat.sid == pid);
        assert!(Deadline::patient().until(|| helper().is_some_and(runs)), "the helper does not start");
        // It has no end of its own before the test's.
        let helper = Process::open(helper().unwrap()).unwrap();
        Hang { shell, helper, name: name.to_owned(), folder }
    }

    /// The command ends.
    pub fn begin(&self) {
        fs::write(self.folder.path().join("go"), "go\n").unwrap();
    }

    /// The helper, a shell so far, runs the program that it is named after.
    pub fn turn(&mut self) {
        drop(self.shell.stdin.take());
    }

    /// The helper's pid.
    #[must_use]
    pub fn helper(&self) -> i32 {
        self.helper.pid
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
        Stat::read(self.helper.pid).is_ok_and(|stat| stat.comm == self.name && !stat.is_dead())
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        self.helper.signal(Signal::SIGKILL);
    }
}

/// A name for this test's helpers alone, short enough for comm.
#[must_use]
pub fn name(of: &str) -> String {
    format!("{of}{}", std::process::id())
}
