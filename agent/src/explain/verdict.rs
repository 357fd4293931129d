//! The conclusion: why a process does not go on, and because of whom.

use std::collections::BTreeSet;

use serde::Serialize;

use super::channel::Id;
use super::flight::Carries;
use super::graph::{Graph, Node};
use super::machine::Hold;
use super::waits::{For, Need, On};

/// Why a process does not go on.
///
/// In the order in which one reason outranks another, where several processes could end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is not blocked, or what it waits for is of its own making.
    NotWaiting,
    /// Whom it waits for is alive and waits for something of its own: time, a terminal, a network.
    Waiting,
    /// Whom it waits for runs: slow, not stuck.
    Working,
    /// Everybody who could end the wait has left the session or group: EOF waits for processes that
    /// have nothing to do with it any more.
    Withheld,
    /// We may not see whoever it waits for.
    Unseen,
    /// What it waits for is held by nobody but a descriptor in flight.
    InFlight,
    /// Nobody has opened the other end of a FIFO.
    Opening,
    /// A kernel wait that no signal ends.
    Uninterruptible,
    /// A frozen cgroup.
    Frozen,
    /// A stopped process.
    Stopped,
    /// Processes that wait for each other.
    Deadlock,
    /// It has exited.
    Exited,
}

/// A verdict, and those it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// Who would have to change for the wait to end.
    pub culprits: Vec<i32>,
    /// From the process that was asked about to the first culprit, each waiting for the next.
    pub chain: Vec<i32>,
    /// For [`Verdict::Opening`]: the FIFO. For [`Verdict::InFlight`]: the pipe.
    pub at: Option<On>,
}

impl Finding {
    fn about(verdict: Verdict, pid: i32) -> Finding {
        Finding { verdict, culprits: vec![pid], chain: vec![pid], at: None }
    }

    fn seen_from(mut self, pid: i32) -> Finding {
        self.chain.insert(0, pid);
        self
    }
}

/// Why the graph's first process does not go on.
#[must_use]
pub fn conclude(graph: &Graph) -> Finding {
    let deadlocked = graph.deadlocked();
    let mut judge = Judge { graph, deadlocked, visited: Vec::new() };
    judge.blame(graph.root).unwrap_or_else(|| Finding::about(Verdict::NotWaiting, graph.root))
}

struct Judge<'a> {
    graph: &'a Graph,
    deadlocked: BTreeSet<i32>,
    visited: Vec<i32>,
}

impl Judge<'_> {
    /// Why a process does not go on; nothing when that question is already being asked.
    fn blame(&mut self, pid: i32) -> Option<Finding> {
        if self.visited.contains(&pid) {
            return None;
        }
        let Some(node) = self.graph.nodes.get(&pid) else { return Some(Finding::about(Verdict::Unseen, pid)) };
        if let Some(verdict) = halted(node) {
            return Some(Finding::about(verdict, pid));
        }
        if self.deadlocked.contains(&pid) {
            let chain = self.graph.circle(pid, &self.deadlocked);
            return Some(Finding { verdict: Verdict::Deadlock, culprits: chain.clone(), chain, at: None });
        }
        self.visited.push(pid);
        let found = self.blame_waits(pid, node);
        self.visited.pop();
        Some(found)
    }

    fn blame_waits(&mut self, pid: i32, node: &Node) -> Finding {
        let mut best: Option<Finding> = None;
        for blocked in node.outward() {
            for child in &blocked.wait.children {
                if let Some(found) = self.blame(*child) {
                    best = better(best, found.seen_from(pid));
                }
            }
            for (on, held) in node.channels(blocked) {
                if let Some(found) = self.blame_holders(pid, on, held) {
                    best = better(best, found);
                }
            }
        }
        best.unwrap_or_else(|| {
            let itself = if node.is_running() {
                Verdict::Working
            } else if node.blocked.iter().all(|b| b.wait.what == For::Exited) {
                Verdict::NotWaiting
            } else {
                Verdict::Waiting
            };
            Finding::about(itself, pid)
        })
    }

    /// Why nobody who holds the other end of a channel ends the wait.
    fn blame_holders(&mut self, pid: i32, on: &On, held: &[Hold]) -> Option<Finding> {
        let finding = |verdict, culprits| Finding { verdict, culprits, chain: vec![pid], at: Some(on.clone()) };
        let Some(channel) = &on.channel else {
            return matches!(on.need, Need::Reader | Need::Writer).then(|| finding(Verdict::Opening, vec![pid]));
        };
        if held.is_empty() {
            return Some(match on.need {
                Need::Reader | Need::Writer => finding(Verdict::Opening, vec![pid]),
                _ => match receivers(self.graph, channel.id) {
                    owners if owners.is_empty() => finding(Verdict::Unseen, Vec::new()),
                    owners => finding(Verdict::InFlight, owners),
                },
            });
        }
        let holders: BTreeSet<i32> = held.iter().map(|hold| hold.pid).filter(|holder| *holder != pid).collect();
        let mut findings: Vec<Finding> = Vec::new();
        let (mut leaves, mut at_home) = (Vec::new(), false);
        for holder in holders {
            let Some(found) = self.blame(holder) else { continue };
            if found.verdict <= Verdict::Working {
                leaves.push(holder);
                at_home |= !self.graph.escaped(holder, pid);
            }
            findings.push(found);
        }
        let best = findings.iter().map(|found| found.verdict).max()?;
        if best <= Verdict::Working && on.need == Need::Read && !at_home {
            let chain = vec![pid, leaves[0]];
            return Some(Finding { verdict: Verdict::Withheld, culprits: leaves, chain, at: Some(on.clone()) });
        }
        let mut same = findings.into_iter().filter(|found| found.verdict == best);
        let mut first = same.next()?.seen_from(pid);
        for other in same {
            first
                .culprits
                .extend(other.culprits.iter().filter(|pid| !first.culprits.contains(pid)).copied().collect::<Vec<_>>());
        }
        Some(first)
    }
}

/// Who holds the sockets in whose queues a channel is in flight, or where we could not see it, may be.
fn receivers(graph: &Graph, id: Id) -> Vec<i32> {
    let most = graph.in_flight.iter().map(|flight| flight.carries(id)).max().unwrap_or(Carries::No);
    let them = graph.in_flight.iter().filter(|flight| most != Carries::No && flight.carries(id) == most);
    let pids: BTreeSet<i32> = them.map(|flight| flight.pid).collect();
    pids.into_iter().collect()
}

fn better(best: Option<Finding>, found: Finding) -> Option<Finding> {
    Some(match best {
        Some(best) if best.verdict >= found.verdict => best,
        _ => found,
    })
}

/// What keeps a process from going on whatever it waits for.
fn halted(node: &Node) -> Option<Verdict> {
    if node.stat.is_dead() {
        return Some(Verdict::Exited);
    }
    if node.frozen.is_some() || node.blocked.iter().any(|b| b.wait.what == For::Frozen) {
        return Some(Verdict::Frozen);
    }
    if node.blocked.iter().any(|b| matches!(b.wait.what, For::Stopped | For::Traced)) {
        return Some(Verdict::Stopped);
    }
    let live = || node.blocked.iter().filter(|b| b.wait.what != For::Exited);
    if live().next().is_some() && live().all(|b| b.wait.what == For::Uninterruptible) {
        return Some(Verdict::Uninterruptible);
    }
    None
}
