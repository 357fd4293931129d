//! The one place where the manager waits.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::Manager;
use crate::run::signals;
use crate::supervise::child::Child;
use crate::supervise::control::Server;
use crate::supervise::output::Way;
use crate::supervise::state::Phase;

/// Bounds that nothing sets are this far away.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// How long what we put out may take to arrive once everything has ended.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// What a descriptor in the poll belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Control,
    Output(Way),
    Child(usize),
    Fifo(usize),
}

impl Manager {
    /// Waits until something happens or a clock runs out, and takes what happened.
    pub(super) fn wait(&mut self, now: Instant) -> io::Result<()> {
        let mut fds: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.fd(), PollFlags::POLLIN)];
        let control = self.server.iter().flat_map(Server::interests);
        fds.extend(control.map(|(fd, flags)| (Source::Control, fd, flags)));
        fds.extend(self.outputs.interests().map(|(way, fd, flags)| (Source::Output(way), fd, flags)));
        for (index, slot) in self.slots.iter().enumerate() {
            let fifo = slot.input.iter().flat_map(|input| input.fifo().interests());
            fds.extend(fifo.map(|(fd, flags)| (Source::Fifo(index), fd, flags)));
            if let Some(child) = &slot.child {
                let interests = child.interests(|way| self.outputs.has_room(way));
                fds.extend(interests.map(|fd| (Source::Child(index), fd, PollFlags::POLLIN)));
            }
        }
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let timeout = TimeSpec::from_duration(self.due(now).saturating_duration_since(Instant::now()));
        match ppoll(&mut polled, Some(timeout), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let said: Vec<(Source, PollFlags)> = fds
            .iter()
            .zip(&polled)
            .filter_map(|((source, ..), polled)| Some((*source, polled.revents().filter(|flags| !flags.is_empty())?)))
            .collect();
        drop(polled);
        drop(fds);
        for (source, flags) in said {
            match source {
                Source::Signals | Source::Control => {}
                Source::Output(way) => self.outputs.said(way, flags),
                Source::Fifo(index) => self.slots[index].attend_input(),
                Source::Child(index) => {
                    self.listen(index);
                    self.read(index);
                }
            }
        }
        self.take_signals()?;
        self.serve();
        Ok(())
    }

    /// The next moment at which something is due that no event tells.
    fn due(&self, now: Instant) -> Instant {
        let of_slots = self.slots.iter().flat_map(|slot| {
            let starting = slot.machine.phase() == Phase::Starting;
            let probe = slot.probe.due(now).filter(|_| starting);
            let late = slot.not_ready_at().filter(|_| starting);
            let overdue = slot.child.as_ref().and_then(Child::overdue_at);
            let urge = slot.child.as_ref().and_then(Child::urge_at);
            let undelivered = slot.child.as_ref().and_then(Child::undelivered_at);
            [slot.machine.due(), probe, late, overdue, urge, undelivered].into_iter().flatten()
        });
        let own = [self.orphans.due(now), self.server.as_ref().and_then(Server::due)];
        of_slots.chain(own.into_iter().flatten()).min().unwrap_or(now + FAR)
    }

    fn take_signals(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(arrival) = self.signals.next()? {
            match arrival.signal {
                libc::SIGHUP => self.reload(now),
                end if self.signals.asks_to_end(end) || end == libc::SIGQUIT => self.asked_to_end(now),
                stop if signals::is_stop(stop) => drop(signals::stop_by(stop)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What is still to be read on our stdout and stderr, for as long as that may take.
    pub(super) fn deliver_the_rest(&mut self) -> io::Result<()> {
        let until = Instant::now() + LAST_DELIVERY;
        self.outputs.turn();
        while !self.outputs.are_empty() && Instant::now() < until {
            let fds: Vec<(Way, BorrowedFd<'_>, PollFlags)> = self.outputs.interests().collect();
            let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
            let timeout = TimeSpec::from_duration(until.saturating_duration_since(Instant::now()));
            match ppoll(&mut polled, Some(timeout), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let said: Vec<(Way, PollFlags)> =
                fds.iter().zip(&polled).filter_map(|((way, ..), polled)| Some((*way, polled.revents()?))).collect();
            drop(polled);
            drop(fds);
            for (way, flags) in said {
                self.outputs.said(way, flags);
            }
            self.outputs.turn();
        }
        Ok(())
    }
}
