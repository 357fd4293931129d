//! The live map's events, for one run.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pipewarden_common::event::{Escape, OTHER_UNKNOWN, kind};

use super::add;
use super::shared::Shared;
use super::source::BpfSource;
use crate::kernel::record::{Record, end_of, pipe_of};
use crate::kernel::tracker::{Losses, Reader};
use crate::ownership::events::{Escaped, Events, LineageEvent, Names};
use crate::ownership::keep::Keep;
use crate::ownership::proc::Proc;
use crate::ownership::{Lineage, Source};
use crate::pipe::{Pipe, PipeId};
use crate::process::table::Hold;

/// How often it is asked whether anything was lost, beside each time that the map is.
const CHECK: Duration = Duration::from_secs(1);

/// How many records are taken in one turn: who forks as fast as it can does not keep a run from its
/// clocks.
const TURN: u32 = 256;

/// The live map's events, for one run.
pub struct BpfEvents {
    names: Names,
    reader: Reader,
    shared: Arc<Shared>,
    home: i32,
    losses: Losses,
    next_check: Instant,
    taken: u32,
}

impl Events for BpfEvents {
    fn names(&self) -> Names {
        self.names
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<LineageEvent>> {
        while self.taken < TURN {
            let Some(record) = self.reader.next_record() else { break };
            self.taken += 1;
            if let Some(event) = self.event(&record) {
                return Ok(Some(event));
            }
        }
        let was_a_turn = std::mem::take(&mut self.taken) == TURN;
        if was_a_turn {
            return Ok(None);
        }
        self.lost()
    }

    fn expect(&mut self, pipes: &[Pipe], helpers: &HashSet<i32>) {
        self.shared.expect(pipes, helpers);
    }

    fn born(&mut self, command: Option<i32>) {
        self.shared.born(command);
    }

    fn follow(&mut self, lineage: &Lineage, _pipes: &[Pipe]) {
        self.home = lineage.home;
    }

    /// It was never tracked.
    fn disown(&mut self, _helper: i32) {}

    fn wants_walk(&self) -> bool {
        self.shared.must_seed.load(Ordering::Acquire)
    }

    fn source(&self, lineage: &Lineage, keep: &Keep) -> Option<Box<dyn Source>> {
        let proc = Proc::new(lineage.clone(), keep.clone());
        Some(Box::new(BpfSource::new(Arc::clone(&self.shared), proc)))
    }
}

impl BpfEvents {
    pub(super) fn new(names: Names, reader: Reader, shared: Arc<Shared>) -> BpfEvents {
        let next_check = Instant::now() + CHECK;
        // What was lost before is nobody's: nobody has been followed yet.
        let losses = shared.map().tracker.losses();
        BpfEvents { names, reader, shared, home: 0, losses, next_check, taken: 0 }
    }

    fn event(&self, record: &Record) -> Option<LineageEvent> {
        let event = record.event();
        let pid = event.pid.cast_signed();
        Some(match (event.kind, record) {
            (kind::FORK, _) => LineageEvent::Forked { parent: pid, child: event.other.cast_signed() },
            (kind::EXEC, _) => LineageEvent::Exec(pid),
            (kind::EXIT, _) => LineageEvent::Exited(pid),
            (kind::LAST_WRITER, Record::Closed(closed)) => LineageEvent::LastWriterGone(pipe_of(&closed.held)),
            (_, Record::Escape(escape)) => LineageEvent::Escaped(self.escaped(escape)?),
            _ => return None,
        })
    }

    fn escaped(&self, escape: &Escape) -> Option<Escaped> {
        let event = &escape.event;
        let happened = Duration::from_nanos(event.time_ns);
        // A shell puts its children into their groups: what they hold is not what it holds.
        if event.kind == kind::SETPGID && event.other == OTHER_UNKNOWN {
            return None; // the next look finds it
        }
        if event.kind == kind::SETPGID && event.other != 0 && event.other != event.pid {
            return Some(Escaped { pid: event.other.cast_signed(), happened, holds: None });
        }
        if event.pgid.cast_signed() == self.home {
            return None;
        }
        let mut holds = BTreeMap::<PipeId, Hold>::new();
        for held in escape.held.iter().take(escape.count as usize) {
            let Some(end) = end_of(held) else { continue };
            add(&mut holds, pipe_of(held), end, event.pid.cast_signed(), held.fd.cast_signed());
        }
        let holds = (escape.unseen == 0).then(|| holds.into_values().collect());
        Some(Escaped { pid: event.pid.cast_signed(), happened, holds })
    }

    /// Whether the kernel lost anything since this was asked last. What the programs count is asked whenever
    /// the ring buffer has been emptied: nothing may come any more by which it would be asked later.
    fn lost(&mut self) -> io::Result<Option<LineageEvent>> {
        // Who asks it looks itself.
        let Some(map) = self.shared.map_now() else { return Ok(None) };
        let tracker = &map.tracker;
        let found = self.shared.lost.swap(false, Ordering::AcqRel);
        let now = Instant::now();
        let counted = Losses { skipped: self.losses.skipped, ..tracker.counted_losses() };
        if !found && now < self.next_check && counted == self.losses {
            return Ok(None);
        }
        self.next_check = now + CHECK;
        tracker.is_heard().map_err(io::Error::other)?;
        let losses = tracker.losses();
        if losses != map.seen {
            self.shared.must_seed.store(true, Ordering::Release);
        }
        drop(map);
        let before = std::mem::replace(&mut self.losses, losses);
        Ok(losses.since(&before).map(|(why, missed)| LineageEvent::Lost { why, missed }))
    }
}
