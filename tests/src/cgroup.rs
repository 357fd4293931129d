//! A cgroup of a test's own, named as a container runtime names those of containers.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::deadline::Deadline;

/// A cgroup in the v2 hierarchy. It is removed when this is dropped: whoever is in it must have ended.
#[derive(Debug)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
    path: String,
}

impl Cgroup {
    /// One that is `component` below `above`. None where there can be none: without root, without a v2 hierarchy, or
    /// where it cannot be written to.
    #[must_use]
    pub fn new(above: &str, component: &str) -> Option<Cgroup> {
        let hierarchy = hierarchy()?;
        let mut cgroup = Cgroup { folders: Vec::new(), path: format!("/{above}/{component}") };
        for part in [above.to_owned(), format!("{above}/{component}")] {
            let folder = hierarchy.join(part);
            fs::create_dir(&folder).ok()?;
            cgroup.folders.push(folder);
        }
        Some(cgroup)
    }

    /// Its path in the hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Lets a command be in it from before its start.
    ///
    /// # Panics
    ///
    /// When it is not there any more.
    pub fn holds(&self, command: &mut Command) {
        let procs = File::options().write(true).open(self.folders[1].join("cgroup.procs")).unwrap();
        // SAFETY: between fork and exec this writes to an open descriptor, which is async-signal-safe.
        unsafe { command.pre_exec(move || (&procs).write_all(b"0")) };
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            // Whoever was killed is in it until it is reaped.
            let _ = Deadline::patient().until(|| fs::remove_dir(folder).is_ok());
        }
    }
}

/// Where the v2 hierarchy is mounted.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    mount.split(' ').nth(1).map(PathBuf::from)
}
