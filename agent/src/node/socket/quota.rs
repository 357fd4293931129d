//! How much anybody may have of what is not endless: each user, each cgroup, and all of them together. No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Whose share something is counted in: all three at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// The effective user.
    pub uid: u32,
    /// The cgroup: a number for its path.
    pub cgroup: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Open connections.
    Connections,
    /// Watches.
    Watches,
    /// Bytes that were read or are to be sent.
    Bytes,
    /// Descriptors that were passed to us and are not closed yet.
    Taken,
    /// Descriptors that were passed by us and may not have been received yet.
    Given,
}

/// The most for a user, for a cgroup, and for all, with so many descriptors in all. A machine's runs may all be
/// one user's.
fn most(what: What, fds: usize) -> [usize; 3] {
    match what {
        // Two descriptors each, and as many are left for everything else.
        What::Connections => [1024, 2048, 4096].map(|most: usize| most.min(fds / 4)),
        What::Watches => [4096, 4096, 12288],
        What::Bytes => [4 << 20, 4 << 20, 16 << 20],
        What::Taken => [256, 256, 1024].map(|most: usize| most.min(fds / 8)),
        What::Given => [4096, 4096, 16384],
    }
}

/// Requests a second, for a user and for a cgroup; three seconds of them may come at once.
const RATE: f64 = 2000.0;
const BURST: f64 = 3.0 * RATE;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Share {
    User(u32),
    Cgroup(u64),
    All,
}

impl Who {
    fn shares(self) -> [Share; 3] {
        [Share::User(self.uid), Share::Cgroup(self.cgroup), Share::All]
    }
}

/// What everybody has.
#[derive(Debug)]
pub struct Quota {
    /// How many descriptors this process may have.
    fds: usize,
    taken: HashMap<(Share, What), usize>,
    /// Requests that may be made at once, as of a moment.
    requests: HashMap<Share, (f64, Instant)>,
}

impl Quota {
    /// Nobody has anything yet; so many descriptors may this process have.
    #[must_use]
    pub fn new(fds: usize) -> Quota {
        Quota { fds, taken: HashMap::new(), requests: HashMap::new() }
    }

    /// Takes so many of it; whether there are so many left. If not, nothing is taken.
    pub fn take(&mut self, who: Who, what: What, number: usize) -> bool {
        let there = |(share, most): (Share, usize)| self.has(share, what).saturating_add(number) <= most;
        let fits = who.shares().into_iter().zip(most(what, self.fds)).all(there);
        if fits {
            self.add(who, what, number);
        }
        fits
    }

    /// Takes so many of it, whether there are so many left or not: what is there already must be counted.
    pub fn add(&mut self, who: Who, what: What, number: usize) {
        if number > 0 {
            for share in who.shares() {
                *self.taken.entry((share, what)).or_default() += number;
            }
        }
    }

    /// Whether nothing more of it may be had.
    #[must_use]
    pub fn is_spent(&self, who: Who, what: What) -> bool {
        who.shares().into_iter().zip(most(what, self.fds)).any(|(share, most)| self.has(share, what) >= most)
    }

    /// Gives so many back.
    pub fn give(&mut self, who: Who, what: What, number: usize) {
        for share in who.shares() {
            if let Some(taken) = self.taken.get_mut(&(share, what)) {
                *taken = taken.saturating_sub(number);
                if *taken == 0 {
                    self.taken.remove(&(share, what));
                }
            }
        }
    }

    fn has(&self, share: Share, what: What) -> usize {
        self.taken.get(&(share, what)).copied().unwrap_or(0)
    }

    /// Makes a request; if there were too many, how long to wait with the next. A request that was read is
    /// answered all the same.
    pub fn request(&mut self, who: Who, now: Instant) -> Option<Duration> {
        let [user, cgroup, _] = who.shares();
        if self.requests.len() > 4096 {
            // Who has not asked for a while begins anew.
            self.requests.retain(|_, (_, at)| now.duration_since(*at).as_secs_f64() * RATE < BURST);
        }
        let mut left = BURST;
        for share in [user, cgroup] {
            let (tokens, at) = self.requests.entry(share).or_insert((BURST, now));
            *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * RATE).min(BURST) - 1.0;
            *at = now;
            left = left.min(*tokens);
        }
        (left < 0.0).then(|| Duration::from_secs_f64(-left / RATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Who = Who { uid: 1, cgroup: 1 };
    const B: Who = Who { uid: 2, cgroup: 2 };

    #[test]
    fn one_users_greed_leaves_the_others_theirs() {
        let mut quota = Quota::new(65536);
        let mut had = 0;
        while quota.take(A, What::Connections, 1) {
            had += 1;
        }
        assert_eq!(had, 1024);
        assert!(quota.is_spent(A, What::Connections) && !quota.is_spent(B, What::Connections));
        assert!(quota.take(B, What::Connections, 1));
        let same_cgroup = Who { uid: 3, cgroup: 1 };
        for _ in 0..1024 {
            assert!(quota.take(same_cgroup, What::Connections, 1), "a cgroup may have two users' worth");
        }
        let third = Who { uid: 4, cgroup: 1 };
        assert!(!quota.take(third, What::Connections, 1), "and no more");
        assert!(quota.take(Who { cgroup: 2, ..third }, What::Connections, 1));
        quota.give(A, What::Connections, 1);
        assert!(quota.take(A, What::Connections, 1) && !quota.take(A, What::Connections, 1));
    }

    #[test]
    fn what_is_given_back_leaves_no_trace() {
        let mut quota = Quota::new(65536);
        assert!(quota.take(A, What::Bytes, 4 << 20) && !quota.take(A, What::Bytes, 1));
        quota.add(A, What::Bytes, 5);
        quota.give(A, What::Bytes, (4 << 20) + 5);
        assert!(quota.taken.is_empty());
    }

    #[test]
    fn who_asks_too_fast_waits_and_nobody_else_does() {
        let (mut quota, now) = (Quota::new(65536), Instant::now());
        let mut asked = 0;
        while quota.request(A, now).is_none() {
            asked += 1;
        }
        assert_eq!(asked, 6000);
        assert!(quota.request(B, now).is_none());
        let wait = quota.request(A, now).unwrap();
        assert!(wait > Duration::ZERO && wait < Duration::from_millis(10), "{wait:?}");
        assert!(quota.request(A, now + Duration::from_secs(1)).is_none());
    }
}
