//! What a node may still do once it is attached.
//!
//! It began as root with everything. From then on each of its threads has what its work needs, and no more:
//!
//! | thread | capabilities | files |
//! |---|---|---|
//! | the loop, which looks into processes | `SYS_PTRACE`, `DAC_READ_SEARCH`; `KILL` where a policy ends; `BPF`, `PERFMON` where this kernel wants them for the maps | none may be opened for writing (seccomp) |
//! | the audit log's | none | written below the log's folder alone (Landlock) |
//! | HTTP, which strangers talk to | none | none at all (Landlock) |
//! | names, which asks the container runtime | none | none at all (Landlock); its socket it may connect to |
//!
//! The loop is not put under Landlock, because nobody who is may look into processes that are not (that is
//! a check of ptrace(2), and a link of /proc/PID/fd is one); a filter of system calls does for it what is needed.
//! No thread gets anything back: the bounding set is empty, no program can give it more (`no_new_privs`), and a
//! uid of 0 is worth nothing (securebits).

use std::fmt;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};

mod filter;

/// A capability, by its number (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Capability {
    /// Reading whatever is there: `/proc/PID/fd` is its user's alone.
    DacReadSearch = 2,
    /// Signalling other users' processes.
    Kill = 5,
    /// Changing the sets that nothing can be had back from.
    SetPcap = 8,
    /// Looking into other users' processes.
    SysPtrace = 19,
    /// What `PERFMON` and `BPF` were before Linux 5.8.
    SysAdmin = 21,
    /// Reading the kernel's memory from programs.
    Perfmon = 38,
    /// bpf(2), where it is for the privileged alone.
    Bpf = 39,
}

/// A set of capabilities, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    /// Of these.
    #[must_use]
    pub fn of(capabilities: &[Capability]) -> Set {
        Set(capabilities.iter().fold(0, |set, capability| set | 1 << *capability as u32))
    }

    /// What is in either.
    #[must_use]
    pub fn and(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    /// Whether it is in it.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }
}

/// For the maps, where the kernel wants them.
const TRACING: [Capability; 2] = [Capability::Bpf, Capability::Perfmon];
/// To look into processes.
const LOOKING: [Capability; 2] = [Capability::SysPtrace, Capability::DacReadSearch];

/// Why the node still has what it should not.
#[derive(Debug, thiserror::Error)]
#[error("privileges: {call}: {error}; start it as root, with the capabilities that docs/node.md names")]
pub struct Undropped {
    call: &'static str,
    #[source]
    error: io::Error,
}

/// Gives up everything but what the node's loop needs. Threads that are started afterwards begin with as much.
/// `ends` says whether a policy ends anybody; `works` tries what the loop does with the tracker's maps.
///
/// # Errors
///
/// [`Undropped`].
pub fn drop_all(ends: bool, works: impl FnOnce() -> bool) -> Result<Set, Undropped> {
    let there = capabilities().map_err(|error| Undropped { call: "capget", error })?;
    // Who begins without that begins with a bounding set that somebody has chosen.
    if there.has(Capability::SetPcap) {
        empty_bounding_set()?;
        prctl(libc::PR_SET_SECUREBITS, SECUREBITS, "securebits")?;
    }
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, "ambient set")?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")?;
    let mut wanted = Set::of(&LOOKING);
    if ends {
        wanted = wanted.and(Set::of(&[Capability::Kill]));
    }
    let tracing = if there.has(Capability::Bpf) { Set::of(&TRACING) } else { Set::of(&[Capability::SysAdmin]) };
    let (wanted, tracing) = (Set(wanted.0 & there.0), Set(tracing.0 & there.0));
    // Whether the maps want them is found out by going without, while they can still be had back.
    set(wanted, wanted.and(tracing))?;
    let wanted = if works() { wanted } else { wanted.and(tracing) };
    set(wanted, wanted)?;
    Ok(wanted)
}

/// Gives up every capability of this thread, and every file but those below a folder, if there is one. What
/// cannot be had is said in a line; it is what a thread does without, not why it would not begin.
///
/// # Errors
///
/// That line.
pub fn confine(writes_below: Option<&Path>) -> Result<(), String> {
    set(Set::default(), Set::default()).map_err(|error| error.to_string())?;
    let enforced = landlock(writes_below).map_err(|error| format!("Landlock: {error}"))?;
    match enforced {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock: files are open to it as to root".to_owned()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// From here on this thread opens no file for writing, and changes none. Threads that it starts inherit that.
///
/// # Errors
///
/// Where the kernel has no seccomp.
pub fn only_read() -> io::Result<()> {
    filter::install()
}

/// The access rights that there are to Linux 6.10, as far as the kernel knows them.
fn landlock(writes_below: Option<&Path>) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    const NEWEST: ABI = ABI::V5;
    // Who writes reads as well: a log that is put aside is looked for.
    let handled = if writes_below.is_some() { AccessFs::from_write(NEWEST) } else { AccessFs::from_all(NEWEST) };
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(handled)?.create()?;
    if let Some(folder) = writes_below {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::from_write(NEWEST)))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// A uid of 0 gives nothing, changing it takes nothing, and this stays so (include/uapi/linux/securebits.h: NOROOT,
/// NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, and the locks of these and of KEEP_CAPS).
const SECUREBITS: libc::c_ulong = 0b1110_1111;
/// `PR_CAP_AMBIENT_CLEAR_ALL` of include/uapi/linux/prctl.h.
const AMBIENT_CLEAR_ALL: libc::c_ulong = 4;

/// Nothing can come back from it.
fn empty_bounding_set() -> Result<(), Undropped> {
    for capability in 0..64 {
        // SAFETY: prctl(2) with integers alone.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // Beyond the last one that this kernel knows.
            if error.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            return Err(Undropped { call: "bounding set", error });
        }
    }
    Ok(())
}

