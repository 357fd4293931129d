//! Who waits for whom: from one process on, through everybody who could end its waits.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::channel::Id;
use super::flight::{InFlight, in_flight};
use super::frozen::{Frozen, frozen};
use super::machine::{Hold, Machine};
use super::waits::{For, Need, On, Reader, Wait};
use crate::process::stat::Stat;
use crate::process::wait::threads;

/// More than that many processes are no explanation any more.
const LIMIT: usize = 256;

/// A wait, and who could end it.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// The wait.
    pub wait: Wait,
    /// For each of the wait's channels, who holds its other end.
    pub held_by: Vec<Vec<Hold>>,
}

/// A process in the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// The process.
    pub stat: Stat,
    /// Its threads' waits; those that tell most come first.
    pub blocked: Vec<Blocked>,
    /// The cgroup that holds it still.
    pub frozen: Option<Frozen>,
    /// Whether we were not allowed to know what its threads do.
    pub hidden: bool,
}

/// A process, and everybody whom it waits for, directly or not.
#[derive(Debug)]
pub struct Graph {
    /// The process that was asked about.
    pub root: i32,
    /// All of them.
    pub nodes: BTreeMap<i32, Node>,
    /// Sockets with descriptors in flight, where somebody waits for a pipe that nobody visibly holds.
    pub in_flight: Vec<InFlight>,
    /// Whether there were more processes than we follow.
    pub cut: bool,
}

impl Graph {
    /// Follows waits from a process on.
    #[must_use]
    pub fn follow(root: i32, reader: Reader<'_>) -> Graph {
        let mut graph = Graph { root, nodes: BTreeMap::new(), in_flight: Vec::new(), cut: false };
        let mut holds = HashMap::new();
        let mut queue = VecDeque::from([root]);
        while let Some(pid) = queue.pop_front() {
            if graph.nodes.contains_key(&pid) {
                continue;
            }
            if graph.nodes.len() >= LIMIT {
                graph.cut = true;
                break;
            }
            let Some(node) = node(pid, reader, &mut holds) else { continue };
            for blocked in &node.blocked {
                queue.extend(blocked.held_by.iter().flatten().map(|hold| hold.pid));
                queue.extend(&blocked.wait.children);
            }
            graph.nodes.insert(pid, node);
        }
        if graph.nodes.values().any(Node::lacks_a_holder) {
            graph.in_flight = in_flight(reader.machine, reader.full);
        }
        graph
    }

    /// The name of a process, for people.
    #[must_use]
    pub fn name(&self, pid: i32) -> String {
        match self.nodes.get(&pid) {
            Some(node) => format!("{} ({pid})", node.stat.comm),
            None => Stat::read(pid).map_or_else(|_| pid.to_string(), |stat| format!("{} ({pid})", stat.comm)),
        }
    }

    /// Whether a holder is where a descendant is that left: not among those who started the waiter, and no child
    /// of it, but in another session; or in another process group, with a parent that is gone.
    ///
    /// We did not see it leave. This is what can be told from where it is now.
    #[must_use]
    pub fn escaped(&self, holder: i32, waiter: i32) -> bool {
        let (Some(holder), Some(waiter)) = (self.nodes.get(&holder), self.nodes.get(&waiter)) else { return false };
        let (holder, waiter) = (&holder.stat, &waiter.stat);
        if holder.id == waiter.id || holder.ppid == waiter.id.pid {
            return false;
        }
        let above = lineage(waiter.id.pid);
        if above.contains(&holder.id.pid) {
            return false;
        }
        let orphan = holder.ppid == 1 || above.contains(&holder.ppid) && holder.ppid != waiter.ppid;
        holder.sid != waiter.sid || (holder.pgid != waiter.pgid && orphan)
    }

