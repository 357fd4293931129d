//! What follows a try: the decision, without I/O.
//!
//! A command that went silent is tried again where it left off, if its session is known and there is a
//! command that resumes it; from the start, if nothing was done yet; and not at all, if something was
//! done and it could only be done again. A command that failed by itself is another matter, with a
//! count of its own.

use std::time::Duration;

use super::options::Retries;
use crate::audit::detail::Restart;
use crate::pipe::EndedFor;

/// How a try went.
#[derive(Clone, Debug)]
pub struct Past {
    /// What it was ended for.
    pub ended_for: EndedFor,
    /// Whether it exited by itself with another code than 0, or died of a signal that was not ours.
    pub failed: bool,
    /// Whether it said that it was done.
    pub done: bool,
    /// The session's id, if it told one.
    pub session: Option<String>,
    /// Whether it did what must not be done twice.
    pub side_effects: bool,
    /// Whether its input can be given once more.
    pub input_kept: bool,
    /// How many of its processes could not be ended.
    pub survivors: usize,
    /// Whether downstream did not take all of its output.
    pub undelivered: bool,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sequel {
    /// Nothing: it came to its end.
    Over,
    /// Nothing: it should be tried again and is not.
    GiveUp(Why),
    /// Another try.
    Again {
        /// How it begins.
        start: Restart,
        /// The session to resume.
        session: Option<String>,
        /// The pause before.
        pause: Duration,
    },
}

/// Why there is no other try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It was tried as often as was asked for.
    #[error("it was tried as often as --retries allows")]
    Spent,
    /// It did something, and we do not know how to go on from there.
    #[error("it had side effects and no session that could be resumed: from the start it would do them twice")]
    SideEffects,
    /// It took input that cannot be given again.
    #[error("it took more input than could be kept to be given again")]
    Input,
    /// Something of it still lives.
    #[error("some of its processes could not be ended: they would run beside the next try")]
    Survivors,
    /// Nobody takes the output.
    #[error("downstream did not take its output")]
    Undelivered,
}

/// The state between tries.
#[derive(Debug)]
pub struct Course {
    retries: Retries,
    silences: u32,
    failures: u32,
    session: Option<String>,
    side_effects: bool,
}

impl Course {
    /// Before the first try.
    #[must_use]
    pub fn new(retries: Retries) -> Course {
        Course { retries, silences: 0, failures: 0, session: None, side_effects: false }
    }

    /// Whether the try that runs now may be followed by another one if it goes silent, or fails.
    #[must_use]
    pub fn may_go_on(&self) -> (bool, bool) {
        (self.silences < self.retries.after_silence, self.failures < self.retries.after_failure)
    }

