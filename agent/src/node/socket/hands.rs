//! Closing what was passed to us. A close can wait: for a dead file system, for a socket that lingers, for a pipe
//! whose other end is stuck in a copy. So it is done by threads that do nothing else, and nobody can have more
//! than some of them wait for him.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::eventfd::EventFd;

use super::quota::{What, Who};

/// How many threads there are, and how many of them one user and one cgroup may keep waiting.
const THREADS: usize = 8;
const OF_USER: usize = 2;
const OF_CGROUP: usize = 4;
/// A thread that closes needs little; the rest is only counted.
const STACK_BYTES: usize = 64 * 1024;

/// Descriptors to be closed, and for whom.
struct Job {
    token: Token,
    fds: Vec<OwnedFd>,
}

/// What was to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// For which connection.
    pub(super) connection: u64,
    /// Whose share it is in.
    pub(super) who: Who,
    /// As what, and how often, it is counted there.
    pub(super) counted: (What, usize),
}

/// The threads that close.
pub(super) struct Hands {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    more: Condvar,
    /// Told whenever something was closed.
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// By user and by cgroup.
    busy: HashMap<Share, usize>,
    closed: Vec<Token>,
    over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Share = (bool, u64);

/// The user and the cgroup, with how many threads each may have.
fn shares(who: Who) -> [(Share, usize); 2] {
    [((true, u64::from(who.uid)), OF_USER), ((false, who.cgroup), OF_CGROUP)]
}

impl State {
    /// The first job of somebody who does not keep too many waiting already.
    fn next(&mut self) -> Option<Job> {
        let has = |share: &Share| self.busy.get(share).copied().unwrap_or(0);
        let free = |job: &Job| shares(job.token.who).iter().all(|(share, most)| has(share) < *most);
        let at = self.waiting.iter().position(free)?;
        let job = self.waiting.remove(at)?;
        for (share, _) in shares(job.token.who) {
            *self.busy.entry(share).or_default() += 1;
        }
        Some(job)
    }

    fn done(&mut self, who: Who) {
        for (share, _) in shares(who) {
            if let Some(busy) = self.busy.get_mut(&share) {
                *busy -= 1;
                if *busy == 0 {
                    self.busy.remove(&share);
                }
            }
        }
    }
}

impl Hands {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When there are none to be had.
    pub(super) fn start(wake: Arc<EventFd>) -> io::Result<Hands> {
        let shared = Arc::new(Shared { state: Mutex::default(), more: Condvar::new(), wake });
        let hands = Hands { shared };
        for _ in 0..THREADS {
            let shared = Arc::clone(&hands.shared);
            thread::Builder::new().name("close".into()).stack_size(STACK_BYTES).spawn(move || work(&shared))?;
        }
        Ok(hands)
    }

    /// Has them closed; [`closed`](Hands::closed) tells when they are.
    pub(super) fn close(&self, token: Token, fds: Vec<OwnedFd>) {
        self.shared.state().waiting.push_back(Job { token, fds });
        self.shared.more.notify_one();
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.shared.state().waiting.len()
    }

    /// What was closed since this was asked last.
    pub(super) fn closed(&self) -> Vec<Token> {
        std::mem::take(&mut self.shared.state().closed)
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        // Who waits in a close is not waited for.
        self.shared.state().over = true;
        self.shared.more.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state();
    while !state.over {
        let Some(Job { token, fds }) = state.next() else {
            state = shared.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        drop(fds);
        state = shared.state();
        state.done(token.who);
        state.closed.push(token);
        // Who was held back for this one may be next.
        shared.more.notify_one();
        let _ = shared.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(connection: u64, uid: u32) -> Job {
        let who = Who { uid, cgroup: u64::from(uid) };
        Job { token: Token { connection, who, counted: (What::Taken, 0) }, fds: Vec::new() }
    }

    #[test]
    fn nobody_has_more_than_some_of_them_wait() {
        let mut state = State::default();
        state.waiting.extend([job(1, 7), job(2, 7), job(3, 7), job(4, 8)]);
        let next = |state: &mut State| state.next().map(|job| job.token.connection);
        assert_eq!([next(&mut state), next(&mut state), next(&mut state)], [Some(1), Some(2), Some(4)]);
        assert_eq!(next(&mut state), None, "the third waits for the first two");
        state.done(job(1, 7).token.who);
        assert_eq!(next(&mut state), Some(3));
    }
}
