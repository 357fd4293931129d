//! Everything that speaks to the kernel's tracing side.
//!
//! - [`btf`]: where things are in the running kernel's structures.
//! - [`object`]: the built programs, ready to be loaded into this kernel.
//! - [`rung`]: which programs go on which hooks; [`choice`]: which rungs are tried; `calls`: what differs between
//!   architectures.
//! - [`tracker`]: a rung attached, and its live map; [`seed`]: what makes the map exact; [`record`]: its events;
//!   [`users`]: who has the tables in it; [`leaving`]: when the last writer is gone, however that went; `missed`: what
//!   probes did not tell.
//! - [`snapshot`]: the iterators alone.
//! - [`connector`]: events without BPF.
//! - [`self_test`] and [`trial`]: nothing is usable before it told the truth about a child of ours.
//! - [`empty`]: what the hooks cost by themselves.
//! - [`facts`] and [`features`]: what this kernel, and this process in it, can do.
//! - [`lock`]: who carries the machine's tracker; [`room`]: how much its maps hold.

pub mod btf;
mod calls;
pub mod choice;
pub mod connector;
pub mod empty;
pub mod facts;
pub mod features;
pub mod leaving;
pub mod lock;
#[cfg(feature = "bpf-log")]
mod log;
mod missed;
pub mod object;
pub mod record;
pub mod room;
pub mod rung;
pub mod seed;
pub mod self_test;
pub mod snapshot;
pub mod tracker;
pub mod trial;
pub mod users;

/// Says that a test does not run here, and why, past libtest's capture.
#[cfg(test)]
pub(crate) fn skipped(why: std::fmt::Arguments<'_>) {
    let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED {why}\n").as_bytes());
}

/// Under lockdown=confidentiality no program may read the kernel's memory: what every one of ours does.
#[cfg(test)]
fn reading_is_forbidden() -> bool {
    facts::lockdown().is_ok_and(|lockdown| lockdown == "confidentiality")
}

/// A tracker for a test on the best rung that there is here, or a line that says why there is none.
#[cfg(test)]
pub(crate) fn tracker_for_test(rungs: &[rung::Rung]) -> Option<tracker::Tracker> {
    tracker_of_scope_for_test(rungs, object::Scope::Lineage)
}

/// As above, of this scope.
#[cfg(test)]
fn tracker_of_scope_for_test(rungs: &[rung::Rung], scope: object::Scope) -> Option<tracker::Tracker> {
    use object::{LoadError, Sizes};
    if !self_test::in_initial_pid_namespace() {
        skipped(format_args!("needs the initial pid namespace"));
        return None;
    }
    for rung in rungs {
        match tracker::Tracker::attach(*rung, scope, Sizes::RUN) {
            Ok(tracker) => return Some(tracker),
            // What the kernel does not have or give is one thing, what its verifier objects to another.
            Err(error @ LoadError::Stale(_)) => panic!("{rung}: {error}"),
            Err(error) if error.verifier_tail(1).is_some() && !reading_is_forbidden() => {
                panic!("{rung}: {error}\n{}", error.verifier_tail(40).unwrap_or_default().join("\n"))
            }
            Err(error) => skipped(format_args!("{rung} is not to be had here: {error}")),
        }
    }
    None
}