fn prctl(option: libc::c_int, value: libc::c_ulong, call: &'static str) -> Result<(), Undropped> {
    // SAFETY: prctl(2) with integers alone.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(Undropped { call, error: io::Error::last_os_error() }),
    }
}

/// capget(2) and capset(2) in their version 3: two words of each set (include/uapi/linux/capability.h).
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0: this thread.
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// What this thread may do.
///
/// # Errors
///
/// From capget(2).
pub fn capabilities() -> io::Result<Set> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut words = [Words::default(); 2];
    // SAFETY: the kernel reads the header and writes two words of each set, for which there is room.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Set(u64::from(words[0].permitted) | u64::from(words[1].permitted) << 32))
}

fn set(effective: Set, permitted: Set) -> Result<(), Undropped> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let word = |half: u32| Words { effective: part(effective, half), permitted: part(permitted, half), inheritable: 0 };
    let words = [word(0), word(1)];
    // SAFETY: the kernel reads the header and two words of each set.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) } != 0 {
        return Err(Undropped { call: "capset", error: io::Error::last_os_error() });
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn part(set: Set, half: u32) -> u32 {
    (set.0 >> (32 * half)) as u32
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Capability::{Bpf, DacReadSearch, Kill, Perfmon, SetPcap, SysAdmin, SysPtrace};
        let names = [
            (DacReadSearch, "DAC_READ_SEARCH"),
            (Kill, "KILL"),
            (SetPcap, "SETPCAP"),
            (SysPtrace, "SYS_PTRACE"),
            (SysAdmin, "SYS_ADMIN"),
            (Perfmon, "PERFMON"),
            (Bpf, "BPF"),
        ];
        let there: Vec<&str> = names.iter().filter(|(one, _)| self.has(*one)).map(|(_, name)| *name).collect();
        f.write_str(if there.is_empty() { "none".to_owned() } else { there.join(", ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::detail::Reseeded;
    use crate::audit::{Aside, Event, Log, Rotation, RunId, Target};
    use std::fs;
    use std::time::Duration;

    /// What a thread finds that is confined; none where there is no Landlock, which is said.
    fn confined<T: Send + 'static>(
        writes_below: Option<std::path::PathBuf>,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let thread =
            std::thread::spawn(move || confine(writes_below.as_deref()).map(|()| (capabilities().unwrap(), then())));
        match thread.join().unwrap() {
            Ok((set, found)) => {
                assert_eq!(set, Set::default());
                Some(found)
            }
            Err(error) => {
                crate::kernel::skipped(format_args!("needs Landlock: {error}"));
                None
            }
        }
    }

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
    }

    #[test]
    fn a_thread_that_strangers_talk_to_can_open_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        let file = path.clone();
        let tries =
            move || [denied(fs::read(&file)), denied(fs::write(&file, "")), denied(fs::read("/proc/self/stat"))];
        let Some(found) = confined(None, tries) else { return };
        assert_eq!(found, [true; 3]);
        assert_eq!(fs::read_to_string(path).unwrap(), "text", "other threads can");
    }

    #[test]
    fn a_thread_that_writes_a_log_writes_beside_it_and_nowhere_else() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (log, elsewhere) = (folder.path().join("log"), other.path().join("log"));
        let writes = move || (fs::write(&log, "text").is_ok(), denied(fs::write(&elsewhere, "text")));
        let Some(found) = confined(Some(folder.path().to_owned()), writes) else { return };
        assert_eq!(found, (true, true));
    }

    #[test]
    fn a_confined_log_is_put_aside_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let below = folder.path().to_owned();
        let aside = Aside { first: Box::new(move || drop(confine(Some(&below)))), wrote: Box::new(|_| ()) };
        let rotation = Rotation { max_size: 2000, files: 3 };
        let log = Log::open_aside(&Target::Path(path.clone()), rotation, RunId::new(), aside).unwrap();
        for missed in 0..20 {
            let detail = Reseeded { rung: "none".to_owned(), why: "a test".to_owned(), missed };
            log.record(Event::TrackerReseeded { detail }).wait(Duration::from_secs(30));
        }
        drop(log);
        for number in 1..=3 {
            assert!(path.with_extension(format!("jsonl.{number}")).exists(), "{number}");
        }
    }
}
