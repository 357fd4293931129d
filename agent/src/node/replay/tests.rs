use super::*;
use crate::audit::chain::Chain;
use crate::audit::detail::{Eof, Withheld};
use crate::audit::evidence::{Decision, Evidence, PipeSeen, Reason};
use crate::node::config::Config;
use crate::pipe::{Action, PipeKind, Stream};

/// A log that is written at given seconds.
struct Log {
    chain: Chain,
    bytes: Vec<u8>,
}

impl Log {
    fn new() -> Log {
        Log { chain: Chain::new(RunId::new(), "host".into()), bytes: Vec::new() }
    }

    fn at(mut self, second: i64, event: Event) -> Log {
        let time = Time(jiff::Timestamp::from_second(1_800_000_000 + second).unwrap());
        let (line, hash) = self.chain.seal(time, event, false).unwrap();
        self.chain.advance(hash);
        self.bytes.extend_from_slice(&line);
        self
    }

    fn replay(&self, policies: &str) -> Replay {
        let mut cases = Cases::default();
        cases.read(self.bytes.as_slice()).unwrap();
        cases.decide(Policies::new(Config::parse("node.toml".into(), policies.into()).unwrap().policies))
    }
}

fn pipe() -> PipeSeen {
    PipeSeen { dev: 14, ino: 4711, kind: PipeKind::Pipe, end: Some(End::Write), fds: vec![1], stream: None }
}

fn process(pid: i32) -> Description {
    Description {
        pid,
        start_time: "2026-11-20T10:00:00.00Z".into(),
        start_ticks: 1,
        ppid: 1,
        pgid: pid,
        sid: pid,
        uid: Some(1000),
        comm: "node".into(),
        exe: Some("/usr/bin/node".into()),
        cmdline: Some("node server.js".into()),
        cgroup: Some(format!("/docker/{:064x}", 7)),
        container: None,
        pod: None,
        names: None,
    }
}

fn act(pid: i32) -> Box<Act> {
    Box::new(Act {
        process: process(pid),
        pipe: Some(pipe()),
        decision: Decision::new(Action::None, Reason::Policy),
        evidence: Evidence::new(Relation::Lineage, true),
    })
}

fn withheld() -> Event {
    let detail = Withheld { since_exit_us: 1_000_000, lineage: 1, foreign: 0, opaque: 0, suspect: 0 };
    Event::PipeWithheld { pipe: PipeSeen { end: None, fds: Vec::new(), ..pipe() }, detail }
}

fn eof(by_itself: bool) -> Event {
    let detail = Eof { stream: Stream::Stdout, bytes: 0, since_exit_us: None, by_itself };
    Event::PipeEof { pipe: pipe(), detail }
}

fn fates(replay: &Replay) -> Vec<(i32, Fate)> {
    replay.outcomes.iter().map(|outcome| (outcome.process.pid, outcome.fate)).collect()
}

const END: &str = "[[policy]]\nname = \"a\"\nmatch = { container = \"*7\" }\non_withheld = \"end\"\ngrace = \"5s\"\n";

#[test]
fn a_holder_is_ended_by_a_policy_that_ends_when_its_pipe_was_withheld_for_the_grace() {
    let log = Log::new().at(10, withheld()).at(11, Event::HolderSpared(act(70)));
    let replay = log.replay(END);
    assert_eq!(fates(&replay), [(70, Fate::Ended)]);
    let outcome = &replay.outcomes[0];
    assert_eq!(outcome.time.0, jiff::Timestamp::from_second(1_800_000_014).unwrap(), "the exit, and 5 s");
    assert_eq!(outcome.policy.as_deref(), Some("a"));
    assert_eq!(outcome.place.container.as_ref().unwrap().id, format!("{:064x}", 7));
    assert_eq!((replay.records, replay.foreign), (2, 0));
}

#[test]
fn without_a_policy_that_ends_it_is_observed() {
    let log = Log::new().at(10, withheld()).at(11, Event::HolderSpared(act(70)));
    for policies in ["", "[[policy]]\nmatch = { uid = 1000 }", "[[policy]]\nmatch = { uid = 7 }\non_withheld = \"end\""]
    {
        assert_eq!(fates(&log.replay(policies)), [(70, Fate::Observed)], "{policies}");
    }
}