    /// The processes that wait for each other and for nobody else: nothing but a signal, or somebody new,
    /// ends these waits.
    #[must_use]
    pub fn deadlocked(&self) -> BTreeSet<i32> {
        let mut stuck: BTreeSet<i32> = self.nodes.keys().copied().collect();
        loop {
            let freed: Vec<i32> = stuck.iter().copied().filter(|pid| !self.only_waits_for(*pid, &stuck)).collect();
            if freed.is_empty() {
                return stuck;
            }
            for pid in freed {
                stuck.remove(&pid);
            }
        }
    }

    /// Whether every wait of the process that matters can be ended by members of `set` only.
    fn only_waits_for(&self, pid: i32, set: &BTreeSet<i32>) -> bool {
        let Some(node) = self.nodes.get(&pid) else { return false };
        if node.hidden || node.frozen.is_some() || node.blocked.iter().any(|b| b.wait.what.is_halted()) {
            return false;
        }
        let outward: Vec<&Blocked> = node.outward().collect();
        !outward.is_empty()
            && outward.into_iter().all(|blocked| {
                let ends = node.enders(blocked);
                !blocked.wait.timed && ends.as_ref().is_some_and(|pids| pids.iter().all(|pid| set.contains(pid)))
            })
    }

    /// The shortest circle of waits through a process, inside a set of processes that wait for each other.
    ///
    /// Through others where there is such a circle: that a reader also inherited the write end is the lesser
    /// part of the story.
    #[must_use]
    pub fn circle(&self, pid: i32, set: &BTreeSet<i32>) -> Vec<i32> {
        let mut from: HashMap<i32, i32> = HashMap::new();
        let mut queue = VecDeque::from([pid]);
        while let Some(at) = queue.pop_front() {
            for next in self.waits_for(at).into_iter().filter(|next| set.contains(next) && *next != at) {
                if next == pid {
                    return path(pid, at, &from);
                }
                if let Entry::Vacant(vacant) = from.entry(next) {
                    vacant.insert(at);
                    queue.push_back(next);
                }
            }
        }
        vec![pid]
    }

    /// Everybody who could end a wait of the process.
    fn waits_for(&self, pid: i32) -> Vec<i32> {
        let Some(node) = self.nodes.get(&pid) else { return Vec::new() };
        node.outward().filter_map(|blocked| node.enders(blocked)).flatten().collect()
    }
}

/// The way from `start` to `end`, by who was reached from whom.
fn path(start: i32, end: i32, from: &HashMap<i32, i32>) -> Vec<i32> {
    let mut way = vec![end];
    let mut at = end;
    while at != start {
        let Some(before) = from.get(&at) else { break };
        way.push(*before);
        at = *before;
    }
    way.reverse();
    way
}

impl For {
    /// Whether the thread does not run, whatever ends its wait, or runs already.
    #[must_use]
    pub fn is_halted(self) -> bool {
        matches!(self, For::Stopped | For::Traced | For::Frozen | For::Uninterruptible | For::Running | For::Exited)
    }

    /// Whether another process may be what the thread waits for.
    #[must_use]
    pub fn is_outward(self) -> bool {
        matches!(self, For::Read | For::Write | For::Open | For::Child | For::Poll | For::Epoll)
    }
}

impl Node {
    /// The waits that another process can end, without those by which threads of this one wake each other.
    pub fn outward(&self) -> impl Iterator<Item = &Blocked> {
        self.blocked.iter().filter(|blocked| {
            blocked.wait.what.is_outward()
                && (!blocked.wait.children.is_empty()
                    || blocked.wait.on.iter().zip(&blocked.held_by).any(|(on, held)| !self.is_own(blocked, on, held)))
        })
    }

    /// Whether the only holder is the process itself, which then wakes itself: an event loop's own pipe, or a
    /// pipe between two of its threads. A single thread that reads what only it could write is no such thing.
    fn is_own(&self, blocked: &Blocked, on: &On, held: &[Hold]) -> bool {
        let polls = matches!(blocked.wait.what, For::Poll | For::Epoll);
        on.channel.is_some()
            && !held.is_empty()
            && held.iter().all(|hold| hold.pid == self.stat.id.pid)
            && (polls || self.stat.threads > 1)
    }

