//! Events from the proc connector: it tells of the whole machine, and here is kept who is lineage.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Lineage;
use super::events::{Escaped, Events, LineageEvent, Names};
use crate::kernel::connector::{Connector, ConnectorEvent};
use crate::pipe::Pipe;
use crate::process::stat::Stat;

/// How many events of the machine are looked at in one turn: some milliseconds, after which bytes
/// that came meanwhile are moved first.
const TURN: usize = 4096;

/// How often the lineage is walked before it counts as known: one walk can miss a process that moves
/// to another parent meanwhile.
const WALKS: u8 = 2;

/// The connector, listening for one run.
///
/// It tells of setsid(2) and not of setpgid(2): who leaves by that is found by the next look.
///
/// Minimum kernel: 6.6, or `CAP_NET_ADMIN`.
pub struct ConnectorEvents {
    connector: Connector,
    members: Members,
    /// How many of the machine's events were looked at in this turn.
    looked_at: usize,
    /// Whether events were lost whose loss was not told yet.
    lost: bool,
    /// How many were lost up to the last time that this was told.
    dropped: u64,
    /// Whether what is known counts only with a walk that is still to be done.
    walks_left: u8,
    next: VecDeque<LineageEvent>,
}

impl ConnectorEvents {
    /// Listens from here on, by a connector that passed its self-test, for a run whose command was not
    /// started yet. `helpers` are the supervisor's children so far.
    #[must_use]
    pub fn from_the_start(connector: Connector, root: i32, helpers: &HashSet<i32>) -> ConnectorEvents {
        let dropped = connector.dropped();
        let members = Members::new(root, helpers);
        ConnectorEvents { connector, members, looked_at: 0, lost: false, dropped, walks_left: 0, next: VecDeque::new() }
    }

    /// The same for a run whose command has been running for a while.
    #[must_use]
    pub fn from_now_on(connector: Connector, root: i32, helpers: &HashSet<i32>) -> ConnectorEvents {
        let mut events = Self::from_the_start(connector, root, helpers);
        events.begin_to_walk();
        events
    }

    fn begin_to_walk(&mut self) {
        self.walks_left = WALKS;
        self.members.meanwhile = Some(Meanwhile::default());
    }

    /// Everything that was in the socket has been read: only now is nothing more dropped unseen.
    fn tell_loss(&mut self) -> LineageEvent {
        self.lost = false;
        self.begin_to_walk();
        let dropped = self.connector.dropped();
        let missed = dropped.saturating_sub(std::mem::replace(&mut self.dropped, dropped));
        LineageEvent::Lost { why: "the socket's buffer was full", missed }
    }
}

impl Events for ConnectorEvents {
    fn names(&self) -> Names {
        Names::CONNECTOR
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.connector.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<LineageEvent>> {
        loop {
            if let Some(event) = self.next.pop_front() {
                return Ok(Some(event));
            }
            if self.looked_at >= TURN {
                self.looked_at = 0;
                return Ok(None);
            }
            self.looked_at += 1;
            match self.connector.next_event()? {
                None if self.lost => return Ok(Some(self.tell_loss())),
                None => {
                    self.looked_at = 0;
                    return Ok(None);
                }
                Some(ConnectorEvent::Lost) => self.lost = true,
                Some(ConnectorEvent::Fork { parent, child }) => {
                    let born = self.members.forked(parent, child);
                    self.next.extend(born.then_some(LineageEvent::Forked { parent, child }));
                }
                Some(ConnectorEvent::Exit(pid)) => self.next.extend(self.members.exited(pid)),
                Some(ConnectorEvent::Exec(pid)) if self.members.has(pid) => {
                    return Ok(Some(LineageEvent::Exec(pid)));
                }
                Some(ConnectorEvent::Setsid(pid)) => {
                    self.next.extend(self.members.left(pid, self.connector.happened()));
                }
                Some(ConnectorEvent::Exec(_)) => {}
            }
        }
    }

    /// The lineage is what descends from the supervisor, whichever try began it.
    fn follow(&mut self, lineage: &Lineage, _pipes: &[Pipe]) {
        debug_assert_eq!(lineage.root, self.members.root);
    }

    fn disown(&mut self, helper: i32) {
        self.members.helpers.insert(helper);
    }

    fn wants_walk(&self) -> bool {
        self.walks_left > 0
    }

    fn walked(&mut self, members: &[Stat]) {
        let first = self.walks_left == WALKS;
        self.walks_left = self.walks_left.saturating_sub(1);
        self.members.walked(members, first);
        self.next.extend(self.members.who_left_meanwhile());
        if self.walks_left == 0 {
            self.members.meanwhile = None;
        }
    }
}

/// Who is lineage, from forks and exits.
struct Members {
    root: i32,
    /// Children of the root that are none.
    helpers: HashSet<i32>,
    alive: HashSet<i32>,
    /// Those whose first thread exited while others run, with their start times: their end is not told.
    headless: HashMap<i32, u64>,
    /// What happened since it was known that the lineage has to be walked.
    meanwhile: Option<Meanwhile>,
}

#[derive(Default)]
struct Meanwhile {
    born: HashSet<i32>,
    gone: HashSet<i32>,
    /// Who left, of whom it was not known whether they are lineage, and when.
    left: HashMap<i32, Duration>,
}

impl Members {
    fn new(root: i32, helpers: &HashSet<i32>) -> Members {
        Members { root, helpers: helpers.clone(), alive: HashSet::new(), headless: HashMap::new(), meanwhile: None }
    }

