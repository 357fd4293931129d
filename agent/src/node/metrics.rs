//! What a node counts and measures, under the names that `/metrics` gives it: `pipewarden_*`.
//!
//! The node's loop writes, whoever asks reads; neither waits for the other for longer than a number takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
pub use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit;

use super::attribution::Counts;
use super::health::Room;
use super::names::NameCounts;
use crate::act::Refusal;
use crate::kernel::tracker::{Losses, RunTime};

/// One label and its value.
type Label = [(&'static str, &'static str); 1];
/// Counters by a label.
type Counters = Family<Label, Counter>;
/// Gauges by a label.
type Gauges = Family<Label, Gauge>;
/// A counter of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// All of them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pipes: Gauges,
    holders: Gauge,
    commands: Gauge,
    /// Processes that left their group or session with a pipe in their hands.
    pub escapes: Counter,
    /// Pipes that were found withheld.
    pub withheld: Counter,
    acts: Counters,
    refusals: Counters,
    lost: Counters,
    reseeds: Counters,
    entries: Gauges,
    capacity: Gauges,
    run_time: Seconds,
    runs: Counter,
    attributions: Counters,
    names: Counters,
    /// Looks that came to nothing.
    pub failed_looks: Counter,
    event_to_look: Histogram,
    withheld_to_act: Histogram,
}

/// From a tenth of a millisecond to 27 minutes.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 4.0, 13))
}

/// What became of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// SIGTERM was sent.
    Term,
    /// SIGKILL was sent.
    Kill,
    /// The process was gone already.
    Gone,
    /// It was refused.
    Refused,
    /// It could not be verified, by an error of the kernel's.
    Failed,
}

impl Outcome {
    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Term => "term",
            Outcome::Kill => "kill",
            Outcome::Gone => "gone",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}

impl Metrics {
    /// All at zero, and the registry that says them. `rung` is the tracker's.
    #[must_use]
    pub fn new(rung: &'static str) -> (Metrics, Registry) {
        let metrics = Metrics {
            pipes: Family::default(),
            holders: Gauge::default(),
            commands: Gauge::default(),
            escapes: Counter::default(),
            withheld: Counter::default(),
            acts: Family::default(),
            refusals: Family::default(),
            lost: Family::default(),
            reseeds: Family::default(),
            entries: Family::default(),
            capacity: Family::default(),
            run_time: Counter::default(),
            runs: Counter::default(),
            attributions: Family::default(),
            names: Family::default(),
            failed_looks: Counter::default(),
            event_to_look: latency(),
            withheld_to_act: latency(),
        };
        metrics.begin();
        let registry = metrics.register(rung);
        (metrics, registry)
    }

    /// What may happen is there with zero before it happens: an alert on its rate misses no first time.
    fn begin(&self) {
        for outcome in [Outcome::Term, Outcome::Kill, Outcome::Gone, Outcome::Refused, Outcome::Failed] {
            drop(self.acts.get_or_create(&[("outcome", outcome.name())]));
        }
        for (kind, _) in Losses::default().kinds() {
            drop(self.lost.get_or_create(&[("kind", kind)]));
            drop(self.reseeds.get_or_create(&[("reason", kind)]));
        }
        self.attributed(Counts::default());
        self.named(NameCounts::default());
        self.look(0, 0, 0, 0);
    }

    fn register(&self, rung: &'static str) -> Registry {
        let mut registry = Registry::with_prefix("pipewarden");
        let build = Family::<[(&'static str, &'static str); 2], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION")), ("rung", rung)]).set(1);
        registry.register("build_info", "The node's version and the rung that its tracker is on", build);
        registry.register(
            "pipes",
            "Pipes that could be withheld (watched) and that are (withheld)",
            self.pipes.clone(),
        );
        registry.register("holders", "Processes that hold the write end of a withheld pipe", self.holders.clone());
        registry.register("commands", "Commands whose lineages are followed", self.commands.clone());
        registry.register(
            "escapes",
            "Processes that left their group or session with a pipe in their hands",
            self.escapes.clone(),
        );
        registry.register("withheld", "Pipes that were found withheld", self.withheld.clone());
        registry.register("acts", "Attempts to end a holder, by what became of them", self.acts.clone());
        registry.register("refusals", "Acts that were refused, by why", self.refusals.clone());
        registry.register(
            "events_lost",
            "What the tracker could not take in, by kind; each is made up for by a reseed",
            self.lost.clone(),
        );
        registry.register(
            "reseeds",
            "How often everything was read anew because of a loss, by its worst kind",
            self.reseeds.clone(),
        );
        registry.register("map_entries", "How much the tracker's maps hold", self.entries.clone());
        registry.register("map_capacity_entries", "How much the tracker's maps have room for", self.capacity.clone());
        registry.register(
            "program_runs",
            "Runs of the tracker's programs, while kernel.bpf_stats_enabled is 1",
            self.runs.clone(),
        );
        registry.register(
            "attributions",
            "Where processes are, by whether it could be found out",
            self.attributions.clone(),
        );
        registry.register(
            "name_questions",
            "Questions to the container runtime for the names of a container, by what came of them",
            self.names.clone(),
        );
        registry.register("failed_looks", "Looks at what is withheld that came to nothing", self.failed_looks.clone());
        let help = "Time spent in the tracker's programs, while kernel.bpf_stats_enabled is 1";
        registry.register_with_unit("program_run_time", help, Unit::Seconds, self.run_time.clone());
        let help = "From an event in the kernel to the node having taken it in";
        registry.register_with_unit("event_to_look", help, Unit::Seconds, self.event_to_look.clone());
        let help = "From a command's end, as far as it is known, to a holder of its pipe being signalled";
        registry.register_with_unit("withheld_to_act", help, Unit::Seconds, self.withheld_to_act.clone());
        registry
    }