    /// A wait's channels and holders, without the process's own wake-up calls.
    pub fn channels<'a>(&'a self, blocked: &'a Blocked) -> impl Iterator<Item = (&'a On, &'a [Hold])> {
        let pairs = blocked.wait.on.iter().zip(blocked.held_by.iter().map(Vec::as_slice));
        pairs.filter(|(on, held)| !self.is_own(blocked, on, held))
    }

    /// The processes of which any could end a wait; none when something else could as well.
    fn enders(&self, blocked: &Blocked) -> Option<BTreeSet<i32>> {
        let mut pids: BTreeSet<i32> = blocked.wait.children.iter().copied().collect();
        for (on, held) in self.channels(blocked) {
            if on.channel.is_none() || held.is_empty() {
                return None;
            }
            pids.extend(held.iter().map(|hold| hold.pid));
        }
        (!pids.is_empty()).then_some(pids)
    }

    /// Whether it waits for a channel whose other end nobody visibly holds.
    fn lacks_a_holder(&self) -> bool {
        self.outward().any(|blocked| {
            self.channels(blocked).any(|(on, held)| {
                held.is_empty() && matches!(on.need, Need::Read | Need::Write) && on.channel.is_some()
            })
        })
    }

    /// Whether none of its threads goes on by itself.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.blocked.iter().any(|b| b.wait.what == For::Stopped)
    }

    /// Whether one of its threads runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.blocked.iter().any(|b| b.wait.what == For::Running)
    }
}

fn node(pid: i32, reader: Reader<'_>, holds: &mut HashMap<Id, Vec<Hold>>) -> Option<Node> {
    let stat = Stat::read(pid).ok()?;
    let threads = threads(pid).ok()?;
    let hidden = reader.machine.tables(pid).is_none();
    let mut blocked: Vec<Blocked> = threads
        .iter()
        .map(|thread| {
            let wait = reader.wait(pid, thread);
            let held_by = wait.on.iter().map(|on| other_end(reader.machine, on, holds)).collect();
            Blocked { wait, held_by }
        })
        .collect();
    blocked.sort_by_key(|blocked| (rank(blocked.wait.what), blocked.wait.tid));
    Some(Node { stat, blocked, frozen: frozen(pid), hidden })
}

/// Waits that name another process before those that do not.
fn rank(what: For) -> u32 {
    match what {
        For::Stopped | For::Traced | For::Frozen | For::Uninterruptible => 0,
        For::Open | For::Read | For::Write => 1,
        For::Child => 2,
        For::Poll | For::Epoll => 3,
        For::Running => 4,
        For::Exited => 9,
        _ => 5,
    }
}

/// Who holds what a thread waits for: of a pipe the other end, of a socket or terminal the other side.
fn other_end(machine: &Machine, on: &On, known: &mut HashMap<Id, Vec<Hold>>) -> Vec<Hold> {
    let Some(channel) = &on.channel else { return Vec::new() };
    let holds = known.entry(channel.id).or_insert_with(|| machine.held(channel.id));
    let fits = |hold: &&Hold| match channel.id {
        Id::Pipe(_) | Id::Fifo(_) => match on.need {
            Need::Read | Need::Writer => hold.place.end.writes(),
            Need::Write | Need::Reader => hold.place.end.reads(),
        },
        Id::Socket { peer, .. } => Some(hold.place.side) == peer,
        Id::Pty { master, .. } => (hold.place.side == 1) != master,
    };
    holds.iter().filter(fits).cloned().collect()
}

/// The parents of a process, from its own up to the first.
#[must_use]
pub fn lineage(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut at = pid;
    // A chain of parents has no cycle, but it can change under our feet: bound the walk.
    while let Ok(stat) = Stat::read(at)
        && stat.ppid > 0
        && found.len() < 4096
    {
        found.push(stat.ppid);
        at = stat.ppid;
    }
    found
}
