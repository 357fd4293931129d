//! Who a process is, for people: program, command line, user, cgroup.

use std::collections::BTreeMap;
use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stat::Stat;

/// A process as a report or an audit record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Description {
    /// The process id, in our pid namespace.
    pub pid: i32,
    /// When it started: RFC 3339, to the kernel's clock tick.
    pub start_time: String,
    /// The same as field 22 of `/proc/PID/stat`, in clock ticks since boot: with the pid, its identity.
    pub start_ticks: u64,
    /// Its parent when it was seen.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// Its real user, if we could tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The program's name, at most 15 bytes.
    pub comm: String,
    /// The program's file, if we may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The command line, redacted, if we may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The cgroup's path (v2 if there is one).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The container, where something told us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The pod, where something told us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What container, pod and image are called, where a container runtime told us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
}

/// What a container and its pod are called, as a container runtime tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Names {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The container's name; absent for the one that holds a pod's namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The container's image, as whoever started it wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// The longest command line that we keep, in bytes; what follows is cut and marked.
const CMDLINE_LIMIT: usize = super::redact::LIMIT;

/// Describes a process.
///
/// May block for as long as the process's memory map is locked (a process in D state): never call
/// it on the path that pumps bytes. Command lines are redacted here, so that no caller can forget.
///
/// # Errors
///
/// As for [`Stat::read`]; what else cannot be read is left out.
pub fn describe(pid: i32) -> std::io::Result<Description> {
    let stat = Stat::read(pid)?;
    Ok(Description {
        pid,
        start_time: start_time(stat.id.start_ticks),
        start_ticks: stat.id.start_ticks,
        ppid: stat.ppid,
        pgid: stat.pgid,
        sid: stat.sid,
        uid: uid(pid),
        comm: stat.comm,
        exe: exe(pid),
        cmdline: cmdline(pid),
        cgroup: cgroup(pid),
        container: None,
        pod: None,
        names: None,
    })
}

/// The real user id: the first number of `Uid:` in `/proc/PID/status`.
pub(crate) fn uid(pid: i32) -> Option<u32> {
    let status = super::read_text(&format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok())
}

/// The program's file, if we may know.
#[must_use]
pub fn exe(pid: i32) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned())
}

/// The command line with spaces between the arguments, redacted; nothing for a zombie.
fn cmdline(pid: i32) -> Option<String> {
    let (mut arguments, cut) = arguments(pid)?;
    if cut && let Some(last) = arguments.last_mut() {
        // Nobody would know half a token for one.
        last.truncate(last.trim_end_matches(|c: char| !c.is_whitespace()).len());
    }
    let mut line = super::redact::command_line(&arguments);
    if cut && !line.ends_with(super::redact::CUT) {
        line.push(' ');
        line.push_str(super::redact::CUT);
    }
    Some(line)
}

/// The command line with spaces between the arguments as it is, secrets and all: to match, never to show.
///
/// Can block like [`describe`].
#[must_use]
pub fn raw_command_line(pid: i32) -> Option<String> {
    arguments(pid).map(|(arguments, _)| arguments.join(" "))
}

/// The arguments, and whether there were more than [`CMDLINE_LIMIT`] bytes of them.
///
/// A process in D state may hold the lock of its memory map, which this read waits for: its
/// arguments are left alone.
fn arguments(pid: i32) -> Option<(Vec<String>, bool)> {
    if Stat::read(pid).ok()?.state == 'D' {
        return None;
    }
    let mut bytes = super::read(&format!("/proc/{pid}/cmdline")).ok()?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return None;
    }
    let cut = bytes.len() > CMDLINE_LIMIT;
    bytes.truncate(CMDLINE_LIMIT);
    let arguments = bytes.split(|b| *b == 0).map(|argument| String::from_utf8_lossy(argument).into_owned());
    Some((arguments.collect(), cut))
}

/// Whether the process ignores SIGPIPE (bit 12 of `SigIgn` in `/proc/PID/status`).
#[must_use]
pub fn ignores_sigpipe(pid: i32) -> bool {
    has_signal(pid, &["SigIgn:"], libc::SIGPIPE)
}

/// Whether SIGTERM would not end the process: it ignores or blocks it (`SigIgn`, `SigBlk`).
#[must_use]
pub fn withstands_sigterm(pid: i32) -> bool {
    has_signal(pid, &["SigIgn:", "SigBlk:"], libc::SIGTERM)
}

fn has_signal(pid: i32, masks: &[&str], signal: i32) -> bool {
    let bit = 1_u64 << (signal - 1);
    super::read_text(&format!("/proc/{pid}/status")).is_ok_and(|status| {
        let masks = masks.iter().filter_map(|mask| status.lines().find_map(|line| line.strip_prefix(mask)));
        masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & bit != 0)
    })
}

/// The process that traces it, if one does (`TracerPid`).
#[must_use]
pub fn tracer(pid: i32) -> Option<i32> {
    let status = super::read_text(&format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok())?;
    (tracer != 0).then_some(tracer)
}

/// The path of the process in the v2 hierarchy, else in the first v1 hierarchy that is named.
fn cgroup(pid: i32) -> Option<String> {
    let text = super::read_text(&format!("/proc/{pid}/cgroup")).ok()?;
    let v2 = text.lines().find_map(|line| line.strip_prefix("0::"));
    let v1 = || text.lines().find_map(|line| line.splitn(3, ':').nth(2));
    v2.or_else(v1).map(str::to_owned)
}

/// The wall-clock time of a number of ticks since boot.
fn start_time(start_ticks: u64) -> String {
    use nix::time::{ClockId, clock_gettime};
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(100);
    let since_boot = std::time::Duration::from_nanos(
        u64::try_from(u128::from(start_ticks) * 1_000_000_000 / u128::from(ticks_per_second)).unwrap_or(u64::MAX),
    );
    // Not `btime` of /proc/stat: it is whole seconds.
    let boot = match (clock_gettime(ClockId::CLOCK_REALTIME), clock_gettime(ClockId::CLOCK_BOOTTIME)) {
        (Ok(now), Ok(up)) => std::time::Duration::from(now).saturating_sub(std::time::Duration::from(up)),
        _ => std::time::Duration::ZERO,
    };
    // The two clocks are not read in the same instant: what is below a tick is noise.
    let millis = (boot + since_boot).as_millis() / 10 * 10;
    jiff::Timestamp::from_millisecond(i64::try_from(millis).unwrap_or(i64::MAX))
        .map_or_else(|_| String::new(), |time| format!("{time:.2}"))
}
