//! The command that would release a wait, and what it costs.

use super::flight::Carries;
use super::graph::{Graph, Node, lineage};
use super::machine::slave;
use super::verdict::{Finding, Verdict};
use super::waits::For;
use crate::process::stat::{Stat, Terminal};
use crate::process::{describe, pids, wait};

/// What to type, and what else there is to know about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remedy {
    /// A command line for a shell; none when no command would help, or nothing needs help.
    pub command: Option<String>,
    /// What it does, or the gentler way that only somebody else can go.
    pub note: Option<String>,
}

/// The remedy for a finding.
#[must_use]
pub fn remedy(graph: &Graph, finding: &Finding) -> Remedy {
    let first = finding.culprits.first().copied();
    match finding.verdict {
        Verdict::NotWaiting | Verdict::Working => Remedy::default(),
        Verdict::Exited => exited(graph, first),
        Verdict::Waiting if first == Some(graph.root) => Remedy::default(),
        Verdict::Waiting | Verdict::Withheld => end(graph, &finding.culprits),
        Verdict::Unseen => Remedy {
            command: None,
            note: Some(
                "ask again as root, in the pid namespace of the machine: somebody holds it whom we may not see"
                    .to_owned(),
            ),
        },
        Verdict::InFlight => in_flight(graph, finding),
        Verdict::Opening => opening(finding),
        Verdict::Uninterruptible => uninterruptible(first),
        Verdict::Frozen => frozen(graph, first),
        Verdict::Stopped => stopped(graph, &finding.culprits),
        Verdict::Deadlock => deadlock(graph, &finding.culprits),
    }
}

/// The signal that ends a process, and the numbers: TERM, unless one of them ignores or blocks it.
fn kill(pids: &[i32]) -> String {
    let signal = if pids.iter().any(|pid| describe::withstands_sigterm(*pid)) { "KILL" } else { "TERM" };
    format!("kill -{signal}{}", list(pids))
}

fn list(pids: &[i32]) -> String {
    pids.iter().fold(String::new(), |text, pid| format!("{text} {pid}"))
}

fn end(graph: &Graph, culprits: &[i32]) -> Remedy {
    // Nobody should be told to end the first process, or what no signal ends.
    let (mortal, spared): (Vec<i32>, Vec<i32>) =
        culprits.iter().partition(|pid| **pid > 1 && graph.nodes.get(pid).is_none_or(|node| !node.stat.kernel_thread));
    if mortal.is_empty() {
        let note = spared.first().map(|pid| format!("{} must let go by itself", graph.name(*pid)));
        return Remedy { command: None, note };
    }
    let it = if mortal.len() == 1 { "it" } else { "them" };
    Remedy { command: Some(kill(&mortal)), note: Some(format!("or let {it} close the descriptors")) }
}

fn exited(graph: &Graph, pid: Option<i32>) -> Remedy {
    let parent = pid.and_then(|pid| graph.nodes.get(&pid)).map(|node| node.stat.ppid);
    Remedy {
        command: None,
        note: parent.map(|parent| format!("its parent {} has not waited for it", graph.name(parent))),
    }
}

fn in_flight(graph: &Graph, finding: &Finding) -> Remedy {
    let Some(channel) = finding.at.as_ref().and_then(|on| on.channel.as_ref()) else { return Remedy::default() };
    let among: Vec<_> = graph.in_flight.iter().filter(|flight| finding.culprits.contains(&flight.pid)).collect();
    let sockets: Vec<String> = among
        .iter()
        .map(|flight| format!("socket:[{}] of {} (fd {})", flight.socket, graph.name(flight.pid), flight.fd))
        .collect();
    let sockets = sockets.join(", ");
    if among.iter().any(|flight| flight.carries(channel.id) == Carries::Yes) {
        let mut remedy = end(graph, &finding.culprits);
        remedy.note = Some(format!("it is in the receive queue of {sockets}; or let the receiver take and close it"));
        return remedy;
    }
    // Nobody is to be ended on a guess.
    Remedy { command: None, note: Some(format!("it may be in the receive queue of {sockets}, where we may not look")) }
}

fn opening(finding: &Finding) -> Remedy {
    let path = finding.at.as_ref().filter(|on| on.channel.is_some()).map(|on| quoted(&on.name));
    Remedy {
        note: Some(match path {
            Some(_) => {
                "or open the missing end; a writer that is released gets SIGPIPE at its write, a reader EOF".to_owned()
            }
            None => "open the missing end; we may not know which FIFO it is".to_owned(),
        }),
        command: path.map(|path| format!("pipewarden fifo close {path}")),
    }
}

