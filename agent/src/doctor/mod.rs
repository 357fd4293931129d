//! What works here, and why the rest does not.
//!
//! Nothing is concluded from versions or configuration files: every rung is really loaded, attached
//! and put to its self-test, every feature is tried. That happens in processes of its own ([`probe`]),
//! so that it has an end whatever the kernel does, and everything is detached when it ends.

pub mod advice;
pub mod probe;
pub mod proc;

use std::env;

use serde::Serialize;

use self::advice::Advice;
use self::probe::{Probe, Verdict};
use crate::kernel::facts::{self, Held};
use crate::kernel::features::Feature;
use crate::kernel::lock::{self, Carrier};
use crate::kernel::self_test::in_initial_pid_namespace;
use crate::ownership::bpf;
use crate::ownership::events::Names;
use crate::ownership::ladder;
use crate::ownership::node::client::{self, Knock};

/// Everything that doctor found out. The JSON is this, field by field.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// What programs it runs: `x86_64`, `aarch64`.
    pub architecture: &'static str,
    /// What `run --backend auto` picks here, for a command that does not end at once.
    pub auto: &'static str,
    /// The rung of the live map that it changes to once the command has lived a second; null where it stays
    /// with what it had.
    pub auto_later: Option<&'static str>,
    /// The rung that `node` takes here; null where it cannot work.
    pub node: Option<&'static str>,
    /// The rungs, best first.
    pub rungs: Vec<Rung>,
    /// Single abilities of the kernel.
    pub features: Vec<Feature>,
    /// What this process may do.
    pub capabilities: CapabilitySets,
    /// The active security modules; null when they could not be asked for.
    pub lsm: Option<Vec<String>>,
    /// `none`, `integrity` or `confidentiality`; null when it could not be asked for.
    pub lockdown: Option<String>,
    /// The kernel's own types.
    pub btf: Btf,
    /// Whether pids mean to us what they mean to the kernel.
    pub initial_pid_namespace: bool,
    /// Who carries the machine's tracker.
    pub tracker: Tracker,
    /// What would get a better rung.
    pub advice: Advice,
}

/// A way to know who holds what, or to hear that something happened.
#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    /// `bpf-fentry`, `bpf-kprobe`, `bpf-tracepoint`, `connector`, `proc` or `node`.
    pub name: &'static str,
    /// Whether it works here.
    pub usable: bool,
    /// Whether `run --backend auto` uses it here.
    pub used_by_run: bool,
    /// Why it does not work, or what it showed.
    pub reason: String,
    /// What the verifier said last, when it was the verifier.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verifier: Vec<String>,
    /// How long it took.
    #[serde(flatten)]
    pub cost: Option<probe::Cost>,
}

/// Capabilities by name.
#[derive(Clone, Debug, Serialize)]
pub struct CapabilitySets {
    /// What this process may do.
    pub effective: Vec<String>,
    /// What it may not.
    pub missing: Vec<String>,
    /// What no program that it runs can get.
    pub unobtainable: Vec<String>,
}

/// Whether the kernel tells its types.
#[derive(Clone, Debug, Serialize)]
pub struct Btf {
    /// It does.
    pub present: bool,
    /// How much there is, or why there is nothing.
    pub detail: String,
}

/// The machine's tracker.
#[derive(Clone, Debug, Serialize)]
pub struct Tracker {
    /// Whether somebody carries it.
    pub carried: bool,
    /// Who, or that nobody does.
    pub detail: String,
}

/// What `run --backend auto` comes to here, once its command has lived a little; and marks what it uses.
fn pick(rungs: &mut [Rung]) -> &'static str {
    if let Some(node) = rungs.iter_mut().find(|rung| rung.name == NODE && rung.usable) {
        node.used_by_run = true;
        return NODE;
    }
    let mut auto = Names::PROC;
    if let Some(connector) = rungs.iter_mut().find(|rung| rung.name == Names::CONNECTOR.rung && rung.usable) {
        match ladder::room_for_another() {
            Ok(()) => auto = Names::CONNECTOR,
            Err(why) => connector.reason = format!("{}; auto does without it: {why}", connector.reason),
        }
    }
    for rung in rungs {
        rung.used_by_run = rung.name == auto.backend || rung.name == auto.rung;
    }
    if auto == Names::CONNECTOR { "proc+connector" } else { "proc" }
}

