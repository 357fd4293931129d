use super::*;
use proptest::prelude::*;

fn policy(restart: Restart) -> Policy {
    Policy {
        restart,
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(8),
        backoff_reset: Duration::from_secs(60),
        limit: None,
    }
}

fn running(policy: Policy, now: Instant) -> Machine {
    let mut machine = Machine::new(policy, now);
    assert!(machine.launch(now));
    assert_eq!(machine.take(Event::Ready, now), Act::Nothing);
    machine
}

/// The pause that an end is answered with, if it is answered with one.
fn pause(machine: &mut Machine, code: u8, now: Instant) -> Option<Duration> {
    assert_eq!(machine.take(Event::Ended(code), now), Act::Nothing);
    machine.due().map(|until| until - now)
}

#[test]
fn the_pause_doubles_up_to_the_cap_and_is_reset_by_a_stable_time() {
    let mut now = Instant::now();
    let mut machine = Machine::new(policy(Restart::Always), now);
    let mut pauses = Vec::new();
    for uptime in [0, 0, 0, 0, 0, 60, 59] {
        assert!(machine.launch(now));
        now += Duration::from_secs(uptime);
        let pause = pause(&mut machine, 0, now).unwrap();
        pauses.push(pause.as_secs());
        machine.tick(now + pause - Duration::from_millis(1));
        assert!(!machine.launch(now), "not before the pause is over");
        now += pause;
        machine.tick(now);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 8, 1, 2]);
    assert_eq!(machine.restarts(), 6);
}

#[test]
fn what_exits_at_once_for_ever_fails_at_the_limit_and_a_start_forgives_it() {
    let now = Instant::now();
    let limited = Policy { limit: Some((3, Duration::from_secs(600))), ..policy(Restart::OnFailure) };
    let mut machine = Machine::new(limited, now);
    for round in 0..3 {
        assert!(machine.launch(now));
        assert!(pause(&mut machine, 1, now).is_some(), "round {round}");
        machine.tick(now + Duration::from_secs(8));
    }
    assert!(machine.launch(now));
    assert_eq!(pause(&mut machine, 1, now), None);
    assert_eq!(machine.phase(), Phase::Resting(Rest::Failed));
    assert_eq!(machine.take(Event::Start, now), Act::Nothing);
    assert!(machine.launch(now));
    assert_eq!(pause(&mut machine, 1, now), Some(Duration::from_secs(1)));
}

#[test]
fn old_restarts_do_not_count() {
    let mut now = Instant::now();
    let limited = Policy { limit: Some((1, Duration::from_secs(10))), ..policy(Restart::Always) };
    let mut machine = Machine::new(limited, now);
    for _ in 0..5 {
        assert!(machine.launch(now));
        now += Duration::from_secs(10);
        let pause = pause(&mut machine, 1, now).unwrap();
        machine.tick(now + pause);
    }
}

#[test]
fn the_policy_decides_about_ends_that_nobody_asked_for() {
    let now = Instant::now();
    for (restart, code, phase) in [
        (Restart::Never, 0, Some(Rest::Finished)),
        (Restart::Never, 1, Some(Rest::Failed)),
        (Restart::OnFailure, 0, Some(Rest::Finished)),
        (Restart::OnFailure, 1, None),
        (Restart::Always, 0, None),
        (Restart::Always, 1, None),
    ] {
        let mut machine = running(policy(restart), now);
        let paused = pause(&mut machine, code, now).is_some();
        match phase {
            Some(rest) => assert_eq!(machine.phase(), Phase::Resting(rest), "{restart:?} {code}"),
            None => assert!(paused, "{restart:?} {code}"),
        }
    }
}

#[test]
fn a_command_that_is_not_ready_in_time_is_ended_and_has_failed() {
    let now = Instant::now();
    let mut machine = Machine::new(policy(Restart::OnFailure), now);
    assert!(machine.launch(now));
    assert_eq!(machine.take(Event::NotReady, now), Act::End);
    assert!(pause(&mut machine, 0, now).is_some(), "its handler exits with 0, and it failed all the same");
}

