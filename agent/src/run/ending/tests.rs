use super::*;
use crate::pipe::{End, PipeId, PipeKind};
use crate::process::describe::Description;
use crate::process::table::{Hold, Via};
use crate::run::options::OnForeign;

const HOME: i32 = 100;
const PIPE: Pipe = Pipe { id: PipeId { dev: 15, ino: 4711 }, kind: PipeKind::Pipe };
const OPEN: View = View { pumping: true, watching: false, blocked: false, last_bytes: None };
const EOF: View = View { pumping: false, ..OPEN };

/// What every run is asked, with the durations that these tests count in.
fn options() -> Options {
    Options {
        kill_after: millis(1000),
        holder_grace: millis(200),
        max_drain: millis(5000),
        ..Options::new(vec!["true".into()])
    }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A process as the tests invent them: its group decides whether it escaped.
#[derive(Clone, Copy)]
struct Being {
    pid: i32,
    pgid: i32,
    cpu: u64,
    state: char,
    relation: Relation,
    kept: bool,
    ignores_sigpipe: bool,
}

const ESCAPEE: Being =
    Being { pid: 200, pgid: 200, cpu: 0, state: 'S', relation: Relation::Lineage, kept: false, ignores_sigpipe: false };
const AT_HOME: Being = Being { pid: 101, pgid: HOME, ..ESCAPEE };
const FOREIGN: Being = Being { pid: 300, pgid: 300, relation: Relation::Foreign, ..ESCAPEE };

impl Being {
    fn id(self) -> ProcessId {
        ProcessId { pid: self.pid, start_ticks: 7 }
    }

    fn stat(self) -> Stat {
        Stat {
            id: self.id(),
            comm: "being".into(),
            state: self.state,
            ppid: 1,
            pgid: self.pgid,
            sid: self.pgid,
            cpu_ticks: self.cpu,
            threads: 1,
            kernel_thread: false,
            exiting: false,
        }
    }

    fn holder(self) -> Holder {
        let visible = matches!(self.relation, Relation::Lineage | Relation::Foreign | Relation::Adopted);
        let hold = Hold { pipe: PIPE.id, end: End::Write, tid: self.pid, fds: vec![1], via: Via::Descriptor };
        Holder {
            id: self.id(),
            relation: self.relation,
            escaped: self.pgid != HOME,
            kept: self.kept,
            ignores_sigpipe: self.ignores_sigpipe,
            holds: if visible { vec![hold] } else { Vec::new() },
            description: Description {
                pid: self.pid,
                start_time: String::new(),
                start_ticks: 7,
                ppid: 1,
                pgid: self.pgid,
                sid: self.pgid,
                uid: None,
                comm: "being".into(),
                exe: None,
                cmdline: None,
                cgroup: None,
                container: None,
                pod: None,
                names: None,
            },
        }
    }
}

/// An ending, its clock, and a world of processes that answers its questions at once.
struct World {
    ending: Ending,
    start: Instant,
    now: Instant,
    beings: Vec<Being>,
    view: View,
    signals: Vec<(i32, Signal, Duration)>,
}

/// What an ending came to.
#[derive(Debug, PartialEq, Eq)]
enum End_ {
    LetGo(LetGo),
    Over,
}

impl World {
    fn new(options: &Options, beings: &[Being]) -> World {
        let start = Instant::now();
        let beginning = Beginning { exit: start, home: HOME, signalled: None, reap_all: false };
        World {
            ending: Ending::new(options, &beginning),
            start,
            now: start,
            beings: beings.to_vec(),
            view: OPEN,
            signals: Vec::new(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn census(&self, scope: Scope) -> Census {
        let seen = |being: &&Being| match being.relation {
            Relation::Lineage | Relation::Opaque => true,
            Relation::Suspect => scope != Scope::Lineage,
            Relation::Foreign | Relation::Adopted => scope == Scope::Machine,
        };
        let lineage = |being: &&Being| !matches!(being.relation, Relation::Foreign | Relation::Adopted);
        Census {
            scope,
            holders: self.beings.iter().filter(seen).map(|being| being.holder()).collect(),
            members: self.beings.iter().filter(lineage).map(|being| being.stat()).collect(),
            unseen: 0,
            complete: true,
        }
    }

    /// Lets time pass until the ending lets go or is over, or `until` has passed. `react` is told of
    /// every signal and may change the world.
    fn run(&mut self, until: Duration, mut react: impl FnMut(&mut World, i32, Signal)) -> Option<End_> {
        while self.elapsed() <= until {
            match self.ending.step(self.now, self.view) {
                Step::Wait(at) => {
                    assert!(at > self.now, "a wait for a moment that is over would spin");
                    self.now = at.min(self.start + until + millis(1));
                }
                Step::Ask(scope) => {
                    let census = self.census(scope);
                    for sentence in self.ending.judge(&census, &[PIPE], self.view) {
                        self.ending.signalled(sentence.id, sentence.signal);
                        self.signals.push((sentence.id.pid, sentence.signal, self.elapsed()));
                        react(self, sentence.id.pid, sentence.signal);
                    }
                }
                Step::LetGo(how) => return Some(End_::LetGo(how)),
                Step::Over => return Some(End_::Over),
            }
        }
        None
    }

    fn die(&mut self, pid: i32) {
        self.beings.retain(|being| being.pid != pid);
        self.view.pumping = !self.beings.is_empty();
    }

    fn obey(&mut self, until: Duration) -> Option<End_> {
        self.run(until, |world, pid, _| world.die(pid))
    }

    fn ignore(&mut self, until: Duration) -> Option<End_> {
        self.run(until, |_, _, _| {})
    }
}

#[test]
fn eof_by_itself_ends_it_at_once_and_nobody_is_asked_for() {
    let mut world = World::new(&options(), &[]);
    world.view = EOF;
    assert_eq!(world.ignore(millis(1)), Some(End_::Over));
    assert_eq!(world.ending.outcome(), Outcome::Natural);
}

#[test]
fn a_quiet_holder_is_signalled_when_the_grace_is_over_and_not_before() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    assert_eq!(world.ignore(millis(199)), None);
    assert_eq!(world.signals, []);
    assert_eq!(world.obey(millis(300)), Some(End_::Over));
    assert_eq!(world.signals, [(200, Signal::SIGTERM, millis(200))]);
    assert_eq!(world.ending.outcome(), Outcome::HoldersEnded);
}

#[test]
fn grace_0_signals_at_once() {
    let mut world = World::new(&Options { holder_grace: Duration::ZERO, ..options() }, &[ESCAPEE]);
    assert_eq!(world.obey(millis(1)), Some(End_::Over));
    assert_eq!(world.signals, [(200, Signal::SIGTERM, Duration::ZERO)]);
}

#[test]
fn bytes_restart_the_grace() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    assert_eq!(world.ignore(millis(150)), None);
    world.view.last_bytes = Some(world.now);
    assert_eq!(world.ignore(millis(340)), None);
    assert_eq!(world.signals, [], "190 ms after the last bytes");
    assert_eq!(world.obey(millis(400)), Some(End_::Over));
}

#[test]
fn a_home_group_that_uses_cpu_time_is_slow_and_not_stale() {
    let mut world = World::new(&options(), &[AT_HOME]);
    for step in 1..=10 {
        assert_eq!(world.ignore(millis(200 * step - 10)), None);
        world.beings[0].cpu += 3;
    }
    assert_eq!(world.signals, []);
    assert_eq!(world.obey(millis(2500)), Some(End_::Over), "it has come to rest");
}

#[test]
fn a_member_of_the_pipeline_that_finished_has_been_at_work() {
    let sibling = Being { pid: 102, ..AT_HOME };
    let mut world = World::new(&options(), &[AT_HOME, sibling]);
    assert_eq!(world.ignore(millis(100)), None);
    world.beings.retain(|being| being.pid != 102);
    assert_eq!(world.ignore(millis(390)), None);
    assert_eq!(world.signals, []);
}

#[test]
fn a_home_group_that_is_ready_to_run_and_gets_no_core_is_not_stale() {
    let mut world = World::new(&options(), &[AT_HOME]);
    world.beings[0].state = 'R';
    assert_eq!(world.ignore(millis(1000)), None);
    assert_eq!(world.signals, []);
    world.beings[0].state = 'S';
    assert_eq!(world.obey(millis(1500)), Some(End_::Over));
}

#[test]
fn an_escapee_gets_no_credit_for_its_cpu_time() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    assert_eq!(world.ignore(millis(100)), None);
    world.beings[0].cpu += 100;
    assert_eq!(world.obey(millis(250)), Some(End_::Over));
}

#[test]
fn time_in_which_downstream_takes_nothing_does_not_count() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    world.view.blocked = true;
    assert_eq!(world.ignore(millis(60_000)), None);
    assert_eq!(world.signals, []);
    world.view.blocked = false;
    world.ending.step(world.now, world.view);
    assert_eq!(world.obey(world.elapsed() + millis(250)), Some(End_::Over));
}

