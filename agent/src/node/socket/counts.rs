//! What the socket has done, in numbers that others may read at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that only grow, but for [`open`](Counts::open) and [`watches`](Counts::watches).
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: AtomicU64,
    /// Connections that are open now.
    pub open: AtomicU64,
    /// Watches that there are now.
    pub watches: AtomicU64,
    /// Requests that were read, whatever became of them.
    pub requests: AtomicU64,
    /// Answers and events that were sent.
    pub messages: AtomicU64,
    /// Events that nobody was told, because too many waited; their watchers were told that.
    pub events_lost: AtomicU64,
    /// Connections that were ended because their answers were not taken.
    pub slow: AtomicU64,
    /// Descriptors that came along and were no read end of a pipe, or one too many.
    pub refused_descriptors: AtomicU64,
    /// Refused because there was too much of something: connections and watches.
    pub refused_busy: AtomicU64,
    /// Refused because the process that connected was gone, or another one.
    pub refused_peer: AtomicU64,
    /// Lines that were no request of this version.
    pub refused_malformed: AtomicU64,
    /// Questions that the map could not answer.
    pub refused_unavailable: AtomicU64,
    /// Questions about a pipe that the caller did not have any more, or a watch that there was not.
    pub refused_watch: AtomicU64,
}

impl Counts {
    /// One more.
    pub(super) fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub(super) fn take(count: &AtomicU64) {
        count.fetch_sub(1, Ordering::Relaxed);
    }

    /// A number.
    #[must_use]
    pub fn get(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }
}