#[test]
fn restarts_of_a_stopping_command_coalesce_and_wait_for_its_ending() {
    let now = Instant::now();
    let mut machine = running(policy(Restart::Never), now);
    assert_eq!(machine.take(Event::Restart, now), Act::End);
    for _ in 0..9 {
        assert_eq!(machine.take(Event::Restart, now), Act::Nothing);
        assert!(!machine.launch(now));
    }
    assert_eq!(machine.take(Event::Ended(143), now), Act::Nothing);
    assert!(machine.launch(now));
    assert_eq!((machine.phase(), machine.restarts()), (Phase::Starting, 1));
}

#[test]
fn the_last_wish_during_an_ending_counts_and_shutdown_is_the_last_of_all() {
    let now = Instant::now();
    for (wishes, phase) in [
        (vec![Event::Stop, Event::Start], Phase::Waiting),
        (vec![Event::Restart, Event::Stop], Phase::Resting(Rest::Stopped)),
        (vec![Event::Restart, Event::Shutdown], Phase::Resting(Rest::Stopped)),
        (vec![Event::Stop, Event::Shutdown, Event::Restart, Event::Start], Phase::Resting(Rest::Stopped)),
    ] {
        let mut machine = running(policy(Restart::Always), now);
        for wish in &wishes {
            let _ = machine.take(*wish, now);
        }
        let _ = machine.take(Event::Ended(0), now);
        assert_eq!(machine.phase(), phase, "{wishes:?}");
    }
}

#[test]
fn a_shutdown_leaves_running_what_is_not_its_turn_yet() {
    let now = Instant::now();
    let mut machine = running(policy(Restart::Always), now);
    assert_eq!(machine.take(Event::Shutdown, now), Act::Nothing);
    assert_eq!(machine.phase(), Phase::Running);
    assert_eq!(machine.take(Event::Restart, now), Act::Nothing, "no restart during a shutdown");
    assert_eq!(machine.phase(), Phase::Running);
    assert_eq!(machine.take(Event::Stop, now), Act::End);
    let _ = machine.take(Event::Ended(0), now);
    assert_eq!(machine.phase(), Phase::Resting(Rest::Stopped));
}

/// What may come from outside, and what the world does by itself.
#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Launch,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let event = prop_oneof![
        Just(Event::Ready),
        Just(Event::NotReady),
        (0u8..3).prop_map(Event::Ended),
        Just(Event::Start),
        Just(Event::Stop),
        Just(Event::Restart),
        Just(Event::Doomed),
    ];
    let step = prop_oneof![
        6 => event.prop_map(Step::Event),
        4 => Just(Step::Launch),
        2 => (0u64..20_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..200)
}

fn policies() -> impl Strategy<Value = Policy> {
    let restart = prop_oneof![Just(Restart::Never), Just(Restart::OnFailure), Just(Restart::Always)];
    (restart, 0u64..3, prop::option::of((0usize..4, 1u64..60))).prop_map(|(restart, backoff, limit)| Policy {
        backoff: Duration::from_secs(backoff),
        limit: limit.map(|(count, window)| (count, Duration::from_secs(window))),
        ..policy(restart)
    })
}

/// The world beside the machine: whether a process is there, and whether it was told to end.
#[derive(Default)]
struct World {
    lives: bool,
    told: bool,
    launches: u64,
}

impl World {
    fn act(&mut self, act: Act) {
        if act == Act::End {
            assert!(self.lives && !self.told, "only who lives is told, and only once");
            self.told = true;
        }
    }

