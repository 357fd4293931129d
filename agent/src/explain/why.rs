//! What a process waits for, as data: the answer of `pipewarden why`.

use std::time::Instant;

use serde::Serialize;

use super::channel;
use super::graph::{Blocked, Graph, Node};
use super::machine::{Hold, Machine, Place, Via};
use super::remedy::{Remedy, reads_terminal_from_background, remedy};
use super::verdict::{Finding, Verdict, conclude};
use super::waits::{For, Need, On, Reader};
use crate::process::stat::Stat;

/// Everything that could be told about one process's waits.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The process that was asked about.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// What its threads wait for, the telling ones first.
    pub waits: Vec<Waiting>,
    /// The conclusion.
    pub verdict: Verdict,
    /// The conclusion in one line, for people.
    pub explanation: String,
    /// Those who would have to change for the wait to end.
    pub culprits: Vec<i32>,
    /// From the process that was asked about to a culprit, each waiting for the next; of a deadlock, the circle.
    pub chain: Vec<i32>,
    /// A command line that releases the wait.
    pub remedy: Option<String>,
    /// What the remedy costs, or what else would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy_note: Option<String>,
    /// The processes that it waits for, directly or not, and what those wait for.
    pub others: Vec<Other>,
    /// What answered.
    pub source: &'static str,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

/// Another process on the way.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its threads' waits.
    pub waits: Vec<Waiting>,
}

/// One thing that a thread waits for.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// The thread.
    pub tid: i32,
    /// The kind of wait.
    #[serde(rename = "for")]
    pub what: For,
    /// The system call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<&'static str>,
    /// The kernel function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// What is needed of the pipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need: Option<Need>,
    /// The descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The pipe, FIFO, socket or terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipe: Option<channel::Told>,
    /// What else it is, where it is none of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Who holds the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<Vec<Holder>>,
    /// The children, or the process of a pidfd.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<i32>,
    /// Whether time alone ends it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed: bool,
    /// Whether this is what it may wait for: the system call was hidden from us.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub guessed: bool,
}

/// Somebody who holds the other end.
#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// `read`, `write` or `both`; of a terminal `master` or `slave`.
    pub end: String,
    /// Its descriptors.
    pub fds: Vec<i32>,
    /// What it does: the kind of its most telling wait.
    pub state: For,
    /// Whether it left the waiter's session, or its group and its parent.
    pub escaped: bool,
    /// Whether the descriptors are an io_uring's, which has the pipe registered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub io_uring: bool,
}

/// Explains the waits of a process.
///
/// # Errors
///
/// In one line: when there is no such process.
pub fn explain(pid: i32, machine: &Machine, full: bool) -> Result<(Explanation, Graph), String> {
    let stat = Stat::read(pid).map_err(|_| format!("there is no process {pid}"))?;
    let graph = Graph::follow(pid, Reader { machine, full });
    let finding = conclude(&graph);
    let Remedy { command, note } = remedy(&graph, &finding);
    let waits = graph.nodes.get(&pid).map(|node| waiting(&graph, node)).unwrap_or_default();
    let others = graph.nodes.iter().filter(|(other, _)| **other != pid);
    let explanation = Explanation {
        pid,
        comm: stat.comm,
        waits,
        verdict: finding.verdict,
        explanation: sentence(&graph, &finding),
        culprits: finding.culprits,
        chain: finding.chain,
        remedy: command,
        remedy_note: note,
        others: others
            .map(|(pid, node)| Other { pid: *pid, comm: node.stat.comm.clone(), waits: waiting(&graph, node) })
            .collect(),
        source: super::SOURCE,
        unseen: unseen(&graph, machine, full),
    };
    Ok((explanation, graph))
}

/// Takes the snapshot that an explanation of this process needs.
///
/// # Errors
///
/// In one line.
pub fn look(pid: i32, deadline: Instant) -> Result<Machine, String> {
    let mut machine = Machine::look(deadline).map_err(|error| format!("/proc cannot be read: {error}"))?;
    if let Err(error) = machine.sockets.add_those_of(pid) {
        machine.sockets.failure.get_or_insert(format!("sockets of another network namespace: {error}"));
    }
    Ok(machine)
}

fn unseen(graph: &Graph, machine: &Machine, full: bool) -> Vec<String> {
    let mut lines = machine.unseen();
    for (pid, node) in &graph.nodes {
        if node.hidden {
            lines.push(format!("opaque: the descriptors of {} are hidden from us", graph.name(*pid)));
        } else if full && node.blocked.iter().any(|b| b.wait.guessed) {
            lines.push(format!(
                "guessed: what {} waits for, by the kernel function alone (its system call or memory is hidden from us)",
                graph.name(*pid)
            ));
        }
    }
    if graph.cut {
        lines.push(format!("cut: more than {} processes wait for each other", graph.nodes.len()));
    }
    if !full {
        lines.push("late: what epolls watch and calls point to was not read before the deadline".to_owned());
    }
    lines
}

