//! Cgroups that hold their processes still.

use std::fs;
use std::path::{Path, PathBuf};

/// Why a process does not run, whatever it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The folder of the group that was frozen: the process's own, or one above it.
    pub group: PathBuf,
    /// The file that thaws it.
    pub file: PathBuf,
    /// What to write there.
    pub thaw: &'static str,
}

/// The frozen cgroup that a process is in, if it is in one and we see its folder.
#[must_use]
pub fn frozen(pid: i32) -> Option<Frozen> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|name| name == "freezer") {
            by_v1(path)
        } else if controllers.is_empty() {
            by_v2(path)
        } else {
            None
        }
    })
}

fn by_v1(path: &str) -> Option<Frozen> {
    let (mount, group) = place("cgroup", "freezer", path)?;
    above(&mount, &group).find_map(|group| {
        (says(&group.join("freezer.self_freezing"), "1")).then(|| Frozen {
            file: group.join("freezer.state"),
            group,
            thaw: "THAWED",
        })
    })
}

fn by_v2(path: &str) -> Option<Frozen> {
    let (mount, group) = place("cgroup2", "", path)?;
    if !fs::read_to_string(group.join("cgroup.events")).ok()?.lines().any(|line| line == "frozen 1") {
        return None;
    }
    above(&mount, &group).find_map(|group| {
        (says(&group.join("cgroup.freeze"), "1")).then(|| Frozen {
            file: group.join("cgroup.freeze"),
            group,
            thaw: "0",
        })
    })
}

fn says(file: &Path, text: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|content| content.trim() == text)
}

/// A group and those above it, up to where its hierarchy is mounted.
fn above(mount: &Path, group: &Path) -> impl Iterator<Item = PathBuf> {
    let mount = mount.to_owned();
    let all: Vec<PathBuf> = group.ancestors().map(Path::to_owned).collect();
    all.into_iter().take_while(move |folder| folder.starts_with(&mount))
}

/// Where a hierarchy is mounted, and the folder of a group in it (proc_pid_mountinfo(5)).
fn place(kind: &str, option: &str, path: &str) -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let fits = right.next()? == kind
            && (option.is_empty() || right.nth(1).is_some_and(|options| options.split(',').any(|o| o == option)));
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, Path::new(left.next()?));
        // In a container, the mount shows the hierarchy from the container's own group on.
        let inside = Path::new(path).strip_prefix(root).ok()?;
        fits.then(|| (mount.to_owned(), mount.join(inside)))
    })
}