    fn has(&self, pid: i32) -> bool {
        self.alive.contains(&pid)
    }

    /// Whether that is a birth in the lineage. A child of ours that we did not make is one:
    /// `CLONE_PARENT` makes siblings.
    fn forked(&mut self, parent: i32, child: i32) -> bool {
        let ours = parent == self.root && !self.helpers.contains(&child);
        if !ours && !self.has(parent) {
            return false;
        }
        // It may be the number of somebody who is long gone.
        if !ours && self.headless.contains_key(&parent) {
            self.sweep();
            if !self.has(parent) {
                return false;
            }
        }
        self.headless.remove(&child);
        self.alive.insert(child);
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.gone.remove(&child);
            meanwhile.born.insert(child);
        }
        true
    }

    /// The end of a process of the lineage, if it is one.
    fn exited(&mut self, pid: i32) -> Option<LineageEvent> {
        self.helpers.remove(&pid);
        // While it is told the process is still there, and counted among its threads.
        if self.has(pid)
            && let Ok(stat) = Stat::read(pid)
            && stat.threads > 1
        {
            self.headless.insert(pid, stat.id.start_ticks);
        }
        if !self.headless.is_empty() {
            self.sweep();
        }
        if self.headless.contains_key(&pid) {
            return None;
        }
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.born.remove(&pid);
            meanwhile.gone.insert(pid);
        }
        self.alive.remove(&pid).then_some(LineageEvent::Exited(pid))
    }

    /// Whether that is an escape. Of somebody unknown it may be one all the same while the lineage is
    /// not known: then it comes after the walk.
    fn left(&mut self, pid: i32, happened: Duration) -> Option<LineageEvent> {
        if self.has(pid) {
            return Some(LineageEvent::Escaped(Escaped { pid, happened, holds: None }));
        }
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.left.insert(pid, happened);
        }
        None
    }

    fn who_left_meanwhile(&mut self) -> Vec<LineageEvent> {
        let Some(meanwhile) = &mut self.meanwhile else { return Vec::new() };
        let alive = &self.alive;
        let escapes = meanwhile.left.extract_if(|pid, _| alive.contains(pid));
        escapes.map(|(pid, happened)| LineageEvent::Escaped(Escaped { pid, happened, holds: None })).collect()
    }

    /// Forgets those without a first thread that are gone by now.
    fn sweep(&mut self) {
        let alive = &mut self.alive;
        self.headless.retain(|pid, start| {
            let stays = Stat::read(*pid).is_ok_and(|stat| stat.id.start_ticks == *start && !stat.is_dead());
            if !stays {
                alive.remove(pid);
            }
            stays
        });
    }

    /// Takes what a walk found; the first one replaces what was known before.
    fn walked(&mut self, members: &[Stat], first: bool) {
        let meanwhile = self.meanwhile.take().unwrap_or_default();
        if first {
            self.alive.clone_from(&meanwhile.born);
            self.headless.clear();
        }
        for stat in members.iter().filter(|stat| !meanwhile.gone.contains(&stat.id.pid)) {
            self.alive.insert(stat.id.pid);
            // A zombie with threads: its first exit was told, or lost.
            if matches!(stat.state, 'Z' | 'X') {
                self.headless.insert(stat.id.pid, stat.id.start_ticks);
            }
        }
        self.meanwhile = Some(meanwhile);
    }
}

#[cfg(test)]
mod tests;
