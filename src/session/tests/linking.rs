//! The link to the coordinator: lost, made again, and waited for.

use super::*;

#[test]
fn a_coordinator_that_is_not_there_yet_is_tried_again_with_backoff() {
    let mut session = joining();
    let mut now = at(0);
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert_eq!(session.handle(unreachable(), now), []);
        let retry_at = session.next_deadline().unwrap();
        waits.push(retry_at - now);
        now = retry_at;
        assert_eq!(session.handle_timeout(now), [Action::Connect]);
    }
    assert_eq!(waits[..3], [50, 100, 200].map(Duration::from_millis));
    assert_eq!(*waits.last().unwrap(), at(1));
}

/// Invariant 7.
#[test]
fn waits_for_the_coordinator_end_and_say_why() {
    let mut absent = joining();
    absent.handle(unreachable(), at(59));
    assert!(absent.next_deadline().unwrap() < at(60));
    let actions = absent.handle_timeout(at(60));
    let Exit::Failed(why) = exit(&actions) else {
        panic!("{actions:?}");
    };
    assert!(why.contains("refused") && why.contains("1m"), "{why}");

    let mut silent = joining();
    silent.handle(Event::Connected, at(1));
    assert_eq!(silent.next_deadline(), Some(at(61)));
    let actions = silent.handle_timeout(at(61));
    assert!(matches!(exit(&actions), Exit::Failed(why) if why.contains("not answered")));

    for mut lost in [preparing(), waiting(), broken()] {
        lost.handle(disconnected(), at(10));
        lost.handle_timeout(at(11));
        lost.handle(unreachable(), at(39));
        let actions = lost.handle_timeout(at(40));
        assert!(matches!(exit(&actions), Exit::Failed(why) if why.contains("30s")));
    }
}

/// Invariant 7: every state that waits for something that may not come has a deadline.
#[test]
fn every_wait_has_a_deadline() {
    let lost = [
        preparing(),
        waiting(),
        broken(),
        finishing(Finish::Complete),
    ];
    for mut session in lost {
        assert!(session.next_deadline().is_some(), "{session:?}");
        reconnect(&mut session, at(5));
        assert!(session.next_deadline().is_some(), "greeting: {session:?}");
    }
    // Even while the attempt to connect is under way.
    assert_eq!(joining().next_deadline(), Some(at(60)));
    let mut leaving = broken();
    leaving.handle(Event::Terminate, at(5));
    assert!(leaving.next_deadline().unwrap() <= at(15));
}

/// Invariant 5.
#[test]
fn training_goes_on_without_the_coordinator_and_nothing_happens_when_it_is_back() {
    let mut session = training();
    assert_eq!(session.handle(disconnected(), at(5)), []);
    // For hours.
    for hour in 1..5 {
        let now = at(hour * 3600);
        assert_eq!(session.handle_timeout(now), [Action::Connect]);
        assert_eq!(session.handle(unreachable(), now), []);
    }
    let now = at(18_001);
    assert_eq!(session.handle_timeout(now), [Action::Connect]);
    let hello = session.handle(Event::Connected, now);
    assert_eq!(hello, [standing(3, true, 5)]);
    assert_eq!(session.handle(welcome(true), now), []);
    let actions = session.handle(Event::Work(GEN), now);
    assert_eq!(actions, [Action::GiveWork]);
    assert_eq!(session.next_deadline(), Some(now + at(2)), "it beats again");
}

/// Invariant 5: forming goes on, too.
#[test]
fn a_generation_forms_without_the_coordinator() {
    let mut session = forming();
    session.handle(disconnected(), at(4));
    let formed = Event::Formed(GEN, Step(5), Forming::default());
    assert_eq!(session.handle(formed, at(5)), [], "there is nobody to tell");
    assert_eq!(
        session.handle(Event::Pause(GEN), at(5)),
        [Action::RaisePause(GEN)]
    );
}

/// Invariant 7: a coordinator that accepts and then says nothing is left for another attempt.
#[test]
fn a_greeting_that_is_not_answered_is_tried_again_while_training() {
    let mut session = training();
    reconnect(&mut session, at(5));
    let due = session.next_deadline().unwrap();
    assert_eq!(session.handle_timeout(due), []);
    assert_eq!(session.next_deadline(), Some(due + at(1)));
    assert_eq!(session.handle_timeout(due + at(1)), [Action::Connect]);
}

/// Invariant 5: they go on to the end of what they were assigned, and then wait for it.
#[test]
fn the_wait_begins_when_there_is_nothing_left_to_do() {
    let mut session = training();
    session.handle(disconnected(), at(5));
    assert_eq!(session.handle(breaks(GEN, 900), at(3600)), []);
    session.handle_timeout(at(3629));
    session.handle(unreachable(), at(3629));
    let actions = session.handle_timeout(at(3630));
    assert!(matches!(exit(&actions), Exit::Failed(_)));

    let mut finished = training();
    finished.handle(disconnected(), at(5));
    assert_eq!(finished.handle(ended(Finish::Complete), at(3600)), []);
    assert_eq!(finished.handle_timeout(at(3610)), [Action::Connect]);
    let hello = finished.handle(Event::Connected, at(3610));
    assert_eq!(hello, [standing(3, true, 9)]);
    let actions = finished.handle(welcome(true), at(3610));
    assert_eq!(
        actions,
        [Action::SayFinished(GEN, Step(9), Finish::Complete)]
    );
}

