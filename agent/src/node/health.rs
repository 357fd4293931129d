//! Why a node is not to be relied on fully: pure.
//!
//! It goes on working all the same. What it says here is what `/readyz` answers.

use std::time::Duration;

use serde::Serialize;

use super::attribution::Counts;

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// In a word.
    pub reason: &'static str,
    /// In a sentence, with what to do about it.
    pub detail: String,
}

/// How full a map of the tracker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What it holds.
    pub map: &'static str,
    /// How many of them there are.
    pub entries: u64,
    /// How many there is room for.
    pub capacity: u64,
}

impl Room {
    /// Whether more than nine tenths are taken: what comes next may find no room.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.entries.saturating_mul(10) > self.capacity.saturating_mul(9)
    }
}

/// What a node knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its maps.
    pub rooms: Vec<Room>,
    /// What was lost, and not yet made up for by reading everything anew.
    pub unmended: Option<(&'static str, u64)>,
    /// How finding out where processes are went.
    pub attribution: Counts,
    /// So many questions for names in a row were not answered, and that is no accident.
    pub unnamed: Option<u64>,
    /// Why the last look came to nothing.
    pub blind: Option<String>,
}

impl Trouble {
    /// The node's loop does not turn.
    #[must_use]
    pub fn stuck(still: Duration) -> Trouble {
        let detail = format!("the node's loop has not turned for {} s; restart it", still.as_secs());
        Trouble { reason: "stuck", detail }
    }
}

/// What is wrong, by what is known.
#[must_use]
pub fn troubles(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut say = |reason, detail| troubles.push(Trouble { reason, detail });
    for Room { map, entries, capacity } in facts.rooms.iter().filter(|room| room.is_scarce()) {
        let advice = match *map {
            "tables" => "give [map] processes more room and restart",
            "watched" => "find out who leaves so many pipes behind",
            _ => "give its key in [map] more room and restart",
        };
        say("map_full", format!("{entries} of {capacity} {map} are taken; {advice}"));
    }
    if let Some((why, number)) = facts.unmended {
        say("events_lost", format!("{why} ({number} times), and not everything was read anew since"));
    }
    if facts.attribution.systematic() {
        let Counts { missed, contained, .. } = facts.attribution;
        let paths = "look at /proc/PID/cgroup of a container's process: its form is not known here";
        say("attribution", format!("{missed} processes of containers were not attributed, {contained} were; {paths}"));
    }
    if let Some(questions) = facts.unnamed {
        let advice = "see that [names] cri is the runtime's socket, and that it answers";
        say("names", format!("{questions} questions in a row for names of containers were not answered; {advice}"));
    }
    if let Some(error) = &facts.blind {
        say("tracker", format!("the tracker's maps cannot be read: {error}"));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_and_nothing_else() {
        let room = |entries| Room { map: "descriptors", entries, capacity: 1000 };
        let well = Facts { rooms: vec![room(900)], ..Facts::default() };
        assert_eq!(troubles(&well), []);
        let counts = Counts { missed: 10, ..Counts::default() };
        let cases = [
            (Facts { rooms: vec![room(901)], ..well.clone() }, "map_full", "901 of 1000 descriptors"),
            (Facts { unmended: Some(("the ring buffer was full", 3)), ..well.clone() }, "events_lost", "(3 times)"),
            (Facts { attribution: counts, ..well.clone() }, "attribution", "10 processes"),
            (Facts { unnamed: Some(12), ..well.clone() }, "names", "12 questions"),
            (Facts { blind: Some("no".into()), ..well.clone() }, "tracker", ": no"),
        ];
        for (facts, reason, detail) in cases {
            let troubles = troubles(&facts);
            assert_eq!(troubles.len(), 1, "{troubles:?}");
            assert!(troubles[0].reason == reason && troubles[0].detail.contains(detail), "{troubles:?}");
        }
    }
}