    /// Decides after a try.
    pub fn after(&mut self, past: Past) -> Sequel {
        self.session = past.session.or(self.session.take());
        self.side_effects |= past.side_effects;
        let (used, allowed) = match past.ended_for {
            EndedFor::Idle => (&mut self.silences, self.retries.after_silence),
            EndedFor::Exit if past.failed && !past.done => {
                // It came to an end of its own: whatever hung before does not hang any more.
                self.silences = 0;
                (&mut self.failures, self.retries.after_failure)
            }
            EndedFor::Exit | EndedFor::Timeout | EndedFor::Done | EndedFor::Signal => return Sequel::Over,
        };
        if allowed == 0 {
            return Sequel::Over;
        }
        if past.survivors > 0 {
            return Sequel::GiveUp(Why::Survivors);
        }
        if past.undelivered {
            return Sequel::GiveUp(Why::Undelivered);
        }
        let resumable = self.retries.resume.is_some() && self.session.is_some();
        // Said before the count: it is what the user has to know.
        if !resumable && self.side_effects {
            return Sequel::GiveUp(Why::SideEffects);
        }
        if *used >= allowed {
            return Sequel::GiveUp(Why::Spent);
        }
        if !resumable && !past.input_kept {
            return Sequel::GiveUp(Why::Input);
        }
        let pause =
            self.retries.backoff.get(*used as usize).or(self.retries.backoff.last()).copied().unwrap_or_default();
        *used += 1;
        if resumable {
            Sequel::Again { start: Restart::Resumed, session: self.session.clone(), pause }
        } else {
            Sequel::Again { start: Restart::Afresh, session: None, pause }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::template::Template;
    use proptest::prelude::*;

    fn retries() -> Retries {
        let backoff = [0, 5, 15].map(Duration::from_secs).to_vec();
        let resume = Template::new("agent --resume {session_id}").ok();
        Retries { after_silence: 4, after_failure: 0, backoff, resume }
    }

    fn silent() -> Past {
        Past {
            ended_for: EndedFor::Idle,
            failed: false,
            done: false,
            session: None,
            side_effects: false,
            input_kept: true,
            survivors: 0,
            undelivered: false,
        }
    }

    fn afresh(seconds: u64) -> Sequel {
        Sequel::Again { start: Restart::Afresh, session: None, pause: Duration::from_secs(seconds) }
    }

    fn resumed(id: &str, seconds: u64) -> Sequel {
        let pause = Duration::from_secs(seconds);
        Sequel::Again { start: Restart::Resumed, session: Some(id.into()), pause }
    }

    #[test]
    fn the_last_backoff_repeats_until_the_count_is_spent() {
        let mut course = Course::new(retries());
        for seconds in [0, 5, 15, 15] {
            assert_eq!(course.after(silent()), afresh(seconds));
        }
        assert_eq!(course.after(silent()), Sequel::GiveUp(Why::Spent));
    }

    #[test]
    fn a_session_is_resumed_also_when_only_an_earlier_try_told_it() {
        let mut course = Course::new(retries());
        assert_eq!(course.after(Past { session: Some("a".into()), ..silent() }), resumed("a", 0));
        assert_eq!(course.after(Past { side_effects: true, ..silent() }), resumed("a", 5));
        assert_eq!(course.after(Past { session: Some("b".into()), ..silent() }), resumed("b", 15));
    }

    #[test]
    fn side_effects_without_a_session_end_it_at_once() {
        let mut course = Course::new(retries());
        assert_eq!(course.after(Past { side_effects: true, ..silent() }), Sequel::GiveUp(Why::SideEffects));
        let mut course = Course::new(Retries { resume: None, ..retries() });
        let past = Past { side_effects: true, session: Some("a".into()), ..silent() };
        assert_eq!(course.after(past), Sequel::GiveUp(Why::SideEffects), "known, but there is no command for it");
    }

    #[test]
    fn a_session_that_cannot_be_resumed_is_no_reason_against_a_fresh_start() {
        let mut course = Course::new(Retries { resume: None, ..retries() });
        assert_eq!(course.after(Past { session: Some("a".into()), ..silent() }), afresh(0));
    }

    #[test]
    fn an_exit_is_the_end_unless_asked_otherwise() {
        let exit = Past { ended_for: EndedFor::Exit, failed: true, ..silent() };
        assert_eq!(Course::new(retries()).after(exit.clone()), Sequel::Over);
        let mut course = Course::new(Retries { after_failure: 1, ..retries() });
        assert_eq!(course.after(Past { failed: false, ..exit.clone() }), Sequel::Over);
        let mut course = Course::new(Retries { after_failure: 1, ..retries() });
        assert_eq!(course.after(exit.clone()), afresh(0));
        assert_eq!(course.after(exit.clone()), Sequel::GiveUp(Why::Spent));
        let mut course = Course::new(Retries { after_failure: 1, ..retries() });
        assert_eq!(course.after(Past { done: true, ..exit }), Sequel::Over, "it finished its work");
    }

    #[test]
    fn a_completed_try_resets_the_count() {
        let mut course = Course::new(Retries { after_silence: 1, after_failure: 5, ..retries() });
        assert_eq!(course.after(silent()), afresh(0));
        assert_eq!(course.after(Past { ended_for: EndedFor::Exit, failed: true, ..silent() }), afresh(0));
        assert_eq!(course.after(silent()), afresh(0), "the silence before is forgotten");
        assert_eq!(course.after(silent()), Sequel::GiveUp(Why::Spent));
    }

    #[test]
    fn nothing_runs_beside_what_could_not_be_ended() {
        let past = Past { survivors: 1, session: Some("a".into()), ..silent() };
        assert_eq!(Course::new(retries()).after(past), Sequel::GiveUp(Why::Survivors));
    }

    #[test]
    fn input_that_was_not_kept_is_no_obstacle_to_resuming() {
        let past = Past { input_kept: false, ..silent() };
        assert_eq!(Course::new(retries()).after(past.clone()), Sequel::GiveUp(Why::Input));
        assert_eq!(Course::new(retries()).after(Past { session: Some("a".into()), ..past }), resumed("a", 0));
    }

    fn pasts() -> impl Strategy<Value = Past> {
        let ended_for = prop_oneof![
            4 => Just(EndedFor::Idle),
            2 => Just(EndedFor::Exit),
            1 => Just(EndedFor::Timeout),
            1 => Just(EndedFor::Done),
            1 => Just(EndedFor::Signal),
        ];
        let session = prop::option::of(Just("id".to_owned()));
        (ended_for, any::<[bool; 4]>(), session, 0_usize..2).prop_map(|(ended_for, flags, session, survivors)| {
            let [failed, done, side_effects, input_kept] = flags;
            Past { ended_for, failed, done, session, side_effects, input_kept, survivors, undelivered: false }
        })
    }

    proptest! {
        /// Work is never done twice, tries never overlap, and there is an end to them.
        #[test]
        fn every_course_is_safe_and_ends(pasts in prop::collection::vec(pasts(), 1..40), can_resume in any::<bool>()) {
            let resume = retries().resume.filter(|_| can_resume);
            let mut course = Course::new(Retries { after_failure: 3, resume, ..retries() });
            let mut worked = false;
            for past in pasts {
                worked |= past.side_effects;
                let overlapping = past.survivors > 0;
                let asked_for = matches!(past.ended_for, EndedFor::Timeout | EndedFor::Done | EndedFor::Signal);
                match course.after(past) {
                    Sequel::Again { start, session, .. } => {
                        prop_assert!(!overlapping && !asked_for);
                        prop_assert!(start == Restart::Resumed || !worked);
                        prop_assert_eq!(start == Restart::Resumed, session.is_some());
                        prop_assert!(course.failures <= 3 && course.silences <= 4);
                    }
                    Sequel::Over | Sequel::GiveUp(_) => break,
                }
            }
        }
    }
}
