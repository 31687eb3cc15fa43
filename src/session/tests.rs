//! The machine's transitions, with invented instants.

use super::*;

const GEN: Generation = Generation(3);

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn joining() -> Session {
    let (session, actions) = Session::new(at(60), at(0));
    assert_eq!(actions, [Action::Connect]);
    session
}

fn welcome() -> Event {
    Event::Welcome {
        heartbeat: at(2),
        patience: at(30),
    }
}

fn waiting() -> Session {
    let mut session = joining();
    assert!(session.handle(Event::Connected, at(1)).is_empty());
    assert_eq!(session.handle(welcome(), at(1)), [Action::Prepare]);
    let ready = session.handle(Event::Prepared("d".to_owned()), at(2));
    assert_eq!(ready, [Action::SayReady("d".to_owned())]);
    session
}

fn training() -> Session {
    let mut session = waiting();
    assert_eq!(
        session.handle(Event::Assignment(GEN), at(3)),
        [Action::Form]
    );
    let formed = session.handle(Event::Formed(GEN, Step(5)), at(4));
    assert_eq!(formed, [Action::SayFormed(GEN, Step(5))]);
    session
}

fn ended(finish: Finish) -> Event {
    Event::TrainingEnded(GEN, Step(9), finish)
}

fn unreachable() -> Event {
    Event::Unreachable("refused".to_owned())
}

#[test]
fn a_coordinator_that_isnt_there_yet_is_tried_again_with_backoff() {
    let mut session = joining();
    let mut now = at(0);
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert!(session.handle(unreachable(), now).is_empty());
        let retry_at = session.next_deadline().unwrap();
        waits.push(retry_at - now);
        now = retry_at;
        assert_eq!(session.handle_timeout(now), [Action::Connect]);
    }
    assert_eq!(waits[..3], [50, 100, 200].map(Duration::from_millis));
    assert_eq!(*waits.last().unwrap(), at(2));
}

/// Invariant 7.
#[test]
fn waits_for_the_coordinator_end() {
    let mut session = joining();
    let actions = session.handle(unreachable(), at(60));
    assert!(
        matches!(&actions[..], [Action::Exit(Exit::Failed(why))] if why.contains("refused")),
        "{actions:?}"
    );

    let mut silent = joining();
    silent.handle(Event::Connected, at(1));
    assert_eq!(silent.next_deadline(), Some(at(61)));
    let actions = silent.handle_timeout(at(61));
    assert!(
        matches!(actions[..], [Action::Exit(Exit::Failed(_))]),
        "{actions:?}"
    );

    let mut broken = training();
    let failed = Event::CollectiveFailed(GEN, Step(8), "rank 1 is gone".to_owned());
    broken.handle(failed, at(10));
    for beat in (5..40).step_by(2) {
        broken.handle_timeout(at(beat).min(at(39)));
    }
    let actions = broken.handle_timeout(at(40));
    assert!(
        actions.iter().any(
            |a| matches!(a, Action::Exit(Exit::Failed(why)) if why.contains("rank 1 is gone"))
        ),
        "{actions:?}"
    );
}

#[test]
fn a_sign_of_life_is_sent_in_time() {
    let mut session = training();
    assert_eq!(session.next_deadline(), Some(at(3)));
    assert_eq!(session.handle_timeout(at(3)), [Action::Beat]);
    assert_eq!(session.next_deadline(), Some(at(5)));
    assert!(session.handle_timeout(at(4)).is_empty());
}

#[test]
fn a_complete_job_is_reported_and_left_when_the_coordinator_knows() {
    let mut session = training();
    let said = session.handle(ended(Finish::Complete), at(5));
    assert_eq!(said, [Action::SayFinished(GEN, Step(9), Finish::Complete)]);
    assert_eq!(
        session.handle(Event::Acknowledged, at(6)),
        [Action::Exit(Exit::Done)]
    );
    assert!(
        session
            .handle(Event::Stop { drain: false }, at(7))
            .is_empty()
    );
}