#[test]
fn what_ends_by_itself_before_the_grace_is_over_needs_nobody() {
    for end in [eof(true), Event::HolderEnded(act(70))] {
        let log = || Log::new().at(10, withheld()).at(10, Event::HolderSpared(act(70)));
        assert_eq!(fates(&log().at(13, end.clone()).replay(END)), [(70, Fate::WentByItself)]);
        assert_eq!(fates(&log().at(15, end.clone()).replay(END)), [(70, Fate::Ended)]);
        // What our own signal did is nothing by itself.
        let signalled = log().at(11, Event::HolderSignalled(act(70))).at(11, end);
        assert_eq!(fates(&signalled.replay(END)), [(70, Fate::Ended)]);
    }
    let let_go = Log::new().at(10, Event::HolderSpared(act(70))).at(10, eof(false));
    assert_eq!(fates(&let_go.replay(END)), [(70, Fate::Ended)], "the run let go, the holder did not");
}

#[test]
fn keep_is_asked_about_what_was_recorded() {
    let log = Log::new().at(10, Event::HolderSpared(act(70)));
    for glob in ["node", "/usr/bin/n*", "*server.js"] {
        let replay = log.replay(&format!("{END}keep = [\"{glob}\"]\n"));
        assert_eq!(fates(&replay), [(70, Fate::Kept)], "{glob}");
    }
}

#[test]
fn who_ran_another_program_is_what_it_was_last() {
    let as_shell = || {
        let mut act = act(70);
        act.process.comm = "sh".into();
        act
    };
    let policy = "[[policy]]\nmatch = { comm = \"node\" }\non_withheld = \"end\"\n";
    let log = Log::new().at(10, Event::HolderSpared(as_shell()));
    assert_eq!(fates(&log.replay(policy)), [(70, Fate::Observed)]);
    assert_eq!(fates(&log.at(11, Event::HolderSpared(act(70))).replay(policy)), [(70, Fate::Ended)]);
    // What it was signalled as counts, whatever it became.
    let log = Log::new().at(10, Event::HolderSignalled(act(70))).at(11, Event::HolderSignalled(as_shell()));
    assert_eq!(fates(&log.replay(policy)), [(70, Fate::Ended)]);
}

#[test]
fn limits_count_in_the_order_of_time() {
    let log = Log::new().at(20, Event::HolderSpared(act(71))).at(21, Event::HolderSpared(act(70)));
    let later = log.at(90, Event::HolderSpared(act(72)));
    let replay = later.replay(&format!("{END}limit = \"1/1m\"\n"));
    assert_eq!(fates(&replay), [(71, Fate::Ended), (70, Fate::Limited(Limit::Policy)), (72, Fate::Ended)]);
}

#[test]
fn only_escapees_with_a_write_end_are_a_nodes_business_and_each_once() {
    let changed = |change: fn(&mut Act)| {
        let mut act = act(70);
        change(&mut act);
        Event::HolderSpared(act)
    };
    let log = Log::new()
        .at(10, changed(|act| act.evidence.escaped = false))
        .at(10, changed(|act| act.evidence.relation = Relation::Foreign))
        .at(10, changed(|act| act.pipe = None))
        .at(10, changed(|act| act.pipe.as_mut().unwrap().end = Some(End::Read)));
    assert_eq!(fates(&log.replay(END)), []);
    let log = log.at(11, Event::HolderSpared(act(70))).at(12, Event::HolderSignalled(act(70)));
    assert_eq!(fates(&log.replay(END)), [(70, Fate::Ended)]);
}

#[test]
fn what_is_no_record_is_counted() {
    let mut log = Log::new().at(10, Event::HolderSpared(act(70)));
    log.bytes.extend_from_slice(b"\nsomebody else's line \xff\n{\"schema\":\"pipewarden.audit/1\"");
    let replay = log.replay(END);
    assert_eq!((replay.outcomes.len(), replay.records, replay.foreign), (1, 1, 2));
}
