//! What a container is called: by the container runtime, which is asked in the background.
//!
//! The path of a cgroup tells a container's id and its pod's uid (see [`identity`](super::identity)). Names,
//! labels and images are known to the runtime only. Nobody waits for it: a container that is seen for the first
//! time is [`Known::Asked`], and a moment later it has names, or has none.
//!
//! - [`table`]: what was told, and for how long it is believed; no I/O.
//! - `cri` (with the feature of that name): the questions, to the socket of containerd or CRI-O.
//! - `asker`: the thread that asks them.

use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "cri")]
mod asker;
#[cfg(feature = "cri")]
mod cri;
#[cfg(feature = "cri")]
mod grpc;
pub mod table;

use self::table::Table;
use super::config;
pub use crate::process::describe::Names;

/// What is known of a container's names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// They were told.
    Names(Arc<Names>),
    /// The runtime was asked, and has not answered yet.
    Asked,
    /// It has none that we know of: nobody is there to be asked, or whoever is knows none.
    Nothing,
}

impl Known {
    /// The names, where there are any.
    #[must_use]
    pub fn names(&self) -> Option<&Names> {
        match self {
            Known::Names(names) => Some(names),
            _ => None,
        }
    }
}

/// What came back for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its names.
    Names(Names),
    /// The runtime knows no such container.
    Absent,
    /// The runtime did not answer; why, in one line.
    Failed(String),
}

/// How the questions for names went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameCounts {
    /// Answered with names.
    pub named: u64,
    /// Answered with that there is no such container: another runtime's, or just gone.
    pub absent: u64,
    /// Not answered.
    pub failed: u64,
    /// Not asked, because too many questions were open.
    pub dropped: u64,
}

/// Containers' names.
#[derive(Debug)]
pub struct Directory {
    table: Table,
    #[cfg(feature = "cri")]
    asker: Option<asker::Asker>,
    counts: NameCounts,
    /// Questions that failed since the last answer: no accident when there are many.
    failures: u64,
    /// Why the last question failed, until that is said.
    trouble: Option<String>,
}

/// That many questions without an answer between them are no accident.
pub const SYSTEMATIC: u64 = 10;

impl Directory {
    /// Asks whom the configuration names; nobody where it names nobody. `confine` is what the thread that asks does
    /// first: to give up what it does not need.
    ///
    /// # Errors
    ///
    /// When there can be no thread for it, or when this build cannot ask: in one line.
    pub fn new(names: &config::Names, confine: impl FnOnce() + Send + 'static) -> Result<Directory, String> {
        let Some(socket) = &names.cri else { return Ok(Directory::of_nobody()) };
        #[cfg(feature = "cri")]
        {
            let asker =
                asker::Asker::start(socket.clone(), confine).map_err(|error| format!("[names] cri: {error}"))?;
            Ok(Directory { asker: Some(asker), ..Directory::of_nobody() })
        }
        #[cfg(not(feature = "cri"))]
        drop(confine);
        #[cfg(not(feature = "cri"))]
        Err(format!("[names] cri = \"{}\": {NOT_IN_THIS_BUILD}", socket.display()))
    }

    /// Asks nobody.
    #[must_use]
    pub fn of_nobody() -> Directory {
        Directory {
            table: Table::default(),
            #[cfg(feature = "cri")]
            asker: None,
            counts: NameCounts::default(),
            failures: 0,
            trouble: None,
        }
    }

    /// The names of a container, by its id. Who is not known yet is asked for.
    pub fn of(&mut self, container: &str, now: Instant) -> Known {
        #[cfg(feature = "cri")]
        self.take_in(now);
        let known = self.table.of(container, now);
        if known.wants_asking { self.ask(container, now) } else { known.known }
    }

    /// How it went so far.
    #[must_use]
    pub fn counts(&self) -> NameCounts {
        self.counts
    }

    /// How many questions in a row were not answered, once that is no accident any more: what is not named then says
    /// nothing about whose it is.
    #[must_use]
    pub fn unanswered(&self) -> Option<u64> {
        (self.failures >= SYSTEMATIC).then_some(self.failures)
    }

    /// Why questions fail, once for each time that they begin to.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    #[cfg(feature = "cri")]
    fn ask(&mut self, container: &str, now: Instant) -> Known {
        let Some(asker) = &self.asker else { return Known::Nothing };
        if !asker.ask(container) {
            self.counts.dropped += 1;
            return Known::Nothing;
        }
        self.table.asked(container, now);
        Known::Asked
    }

    #[cfg(not(feature = "cri"))]
    #[allow(clippy::unused_self, clippy::needless_pass_by_ref_mut, reason = "as with the feature")]
    fn ask(&mut self, _container: &str, _now: Instant) -> Known {
        Known::Nothing
    }

    #[cfg(feature = "cri")]
    fn take_in(&mut self, now: Instant) {
        while let Some((container, answer)) = self.asker.as_ref().and_then(asker::Asker::answer) {
            self.answered(&container, answer, now);
        }
    }

    #[cfg(any(feature = "cri", test))]
    fn answered(&mut self, container: &str, answer: Answer, now: Instant) {
        match &answer {
            Answer::Names(_) => self.counts.named += 1,
            Answer::Absent => self.counts.absent += 1,
            Answer::Failed(why) => {
                self.counts.failed += 1;
                self.failures += 1;
                if self.failures == 1 {
                    self.trouble = Some(why.clone());
                }
            }
        }
        if !matches!(answer, Answer::Failed(_)) {
            self.failures = 0;
        }
        self.table.answered(container, answer, now);
    }
}

/// What is said where a build without the feature is told to ask.
pub const NOT_IN_THIS_BUILD: &str = "this build asks no container runtime; build it with --features cri";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_nobody_knows_nothing() {
        let mut directory = Directory::new(&config::Names::default(), || ()).unwrap();
        assert_eq!(directory.of("4c01", Instant::now()), Known::Nothing);
        assert_eq!(directory.counts(), NameCounts::default());
    }

    #[test]
    fn failures_are_systematic_when_nothing_comes_between_them_and_are_said_once() {
        let mut directory = Directory::of_nobody();
        let now = Instant::now();
        let failed = || Answer::Failed("the socket is gone".into());
        for _ in 1..SYSTEMATIC {
            directory.answered("a", failed(), now);
        }
        assert_eq!(directory.trouble().as_deref(), Some("the socket is gone"));
        assert_eq!(directory.trouble(), None);
        assert_eq!(directory.unanswered(), None);
        directory.answered("a", failed(), now);
        assert_eq!(directory.unanswered(), Some(SYSTEMATIC));
        directory.answered("b", Answer::Absent, now);
        assert_eq!(directory.unanswered(), None, "it answers again");
        directory.answered("a", failed(), now);
        assert!(directory.trouble().is_some(), "it fails anew");
        assert_eq!(directory.counts(), NameCounts { named: 0, absent: 1, failed: 11, dropped: 0 });
    }
}
