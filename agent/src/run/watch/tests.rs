use super::*;
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(3);

/// A try on an invented clock.
struct World {
    watch: Watch,
    start: Instant,
    flow: Flow,
}

impl World {
    fn new() -> World {
        let start = Instant::now();
        let flow = Flow { last_bytes: None, blocked: false };
        World { watch: Watch::new(Some(LIMIT), GRACE, start), start, flow }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn step(&mut self, seconds: u64) -> Due {
        self.watch.step(self.at(seconds), self.flow)
    }

    fn bytes(&mut self, seconds: u64) {
        self.flow.last_bytes = Some(self.at(seconds));
        self.step(seconds);
    }

    fn saw(&mut self, seconds: u64, sighting: Sighting) -> bool {
        self.watch.saw(sighting, self.at(seconds))
    }
}

fn is_idle(due: Due) -> bool {
    matches!(due, Due::Idle(_))
}

#[test]
fn silence_is_counted_from_the_start_and_from_the_last_bytes() {
    let mut world = World::new();
    assert_eq!(world.step(0), Due::Nothing(Some(world.at(10))));
    world.bytes(4);
    assert_eq!(world.step(13), Due::Nothing(Some(world.at(14))));
    assert_eq!(world.step(14), Due::Idle(LIMIT));
}

#[test]
fn time_in_which_downstream_takes_nothing_does_not_count() {
    let mut world = World::new();
    world.step(5);
    world.flow.blocked = true;
    assert_eq!(world.step(6), Due::Nothing(None));
    assert_eq!(world.step(1000), Due::Nothing(None));
    world.flow.blocked = false;
    assert_eq!(world.step(1001), Due::Nothing(Some(world.at(1005))), "six seconds counted before");
    assert!(is_idle(world.step(1005)));
}

#[test]
fn a_running_tool_stops_the_clock_until_its_own_end() {
    let mut world = World::new();
    world.saw(1, Sighting::ToolStarted(Some("a".into())));
    world.saw(1, Sighting::ToolStarted(Some("b".into())));
    world.bytes(1);
    assert_eq!(world.step(500), Due::Nothing(None));
    world.saw(500, Sighting::ToolEnded(Some("a".into())));
    world.bytes(500);
    assert_eq!(world.step(900), Due::Nothing(None), "b still runs");
    world.saw(900, Sighting::ToolEnded(Some("b".into())));
    world.bytes(900);
    assert!(!is_idle(world.step(909)));
    assert!(is_idle(world.step(910)));
}

#[test]
fn the_end_of_an_unknown_tool_ends_no_other() {
    let mut world = World::new();
    world.saw(0, Sighting::ToolStarted(Some("a".into())));
    world.saw(0, Sighting::ToolEnded(Some("z".into())));
    world.bytes(0);
    assert_eq!(world.step(100), Due::Nothing(None));
}

#[test]
fn nameless_tools_are_counted() {
    let mut world = World::new();
    world.saw(0, Sighting::ToolStarted(None));
    world.saw(0, Sighting::ToolStarted(None));
    world.saw(0, Sighting::ToolEnded(None));
    world.bytes(0);
    assert_eq!(world.step(100), Due::Nothing(None));
    world.saw(100, Sighting::ToolEnded(None));
    world.bytes(100);
    assert!(is_idle(world.step(110)));
}

#[test]
fn the_marker_ends_the_idle_clock_and_starts_the_grace() {
    let mut world = World::new();
    world.step(9);
    assert!(world.saw(9, Sighting::Done(Some("success".into()))));
    world.bytes(9);
    assert_eq!(world.step(11), Due::Nothing(Some(world.at(12))));
    assert!(!world.saw(11, Sighting::Done(None)), "only the first starts the grace");
    assert_eq!(world.step(12), Due::Done);
    assert_eq!(world.watch.done(), Some(&None), "the last word counts");
}

#[test]
fn the_grace_does_not_run_while_downstream_takes_nothing() {
    let mut world = World::new();
    world.saw(0, Sighting::Done(None));
    world.flow.blocked = true;
    world.step(0);
    assert_eq!(world.step(100), Due::Nothing(None));
}

#[test]
fn no_limit_is_no_clock() {
    let start = Instant::now();
    let mut watch = Watch::new(None, GRACE, start);
    let flow = Flow { last_bytes: None, blocked: false };
    assert_eq!(watch.step(start + Duration::from_secs(1 << 30), flow), Due::Nothing(None));
}

/// What a program prints is not to become an option or two words of a command line.
#[test]
fn only_a_plain_word_is_a_session_id() {
    let mut world = World::new();
    for id in ["", "-rf", "--yes", "a b", "a\nb", "\u{e4}", &"x".repeat(257)] {
        world.saw(0, Sighting::Session(id.to_owned()));
        assert_eq!(world.watch.session(), None, "{id:?}");
    }
    world.saw(0, Sighting::Session("0199a213-81c0".into()));
    assert_eq!(world.watch.session(), Some("0199a213-81c0"));
}

#[derive(Clone, Debug)]
enum Happening {
    Pass(u64),
    Bytes,
    Blocked(bool),
    Started(u8),
    Ended(u8),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        (1_u64..9000).prop_map(Happening::Pass),
        Just(Happening::Bytes),
        any::<bool>().prop_map(Happening::Blocked),
        (0_u8..3).prop_map(Happening::Started),
        (0_u8..3).prop_map(Happening::Ended),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    /// Idle is said exactly when the counted silence reaches the limit, whatever happens in which order,
    /// and a sleep until the moment that was told is never too long.
    #[test]
    fn idle_is_exact(happenings in happenings()) {
        let mut world = World::new();
        let mut now = world.start;
        let (mut silent, mut running) = (Duration::ZERO, HashSet::new());
        let mut told = world.watch.step(now, world.flow);
        for happening in happenings {
            match happening {
                Happening::Pass(millis) => {
                    let passed = Duration::from_millis(millis);
                    let counts = !world.flow.blocked && running.is_empty();
                    if counts {
                        silent += passed;
                    }
                    match told {
                        Due::Nothing(Some(until)) => prop_assert!(counts && until + silent == now + passed + LIMIT),
                        Due::Nothing(None) => prop_assert!(!counts),
                        other => prop_assert!(false, "{other:?} was acted upon already"),
                    }
                    now += passed;
                }
                Happening::Bytes => {
                    now += Duration::from_nanos(1); // no two reads at one moment
                    world.flow.last_bytes = Some(now);
                    silent = Duration::ZERO;
                }
                Happening::Blocked(blocked) => world.flow.blocked = blocked,
                Happening::Started(id) => {
                    running.insert(id);
                    world.watch.saw(Sighting::ToolStarted(Some(id.to_string())), now);
                }
                Happening::Ended(id) => {
                    running.remove(&id);
                    world.watch.saw(Sighting::ToolEnded(Some(id.to_string())), now);
                }
            }
            told = world.watch.step(now, world.flow);
            prop_assert_eq!(is_idle(told), silent >= LIMIT, "silent for {:?}", silent);
            if is_idle(told) {
                break;
            }
        }
    }
}