/// Invariant 5.
#[test]
fn training_goes_on_without_the_coordinator() {
    let mut session = training();
    assert!(
        session
            .handle(Event::Disconnected("gone".to_owned()), at(5))
            .is_empty()
    );
    assert_eq!(session.next_deadline(), None);
    let actions = session.handle(ended(Finish::Complete), at(50));
    assert_eq!(
        actions,
        [Action::Exit(Exit::Done)],
        "there is nobody to tell"
    );
}

#[test]
fn a_coordinator_lost_before_the_job_began_is_an_error() {
    let mut session = waiting();
    let actions = session.handle(Event::Disconnected("gone".to_owned()), at(5));
    assert!(
        matches!(actions[..], [Action::Exit(Exit::Failed(_))]),
        "{actions:?}"
    );
}

/// Invariant 3.
#[test]
fn another_generations_messages_have_no_effect() {
    let old = Generation(2);
    let mut session = training();
    for event in [
        Event::Work(old),
        Event::Formed(old, Step(9)),
        Event::TrainingEnded(old, Step(9), Finish::Complete),
        Event::CollectiveFailed(old, Step(9), "late".to_owned()),
    ] {
        assert!(session.handle(event, at(5)).is_empty());
    }
    assert_eq!(session.handle(Event::Work(GEN), at(5)), [Action::GiveWork]);
}

#[test]
fn a_signal_is_told_to_everybody_and_leads_to_exit_code_75() {
    let mut session = training();
    let actions = session.handle(Event::Terminate, at(5));
    assert_eq!(actions, [Action::RaiseLeaving, Action::SayLeaving(GEN)]);
    session.handle(ended(Finish::Left), at(6));
    let actions = session.handle(Event::Acknowledged, at(6));
    assert_eq!(actions, [Action::Exit(Exit::Left)]);
    assert_eq!(Exit::Left.code(), 75);

    let mut early = waiting();
    assert_eq!(
        early.handle(Event::Terminate, at(5)),
        [Action::Exit(Exit::Left)]
    );
}

#[test]
fn a_refusal_ends_the_worker_and_says_whether_to_come_back() {
    let refused = |permanent| Event::Refused {
        reason: "r".to_owned(),
        permanent,
    };
    let exit = |event| match waiting().handle(event, at(5)).remove(0) {
        Action::Exit(exit) => exit.code(),
        other => panic!("{other:?}"),
    };
    assert_eq!((exit(refused(true)), exit(refused(false))), (78, 1));
}

#[test]
fn a_stop_is_raised_in_band() {
    let told = |drain| training().handle(Event::Stop { drain }, at(5));
    assert_eq!(told(false), [Action::RaiseStop]);
    assert_eq!(told(true), [Action::RaiseLeaving]);
}

#[test]
fn a_worker_that_cant_go_on_says_so_before_it_goes() {
    let mut session = waiting();
    let actions = session.handle(Event::Failed("no data".to_owned()), at(5));
    assert!(
        matches!(actions[..], [Action::SayFinished(..)]),
        "{actions:?}"
    );
    let actions = session.handle_timeout(at(15));
    assert!(
        actions.contains(&Action::Exit(Exit::Failed("no data".to_owned()))),
        "the farewell has a deadline: {actions:?}"
    );
}

#[test]
fn a_job_that_ends_well_without_a_worker_ends_it_well() {
    let exit = |mut session: Session, good| {
        let outcome = "o".to_owned();
        match session
            .handle(Event::Ended { outcome, good }, at(5))
            .remove(0)
        {
            Action::Exit(exit) => exit.code(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((exit(waiting(), true), exit(waiting(), false)), (0, 1));
    // What it did itself counts more than how the others fared.
    let mut left = training();
    left.handle(ended(Finish::Left), at(6));
    assert_eq!(exit(left, false), 75);
}
