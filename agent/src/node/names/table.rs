//! What was told of containers: bounded, believed for minutes after their last process, and what was not told asked
//! again after a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, Known, Names};
use crate::node::attribution::OUTLIVES;

/// The most containers that are remembered: a machine has some hundred.
pub const MOST: usize = 8192;
/// After this time without an answer, who has to decide something goes on without it.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long it is believed that there is no such container: ids do not come again, but a runtime may learn of a container
/// after its first process was seen.
pub const ABSENT: Duration = Duration::from_secs(30);
/// When somebody who did not answer is asked again.
pub const AGAIN: Duration = Duration::from_secs(5);

/// What the table says of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is known.
    pub known: Known,
    /// Whether it is time to ask.
    pub wants_asking: bool,
}

#[derive(Debug)]
enum State {
    /// Asked for at this time.
    Asked(Instant),
    Told(Arc<Names>),
    /// Not to be asked for before this time.
    Not(Instant),
}

#[derive(Debug)]
struct Entry {
    state: State,
    used: Instant,
}

/// Containers, by their ids.
#[derive(Debug, Default)]
pub struct Table(HashMap<String, Entry>);

impl Table {
    /// What is known of a container.
    pub fn of(&mut self, container: &str, now: Instant) -> Found {
        let Some(entry) = self.0.get_mut(container) else {
            return Found { known: Known::Nothing, wants_asking: true };
        };
        entry.used = now;
        let (known, wants_asking) = match &entry.state {
            State::Told(names) => (Known::Names(Arc::clone(names)), false),
            State::Asked(at) if now.saturating_duration_since(*at) < PATIENCE => (Known::Asked, false),
            State::Asked(_) => (Known::Nothing, false), // the answer comes late, or as a failure
            State::Not(until) => (Known::Nothing, now >= *until),
        };
        Found { known, wants_asking }
    }

    /// Somebody was asked for a container.
    pub fn asked(&mut self, container: &str, now: Instant) {
        self.set(container, State::Asked(now), now);
    }

    /// What came back.
    pub fn answered(&mut self, container: &str, answer: Answer, now: Instant) {
        let state = match answer {
            Answer::Names(names) => State::Told(Arc::new(names)),
            Answer::Absent => State::Not(now + ABSENT),
            Answer::Failed(_) => State::Not(now + AGAIN),
        };
        self.set(container, state, now);
    }

    fn set(&mut self, container: &str, state: State, now: Instant) {
        if let Some(entry) = self.0.get_mut(container) {
            entry.state = state;
            return;
        }
        self.make_room(now);
        self.0.insert(container.to_owned(), Entry { state, used: now });
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, entry| now.saturating_duration_since(entry.used) < OUTLIVES);
        if self.0.len() < MOST {
            return;
        }
        let oldest = self.0.iter().min_by_key(|(_, entry)| entry.used).map(|(container, _)| container.clone());
        if let Some(oldest) = oldest {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names { namespace: "ci-1".into(), pod: "agent-7".into(), ..Names::default() }
    }

    #[test]
    fn a_container_is_asked_for_once_and_then_known_for_minutes() {
        let mut table = Table::default();
        let start = Instant::now();
        assert!(table.of("a", start).wants_asking);
        table.asked("a", start);
        assert_eq!(table.of("a", start), Found { known: Known::Asked, wants_asking: false });
        table.answered("a", Answer::Names(names()), start);
        let told = Found { known: Known::Names(Arc::new(names())), wants_asking: false };
        assert_eq!(table.of("a", start + OUTLIVES / 2), told);
        // Its pod is gone; another container comes while it is still remembered, and one after that.
        table.asked("b", start + OUTLIVES);
        assert_eq!(table.of("a", start + OUTLIVES), told);
        table.asked("c", start + OUTLIVES * 2);
        assert!(table.of("a", start + OUTLIVES * 2).wants_asking, "it is forgotten");
    }

    #[test]
    fn nobody_waits_longer_than_a_moment_and_a_late_answer_is_taken() {
        let mut table = Table::default();
        let start = Instant::now();
        table.asked("a", start);
        let late = start + PATIENCE;
        assert_eq!(table.of("a", late), Found { known: Known::Nothing, wants_asking: false });
        table.answered("a", Answer::Names(names()), late);
        assert!(table.of("a", late).known.names().is_some());
    }

    #[test]
    fn what_was_not_told_is_asked_again_but_not_at_once() {
        for (answer, pause) in [(Answer::Absent, ABSENT), (Answer::Failed("x".into()), AGAIN)] {
            let mut table = Table::default();
            let start = Instant::now();
            table.asked("a", start);
            table.answered("a", answer, start);
            let before = start + pause - Duration::from_millis(1);
            assert_eq!(table.of("a", before), Found { known: Known::Nothing, wants_asking: false });
            assert_eq!(table.of("a", start + pause), Found { known: Known::Nothing, wants_asking: true });
        }
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unused_goes_first() {
        let mut table = Table::default();
        let start = Instant::now();
        for number in 0..MOST as u64 {
            table.asked(&number.to_string(), start + Duration::from_micros(number));
        }
        let now = start + Duration::from_secs(1);
        let _ = table.of("0", now);
        table.asked("more", now);
        assert_eq!(table.0.len(), MOST);
        assert!(table.0.contains_key("0") && !table.0.contains_key("1"));
    }
}
