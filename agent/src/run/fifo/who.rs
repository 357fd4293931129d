//! Who opens and closes the FIFO, and when: inotify says that somebody did, and a look at the
//! descriptor tables says who has it open since. Who opened and closed it in between is not seen; that
//! it happened is.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::Event;
use crate::pipe::{End, Pipe, ProcessId};
use crate::process::describe::{Description, describe};
use crate::process::stat::Stat;
use crate::process::table::{Sought, look};

/// Enough for directory walks.
const STACK_BYTES: usize = 256 * 1024;

/// The kernel tells of an opening before the descriptor is in its table: when to look again.
const SETTLE: [u8; 3] = [0, 2, 20];

/// How long the last look may take, at the closing.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// A thread that looks.
pub struct Lookout {
    events: Receiver<Event>,
    wake: Arc<EventFd>,
    stop: OwnedFd,
}

impl Lookout {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// When there is no inotify instance, descriptor or thread to be had: then openings and closings
    /// are not told.
    pub fn start(file: &OwnedFd, pipe: Pipe) -> io::Result<Lookout> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        inotify.add_watch(path.as_str(), AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE)?;
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, events) = channel();
        let woken = Arc::clone(&wake);
        thread::Builder::new().name("fifo".into()).stack_size(STACK_BYTES).spawn(move || {
            // The main thread reads signals from a signalfd: none may be delivered here.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            let mut watch = Watch { pipe, present: BTreeMap::new(), sender, wake: woken };
            watch.keep(&inotify, &stopped);
        })?;
        Ok(Lookout { events, wake, stop })
    }

    /// What becomes readable when something happened.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What happened since the last time.
    pub fn events(&mut self) -> Vec<Event> {
        let _ = self.wake.read();
        self.events.try_iter().collect()
    }

    /// Looks a last time, and stops looking. What it finds out after [`LAST_LOOK`] is not waited for.
    #[must_use]
    pub fn finish(self) -> Vec<Event> {
        drop(self.stop);
        let until = Instant::now() + LAST_LOOK;
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            events.push(event);
        }
        events
    }
}

/// Somebody who has it open.
struct Present {
    end: End,
    who: Description,
}

struct Watch {
    pipe: Pipe,
    present: BTreeMap<ProcessId, Present>,
    sender: Sender<Event>,
    wake: Arc<EventFd>,
}

impl Watch {
    fn keep(&mut self, inotify: &Inotify, stopped: &OwnedFd) {
        // Who was there before us, and who waited for a reader and is let in just now.
        for pause in SETTLE {
            thread::sleep(Duration::from_millis(pause.into()));
            self.compare();
        }
        loop {
            let mut fds =
                [PollFd::new(inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue; // interrupted
            }
            let last = fds[1].any() == Some(true);
            let (mut opened, mut closed) = (0, 0);
            for pause in if last { &SETTLE[..1] } else { &SETTLE[..] } {
                let mut more = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut more, PollTimeout::from(*pause));
                let (o, c) = happened(inotify);
                (opened, closed) = (opened + o, closed + c);
                let (seen_opening, seen_closing) = self.compare();
                (opened, closed) = (opened.saturating_sub(seen_opening), closed.saturating_sub(seen_closing));
                if opened == 0 && closed == 0 {
                    break;
                }
            }
            // Those that came and went while nobody looked.
            for (count, is_opening) in [(opened, true), (closed, false)] {
                for _ in 0..count {
                    self.tell(is_opening, End::Write, None);
                }
            }
            if last {
                return;
            }
        }
    }

    /// Looks who has it open now, and tells the difference; how many openings and closings that
    /// explains.
    fn compare(&mut self) -> (usize, usize) {
        let now = holders(self.pipe);
        let before = std::mem::take(&mut self.present);
        let gone: Vec<&Present> =
            before.iter().filter(|(id, _)| !now.iter().any(|(other, _)| other == *id)).map(|(_, p)| p).collect();
        let new: Vec<ProcessId> = now.iter().filter(|(id, _)| !before.contains_key(id)).map(|(id, _)| *id).collect();
        let closings: Vec<(End, Description)> = gone.iter().map(|p| (p.end, p.who.clone())).collect();
        for (id, end) in now {
            if let Some(known) = before.get(&id) {
                self.present.insert(id, Present { end, who: known.who.clone() });
            } else if let Ok(who) = describe(id.pid) {
                self.present.insert(id, Present { end, who });
            }
        }
        let mut openings = 0;
        for id in new {
            if let Some((end, who)) = self.present.get(&id).map(|p| (p.end, p.who.clone())) {
                openings += 1;
                self.tell(true, end, Some(who));
            }
        }
        let count = closings.len();
        for (end, who) in closings {
            self.tell(false, end, Some(who));
        }
        (openings, count)
    }

    fn tell(&self, opened: bool, end: End, process: Option<Description>) {
        let writers = self.present.values().filter(|present| present.end.writes()).count();
        let writers = u32::try_from(writers).ok();
        let _ = self.sender.send(Event { opened, end, process, writers, why: None });
        let _ = self.wake.write(1);
    }
}

/// How often it was opened and closed since the last time.
fn happened(inotify: &Inotify) -> (usize, usize) {
    let (mut opened, mut closed) = (0, 0);
    while let Ok(events) = inotify.read_events() {
        for event in events {
            opened += usize::from(event.mask.contains(AddWatchFlags::IN_OPEN));
            closed += usize::from(event.mask.intersects(AddWatchFlags::IN_CLOSE));
        }
    }
    (opened, closed)
}

/// Everybody but us who has it open.
fn holders(pipe: Pipe) -> Vec<(ProcessId, End)> {
    let us = nix::unistd::getpid().as_raw();
    let sought = Sought { pipes: vec![pipe], hidden: false };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == us {
            continue;
        }
        let holds = look(pid, &sought).map(|found| found.holds).unwrap_or_default();
        let end = holds.iter().map(|hold| hold.end).reduce(End::and);
        if let (Some(end), Ok(stat)) = (end, Stat::read(pid)) {
            found.push((stat.id, end));
        }
    }
    found
}