#[test]
fn a_sign_of_life_is_sent_in_time() {
    let mut session = training();
    assert_eq!(session.next_deadline(), Some(at(3)));
    assert_eq!(session.handle_timeout(at(3)), [Action::Beat]);
    assert_eq!(session.next_deadline(), Some(at(5)));
    assert_eq!(session.handle_timeout(at(4)), []);
    session.handle(disconnected(), at(4));
    let later = session.handle_timeout(at(60));
    assert_eq!(later, [Action::Connect], "nobody hears it");
}

#[test]
fn what_became_ready_without_the_coordinator_is_said_when_it_is_back() {
    let mut session = preparing();
    let hello = reconnect(&mut session, at(2));
    assert_eq!(hello, [standing(0, false, 0)]);
    assert_eq!(session.handle(Event::Prepared("d".to_owned()), at(3)), []);
    assert_eq!(session.handle(welcome(false), at(3)), [say_ready()]);

    let mut busy = preparing();
    reconnect(&mut busy, at(2));
    assert_eq!(busy.handle(welcome(false), at(3)), [], "once is enough");
}

#[test]
fn why_it_rests_is_said_again_to_a_coordinator_that_knows_it() {
    let mut broken = broken();
    assert_eq!(reconnect(&mut broken, at(5)), [standing(3, true, 9)]);
    let again = Action::SayCollectiveFailed(GEN, Step(9), breakage());
    assert_eq!(broken.handle(welcome(true), at(6)), [again]);

    let mut paused = training();
    paused.handle(disconnected(), at(5));
    assert_eq!(paused.handle(Event::Paused(GEN, Step(7)), at(5)), []);
    paused.handle_timeout(at(6));
    let hello = paused.handle(Event::Connected, at(6));
    assert_eq!(hello, [standing(3, true, 7)]);
    let again = Action::SayPaused(GEN, Step(7));
    assert_eq!(paused.handle(welcome(true), at(6)), [again]);
}

#[test]
fn a_worker_that_rests_offers_itself_to_a_coordinator_that_does_not_know_it() {
    let mut session = broken();
    reconnect(&mut session, at(5));
    assert_eq!(session.handle(welcome(false), at(6)), [say_ready()]);
}

/// Invariant 3: it was taken for dead; whatever it is in the middle of is over.
#[test]
fn a_worker_that_is_fenced_leaves_its_generation_and_joins_anew() {
    for mut session in [forming(), training()] {
        reconnect(&mut session, at(5));
        let actions = session.handle(welcome(false), at(6));
        let [Action::Abort(before, why), ready] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!((*before, ready), (Generation(4), &say_ready()));
        assert!(why.contains("given up"), "{why}");
        // What its training thread still has to say, nobody wants to hear.
        assert_eq!(session.handle(breaks(GEN, 9), at(7)), []);
        assert_eq!(session.handle(ended(Finish::Complete), at(7)), []);
        let next = Event::Assignment(Generation(7), None);
        assert_eq!(session.handle(next, at(8)), [Action::Form]);
    }
}

#[test]
fn a_welcome_that_was_not_asked_for_has_no_effect() {
    let mut session = training();
    assert_eq!(session.handle(welcome(false), at(5)), []);
    session.handle(disconnected(), at(5));
    assert_eq!(session.handle(welcome(false), at(5)), []);
    assert_eq!(session.handle(Event::Work(GEN), at(5)), [Action::GiveWork]);
}

#[test]
fn a_refusal_ends_the_worker_and_says_whether_to_come_back() {
    let refused = |permanent| Event::Refused {
        reason: "r".to_owned(),
        permanent,
    };
    let code = |event| exit(&waiting().handle(event, at(5))).code();
    assert_eq!((code(refused(true)), code(refused(false))), (78, 1));
}

/// Invariant 7: a coordinator that accepts and hangs up is still one that can't be reached.
#[test]
fn a_coordinator_that_hangs_up_at_once_is_not_tried_for_ever() {
    let mut session = waiting();
    let mut now = at(10);
    session.handle(disconnected(), now);
    let actions = loop {
        now = session.next_deadline().expect("a deadline");
        assert!(now <= at(40));
        let actions = session.handle_timeout(now);
        if actions != [Action::Connect] {
            break actions;
        }
        session.handle(Event::Connected, now);
        session.handle(disconnected(), now);
    };
    assert!(matches!(exit(&actions), Exit::Failed(_)));
    assert_eq!(now, at(40));
}
