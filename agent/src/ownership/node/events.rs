//! What a node tells a run. Who is lineage is for the run to judge: a node's word is a reason to look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::protocol::Held;
use super::shared::{Line, Shared};
use super::source::NodeSource;
use super::wire::{Told, Wire};
use crate::ownership::events::{Escaped, Events, LineageEvent, Names};
use crate::ownership::keep::Keep;
use crate::ownership::proc::Proc;
use crate::ownership::{Lineage, Source};
use crate::pipe::Pipe;
use crate::process::children::descends_from;
use crate::process::is_denied;
use crate::process::stat::Stat;
use crate::process::table::{Hold, Via, still_writes};

/// How long a node may owe an answer before it is given up. It is not waited for meanwhile.
pub const GIVEN_UP: Duration = Duration::from_secs(3);

/// A node's events, for one run.
pub struct NodeEvents {
    names: Names,
    shared: Arc<Shared>,
    /// The connection once more, to be polled while somebody else has it in hand.
    fd: OwnedFd,
    root: i32,
    home: i32,
    wants_walk: bool,
}

impl NodeEvents {
    /// For the run of that supervisor.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had.
    pub fn new(client: Client, root: i32) -> io::Result<NodeEvents> {
        let fd = client.wire.as_fd().try_clone_to_owned()?;
        let shared = Arc::new(Shared::new(client.wire)?);
        Ok(NodeEvents { names: client.names, shared, fd, root, home: 0, wants_walk: false })
    }

    /// What the run is told of that.
    fn event(&mut self, told: Told) -> Option<LineageEvent> {
        Some(match told {
            Told::Eof(pipe) => LineageEvent::LastWriterGone(pipe.id),
            Told::Changed(pipe) => LineageEvent::Changed(pipe.id),
            Told::Escape { pipe, pid, start_ticks, happened, holds } => {
                LineageEvent::Escaped(self.escaped(pipe, (pid, start_ticks), happened, holds)?)
            }
            Told::Watching => {
                self.wants_walk = true;
                return None;
            }
            Told::Lost(missed) => {
                self.wants_walk = true;
                LineageEvent::Lost { why: "the node lost events", missed }
            }
        })
    }

    /// An escape, if that process is lineage and has left. Where it does not show what it is said to hold,
    /// somebody has to look.
    fn escaped(
        &self,
        pipe: Pipe,
        (pid, start_ticks): (i32, u64),
        happened: Duration,
        holds: Option<Vec<Held>>,
    ) -> Option<Escaped> {
        let stat = Stat::read(pid).ok()?;
        let is_it = start_ticks == 0 || stat.id.start_ticks == start_ticks;
        if !is_it || stat.pgid == self.home || !descends_from(pid, self.root) {
            return None;
        }
        let holds: Vec<Hold> = holds?.into_iter().map(|held| hold(pipe, held)).collect();
        let shown = |hold: &Hold| still_writes(pid, pipe, hold).unwrap_or_else(|error| is_denied(&error));
        let holds = (!holds.is_empty() && holds.iter().all(shown)).then_some(holds);
        Some(Escaped { pid, happened, holds })
    }

    /// What is wrong with the connection, to be told once.
    fn trouble(&mut self, line: &mut Line) -> io::Result<Option<LineageEvent>> {
        if let Some(error) = line.broken.take() {
            return Err(error);
        }
        if line.overdue.is_some_and(|since| since.elapsed() > GIVEN_UP) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the node does not answer"));
        }
        Ok(line.untold.take().map(LineageEvent::Trouble))
    }
}

/// A hold as sources tell of it.
pub(super) fn hold(pipe: Pipe, held: Held) -> Hold {
    Hold { pipe: pipe.id, end: held.end, tid: held.tid, fds: held.fds, via: Via::Descriptor }
}

impl Events for NodeEvents {
    fn names(&self) -> Names {
        self.names
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd(self.fd.as_fd())
    }

    fn next(&mut self) -> io::Result<Option<LineageEvent>> {
        let shared = Arc::clone(&self.shared);
        let Some(mut line) = shared.try_line() else { return Ok(None) };
        for turn in 0..2 {
            while let Some(told) = line.wire.next_told() {
                if let Some(event) = self.event(told) {
                    return Ok(Some(event));
                }
            }
            if turn == 0 {
                line.attempt(Wire::read);
                line.settle();
            }
        }
        self.trouble(&mut line)
    }

    fn follow(&mut self, lineage: &Lineage, pipes: &[Pipe]) {
        self.home = lineage.home;
        self.shared.want(pipes);
        drop(self.shared.try_line()); // or whoever has it in hand does it next
    }

    /// It holds no write end.
    fn disown(&mut self, _helper: i32) {}

    fn wants_walk(&self) -> bool {
        self.wants_walk
    }

    fn walked(&mut self, _members: &[Stat]) {
        self.wants_walk = false;
    }

    fn source(&self, lineage: &Lineage, keep: &Keep) -> Option<Box<dyn Source>> {
        let proc = Proc::new(lineage.clone(), keep.clone());
        Some(Box::new(NodeSource::new(Arc::clone(&self.shared), proc)))
    }
}
