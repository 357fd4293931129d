//! From what failed to what would help.

use serde::Serialize;

use super::Rung;
use super::probe::{Probe, Verdict};
use crate::kernel::facts::Held;

/// What decides why a rung is not to be had.
#[derive(Clone, Debug)]
pub struct Situation {
    /// The kernel's version.
    pub version: (u32, u32),
    /// This process's capabilities, if they could be read.
    pub held: Option<Held>,
    /// How far the kernel is locked down, if it could be asked.
    pub lockdown: Option<String>,
    /// Whether the kernel tells its types.
    pub btf: bool,
    /// Whether pids mean to us what they mean to the kernel.
    pub initial_pid_namespace: bool,
}

/// What would get a better rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The one command, where a command does it.
    pub command: Option<String>,
    /// What it changes, or why there is none.
    pub why: String,
}

/// What attaching wants, since Linux 5.8. (Before, and instead: `CAP_SYS_ADMIN`.)
const WANTED: [&str; 2] = ["BPF", "PERFMON"];

impl Situation {
    fn may(&self) -> bool {
        self.admin() || self.held.is_some_and(|held| WANTED.iter().all(|name| held.effective.has(name)))
    }

    fn admin(&self) -> bool {
        self.held.is_some_and(|held| held.effective.has("SYS_ADMIN"))
    }

    /// Whether a program of ours could be given what it wants.
    fn could(&self) -> bool {
        self.held.is_some_and(|held| WANTED.iter().all(|name| held.bounding.has(name)))
    }

    fn confidential(&self) -> bool {
        self.lockdown.as_deref() == Some("confidentiality")
    }

    /// What we know about a failure beyond the error itself.
    #[must_use]
    pub fn cause(&self, verdict: &Verdict, probe: Probe) -> Option<&'static str> {
        if verdict.usable {
            return None;
        }
        let bpf = matches!(probe, Probe::BpfFentry | Probe::BpfKprobe | Probe::BpfTracepoint | Probe::Snapshot);
        match verdict.errno {
            Some(libc::EPERM | libc::EACCES) if bpf && !self.may() => Some("it takes CAP_BPF and CAP_PERFMON"),
            Some(_) if bpf && self.confidential() => {
                Some("lockdown=confidentiality forbids reading the kernel's memory")
            }
            Some(libc::EACCES) if probe == Probe::BpfKprobe && !self.admin() => {
                Some("some kernels want CAP_SYS_ADMIN for it")
            }
            Some(libc::EPERM) if bpf => Some("although we have the capabilities: the platform forbids it"),
            Some(libc::ENOENT) if probe == Probe::BpfKprobe && self.btf => {
                Some("this kernel has no kprobes: CONFIG_KPROBES")
            }
            Some(libc::E2BIG) if bpf => Some("too many programs on one tracepoint, or the verifier's limit"),
            _ => None,
        }
    }
}

/// The one thing to do next: the obstacle that has to go first.
#[must_use]
pub fn advise(rungs: &[Rung], situation: &Situation) -> Advice {
    let usable = |name: &str| rungs.iter().any(|rung| rung.name == name && rung.usable);
    let because = |why: &str| Advice { command: None, why: why.to_owned() };
    if usable("bpf-fentry") {
        return because("the best rung is usable already");
    }
    if !situation.initial_pid_namespace {
        return because("start this in the machine's own pid namespace (a container: with --pid=host, hostPID: true)");
    }
    if !situation.btf {
        return because("boot a kernel that tells its types (CONFIG_DEBUG_INFO_BTF)");
    }
    if situation.confidential() {
        return because("boot without lockdown=confidentiality");
    }
    if !situation.may() && !situation.could() {
        return because("what started us took CAP_BPF and CAP_PERFMON away for good: a container needs them added");
    }
    if !situation.may() {
        // Maps count against a limit there that only this lifts.
        let limit = if situation.version < (5, 11) { ",cap_sys_resource" } else { "" };
        let program = std::env::current_exe().map_or_else(|_| "pipewarden".into(), |path| path.display().to_string());
        return Advice {
            command: Some(format!("sudo setcap cap_bpf,cap_perfmon{limit}+ep {program}")),
            why: "lets it load and attach BPF programs".to_owned(),
        };
    }
    if usable("bpf-tracepoint") || usable("bpf-kprobe") {
        return because("what is better than the best usable rung is refused by the platform; no command changes that");
    }
    because("see the reasons above; no command is known to change them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::facts::Capabilities;

    fn situation(effective: u64, bounding: u64) -> Situation {
        let held = Held { effective: Capabilities::from_bits(effective), bounding: Capabilities::from_bits(bounding) };
        Situation { version: (6, 1), held: Some(held), lockdown: None, btf: true, initial_pid_namespace: true }
    }

    fn rung(name: &'static str, usable: bool) -> Rung {
        Rung { name, usable, used_by_run: false, reason: String::new(), verifier: vec![], cost: None }
    }

    #[test]
    fn a_command_is_named_only_where_it_helps() {
        let all = (1 << 41) - 1;
        let none = [rung("bpf-fentry", false), rung("bpf-tracepoint", false)];
        let command = advise(&none, &situation(0, all)).command.unwrap();
        assert!(command.starts_with("sudo setcap cap_bpf,cap_perfmon+ep /"), "{command}");
        let old = Situation { version: (5, 10), ..situation(0, all) };
        assert!(advise(&none, &old).command.unwrap().contains("cap_perfmon,cap_sys_resource+ep"));
        assert_eq!(advise(&none, &situation(0, 0)).command, None, "setcap cannot help there");
        assert_eq!(advise(&[rung("bpf-fentry", true)], &situation(0, 0)).command, None);
        let confidential = Situation { lockdown: Some("confidentiality".into()), ..situation(all, all) };
        assert!(advise(&none, &confidential).why.contains("lockdown"));
        let elsewhere = Situation { initial_pid_namespace: false, ..situation(all, all) };
        assert!(advise(&none, &elsewhere).why.contains("pid namespace"));
    }
}
