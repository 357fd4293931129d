//! Returns of system calls that the kernel did not tell (kprobe rung).
//!
//! A kretprobe has room for a few callers of its function at once. Of one more nothing is told when its call
//! returns, and what the call did to its table is unknown. The programs note who entered; whoever is noted
//! and not in that call any more has returned untold. They are
//! counted among the [losses](super::tracker::Losses), and mended as those are.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use nix::time::{ClockId, clock_gettime};
use pipewarden_common::live_map::Call;

/// A thread that runs says nothing of where: it is taken to be in its call still for so long. A return that
/// was not missed after all costs a seeding.
const RUNNING: Duration = Duration::from_millis(20);

/// Those who entered.
pub(super) struct Callers(RefCell<Found>);

struct Found {
    map: HashMap<MapData, u64, Call>,
    /// Threads and when they entered: they are still noted.
    missed: HashSet<(u64, u64)>,
    /// How many there ever were.
    number: u64,
}

/// Where a thread is that entered a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Inside,
    /// It runs, here or there.
    Running,
    Elsewhere,
    Gone,
}

impl Callers {
    pub(super) fn new(map: HashMap<MapData, u64, Call>) -> Callers {
        Callers(RefCell::new(Found { map, missed: HashSet::new(), number: 0 }))
    }

    /// How many returns were found so far that nothing told.
    pub(super) fn missed(&self) -> u64 {
        let found = &mut *self.0.borrow_mut();
        let entered: Vec<(u64, Call)> = found.map.iter().filter_map(Result::ok).collect();
        found.missed.retain(|known| entered.iter().any(|(thread, call)| (*thread, call.time_ns) == *known));
        for (thread, call) in entered {
            let place = place(thread, call.number);
            let is_missed = match place {
                Place::Inside => false,
                Place::Running => now().saturating_sub(Duration::from_nanos(call.time_ns)) > RUNNING,
                Place::Elsewhere | Place::Gone => true,
            };
            // It may have returned, and that been told, since we read the map.
            let is_noted = found.map.get(&thread, 0).is_ok_and(|now| now.time_ns == call.time_ns);
            if is_missed && is_noted && found.missed.insert((thread, call.time_ns)) {
                found.number += 1;
            }
            if place == Place::Gone {
                let _ = found.map.remove(&thread); // nobody else would; absent is what we want
            }
        }
        found.number
    }
}

fn place(thread: u64, number: u64) -> Place {
    let (pid, tid) = (thread >> 32, thread & u64::from(u32::MAX));
    match std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) {
        // proc(5): the number of the call that it is blocked in, -1 outside of any, or "running".
        Ok(text) => match text.split_whitespace().next() {
            Some("running") | None => Place::Running,
            Some(word) if word.parse() == Ok(number) => Place::Inside,
            Some(_) => Place::Elsewhere,
        },
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Place::Gone,
        Err(_) => Place::Running, // we may not look, or cannot now
    }
}

/// The clock of the programs.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_is_in_the_call_in_which_it_waits_and_in_no_other() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            std::io::Read::read(&mut reader, &mut [0]).unwrap()
        });
        let tid = told.recv().unwrap();
        let thread = u64::from(std::process::id()) << 32 | u64::from(tid.cast_unsigned());
        let read = u64::try_from(libc::SYS_read).unwrap();
        let comes_to = |wanted: Place| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while place(thread, read) != wanted {
                assert!(Instant::now() < deadline, "{:?} instead of {wanted:?}", place(thread, read));
                std::thread::yield_now();
            }
        };
        comes_to(Place::Inside);
        assert_eq!(place(thread, read + 1), Place::Elsewhere);
        drop(writer);
        assert_eq!(waiting.join().unwrap(), 0, "EOF");
        comes_to(Place::Gone);
    }
}
