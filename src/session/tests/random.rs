//! Any events in any order: the machine neither spins nor waits for ever.

use super::*;
use proptest::prelude::*;

fn events() -> impl Strategy<Value = Event> {
    let generation = || (1u64..6).prop_map(Generation);
    let step = || (0u64..9).prop_map(Step);
    let finish = prop_oneof![
        Just(Finish::Complete),
        Just(Finish::Stopped),
        Just(Finish::Left),
        Just(failed()),
    ];
    let close = proptest::option::of(Just(Close::Left));
    let from_the_coordinator = prop_oneof![
        8 => Just(Event::Connected),
        2 => Just(unreachable()),
        2 => Just(disconnected()),
        8 => any::<bool>().prop_map(welcome),
        8 => (generation(), close).prop_map(|(g, close)| Event::Assignment(g, close)),
        1 => generation().prop_map(Event::Work),
        1 => generation().prop_map(Event::Pause),
        1 => generation().prop_map(|g| Event::Hold(g, "x".to_owned())),
        1 => Just(Event::Release),
        1 => any::<bool>().prop_map(|drain| Event::Stop { drain }),
        1 => Just(Event::Acknowledged),
    ];
    let from_the_thread = prop_oneof![
        4 => Just(Event::Prepared("d".to_owned())),
        4 => (generation(), step()).prop_map(|(g, s)| Event::Formed(g, s, Forming::default())),
        1 => (generation(), step()).prop_map(|(g, s)| Event::Paused(g, s)),
        1 => (generation(), step(), finish).prop_map(|(g, s, f)| Event::TrainingEnded(g, s, f)),
        1 => (generation(), step()).prop_map(|(g, s)| Event::CollectiveFailed(g, s, breakage())),
    ];
    prop_oneof![
        12 => from_the_coordinator,
        8 => from_the_thread,
        1 => Just(Event::Terminate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariants 3 and 7.
    #[test]
    fn whatever_happens_the_machine_neither_spins_nor_waits_for_ever(
        events in proptest::collection::vec((0u64..4, events()), 0..60),
    ) {
        let mut session = joining();
        let mut now = at(0);
        let mut newest = Generation(0);
        let mut actions = Vec::new();
        for (seconds, event) in events {
            now += at(seconds);
            actions.extend(session.handle(event, now));
            if session.next_deadline().is_some_and(|at| at <= now) {
                actions.extend(session.handle_timeout(now));
                prop_assert!(session.next_deadline().is_none_or(|at| at > now), "it would spin");
            }
            prop_assert!(session.generation() >= newest);
            newest = session.generation();
        }
        // Then the coordinator is gone for good, and the training thread gives up.
        actions.extend(session.handle(disconnected(), now));
        actions.extend(session.handle(breaks(session.generation(), 9), now));
        for _ in 0..200 {
            let Some(at) = session.next_deadline() else { break };
            now = at;
            let due = session.handle_timeout(now);
            if due.contains(&Action::Connect) {
                actions.extend(session.handle(unreachable(), now));
            }
            actions.extend(due);
        }
        let exits = actions.iter().filter(|action| matches!(action, Action::Exit(_))).count();
        prop_assert_eq!(exits, 1, "{:?}", session);
        prop_assert!(matches!(actions.last(), Some(Action::Exit(_))));
    }
}