#[test]
fn who_ignores_the_signal_is_killed_after_kill_after_and_who_is_found_then_at_once() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    assert_eq!(world.ignore(millis(1199)), None);
    assert_eq!(world.signals, [(200, Signal::SIGTERM, millis(200))]);
    let heir = Being { pid: 201, ..ESCAPEE };
    let end = world.run(millis(1300), |world, pid, _| {
        if pid == 200 {
            world.beings = vec![heir];
        } else {
            world.die(pid);
        }
    });
    assert_eq!(end, Some(End_::Over));
    assert_eq!(world.signals[1..], [(200, Signal::SIGKILL, millis(1200)), (201, Signal::SIGKILL, millis(1200))]);
}

#[test]
fn sigkill_comes_100_ms_before_max_drain_at_the_latest_and_then_the_stream_is_let_go() {
    let mut world = World::new(&Options { kill_after: millis(60_000), ..options() }, &[ESCAPEE]);
    assert_eq!(world.ignore(millis(6000)), Some(End_::LetGo(LetGo::Close)));
    assert_eq!(world.elapsed(), millis(5000));
    assert_eq!(world.signals[1], (200, Signal::SIGKILL, millis(4900)));
    assert_eq!(world.ending.outcome(), Outcome::Closed);
}

#[test]
fn a_holder_that_prints_for_ever_is_warned_in_time_and_ended_before_the_bound() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    let mut end = None;
    while end.is_none() && world.elapsed() < millis(6000) {
        let next = world.elapsed() + millis(50);
        end = world.ignore(next);
        world.view.last_bytes = Some(world.now);
    }
    assert_eq!(end, Some(End_::LetGo(LetGo::Close)));
    let [(_, first, at), (_, second, then)] = world.signals[..] else { panic!("{:?}", world.signals) };
    assert_eq!((first, second), (Signal::SIGTERM, Signal::SIGKILL));
    assert!(at >= millis(4400) && then >= millis(4890) && then <= millis(4950), "{at:?} {then:?}");
}

