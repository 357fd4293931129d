//! Asked endings: the command and its home group are told to end.

use super::{Asked, Supervisor};
use crate::act::{self, PinnedLeader};
use crate::ownership::Scope;
use crate::pipe::EndedFor;
use nix::sys::signal::Signal;

impl Supervisor<'_> {
    /// Begins an asked ending. The record comes before the act.
    pub(super) fn ask_to_end(&mut self, what_for: EndedFor, signal: i32) {
        self.begin_to_end(what_for, signal);
        self.signal_home(signal);
    }

    /// Begins an asked ending whose first signal is sent, or was.
    pub(super) fn begin_to_end(&mut self, what_for: EndedFor, signal: i32) {
        self.scene.journal.ending_asked(what_for, signal, self.scene.own_group);
        self.asked = Some(Asked { what_for, at: self.now(), killed: signal == libc::SIGKILL });
    }

    /// Signals everybody at home: as a group, or where the group is ours member by member.
    pub(super) fn signal_home(&mut self, signal: i32) {
        self.signal_command(signal, true);
        if signal != libc::SIGKILL {
            // Who is stopped handles its signal only once it runs again.
            self.signal_command(libc::SIGCONT, true);
        }
        if !self.scene.own_group {
            self.for_members = Signal::try_from(signal).ok();
            self.ask(Scope::Lineage);
        }
    }

    /// Signals the home group, or the command alone where it shares our group or a helper without a
    /// handler would die of it.
    pub(super) fn signal_command(&mut self, signal: i32, group: bool) {
        if self.status.is_some() {
            return;
        }
        let leader = if self.scene.own_group && group { PinnedLeader::new(self.command.pid) } else { None };
        match leader {
            // The command is not reaped, so the group's number is pinned.
            Some(leader) => act::signal_home_group(&leader, signal),
            None => act::signal_child(&self.command.pidfd, signal),
        }
    }

    /// A second request to end: straight to SIGKILL.
    pub(super) fn insist(&mut self) {
        self.signal_home(libc::SIGKILL);
        if let Some(asked) = &mut self.asked {
            asked.killed = true;
        }
        if let Some(ending) = &mut self.ending {
            ending.hurry();
        }
    }
}