/// The live map that it changes to, if nobody else on this machine has one; marked too.
fn pick_later(rungs: &mut [Rung], tracker: &Tracker) -> Option<&'static str> {
    let asks_a_node = rungs.iter().any(|rung| rung.name == NODE && rung.usable);
    if asks_a_node || tracker.carried || !bpf::may_be_had() {
        return None;
    }
    let rung = rungs.iter_mut().find(|rung| rung.usable && rung.name.starts_with("bpf-"))?;
    rung.used_by_run = true;
    Some(rung.name)
}

/// Examines this machine. Takes some seconds on a slow one.
#[must_use]
pub fn examine() -> Report {
    let held = Held::read().ok();
    let lockdown = facts::lockdown();
    let situation = advice::Situation {
        version: facts::version(),
        held,
        lockdown: lockdown.as_deref().ok().map(str::to_owned),
        btf: facts::btf_size().is_ok(),
        initial_pid_namespace: in_initial_pid_namespace(),
    };
    let mut rungs: Vec<Rung> = Probe::RUNGS.iter().map(|probe| rung(*probe, &situation)).collect();
    rungs.push(node());
    let auto = pick(&mut rungs);
    let tracker = tracker();
    let auto_later = pick_later(&mut rungs, &tracker);
    let mut features = probe::features();
    features.extend([Probe::Snapshot, Probe::Unprivileged].map(|probe| {
        let verdict = probe.ask();
        Feature {
            name: probe.name().to_owned(),
            available: verdict.usable,
            detail: explained(&verdict, probe, &situation),
        }
    }));
    let advice = advice::advise(&rungs, &situation);
    Report {
        kernel: facts::release(),
        architecture: env::consts::ARCH,
        auto,
        auto_later,
        node: rungs.iter().find(|rung| rung.usable && rung.name.starts_with("bpf-")).map(|rung| rung.name),
        rungs,
        features,
        capabilities: capabilities(held),
        lsm: facts::security_modules().ok(),
        lockdown: lockdown.ok(),
        btf: btf(),
        initial_pid_namespace: situation.initial_pid_namespace,
        tracker,
        advice,
    }
}

fn rung(probe: Probe, situation: &advice::Situation) -> Rung {
    let verdict = probe.ask();
    Rung {
        name: probe.name(),
        usable: verdict.usable,
        used_by_run: false,
        reason: explained(&verdict, probe, situation),
        verifier: verdict.verifier,
        cost: verdict.cost,
    }
}

/// The verdict's own words, and behind them what we know about the cause.
fn explained(verdict: &Verdict, probe: Probe, situation: &advice::Situation) -> String {
    match situation.cause(verdict, probe) {
        Some(cause) => format!("{} ({cause})", verdict.reason),
        None => verdict.reason.clone(),
    }
}

/// The rung of who asks a node.
const NODE: &str = "node";

/// Asks for a node as a run does.
fn node() -> Rung {
    let socket = client::socket_path();
    let (usable, reason) = match Knock::wait(&socket) {
        Ok(node) => (true, format!("a node listens at {}, on {}", socket.display(), node.names.rung)),
        Err(why) => (false, why.to_string()),
    };
    Rung { name: NODE, usable, used_by_run: false, reason, verifier: Vec::new(), cost: None }
}

fn capabilities(held: Option<Held>) -> CapabilitySets {
    let set = |names: fn(&Held) -> Vec<String>| held.as_ref().map(names).unwrap_or_default();
    CapabilitySets {
        effective: set(|held| held.effective.names()),
        missing: set(|held| held.effective.missing()),
        unobtainable: set(|held| held.bounding.missing()),
    }
}

fn btf() -> Btf {
    match facts::btf_size() {
        Ok(size) => Btf { present: true, detail: format!("{size} bytes at {}", crate::kernel::btf::VMLINUX) },
        Err(error) => Btf { present: false, detail: format!("{}: {error}", crate::kernel::btf::VMLINUX) },
    }
}

fn tracker() -> Tracker {
    let (carried, detail) = match lock::carrier(&lock::path()) {
        Ok(Carrier::Nobody) => (false, format!("nobody ({})", lock::PATH)),
        Ok(Carrier::Process { pid, role }) => (true, format!("{role} ({pid})")),
        Ok(Carrier::Unknown) => (true, format!("somebody who did not write to {}", lock::PATH)),
        Err(error) => (false, format!("unknown: {}: {error}", lock::PATH)),
    };
    Tracker { carried, detail }
}
