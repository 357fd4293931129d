//! What the node's loop puts up for others after each look.

use std::collections::HashMap;

use super::Node;
use super::cases::{Case, State};
use crate::audit::evidence::PipeSeen;
use crate::node::health::{Facts, troubles};
use crate::node::http::board::{HolderState, HolderView, PipeState, PipeView, View};
use crate::node::withheld::Row;
use crate::pipe::{Pipe, ProcessId};
use crate::process::describe::{Description, describe};

/// Who holders are that are no business of any policy: asked once.
pub(super) type Known = HashMap<ProcessId, Description>;

impl Node {
    /// Puts up what the last look found, in numbers and in words.
    pub(super) fn publish(&mut self) {
        let rooms = self.live.rooms();
        let holders = self.cases.values().map(|case| case.holders.len()).sum();
        let watched = self.live.watched().filter(|(row, _)| !self.cases.contains_key(&row.pipe)).count();
        self.metrics.look(watched, self.cases.len(), holders, self.live.commands());
        self.metrics.rooms(&rooms);
        self.metrics.lost(&self.live.losses());
        self.metrics.attributed(self.attribution.counts());
        self.metrics.named(self.names.counts());
        let facts = Facts {
            rooms: rooms.to_vec(),
            unmended: self.live.unmended(),
            attribution: self.attribution.counts(),
            unnamed: self.names.unanswered(),
            blind: self.blind.clone(),
        };
        let pipes = if self.serves { self.pipes() } else { Vec::new() };
        self.board.publish(View { pipes, troubles: troubles(&facts) });
    }

    fn pipes(&mut self) -> Vec<PipeView> {
        let mut known = std::mem::take(&mut self.known);
        let mut still = Known::new();
        let mut pipes: Vec<PipeView> = self.cases.values().map(|case| self.withheld_view(case)).collect();
        for (row, since) in self.live.watched().filter(|(row, _)| !self.cases.contains_key(&row.pipe)) {
            pipes.push(PipeView {
                pipe: PipeSeen::new(Pipe { id: row.pipe, kind: self.kind(row.pipe) }, None),
                state: PipeState::Watched,
                since_exit_ms: millis(since),
                holders: holders(row, &mut known, &mut still),
            });
        }
        pipes.sort_by_key(|view| (view.pipe.dev, view.pipe.ino));
        self.known = still;
        pipes
    }

    fn withheld_view(&self, case: &Case) -> PipeView {
        let mut holders: Vec<HolderView> = case
            .holders
            .values()
            .map(|holder| HolderView {
                process: Some(holder.description.clone()),
                state: Some(match holder.state {
                    State::New => HolderState::Waiting,
                    State::Spared => HolderState::Spared,
                    State::Signalled { .. } => HolderState::Signalled,
                }),
            })
            .collect();
        holders.sort_by_key(|holder| holder.process.as_ref().map(|process| process.pid));
        PipeView {
            pipe: PipeSeen::new(case.pipe, None),
            state: PipeState::Withheld,
            since_exit_ms: millis(self.started.elapsed().saturating_sub(case.since)),
            holders,
        }
    }
}

/// Who writes to a pipe, each process once.
fn holders(row: &Row, known: &mut Known, still: &mut Known) -> Vec<HolderView> {
    let mut writers: Vec<ProcessId> = row.writers.iter().map(|writer| writer.id).collect();
    writers.sort_unstable();
    writers.dedup();
    let mut who = |id: ProcessId| {
        if let Some(description) = still.get(&id) {
            return Some(description.clone());
        }
        let fresh = || describe(id.pid).ok().filter(|description| description.start_ticks == id.start_ticks);
        let description = known.remove(&id).or_else(fresh)?;
        still.insert(id, description.clone());
        Some(description)
    };
    writers.into_iter().map(|id| HolderView { process: who(id), state: None }).collect()
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