    /// What a look found: pipes that could be withheld and are not, those that are, holders of these, commands.
    pub fn look(&self, watched: usize, withheld: usize, holders: usize, commands: usize) {
        self.pipes.get_or_create(&[("state", "watched")]).set(gauge(watched));
        self.pipes.get_or_create(&[("state", "withheld")]).set(gauge(withheld));
        self.holders.set(gauge(holders));
        self.commands.set(gauge(commands));
    }

    /// Somebody was to be ended.
    pub fn act(&self, outcome: Outcome) {
        self.acts.get_or_create(&[("outcome", outcome.name())]).inc();
    }

    /// It was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    /// A holder was signalled for the first time, so long after its pipe's command had ended.
    pub fn acted_after(&self, time: Duration) {
        self.withheld_to_act.observe(time.as_secs_f64());
    }

    /// An event was taken in, so long after it happened.
    pub fn took_in_after(&self, time: Duration) {
        self.event_to_look.observe(time.as_secs_f64());
    }

    /// Everything was read anew, because of this above all.
    pub fn reseeded(&self, kind: &'static str) {
        self.reseeds.get_or_create(&[("reason", kind)]).inc();
    }

    /// What was lost so far.
    pub fn lost(&self, losses: &Losses) {
        for (kind, number) in losses.kinds() {
            store(&self.lost.get_or_create(&[("kind", kind)]), number);
        }
    }

    /// How full the maps are.
    pub fn rooms(&self, rooms: &[Room]) {
        for room in rooms {
            self.entries.get_or_create(&[("map", room.map)]).set(room.entries.cast_signed());
            self.capacity.get_or_create(&[("map", room.map)]).set(room.capacity.cast_signed());
        }
    }

    /// How much the programs ran so far.
    pub fn ran(&self, ran: RunTime) {
        store(&self.runs, ran.runs);
        self.run_time.inner().store(ran.time.as_secs_f64().to_bits(), Ordering::Relaxed);
    }

    /// How finding out where processes are went so far.
    pub fn attributed(&self, counts: Counts) {
        let Counts { contained, host, missed, gone } = counts;
        for (result, number) in [("container", contained), ("host", host), ("missed", missed), ("gone", gone)] {
            store(&self.attributions.get_or_create(&[("result", result)]), number);
        }
    }

    /// How asking for names went so far.
    pub fn named(&self, counts: NameCounts) {
        let NameCounts { named, absent, failed, dropped } = counts;
        for (result, number) in [("named", named), ("absent", absent), ("failed", failed), ("dropped", dropped)] {
            store(&self.names.get_or_create(&[("result", result)]), number);
        }
    }
}

/// Why an act was refused, as the label of `pipewarden_refusals_total` says it.
#[must_use]
pub fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Ancestor => "ancestor",
        Refusal::KernelThread => "kernel_thread",
        Refusal::Reused => "pid_reused",
        Refusal::Kept => "kept",
        Refusal::NoHold => "no_hold",
        Refusal::NotLineage => "not_lineage",
        Refusal::NoPolicy => "no_policy",
        Refusal::Unreadable => "unreadable",
        Refusal::NotPermitted => "not_permitted",
    }
}

/// Somebody else counts; this is where that is now.
fn store(counter: &Counter, number: u64) {
    counter.inner().store(number, Ordering::Relaxed);
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