fn waiting(graph: &Graph, node: &Node) -> Vec<Waiting> {
    let mut found = Vec::new();
    for blocked in &node.blocked {
        let wait = &blocked.wait;
        let bare = Waiting {
            tid: wait.tid,
            what: wait.what,
            call: wait.call,
            wchan: wait.wchan.clone(),
            need: None,
            fd: None,
            pipe: None,
            object: None,
            held_by: None,
            children: wait.children.clone(),
            timed: wait.timed,
            guessed: wait.guessed,
        };
        // Without what its own threads wake it by.
        let mut channels = node.channels(blocked).peekable();
        if channels.peek().is_none() || !wait.children.is_empty() {
            found.push(bare.clone());
        }
        for (on, held) in channels {
            found.push(Waiting {
                need: Some(on.need),
                fd: on.fd,
                pipe: on.channel.as_ref().map(Into::into),
                object: on.channel.is_none().then(|| on.name.clone()),
                held_by: on.channel.is_some().then(|| holders(graph, node.stat.id.pid, held)),
                children: Vec::new(),
                ..bare.clone()
            });
        }
    }
    found
}

fn holders(graph: &Graph, waiter: i32, held: &[Hold]) -> Vec<Holder> {
    let row = |hold: &Hold| {
        let node = graph.nodes.get(&hold.pid);
        Holder {
            pid: hold.pid,
            comm: node.map_or_else(String::new, |node| node.stat.comm.clone()),
            end: end(hold.place).to_owned(),
            fds: hold.fds.clone(),
            state: node.and_then(|node| node.blocked.first()).map_or(For::Unknown, |b| b.wait.what),
            escaped: graph.escaped(hold.pid, waiter),
            io_uring: hold.via == Via::IoUring,
        }
    };
    held.iter().map(row).collect()
}

/// The word for where a descriptor is.
#[must_use]
pub fn end(place: Place) -> &'static str {
    place.end.name()
}

/// The verdict in one line.
fn sentence(graph: &Graph, finding: &Finding) -> String {
    let first = finding.culprits.first().copied().unwrap_or(graph.root);
    let names: Vec<String> = finding.culprits.iter().map(|pid| graph.name(*pid)).collect();
    let steps = steps(graph, finding);
    let node = graph.nodes.get(&first);
    let doing = || node.map_or_else(|| "is hidden from us".to_owned(), activity);
    let end = match finding.verdict {
        Verdict::NotWaiting => format!("{} is not blocked", graph.name(graph.root)),
        Verdict::Working => format!("{} is running: slow, not stuck", graph.name(first)),
        Verdict::Waiting => format!("{} is alive and {}", graph.name(first), doing()),
        Verdict::Withheld => format!(
            "no EOF before {} {} it: {} left (another session or group) and {}",
            names.join(", "),
            if names.len() == 1 { "ends or closes" } else { "end or close" },
            if names.len() == 1 { "it" } else { "they" },
            doing()
        ),
        Verdict::Unseen => "whoever holds the other end is hidden from us".to_owned(),
        Verdict::InFlight => {
            format!("no process has the other end open: it is in flight (SCM_RIGHTS) to {}", names.join(" or "))
        }
        Verdict::Opening => "nobody opens the other end".to_owned(),
        Verdict::Uninterruptible => {
            format!("{} is in an uninterruptible kernel wait{}", graph.name(first), wchan(node))
        }
        Verdict::Frozen => match node.and_then(|node| node.frozen.as_ref()) {
            Some(frozen) => format!("{} is frozen by the cgroup {}", graph.name(first), frozen.group.display()),
            None => format!("{} is frozen by its cgroup", graph.name(first)),
        },
        Verdict::Stopped => format!("{} {}", names.join(", "), halt(node, names.len() > 1)),
        Verdict::Deadlock if finding.chain.len() == 1 => format!("{} waits for itself", graph.name(first)),
        Verdict::Deadlock => "they wait for each other: a deadlock".to_owned(),
        Verdict::Exited => format!("{} has exited and was not waited for", graph.name(first)),
    };
    if steps.is_empty() { end } else { format!("{}; {end}", steps.join("; ")) }
}

fn halt(node: Option<&Node>, several: bool) -> &'static str {
    let waits = |what| node.is_some_and(|node| node.blocked.iter().any(|b| b.wait.what == what));
    if waits(For::Traced) {
        "stands still in a debugger"
    } else if node.is_some_and(reads_terminal_from_background) {
        "is stopped as a background job that reads its terminal (SIGTTIN)"
    } else if several {
        "are stopped by a signal"
    } else {
        "is stopped by a signal"
    }
}

fn wchan(node: Option<&Node>) -> String {
    let name = node.and_then(|node| node.blocked.first()?.wait.wchan.as_deref());
    name.map_or_else(String::new, |name| format!(" ({name})"))
}