/// A word as a shell takes it back.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Where the kernel lets us see the stack, it says which device or file system.
fn uninterruptible(pid: Option<i32>) -> Remedy {
    let stack = pid.and_then(|pid| wait::stack(pid, pid)).unwrap_or_default();
    let at = if stack.is_empty() { String::new() } else { format!(", in {}", stack.join(" < ")) };
    Remedy {
        command: None,
        note: Some(format!("no signal ends it: look at the device or file system that it waits for{at}")),
    }
}

fn frozen(graph: &Graph, pid: Option<i32>) -> Remedy {
    let Some(frozen) = pid.and_then(|pid| graph.nodes.get(&pid)).and_then(|node| node.frozen.as_ref()) else {
        return Remedy {
            command: None,
            note: Some("thaw its cgroup, whose folder we do not see from here".to_owned()),
        };
    };
    let file = quoted(&frozen.file.to_string_lossy());
    Remedy {
        command: Some(format!("echo {} > {file}", frozen.thaw)),
        note: Some("no signal reaches it before that; somebody froze the group on purpose".to_owned()),
    }
}

fn stopped(graph: &Graph, culprits: &[i32]) -> Remedy {
    let nodes = || culprits.iter().filter_map(|pid| graph.nodes.get(pid));
    if nodes().any(|node| node.blocked.iter().any(|b| b.wait.what == For::Traced)) {
        let tracer = culprits.iter().find_map(|pid| describe::tracer(*pid));
        let note = tracer.map(|tracer| format!("let the debugger {} continue it", graph.name(tracer)));
        return Remedy { command: None, note };
    }
    let Some(background) = nodes().find(|node| reads_terminal_from_background(node)) else {
        return Remedy { command: Some(format!("kill -CONT{}", list(culprits))), note: None };
    };
    let shell = graph.name(background.stat.sid);
    let terminal = Terminal::of(background.stat.id.pid)
        .and_then(|terminal| slave(terminal.device))
        .map_or_else(String::new, |n| format!(" on /dev/pts/{n}"));
    Remedy {
        command: Some(format!("{0}; kill -CONT{1}", kill(culprits), list(culprits))),
        note: Some(format!(
            "that ends it; to let it go on, type fg in {shell}{terminal}, or start it with </dev/null: SIGCONT alone stops it again"
        )),
    }
}

/// Whether a stopped process, or one that was stopped with it, is a background job that wants its terminal.
#[must_use]
pub fn reads_terminal_from_background(node: &Node) -> bool {
    let stat = &node.stat;
    let background =
        |stat: &Stat| Terminal::of(stat.id.pid).is_some_and(|t| t.foreground > 0 && t.foreground != stat.pgid);
    let wants = |pid: i32| {
        let threads = wait::threads(pid).unwrap_or_default();
        threads.iter().filter_map(|thread| thread.call).any(|call| {
            call.number == libc::SYS_read
                && crate::process::open::target(pid, pid, call.fd(0))
                    .is_some_and(|link| link.starts_with(b"/dev/pts/") || link == b"/dev/tty")
        })
    };
    // The kernel stops the whole group when one member reads.
    background(stat)
        && (wants(stat.id.pid)
            || pids().unwrap_or_default().into_iter().any(|pid| {
                Stat::read(pid).is_ok_and(|other| other.pgid == stat.pgid && other.state == 'T') && wants(pid)
            }))
}

/// Of those who wait for each other, the one that a signal should end: the one furthest from the first
/// process, so that no job dies for its helper; and not the one that was asked about, if that is as good.
fn deadlock(graph: &Graph, circle: &[i32]) -> Remedy {
    let depth = |pid: &i32| lineage(*pid).len();
    let deepest = circle.iter().map(depth).max().unwrap_or(0);
    let victim = circle.iter().filter(|pid| depth(pid) == deepest).max_by_key(|pid| (**pid != graph.root, **pid));
    let Some(victim) = victim else { return Remedy::default() };
    let holds: Vec<String> = circle.iter().filter_map(|pid| lets_go(graph, *pid, circle)).collect();
    Remedy {
        command: Some(kill(&[*victim])),
        note: Some(if holds.is_empty() {
            "that ends one of them, and with it the circle".to_owned()
        } else {
            format!("that ends one of them; what only they themselves can do: {}", holds.join(", or "))
        }),
    }
}

/// What a member of a circle could close, so that another one gets EOF.
fn lets_go(graph: &Graph, holder: i32, circle: &[i32]) -> Option<String> {
    circle.iter().find_map(|pid| {
        let node = graph.nodes.get(pid)?;
        node.outward().filter(|blocked| blocked.wait.what == For::Read).find_map(|blocked| {
            let (on, held) = node.channels(blocked).next()?;
            let hold = held.iter().find(|hold| hold.pid == holder)?;
            let fds: Vec<String> = hold.fds.iter().map(ToString::to_string).collect();
            Some(format!("{} closes fd {} ({})", graph.name(holder), fds.join(", "), on.name))
        })
    })
}