#[test]
fn max_drain_0_lets_go_at_once() {
    let mut world = World::new(&Options { max_drain: Duration::ZERO, ..options() }, &[ESCAPEE]);
    assert_eq!(world.ignore(millis(1)), Some(End_::LetGo(LetGo::Close)));
    assert_eq!(world.signals, []);
}

#[test]
fn a_kept_holder_is_never_signalled_and_its_stream_is_drained() {
    let mut world = World::new(&options(), &[Being { kept: true, ..ESCAPEE }]);
    assert_eq!(world.ignore(millis(300)), Some(End_::LetGo(LetGo::Drain)));
    assert_eq!((world.signals.len(), world.ending.outcome()), (0, Outcome::HoldersSpared));
}

#[test]
fn a_kept_holder_does_not_shield_another() {
    let mut world = World::new(&options(), &[Being { kept: true, ..ESCAPEE }, Being { pid: 201, ..ESCAPEE }]);
    assert_eq!(world.obey(millis(300)), Some(End_::LetGo(LetGo::Drain)));
    assert_eq!(world.signals, [(201, Signal::SIGTERM, millis(200))]);
}

#[test]
fn a_foreign_holder_is_drained_or_closed_if_it_ignores_sigpipe() {
    let mut world = World::new(&options(), &[FOREIGN]);
    assert_eq!(world.ignore(millis(300)), Some(End_::LetGo(LetGo::Drain)));
    let mut world = World::new(&options(), &[Being { ignores_sigpipe: true, ..FOREIGN }]);
    assert_eq!(world.ignore(millis(300)), Some(End_::LetGo(LetGo::Close)));
    assert_eq!(world.signals, []);
}

#[test]
fn a_foreign_holder_is_ended_only_where_that_is_asked_for() {
    let asked = Options { on_foreign: OnForeign::As(OnHolder::End), ..options() };
    let mut world = World::new(&asked, &[FOREIGN]);
    assert_eq!(world.obey(millis(300)), Some(End_::Over));
    assert_eq!(world.signals.len(), 1);
}

