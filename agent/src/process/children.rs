//! Who descends from whom.

use std::collections::HashSet;
use std::fs;
use std::io;

use super::stat::Stat;
use super::wait::tids;
use super::walk::has_one_thread;

/// The children of a process, of all its threads: `/proc/PID/task/TID/children`, or on a kernel
/// without `CONFIG_PROC_CHILDREN` whoever names it as parent.
///
/// The kernel builds the list while we read it: a child whose elder sibling dies in that moment can
/// be missing from one reading. A caller that must be sure reads again.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when the process is no more.
pub fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut answered = false;
    let threads = if has_one_thread(pid)? { vec![pid] } else { tids(pid)? };
    for tid in threads {
        match super::read_text(&format!("/proc/{pid}/task/{tid}/children")) {
            Ok(list) => {
                answered = true;
                found.extend(list.split_ascii_whitespace().filter_map(|n| n.parse::<i32>().ok()));
            }
            Err(error) if super::is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    // Every task gone is a process that ended; a live one without the file is a kernel without it.
    if !answered && Stat::read(pid).is_ok_and(|stat| !stat.is_dead()) {
        return who_names(pid);
    }
    Ok(found)
}

/// Every process whose parent that is: a walk over the whole machine.
fn who_names(parent: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            && Stat::read(pid).is_ok_and(|stat| stat.ppid == parent)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Every process below `root`, parents before their children, without those at or below `except`.
///
/// A process that moves while we walk (its parent died and it became `root`'s child) can be missed
/// once; it is found by the next walk, because then it is a child of `root`.
///
/// # Errors
///
/// As for [`children`] of `root` itself; a process further down that ends meanwhile is no error.
pub fn descendants(root: i32, except: &HashSet<i32>) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([root]);
    let mut queue = children(root)?;
    while let Some(pid) = queue.pop() {
        if except.contains(&pid) || !seen.insert(pid) {
            continue;
        }
        found.push(pid);
        if let Ok(more) = children(pid) {
            queue.extend(more);
        }
    }
    Ok(found)
}

/// Whether `ancestor` is found on the way from `pid` up to the first process.
#[must_use]
pub fn descends_from(pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    // A chain of parents has no cycle, but it can change under our feet: bound the walk.
    for _ in 0..4096 {
        match Stat::read(at) {
            Ok(stat) if stat.ppid == ancestor => return true,
            Ok(stat) if stat.ppid > 1 => at = stat.ppid,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_child_is_found_by_either_way_and_knows_its_ancestor() {
        let child = Ended(Command::new("sleep").arg("600").spawn().unwrap());
        let pid = i32::try_from(child.0.id()).unwrap();
        let us = nix::unistd::getpid().as_raw();
        for found in [children(us).unwrap(), who_names(us).unwrap(), descendants(us, &HashSet::new()).unwrap()] {
            assert!(found.contains(&pid), "{found:?}");
        }
        assert!(descends_from(pid, us) && !descends_from(us, pid));
        assert!(!descendants(us, &HashSet::from([pid])).unwrap().contains(&pid));
    }
}
