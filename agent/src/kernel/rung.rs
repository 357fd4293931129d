//! The rungs: by which hooks the programs hear of what they track.

use std::fmt;

use super::btf::Name;
use super::{calls, facts};

/// How the programs hear of what they tell, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Trampolines at the kernel's functions: only their callers pay.
    Fentry,
    /// Probes at the same functions.
    Kprobe,
    /// The tracepoint at the return of every system call of the machine.
    Tracepoint,
}

/// A program, and where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// The program's name in the object.
    pub(super) program: String,
    /// The function or tracepoint.
    pub(super) at: String,
    /// Whether the rung is none without it. Others hook what a kernel may not have.
    pub(super) needed: bool,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Rung; 3] = [Rung::Fentry, Rung::Kprobe, Rung::Tracepoint];

    /// Its name, for people and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rung::Fentry => "bpf-fentry",
            Rung::Kprobe => "bpf-kprobe",
            Rung::Tracepoint => "bpf-tracepoint",
        }
    }

    /// Programs and hooks, in the order of attachment: what takes away comes before what adds, so that
    /// nothing is added whose end we then miss.
    pub(super) fn hooks(self) -> Vec<Hook> {
        let suffix = if has_loops() { "" } else { "_bounded" };
        let hook =
            |program: &str, at: &str, needed| Hook { program: format!("{program}{suffix}"), at: at.to_owned(), needed };
        let as_it_is =
            |program: &str, at: &str, needed| Hook { program: program.to_owned(), at: at.to_owned(), needed };
        let mut hooks = vec![hook("exit", "sched_process_exit", true), hook("exec", "sched_process_exec", true)];
        match self {
            Rung::Fentry => {
                for (name, function) in calls::functions() {
                    hooks.push(match name {
                        // Its wrapper takes nothing, and is not among the kernel's types.
                        "setsid" => as_it_is("fexit_setsid", "ksys_setsid", true),
                        _ => hook(&format!("fexit_{name}"), &function, is_old(name)),
                    });
                }
                let compat = calls::compat_functions();
                hooks
                    .extend(compat.map(|(name, function)| as_it_is(&format!("fexit_compat_{name}"), &function, false)));
            }
            Rung::Kprobe => {
                for (name, function) in calls::functions() {
                    // The return first: a call whose entry was seen alone would never be taken out.
                    hooks.push(hook("kretprobe_call", &function, is_old(name)));
                    hooks.push(as_it_is("kprobe_call", &function, is_old(name)));
                }
                let compat = calls::compat_functions();
                hooks.extend(compat.map(|(_, function)| as_it_is("kretprobe_compat", &function, false)));
            }
            Rung::Tracepoint => hooks.push(hook("sys_exit", "sys_exit", true)),
        }
        // Before 5.18 its arguments did not name the request: whatever it was may have changed the table.
        hooks.push(match facts::version() {
            (5, 18..) | (6.., _) => hook("completed", "io_uring_complete", false),
            _ => as_it_is("completed_unnamed", "io_uring_complete", false),
        });
        hooks.push(hook("fork", "sched_process_fork", true));
        hooks
    }

    /// What its programs are attached to by the numbers of the kernel's types.
    pub(super) fn names(hooks: &[Hook]) -> Vec<Name<'_>> {
        hooks
            .iter()
            .filter_map(|hook| match hook.program.as_str() {
                program if program.starts_with("fexit_") => Some(Name::Function(&hook.at)),
                program if program.starts_with("sys_exit") => Some(Name::Typedef("btf_trace_sys_exit")),
                _ => None,
            })
            .collect()
    }
}

/// bpf_loop came with Linux 5.17.
fn has_loops() -> bool {
    facts::version() >= (5, 17)
}

/// Whether every kernel that we support has the call: 5.10 lacks none of them.
fn is_old(name: &str) -> bool {
    // Kernels may be built without these.
    !matches!(name, "io_uring_enter" | "open_by_handle_at")
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