/// What a process does that waits for nobody we could name.
fn activity(node: &Node) -> String {
    let Some(blocked) = node.blocked.first() else { return "waits".to_owned() };
    let object = blocked.wait.on.first().map(|on| format!(" {}", on.name)).unwrap_or_default();
    match blocked.wait.what {
        For::Sleep => "sleeps".to_owned(),
        For::Signal => "waits for a signal".to_owned(),
        For::Futex | For::Thread => "waits for its own threads".to_owned(),
        For::Read => format!("reads{object}"),
        For::Write => format!("writes{object}"),
        For::Poll | For::Epoll => "waits for events".to_owned(),
        For::Connection => "waits for a connection".to_owned(),
        For::IoUring => "waits for an io_uring".to_owned(),
        For::Lock => "waits for a file lock".to_owned(),
        For::Child => "waits for a child".to_owned(),
        For::Running => "runs".to_owned(),
        _ => format!("waits{}", wchan(Some(node))),
    }
}

/// "A reads P, whose write end B holds", along the chain; of a deadlock, around the circle.
fn steps(graph: &Graph, finding: &Finding) -> Vec<String> {
    let chain = &finding.chain;
    let mut pairs: Vec<(i32, i32)> = chain.windows(2).map(|pair| (pair[0], pair[1])).collect();
    if finding.verdict == Verdict::Deadlock
        && let (Some(first), Some(last)) = (chain.first(), chain.last())
    {
        pairs.push((*last, *first));
    }
    let mut said: Vec<String> = pairs.into_iter().filter_map(|(from, to)| step(graph, from, to)).collect();
    // The last one waits for nobody visible, and what it waits for is the point.
    if matches!(finding.verdict, Verdict::InFlight | Verdict::Unseen | Verdict::Opening)
        && let (Some(last), Some(on)) = (chain.last(), &finding.at)
    {
        said.push(format!("{} {}", graph.name(*last), needs(on)));
    }
    said
}

fn needs(on: &On) -> String {
    let fd = on.fd.map_or_else(String::new, |fd| format!(" (fd {fd})"));
    match on.need {
        Need::Read => format!("reads {}{fd}", on.name),
        Need::Write => format!("writes to {}{fd}", on.name),
        Need::Reader => format!("opens {} to write", on.name),
        Need::Writer => format!("opens {} to read", on.name),
    }
}

fn step(graph: &Graph, from: i32, to: i32) -> Option<String> {
    let node = graph.nodes.get(&from)?;
    let by = |blocked: &Blocked| {
        if blocked.wait.children.contains(&to) {
            return Some(format!("{} waits for {} to end", graph.name(from), graph.name(to)));
        }
        let (on, hold) =
            node.channels(blocked).find_map(|(on, held)| Some((on, held.iter().find(|h| h.pid == to)?)))?;
        let fds: Vec<String> = hold.fds.iter().map(ToString::to_string).collect();
        let other = match (&on.channel.as_ref()?.id, on.need) {
            (channel::Id::Socket { .. }, _) => "peer",
            (channel::Id::Pty { master: true, .. }, _) => "slave",
            (channel::Id::Pty { .. }, _) => "master",
            (_, Need::Read | Need::Writer) => "write end",
            (_, Need::Write | Need::Reader) => "read end",
        };
        let holder = if to == from { "only it itself".to_owned() } else { graph.name(to) };
        Some(format!("{} {}, whose {other} {holder} holds as fd {}", graph.name(from), needs(on), fds.join(",")))
    };
    node.outward().find_map(by)
}

/// The graph for Graphviz: processes, and an arrow from each to whom it waits for.
#[must_use]
pub fn dot(explanation: &Explanation, graph: &Graph) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("digraph why {\n  rankdir=LR; node [shape=box];\n");
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    for (pid, node) in &graph.nodes {
        let state = node.blocked.first().map_or(For::Unknown, |b| b.wait.what);
        let state = serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let color = if explanation.culprits.contains(pid) { ", color=red, penwidth=2" } else { "" };
        let mark = if *pid == graph.root { ", style=bold" } else { "" };
        let _ = writeln!(text, "  p{pid} [label=\"{}\\n{state}\"{color}{mark}];", escape(&graph.name(*pid)));
    }
    for (pid, node) in &graph.nodes {
        for blocked in node.outward() {
            for child in blocked.wait.children.iter().filter(|child| graph.nodes.contains_key(child)) {
                let _ = writeln!(text, "  p{pid} -> p{child} [label=\"child\"];");
            }
            for (on, held) in node.channels(blocked) {
                for hold in held.iter().filter(|hold| graph.nodes.contains_key(&hold.pid)) {
                    let _ = writeln!(text, "  p{pid} -> p{} [label=\"{}\"];", hold.pid, escape(&needs(on)));
                }
                if held.is_empty() {
                    let _ = writeln!(text, "  p{pid} -> \"nobody\" [label=\"{}\"];", escape(&needs(on)));
                }
            }
        }
    }
    let _ = writeln!(text, "  label=\"{}\";\n}}", escape(&explanation.explanation));
    text
}
