//! Places by cgroup, remembered for minutes after their last process.
//!
//! What a process leaves behind is often looked at after its pod is gone: then nobody can be asked any
//! more whose it was.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::identity::Place;

/// How long a cgroup is remembered after it was last asked for.
pub const OUTLIVES: Duration = Duration::from_secs(300);

/// The most cgroups that are remembered: a node has some hundred pods.
pub const MOST: usize = 8192;

/// How many times where a process is was found out, or was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// It is in a container, and in which.
    pub contained: u64,
    /// It is in none.
    pub host: u64,
    /// It is in one, and in which could not be told: its path has a form that is not known here.
    pub missed: u64,
    /// It could not be asked: the process was gone, and its cgroup not remembered.
    pub gone: u64,
}

impl Counts {
    /// Whether the misses are no accident: at least ten, and more than there were successes. A path's form
    /// is the same for all containers of a node.
    #[must_use]
    pub fn systematic(&self) -> bool {
        self.missed >= 10 && self.missed > self.contained
    }
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    place: Place,
    used: Instant,
}

/// What is known of cgroups.
#[derive(Debug, Default)]
pub struct Attribution {
    entries: HashMap<u64, Entry>,
    counts: Counts,
}

impl Attribution {
    /// Where a process is, and the path of its cgroup. `cgroup` is the id in the v2 hierarchy, 0 where
    /// there is none; `read` gives what `/proc/PID/cgroup` says. A cgroup never becomes another
    /// container's, so what is known of it is not asked again.
    pub fn place(
        &mut self,
        cgroup: u64,
        now: Instant,
        read: impl FnOnce() -> Option<String>,
    ) -> Option<(String, Place)> {
        if let Some(entry) = self.entries.get_mut(&cgroup) {
            entry.used = now;
            let (path, place) = (entry.path.clone(), entry.place.clone());
            self.count(&path, &place);
            return Some((path, place));
        }
        let Some(text) = read() else {
            self.counts.gone += 1;
            return None;
        };
        let (path, place) = (path_of(&text), Place::of_file(&text));
        self.count(&path, &place);
        if cgroup != 0 {
            self.make_room(now);
            self.entries.insert(cgroup, Entry { path: path.clone(), place: place.clone(), used: now });
        }
        Some((path, place))
    }

    /// How it went so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn count(&mut self, path: &str, place: &Place) {
        let counter = match place {
            _ if place.is_missed(path) => &mut self.counts.missed,
            Place { container: Some(_), .. } => &mut self.counts.contained,
            _ => &mut self.counts.host,
        };
        *counter += 1;
    }

    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.used) < OUTLIVES);
        if self.entries.len() < MOST {
            return;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(cgroup, _)| *cgroup);
        if let Some(oldest) = oldest {
            self.entries.remove(&oldest);
        }
    }
}

/// The path in the v2 hierarchy where it says anything, else the first that does.
fn path_of(text: &str) -> String {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| *path != "/");
    let v2 = text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| *path != "/");
    let told = paths().find(|path| Place::of_path(path).container.is_some());
    told.or(v2).or_else(|| paths().next()).unwrap_or("/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "0::/docker/4c01db0b339c11d9eff93d7d1f1b8b7c2f6a4d2ecbaf9bc2c0e6a3b5d7f90123\n";

    #[test]
    fn a_cgroup_is_remembered_for_minutes_after_its_last_process() {
        let mut attribution = Attribution::default();
        let start = Instant::now();
        let (path, place) = attribution.place(7, start, || Some(FILE.into())).unwrap();
        assert!(path.starts_with("/docker/") && place.container.is_some());
        let later = start + OUTLIVES / 2;
        assert_eq!(attribution.place(7, later, || None), Some((path, place)), "the process is gone");
        // Another one comes after that time: the first is forgotten then, and only then.
        attribution.place(8, later + OUTLIVES, || Some("0::/init.scope\n".into())).unwrap();
        assert_eq!(attribution.place(7, later + OUTLIVES, || None), None);
        assert_eq!(attribution.counts(), Counts { contained: 2, host: 1, missed: 0, gone: 1 });
    }

    #[test]
    fn without_a_v2_hierarchy_nothing_is_mixed_up() {
        let mut attribution = Attribution::default();
        let now = Instant::now();
        attribution.place(0, now, || Some(FILE.into())).unwrap();
        let (path, place) = attribution.place(0, now, || Some("1:cpu:/\n0::/init.scope\n".into())).unwrap();
        assert_eq!((path.as_str(), place), ("/init.scope", Place::default()));
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unused_goes_first() {
        let mut attribution = Attribution::default();
        let start = Instant::now();
        for cgroup in 1..=MOST as u64 {
            attribution.place(cgroup, start + Duration::from_micros(cgroup), || Some(FILE.into())).unwrap();
        }
        let now = start + Duration::from_secs(1);
        attribution.place(1, now, || None).unwrap();
        attribution.place(u64::MAX, now, || Some(FILE.into())).unwrap();
        assert_eq!(attribution.entries.len(), MOST);
        assert!(attribution.entries.contains_key(&1) && !attribution.entries.contains_key(&2));
    }

    #[test]
    fn misses_are_systematic_when_they_outnumber_what_was_found() {
        let mut attribution = Attribution::default();
        for _ in 0..9 {
            attribution.place(0, Instant::now(), || Some("0::/docker/web\n".into()));
        }
        assert!(!attribution.counts().systematic());
        attribution.place(0, Instant::now(), || Some("0::/docker/web\n".into()));
        assert!(attribution.counts().systematic());
        for _ in 0..10 {
            attribution.place(0, Instant::now(), || Some(FILE.into()));
        }
        assert!(!attribution.counts().systematic());
    }
}