#[test]
fn a_suspect_is_ended_only_after_all_visible_holders_are_gone() {
    let suspect = Being { pid: 201, relation: Relation::Suspect, ..ESCAPEE };
    let mut world = World::new(&options(), &[ESCAPEE, suspect]);
    assert_eq!(world.ignore(millis(1100)), None);
    assert_eq!(world.signals, [(200, Signal::SIGTERM, millis(200))], "one visible holder is still alive");
    world.die(200);
    assert_eq!(world.obey(millis(1300)), Some(End_::Over));
    assert_eq!(world.signals[1].0, 201);
}

#[test]
fn an_opaque_process_is_never_ended_on_suspicion() {
    let opaque = Being { relation: Relation::Opaque, ..ESCAPEE };
    let mut world = World::new(&options(), &[opaque]);
    assert_eq!(world.ignore(millis(300)), Some(End_::LetGo(LetGo::Drain)));
    assert_eq!(world.signals, []);
    let mut world = World::new(&Options { on_opaque: OnOpaque::End, ..options() }, &[opaque]);
    assert_eq!(world.obey(millis(300)), Some(End_::Over));
    assert_eq!(world.signals.len(), 1);
}

#[test]
fn what_the_policy_says_about_lineage_holders_is_done() {
    for (policy, end) in [
        (OnHolder::Close, Some(End_::LetGo(LetGo::Close))),
        (OnHolder::Drain, Some(End_::LetGo(LetGo::Drain))),
        (OnHolder::Report, Some(End_::LetGo(LetGo::Close))),
        (OnHolder::Wait, Some(End_::LetGo(LetGo::Close))),
    ] {
        let mut world = World::new(&Options { on_holder: policy, ..options() }, &[ESCAPEE]);
        assert_eq!(world.ignore(millis(60_000)), end, "{policy:?}");
        assert_eq!(world.signals, [], "{policy:?}");
    }
}

#[test]
fn what_nobody_shows_is_waited_for_until_the_bound() {
    let mut world = World::new(&options(), &[]);
    assert_eq!(world.ignore(millis(6000)), Some(End_::LetGo(LetGo::Close)));
    assert_eq!((world.elapsed(), world.ending.outcome()), (millis(5000), Outcome::Closed));
}

#[test]
fn a_source_that_cannot_answer_is_asked_again_without_haste_until_the_bound() {
    let mut world = World::new(&options(), &[]);
    let (mut asked, mut end) = (0, None);
    while end.is_none() {
        match world.ending.step(world.now, world.view) {
            Step::Ask(_) => {
                asked += 1;
                world.ending.unanswered();
            }
            Step::Wait(at) => world.now = at,
            Step::LetGo(how) => end = Some(how),
            Step::Over => unreachable!("the stream is open"),
        }
    }
    assert_eq!((end, world.elapsed()), (Some(LetGo::Close), millis(5000)));
    assert!((200..=260).contains(&asked), "every 20 ms, and not more often: {asked}");
}

#[test]
fn an_asked_ending_reaps_the_lineage_and_does_not_signal_the_home_group_twice() {
    let start = Instant::now();
    let beginning = Beginning { exit: start, home: HOME, signalled: Some(millis(400)), reap_all: true };
    let mut world = World::new(&options(), &[AT_HOME, ESCAPEE]);
    world.ending = Ending::new(&options(), &beginning);
    world.ending.clock = Stopwatch::start(world.start);
    assert_eq!(world.ignore(millis(599)), None);
    assert_eq!(world.signals, [(200, Signal::SIGTERM, millis(200))], "the group had its signal before");
    assert_eq!(world.obey(millis(700)), Some(End_::Over));
    let killed: Vec<_> = world.signals[1..].to_vec();
    assert_eq!(killed.len(), 2);
    assert!(killed.iter().all(|(_, signal, at)| (*signal, *at) == (Signal::SIGKILL, millis(600))), "{killed:?}");
}

#[test]
fn a_first_request_during_the_grace_ends_the_grace() {
    let mut world = World::new(&Options { holder_grace: millis(3000), ..options() }, &[ESCAPEE]);
    world.ignore(millis(50));
    world.ending.end_the_grace();
    assert_eq!(world.obey(millis(60)), Some(End_::Over));
    assert_eq!(world.signals[0].1, Signal::SIGTERM);
}

