//! The holders that a node names, looked at by ourselves.
//!
//! A node names candidates, as every source does. What they are to the run is read from `/proc`, from which
//! the kernel shows us what it shows, and before anybody is signalled [`crate::act`] looks once more. So a node
//! that is behind, or lies, costs time and no innocent process its life; and what it leaves out is found by
//! the scan that follows wherever it cannot vouch for having named everybody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::hold;
use super::protocol::Holders;
use super::shared::{Line, Shared};
use super::wire::{Questions, Wire};
use crate::ownership::proc::Proc;
use crate::ownership::{Census, Question, Scope, Source};
use crate::pipe::{Pipe, PipeId, ProcessId, Relation};
use crate::process::is_denied;
use crate::process::stat::Stat;
use crate::process::table::{Hold, still_writes};

/// A node, asked for one try.
pub struct NodeSource {
    shared: Arc<Shared>,
    proc: Proc,
    /// Who was named and did not show what it was said to hold, and how often.
    doubted: HashMap<ProcessId, u32>,
}

/// How long a node may take to begin to watch before it is said that it does not.
const SLOW: Duration = Duration::from_secs(1);

/// How often somebody may be named who shows nothing: a node that is behind learns it at once.
const BEHIND: u32 = 4;

/// What becomes of the holders that were named.
struct Judged {
    census: Census,
    /// Whether the node was right about everybody whom we could look at.
    right: bool,
}

impl Source for NodeSource {
    fn holders(&mut self, question: &Question) -> io::Result<Census> {
        if question.pipes.is_empty() {
            return self.proc.holders(question);
        }
        let Some((questions, asked)) = self.ask(&question.pipes) else { return self.proc.holders(question) };
        // It answers meanwhile.
        let members = self.proc.members(&question.except)?;
        let Some(told) = self.answers(&questions, asked) else { return self.proc.holders(question) };
        let Judged { mut census, right } = self.judge(question, members, &told);
        let exact = right && told.iter().all(|(_, holders)| holders.exact);
        let enough = match question.scope {
            Scope::Lineage => exact,
            Scope::Hidden | Scope::Machine => exact && told.iter().all(|told| vouches_for_all(told, &census)),
        };
        if !enough {
            self.add_what_proc_shows(question, &mut census)?;
        }
        Ok(census)
    }
}

fn ask_on(line: &mut Line, pipes: &[Pipe]) -> Option<Questions> {
    line.attempt(Wire::read)?;
    line.settle();
    // It was asked to watch them when the try began, and may have to look at the whole machine for that: until it
    // has, nobody waits.
    if line.overdue.is_none() && line.wire.settles_since().is_some_and(|since| since.elapsed() > SLOW) {
        line.is_overdue("the node does not begin to watch");
    }
    if line.overdue.is_some() || line.wire.settles_since().is_some() {
        return None;
    }
    line.attempt(|wire| wire.resolve(pipes))?
}

/// Whether nobody else of the lineage can hold the pipe than whom it names. That nobody does, of a pipe that has no end
/// of file yet, is not taken on trust: a descriptor in flight is not counted where somebody else, whoever it is, has
/// the same open file in a table.
fn vouches_for_all((pipe, holders): &(Pipe, Holders), census: &Census) -> bool {
    let of_lineage = census.holders.iter().filter(|holder| holder.relation == Relation::Lineage);
    let names_somebody = of_lineage.flat_map(|holder| &holder.holds).any(|hold| hold.pipe == pipe.id);
    names_somebody && holders.unknown == 0 && holders.hidden == Some(0)
}

impl NodeSource {
    /// A source for a try, on a connection that others use too.
    #[must_use]
    pub fn new(shared: Arc<Shared>, proc: Proc) -> NodeSource {
        NodeSource { shared, proc, doubted: HashMap::new() }
    }

    /// Puts the question, unless the node cannot be asked now.
    fn ask(&self, pipes: &[Pipe]) -> Option<(Questions, Instant)> {
        let now = Instant::now();
        let mut line = self.shared.line();
        let questions = ask_on(&mut line, pipes);
        self.shared.give_back(line);
        Some((questions?, now))
    }

    /// Waits for the answers, but not for long.
    fn answers(&self, questions: &Questions, asked: Instant) -> Option<Vec<(Pipe, Holders)>> {
        let mut line = self.shared.line();
        let answers = loop {
            if let Some(answers) = line.wire.answers(questions) {
                break answers.ok();
            }
            if line.overdue.is_some() || line.read_more(asked).is_none() {
                break None;
            }
        };
        self.shared.give_back(line);
        answers
    }

