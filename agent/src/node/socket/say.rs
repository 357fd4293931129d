//! What the map knows, in the words of one caller: in its pid namespace, and no more than a line holds.

use std::os::fd::OwnedFd;

use super::peer::{Peer, pidfd_of};
use crate::node::live::{Fled, Holding, Part};
use crate::ownership::node::protocol::{
    Held, Holder, Holders, LONGEST, MOST_FDS, MOST_HOLDERS, Message, Named, Own, Tell,
};
use crate::pipe::{End, Pipe, PipeId, PipeKind, ProcessId};

/// The most tables that are told of for one holder.
const MOST_TABLES: usize = 4;
/// The most pipes in one answer to `why`.
const MOST_PIPES: usize = 256;

/// A part of an answer, for which the pidfds are made when it is sent.
#[derive(Debug)]
pub(super) struct Draft {
    id: u64,
    holders: Holders,
    /// The same processes in our own pid namespace.
    processes: Vec<ProcessId>,
}

impl Draft {
    /// How many descriptors it comes with at most.
    pub(super) fn fds(&self) -> usize {
        self.processes.len()
    }

    /// How much room it takes, in bytes, about.
    pub(super) fn size(&self) -> usize {
        256 + self.processes.len() * 256
    }

    /// The line, and a pidfd for each holder that lives still.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut fds = Vec::with_capacity(self.processes.len());
        let mut processes = self.processes.into_iter();
        self.holders.holders.retain(|_| {
            let pidfd = processes.next().and_then(pidfd_of);
            let lives = pidfd.is_some();
            fds.extend(pidfd);
            lives
        });
        (Message::answer(self.id, Tell::Holders(self.holders)).line(), fds)
    }
}

/// Who holds the write end, in parts.
pub(super) fn holders(peer: &Peer, id: u64, pipe: Pipe, holding: &Holding, exact: bool) -> Vec<Draft> {
    let mut elsewhere = 0;
    let mut told = Vec::new();
    for (process, parts) in &holding.parts {
        let parts: Vec<&Part> = parts.iter().filter(|part| part.end.writes()).collect();
        if parts.is_empty() {
            continue;
        }
        match holder(peer, *process, &parts) {
            Some(holder) => told.push((*process, holder)),
            None => elsewhere += 1,
        }
    }
    let mut drafts = Vec::new();
    loop {
        let rest = told.split_off(told.len().min(MOST_HOLDERS));
        let (processes, holders) = std::mem::replace(&mut told, rest).into_iter().unzip();
        let (unknown, hidden, more) = (holding.unknown, holding.hidden, !told.is_empty());
        let holders = Holders { pipe: pipe.into(), holders, more, elsewhere, unknown, hidden, exact };
        drafts.push(Draft { id, holders, processes });
        if !more {
            return drafts;
        }
    }
}

/// None where the caller does not see it.
fn holder(peer: &Peer, process: ProcessId, parts: &[&Part]) -> Option<Holder> {
    let pid = peer.translate(process.pid, process.pid)?;
    let mut room = MOST_FDS;
    let holds = parts.iter().take(MOST_TABLES).map(|part| {
        let tid = if part.tid == process.pid { Some(pid) } else { peer.translate(process.pid, part.tid) };
        let fds: Vec<i32> = part.fds.iter().copied().take(room).collect();
        room -= fds.len();
        Held { tid: tid.unwrap_or(pid), end: part.end, fds }
    });
    Some(Holder { pid, start_ticks: process.start_ticks, holds: holds.collect() })
}

/// Somebody left his group. None where the caller does not see him.
pub(super) fn escape(peer: &Peer, watch: u64, fled: &Fled) -> Option<Tell> {
    let pid = peer.translate(fled.pid, fled.pid)?;
    let stat = crate::process::stat::Stat::read(fled.pid);
    let holds = fled.hold.as_ref().map(|part| {
        let tid = if part.tid == fled.pid { Some(pid) } else { peer.translate(fled.pid, part.tid) };
        vec![Held { tid: tid.unwrap_or(pid), end: part.end, fds: part.fds.iter().copied().take(MOST_FDS).collect() }]
    });
    Some(Tell::Escape {
        watch,
        pid,
        start_ticks: stat.map_or(0, |stat| stat.id.start_ticks),
        pgid: peer.group_of(fled.pid),
        happened_ns: u64::try_from(fled.happened.as_nanos()).unwrap_or(u64::MAX),
        holds,
    })
}

/// The caller's own pipes, in parts.
pub(super) fn own(peer: &Peer, id: u64, pipefs: u64, own: &[(PipeId, Holding)], exact: bool) -> Vec<Vec<u8>> {
    let rows: Vec<Own> = own
        .iter()
        .take(MOST_PIPES)
        .filter_map(|(pipe, holding)| one_of_its_own(peer, pipefs, *pipe, holding))
        .collect();
    let mut lines = Vec::new();
    let mut part: Vec<Own> = Vec::new();
    let message = |pipes, more| Message::answer(id, Tell::Why { pipes, more, exact }).line();
    let mut size = 0;
    for row in rows {
        let its = serde_json::to_vec(&row).map_or(0, |row| row.len() + 1);
        if size + its > LONGEST - 256 {
            lines.push(message(std::mem::take(&mut part), true));
            size = 0;
        }
        size += its;
        part.push(row);
    }
    lines.push(message(part, false));
    lines
}

fn one_of_its_own(peer: &Peer, pipefs: u64, pipe: PipeId, holding: &Holding) -> Option<Own> {
    let its = holding.parts.get(&peer.id)?;
    let kind = if pipe.dev == pipefs { PipeKind::Pipe } else { PipeKind::Fifo };
    let end = its.iter().map(|part| part.end).reduce(End::and)?;
    let mut own = Own {
        pipe: Named { dev: pipe.dev, ino: pipe.ino, kind },
        end,
        fds: its.iter().flat_map(|part| part.fds.iter().copied()).take(MOST_FDS).collect(),
        writers: Vec::new(),
        readers: Vec::new(),
        elsewhere: holding.unknown,
    };
    for (process, parts) in holding.parts.iter().filter(|(process, _)| **process != peer.id) {
        let room = own.writers.len().max(own.readers.len()) < MOST_HOLDERS;
        let Some(pid) = Some(process.pid).filter(|_| room).and_then(|pid| peer.translate(pid, pid)) else {
            own.elsewhere += 1;
            continue;
        };
        if parts.iter().any(|part| part.end.writes()) {
            own.writers.push(pid);
        }
        if parts.iter().any(|part| part.end != End::Write) {
            own.readers.push(pid);
        }
    }
    Some(own)
}
