//! Which pipes are withheld, decided from what is known of forks, execs, exits and descriptors: no I/O.
//!
//! Daemons that write to pipes are normal; a supervisor that waits for a command which is gone is not.
//! From the outside both are a process of another session that holds a write end. What tells them apart is
//! how it came to be. In these words:
//!
//! - The **command** of a pipe is a process that had a write end as its stdout or stderr when it (or a
//!   child of it, of the same cgroup, with the same stdout) ran a program, and whose parent had not. So it
//!   is what was *started* with the pipe. Who creates the pipe, plumbs it and forks is not: neither a shell
//!   with job control, whose jobs all leave its group, nor a library that makes the child a session before
//!   it runs the program.
//! - Its **home group** is the process group that it is in, its **lineage** what descends from it by fork,
//!   its **starters** are its ancestors.
//! - A process of the lineage that was put into another cgroup was put there by somebody who manages
//!   containers or services, and means it to live: `runc create` ends, and the container's first process
//!   stays. From its next program on it is a command of its own.
//! - A pipe is **withheld** when its command has ended, everybody who still holds a write end is an
//!   escapee (of the command's lineage and cgroup, and in another group than the home group), and one of
//!   the starters holds the read end.
//!
//! So these are never withheld: a pipeline (its reader is no starter, and its writers are where they were
//! started); a daemon with a log pipe to its logger (the reader is no starter); a supervisor's child in a
//! session of its own (it is the command, and lives); a pipe of which anybody else holds the write end
//! too, the starter itself included. Neither is `make | tee` where make leaves a daemon behind, though
//! tee's shell waits: it cannot be told from a daemon and its logger. What is not known is never guessed:
//! a process whose descent nobody saw is of no lineage, and a pipe that was withheld before the node came
//! is not found.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::pipe::{PipeId, ProcessId};

/// A process that has run a program, or an ancestor of it, as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its pid.
    pub pid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its cgroup's id; 0 where that is not known.
    pub cgroup: u64,
    /// The pipes that its stdout and stderr write to.
    pub outputs: Vec<PipeId>,
}

/// A process that holds a write end now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Who.
    pub id: ProcessId,
    /// Its process group.
    pub pgid: i32,
    /// Its cgroup's id; 0 where that is not known.
    pub cgroup: u64,
}

/// Who holds a pipe now: everybody, or nothing may be concluded from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The pipe.
    pub pipe: PipeId,
    /// Processes with a write end.
    pub writers: Vec<Writer>,
    /// Processes with a read end.
    pub readers: Vec<i32>,
}

/// A withheld pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// The pipe.
    pub pipe: PipeId,
    /// The command, which has ended.
    pub command: i32,
    /// The group that its remaining writers have left.
    pub home: i32,
    /// All who hold a write end.
    pub escapees: Vec<ProcessId>,
    /// A starter that holds the read end.
    pub reader: i32,
}

/// A command, for as long as somebody of its lineage lives and its pipe exists.
#[derive(Clone, Debug)]
struct Command {
    pipe: PipeId,
    pid: i32,
    home: i32,
    cgroup: u64,
    starters: Vec<i32>,
    lineage: BTreeSet<i32>,
    ended: bool,
}

/// What is known of commands. Who feeds it tells everything in the order in which it happened.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    next: u64,
    commands: HashMap<u64, Command>,
    /// By process: the commands in whose lineage it is.
    of_process: HashMap<i32, Vec<u64>>,
    /// By pipe.
    of_pipe: HashMap<PipeId, Vec<u64>>,
}

impl Commands {
    /// A process forked.
    pub fn forked(&mut self, parent: i32, child: i32) {
        self.leave(child); // an older process that had this pid
        let of_parent = self.of_process.get(&parent).cloned().unwrap_or_default();
        for id in &of_parent {
            if let Some(command) = self.commands.get_mut(id) {
                command.lineage.insert(child);
            }
        }
        if !of_parent.is_empty() {
            self.of_process.insert(child, of_parent);
        }
    }

    /// A process ran a program; `ancestors` are those that live, its parent first.
    pub fn ran(&mut self, process: &Seen, ancestors: &[Seen]) {
        let mut outputs = process.outputs.clone();
        outputs.dedup();
        for pipe in outputs {
            if self.commands_of(process.pid, pipe).any(|(_, command)| command.cgroup == process.cgroup) {
                continue;
            }
            let same = |seen: &&Seen| seen.cgroup == process.cgroup && seen.outputs.contains(&pipe);
            let above = ancestors.iter().take_while(same).count();
            let (within, starters) = ancestors.split_at(above);
            let root = within.last().unwrap_or(process);
            let known = self.commands_of(root.pid, pipe).find(|(_, command)| command.cgroup == process.cgroup);
            let id = known.map(|(id, _)| id);
            let id = id.unwrap_or_else(|| self.add(pipe, root, starters.iter().map(|seen| seen.pid).collect()));
            for pid in within.iter().map(|seen| seen.pid).chain([process.pid]) {
                self.join(pid, id);
            }
        }
    }