    fn apply(&mut self, machine: &mut Machine, step: &Step, now: &mut Instant) {
        match step {
            Step::Pass(millis) => {
                *now += Duration::from_millis(*millis);
                machine.tick(*now);
            }
            Step::Launch => {
                if machine.launch(*now) {
                    assert!(!self.lives, "two processes of one command");
                    *self = World { lives: true, told: false, launches: self.launches + 1 };
                }
            }
            // Nobody ends who does not live.
            Step::Event(Event::Ended(_)) if !self.lives => {}
            Step::Event(event) => {
                if matches!(event, Event::Ended(_)) {
                    self.lives = false;
                }
                let act = machine.take(*event, *now);
                self.act(act);
            }
        }
        assert_eq!(machine.has_process(), self.lives);
        assert_eq!(matches!(machine.phase(), Phase::Stopping(_)), self.lives && self.told);
        assert_eq!(machine.restarts(), self.launches.saturating_sub(1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order: never two processes, never a second order to end, and the
    /// machine always knows what is there.
    #[test]
    fn no_order_of_events_makes_two_processes(policy in policies(), steps in steps()) {
        let mut now = Instant::now();
        let (mut machine, mut world) = (Machine::new(policy, now), World::default());
        for step in &steps {
            world.apply(&mut machine, step, &mut now);
        }
    }

    /// From wherever it is, a shutdown comes to an end: nothing is launched after it, and one stop and
    /// one end bring it to rest for good.
    #[test]
    fn a_shutdown_ends_from_every_state(policy in policies(), before in steps(), after in steps()) {
        let mut now = Instant::now();
        let (mut machine, mut world) = (Machine::new(policy, now), World::default());
        for step in &before {
            world.apply(&mut machine, step, &mut now);
        }
        world.act(machine.take(Event::Shutdown, now));
        let launches = world.launches;
        for step in &after {
            world.apply(&mut machine, step, &mut now);
        }
        prop_assert_eq!(world.launches, launches);
        world.act(machine.take(Event::Stop, now));
        if world.lives {
            world.apply(&mut machine, &Step::Event(Event::Ended(0)), &mut now);
        }
        prop_assert!(matches!(machine.phase(), Phase::Resting(_)), "{:?}", machine.phase());
        prop_assert_eq!(machine.due(), None);
    }

    /// What is wanted comes: after a start from any state, the command runs once its ending is over.
    #[test]
    fn a_start_is_never_lost(policy in policies(), steps in steps()) {
        let mut now = Instant::now();
        let (mut machine, mut world) = (Machine::new(policy, now), World::default());
        for step in &steps {
            world.apply(&mut machine, step, &mut now);
        }
        world.act(machine.take(Event::Start, now));
        if matches!(machine.phase(), Phase::Stopping(_)) {
            world.apply(&mut machine, &Step::Event(Event::Ended(1)), &mut now);
        }
        world.apply(&mut machine, &Step::Launch, &mut now);
        prop_assert!(matches!(machine.phase(), Phase::Starting | Phase::Running), "{:?}", machine.phase());
    }

    /// The limit holds in every window, whatever the ends.
    #[test]
    fn the_limit_holds_in_every_window(codes in prop::collection::vec((0u8..2, 0u64..5000), 1..100)) {
        let (count, window) = (3, Duration::from_secs(20));
        let limited = Policy { backoff: Duration::ZERO, limit: Some((count, window)), ..policy(Restart::Always) };
        let mut now = Instant::now();
        let mut machine = Machine::new(limited, now);
        let mut launches = Vec::new();
        for (code, uptime) in codes {
            machine.tick(now);
            if machine.launch(now) {
                launches.push(now);
            }
            now += Duration::from_millis(uptime);
            let _ = machine.take(Event::Ended(code), now);
            now = machine.due().unwrap_or(now);
        }
        for start in &launches {
            // The first launch is no restart.
            let within = launches.iter().filter(|launch| **launch >= *start && **launch - *start < window).count();
            prop_assert!(within <= count + 1, "{within} launches");
        }
    }
}
