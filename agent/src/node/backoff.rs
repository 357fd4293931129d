//! How soon something is tried again that keeps failing: each time twice as long, up to a limit. Pure.

use std::time::{Duration, Instant};

/// The wait between tries.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    /// How long the next wait is.
    next: Duration,
    until: Option<Instant>,
}

impl Backoff {
    /// One that has not failed yet: the first wait, and the longest.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, next: first, until: None }
    }

    /// Whether it is time to try.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// It was tried, and may have to be again. Whether this is the first time since all was well.
    pub fn tried(&mut self, now: Instant) -> bool {
        let first = self.until.is_none();
        self.until = Some(now + self.next);
        self.next = (self.next * 2).min(self.most);
        first
    }

    /// Nothing failed for as long as a wait: the next time is the first.
    pub fn well(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now >= until) {
            *self = Backoff::new(self.first, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew_when_all_is_well() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5);
        let mut now = Instant::now();
        assert!(backoff.is_due(now));
        for (wait, first) in [(1, true), (2, false), (4, false), (5, false), (5, false)] {
            assert_eq!(backoff.tried(now), first);
            backoff.well(now);
            assert!(!backoff.is_due(now + second * wait - Duration::from_nanos(1)));
            now += second * wait;
            assert!(backoff.is_due(now));
        }
        backoff.well(now);
        assert!(backoff.tried(now), "the first since then");
        assert!(backoff.is_due(now + second));
    }
}