#[test]
fn a_second_request_kills_at_once() {
    let mut world = World::new(&options(), &[ESCAPEE]);
    world.ignore(millis(50));
    world.ending.hurry();
    assert_eq!(world.obey(millis(60)), Some(End_::Over));
    assert_eq!(world.signals[0].1, Signal::SIGKILL);
}

#[test]
fn tables_that_show_nobody_end_a_watched_run_at_once() {
    let mut world = World::new(&options(), &[]);
    world.view = View { watching: true, ..EOF };
    assert_eq!(world.ignore(millis(10)), Some(End_::Over));
    assert_eq!(world.ending.outcome(), Outcome::Natural);
}

#[test]
fn a_lineage_holder_of_a_watched_pipe_is_ended_and_a_foreign_one_is_not_even_looked_for() {
    let mut world = World::new(&options(), &[ESCAPEE, FOREIGN]);
    world.view = View { watching: true, ..EOF };
    let end = world.run(millis(1000), |world, pid, _| world.beings.retain(|being| being.pid != pid));
    assert_eq!(end, Some(End_::Over));
    assert_eq!(world.signals, [(200, Signal::SIGTERM, millis(200))]);
}

mod any_order {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Happening {
        Pass(u64),
        Bytes,
        Blocked(bool),
        Nudge,
        Hurry,
        Born(u8),
        Dies(u8),
        Works(u8),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            4 => (0..400_u64).prop_map(Happening::Pass),
            1 => Just(Happening::Bytes),
            1 => any::<bool>().prop_map(Happening::Blocked),
            1 => Just(Happening::Nudge),
            1 => Just(Happening::Hurry),
            2 => any::<u8>().prop_map(Happening::Born),
            1 => any::<u8>().prop_map(Happening::Dies),
            1 => any::<u8>().prop_map(Happening::Works),
        ]
    }

    fn being(kind: u8, pid: i32) -> Being {
        let relation = match kind % 5 {
            0 | 1 => Relation::Lineage,
            2 => Relation::Foreign,
            3 => Relation::Opaque,
            _ => Relation::Suspect,
        };
        let pgid = if kind & 16 == 0 { HOME } else { pid };
        Being { pid, pgid, relation, kept: kind & 32 != 0, ignores_sigpipe: kind & 64 != 0, cpu: 0, state: 'S' }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nobody_innocent_is_sentenced_and_the_bound_holds(happenings in prop::collection::vec(happening(), 0..60)) {
            let mut world = World::new(&options(), &[]);
            let (mut next, mut counted, mut end) = (500, Duration::ZERO, None);
            for happening in happenings {
                let before = world.elapsed();
                match happening {
                    Happening::Pass(time) => {
                        end = world.ignore(world.elapsed() + millis(time));
                        if !world.view.blocked {
                            counted += world.elapsed() - before;
                        }
                    }
                    Happening::Bytes => world.view.last_bytes = Some(world.now),
                    Happening::Blocked(blocked) => {
                        world.ending.step(world.now, world.view);
                        world.view.blocked = blocked;
                    }
                    Happening::Nudge => world.ending.nudge(),
                    Happening::Hurry => world.ending.hurry(),
                    Happening::Born(kind) => {
                        next += 1;
                        world.beings.push(being(kind, next));
                    }
                    Happening::Dies(which) if !world.beings.is_empty() => {
                        let index = usize::from(which) % world.beings.len();
                        world.beings.remove(index);
                    }
                    Happening::Works(which) if !world.beings.is_empty() => {
                        let index = usize::from(which) % world.beings.len();
                        world.beings[index].cpu += 5;
                    }
                    Happening::Dies(_) | Happening::Works(_) => {}
                }
                if end.is_some() {
                    break;
                }
            }
            for (pid, ..) in &world.signals {
                if let Some(being) = world.beings.iter().find(|being| being.pid == *pid) {
                    prop_assert!(!being.kept, "a kept process was sentenced");
                    prop_assert!(matches!(being.relation, Relation::Lineage | Relation::Suspect));
                }
            }
            if end.is_none() {
                prop_assert!(counted <= millis(5001), "the bound was passed without a decision: {counted:?}");
            }
        }
    }
}