    /// A process was put into a group, by itself or by another.
    pub fn moved(&mut self, pid: i32, pgid: i32) {
        for id in self.of_process.get(&pid).into_iter().flatten() {
            if let Some(command) = self.commands.get_mut(id)
                && command.pid == pid
            {
                command.home = pgid;
            }
        }
    }

    /// A process ended, with all its threads.
    pub fn exited(&mut self, pid: i32) {
        self.leave(pid);
    }

    /// Events are missing: only these processes live.
    pub fn resync(&mut self, live: &HashSet<i32>) {
        let dead: Vec<i32> = self.of_process.keys().filter(|pid| !live.contains(pid)).copied().collect();
        for pid in dead {
            self.leave(pid);
        }
    }

    /// How many commands are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// The pipes whose command has ended while somebody of its lineage lives: the only ones that can be
    /// withheld, so that nobody needs to look at others.
    #[must_use]
    pub fn candidates(&self) -> Vec<PipeId> {
        let ended = self.commands.values().filter(|command| command.ended).map(|command| command.pipe);
        ended.collect::<HashSet<_>>().into_iter().collect()
    }

    /// Which of the [candidates](Self::candidates) are withheld. A candidate of which the rows know no
    /// writer has had its end of file, and is forgotten.
    pub fn judge(&mut self, rows: &[Row]) -> Vec<Withheld> {
        let written = rows.iter().filter(|row| !row.writers.is_empty());
        let there: HashSet<PipeId> = written.map(|row| row.pipe).collect();
        let gone = self.commands.iter().filter(|(_, command)| command.ended && !there.contains(&command.pipe));
        let gone: Vec<u64> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            self.forget(id);
        }
        rows.iter().filter_map(|row| self.verdict(row)).collect()
    }

    fn verdict(&self, row: &Row) -> Option<Withheld> {
        let commands = self.of_pipe.get(&row.pipe)?.iter().filter_map(|id| self.commands.get(id));
        let mut withheld = commands.filter_map(|command| withheld(command, row));
        withheld.next()
    }

    fn commands_of(&self, pid: i32, pipe: PipeId) -> impl Iterator<Item = (u64, &Command)> {
        let ids = self.of_process.get(&pid).into_iter().flatten();
        let commands = ids.filter_map(|id| Some((*id, self.commands.get(id)?)));
        commands.filter(move |(_, command)| command.pipe == pipe)
    }

    fn add(&mut self, pipe: PipeId, root: &Seen, starters: Vec<i32>) -> u64 {
        let id = self.next;
        self.next += 1;
        let command = Command {
            pipe,
            pid: root.pid,
            home: root.pgid,
            cgroup: root.cgroup,
            starters,
            lineage: BTreeSet::new(),
            ended: false,
        };
        self.commands.insert(id, command);
        self.of_pipe.entry(pipe).or_default().push(id);
        id
    }

    fn join(&mut self, pid: i32, id: u64) {
        if let Some(command) = self.commands.get_mut(&id)
            && command.lineage.insert(pid)
        {
            self.of_process.entry(pid).or_default().push(id);
        }
    }

    /// A process is in no lineage any more.
    fn leave(&mut self, pid: i32) {
        for id in self.of_process.remove(&pid).unwrap_or_default() {
            let Some(command) = self.commands.get_mut(&id) else { continue };
            command.lineage.remove(&pid);
            command.ended |= command.pid == pid;
            if command.lineage.is_empty() {
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: u64) {
        let Some(command) = self.commands.remove(&id) else { return };
        if let Some(ids) = self.of_pipe.get_mut(&command.pipe) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.of_pipe.remove(&command.pipe);
            }
        }
        for pid in command.lineage {
            if let Some(ids) = self.of_process.get_mut(&pid) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.of_process.remove(&pid);
                }
            }
        }
    }
}

fn withheld(command: &Command, row: &Row) -> Option<Withheld> {
    if !command.ended || row.writers.is_empty() {
        return None;
    }
    // Without a cgroup nobody knows whether it was meant to leave.
    let escaped = |writer: &Writer| {
        command.lineage.contains(&writer.id.pid)
            && writer.pgid != command.home
            && writer.cgroup == command.cgroup
            && writer.cgroup != 0
    };
    if !row.writers.iter().all(escaped) {
        return None;
    }
    let waits = |pid: &&i32| command.starters.contains(pid) && !command.lineage.contains(pid);
    let reader = *row.readers.iter().find(waits)?;
    let mut escapees: Vec<ProcessId> = row.writers.iter().map(|writer| writer.id).collect();
    escapees.sort_unstable();
    escapees.dedup();
    Some(Withheld { pipe: row.pipe, command: command.pid, home: command.home, escapees, reader })
}

#[cfg(test)]
mod tests;
