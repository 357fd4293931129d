//! What happened, as commands, their lineages and their starters.

use pipewarden_common::event::{Exec, OTHER_UNKNOWN, kind};
use pipewarden_common::live_map::Process;

use super::super::withheld::Seen;
use super::Live;
use crate::kernel::record::{Record, end_of, outputs_of, pipe_of};
use crate::process::stat::Stat;

/// The most generations that are looked up.
const GENERATIONS: usize = 64;

impl Live {
    /// Takes in one record.
    pub(super) fn record(&mut self, record: &Record) {
        let event = record.event();
        let pid = event.pid.cast_signed();
        if let Record::Exec(exec) = record {
            return self.executed(exec);
        }
        match event.kind {
            kind::FORK => self.commands.forked(pid, event.other.cast_signed()),
            kind::EXIT => {
                self.commands.moved(pid, event.pgid.cast_signed());
                self.commands.exited(pid);
            }
            kind::SETSID => self.commands.moved(pid, event.pgid.cast_signed()),
            kind::SETPGID if event.other == OTHER_UNKNOWN => {} // its exit tells its group
            kind::SETPGID => {
                let whom = if event.other == 0 { event.pid } else { event.other };
                if let Some(process) = self.tracker.process(whom) {
                    self.commands.moved(whom.cast_signed(), process.pgid.cast_signed());
                }
            }
            _ => {}
        }
    }

    /// A process ran a program, some time ago: what it has now is what it was started with.
    pub(super) fn ran(&mut self, pid: u32, process: Process) {
        let seen = self.seen(pid, &process);
        if !seen.outputs.is_empty() {
            let ancestors = self.ancestors(pid, process);
            self.commands.ran(&seen, &ancestors);
        }
    }

    /// A process runs a program. It may be gone by now, and with it what the map had of it: what it was started
    /// with is what the record says.
    fn executed(&mut self, exec: &Exec) {
        let mut outputs: Vec<_> = outputs_of(exec).map(|(_, pipe)| pipe).collect();
        outputs.dedup();
        if outputs.is_empty() {
            return;
        }
        let event = &exec.event;
        let (pid, pgid) = (event.pid.cast_signed(), event.pgid.cast_signed());
        let seen = Seen { pid, pgid, cgroup: exec.cgroup, outputs };
        let told = Process { start_boot_ns: event.start_boot_ns, parent: event.parent, ..Process::default() };
        let process = self.tracker.process(event.pid).filter(|process| process.start_boot_ns == event.start_boot_ns);
        let ancestors = self.ancestors(event.pid, process.unwrap_or(told));
        self.commands.ran(&seen, &ancestors);
    }

    fn seen(&self, pid: u32, process: &Process) -> Seen {
        let output = |fd| {
            let slot = self.tracker.slot(process.files, fd)?;
            end_of(&slot.held)?.writes().then(|| pipe_of(&slot.held))
        };
        let outputs = [1, 2].into_iter().filter_map(output).collect();
        Seen { pid: pid.cast_signed(), pgid: process.pgid.cast_signed(), cgroup: process.cgroup, outputs }
    }

    /// Who lives of those that a process descends from, its parent first.
    fn ancestors(&self, pid: u32, process: Process) -> Vec<Seen> {
        let mut above = Vec::new();
        let (mut pid, mut process) = (pid, process);
        while above.len() < GENERATIONS {
            // Its parent at its birth may be gone, and the pid another's.
            let born = self.tracker.process(process.parent).filter(|parent| {
                process.parent != 0 && parent.start_boot_ns != 0 && parent.start_boot_ns <= process.start_boot_ns
            });
            let parent = match born {
                Some(parent) => Some((process.parent, parent)),
                None => Stat::read(pid.cast_signed()).ok().and_then(|stat| {
                    let parent = stat.ppid.cast_unsigned();
                    Some((parent, self.tracker.process(parent)?))
                }),
            };
            let Some((parent, of_parent)) = parent else { break };
            above.push(self.seen(parent, &of_parent));
            (pid, process) = (parent, of_parent);
        }
        above
    }
}