    /// Looks at everybody who was named.
    fn judge(&mut self, question: &Question, mut members: Vec<Stat>, told: &[(Pipe, Holders)]) -> Judged {
        let mut right = true;
        let mut holders = Vec::new();
        let unseen = told.iter().map(|(_, holders)| holders.elsewhere as usize).max().unwrap_or_default();
        let root = self.proc.root();
        for ((pid, start_ticks), holds) in by_process(told) {
            if pid == root || question.except.contains(&pid) {
                continue;
            }
            let member = members.iter().find(|stat| stat.id.pid == pid).cloned();
            let was_a_member = member.is_some();
            // Who is gone, or is just ending, holds nothing any more.
            let Some(stat) = member.or_else(|| Stat::read(pid).ok()).filter(|stat| !stat.is_dead()) else { continue };
            if stat.id.start_ticks != start_ticks {
                right = false;
                continue;
            }
            let relation = if was_a_member { Relation::Lineage } else { self.proc.relation(&stat) };
            if relation == Relation::Lineage && !was_a_member {
                members.push(stat.clone()); // born since
            }
            if relation != Relation::Lineage && question.scope != Scope::Machine {
                continue;
            }
            let (relation, holds) = match self.shows(&stat, &question.pipes, &holds) {
                Shown::Holds => (relation, holds),
                Shown::Nothing if Stat::read(pid).map_or(true, |stat| stat.exiting || stat.is_dead()) => continue,
                Shown::Nothing => {
                    right = false;
                    // It can have let go meanwhile, and whoever acts on it looks again.
                    if self.is_slandered(stat.id) {
                        continue;
                    }
                    (relation, holds)
                }
                Shown::Denied if relation == Relation::Lineage => (Relation::Opaque, Vec::new()),
                Shown::Denied => (relation, holds),
            };
            if let Ok(holder) = self.proc.holder(&stat, relation, holds) {
                holders.push(holder);
            }
        }
        let census = Census { scope: question.scope, holders, members, unseen, complete: true };
        Judged { census, right }
    }

    /// Whether somebody who shows nothing has been named too often to be asked about again.
    fn is_slandered(&mut self, id: ProcessId) -> bool {
        let times = self.doubted.entry(id).or_insert(0);
        *times = times.saturating_add(1);
        if *times == BEHIND {
            let mut line = self.shared.line();
            line.untold = Some(format!("the node says of process {} that it holds a pipe, and it does not", id.pid));
            self.shared.give_back(line);
        }
        *times >= BEHIND
    }

    /// What our own look at a process's tables shows of what it is said to hold.
    fn shows(&self, stat: &Stat, pipes: &[Pipe], holds: &[Hold]) -> Shown {
        for hold in holds {
            let Some(pipe) = pipes.iter().find(|pipe| pipe.id == hold.pipe) else { continue };
            match still_writes(stat.id.pid, *pipe, hold) {
                Ok(true) => return Shown::Holds,
                Err(error) if is_denied(&error) && !Stat::read(stat.id.pid).is_ok_and(|stat| stat.exiting) => {
                    return Shown::Denied;
                }
                Ok(false) | Err(_) => {}
            }
        }
        Shown::Nothing
    }

    fn add_what_proc_shows(&mut self, question: &Question, census: &mut Census) -> io::Result<()> {
        let found = self.proc.holders(question)?;
        let known: HashSet<ProcessId> = census.holders.iter().map(|holder| holder.id).collect();
        census.holders.extend(found.holders.into_iter().filter(|holder| !known.contains(&holder.id)));
        census.members = found.members;
        census.unseen = census.unseen.max(found.unseen);
        census.complete = found.complete;
        Ok(())
    }
}

enum Shown {
    /// It holds one of the pipes.
    Holds,
    /// It holds none of them.
    Nothing,
    /// We may not look.
    Denied,
}

/// Who was named, with everything that it is said to hold.
fn by_process(told: &[(Pipe, Holders)]) -> BTreeMap<(i32, u64), Vec<Hold>> {
    let mut found = BTreeMap::<(i32, u64), HashMap<(PipeId, i32), Hold>>::new();
    for (pipe, holders) in told {
        for holder in &holders.holders {
            let holds = found.entry((holder.pid, holder.start_ticks)).or_default();
            for held in holder.holds.iter().filter(|held| held.end.writes()) {
                let hold = hold(*pipe, held.clone());
                holds.insert((hold.pipe, hold.tid), hold);
            }
        }
    }
    found
        .into_iter()
        .map(|(id, holds)| {
            let mut holds: Vec<Hold> = holds.into_values().collect();
            holds.sort_unstable_by_key(|hold| (hold.pipe, hold.tid));
            (id, holds)
        })
        .collect()
}
