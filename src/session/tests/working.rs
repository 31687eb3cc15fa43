//! Generations that come and go, and how the work ends.

use super::*;

/// Invariant 3.
#[test]
fn a_newer_assignment_takes_the_place_of_the_present_one() {
    for mut session in [forming(), training()] {
        let actions = session.handle(Event::Assignment(Generation(4), None), at(5));
        let [Action::Abort(before, _), Action::Form] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!(*before, Generation(4));
        assert_eq!(session.generation(), Generation(4));
        assert_eq!(session.handle(Event::Work(GEN), at(5)), []);
        let work = session.handle(Event::Work(Generation(4)), at(5));
        assert_eq!(work, [Action::GiveWork]);
    }
    let mut rests = broken();
    let actions = rests.handle(Event::Assignment(Generation(4), None), at(5));
    assert_eq!(actions, [Action::Form], "there is nothing to call off");
}

/// Invariant 3.
#[test]
fn an_assignment_that_is_older_or_known_has_no_effect() {
    for session in [training, broken, || finishing(Finish::Complete)] {
        for generation in [Generation(2), GEN] {
            let mut session = session();
            let before = format!("{session:?}");
            let actions = session.handle(Event::Assignment(generation, None), at(5));
            assert_eq!(actions, []);
            assert_eq!(format!("{session:?}"), before);
        }
    }
}

/// Invariant 3.
#[test]
fn what_belongs_to_another_generation_has_no_effect() {
    let (old, next) = (Generation(2), Generation(4));
    for session in [forming, training] {
        for event in [
            Event::Work(old),
            Event::Work(next),
            Event::Pause(old),
            Event::Pause(next),
            Event::Hold(old, "late".to_owned()),
            Event::Formed(old, Step(5), Forming::default()),
            Event::Paused(old, Step(5)),
            Event::TrainingEnded(old, Step(5), Finish::Complete),
            Event::CollectiveFailed(old, Step(5), breakage()),
            Event::Release,
            Event::Acknowledged,
            Event::Prepared("x".to_owned()),
        ] {
            let mut session = session();
            session.step = Step(5);
            let before = format!("{session:?}");
            assert_eq!(session.handle(event.clone(), at(5)), [], "{event:?}");
            assert_eq!(format!("{session:?}"), before, "{event:?}");
        }
    }
}

/// The state of a generation that is over is a state all the same.
#[test]
fn what_an_older_generation_had_reached_is_still_held() {
    let mut session = training();
    session.handle(Event::Assignment(Generation(4), None), at(5));
    assert_eq!(session.handle(breaks(GEN, 9), at(5)), []);
    assert_eq!(reconnect(&mut session, at(6)), [standing(4, true, 9)]);
    session.handle(welcome(true), at(7));
    // But where the new one starts is where all start.
    let formed = Event::Formed(Generation(4), Step(8), Forming::default());
    session.handle(formed, at(8));
    assert_eq!(reconnect(&mut session, at(9)), [standing(4, true, 8)]);
}

#[test]
fn a_pause_is_raised_and_its_rest_is_told() {
    let mut session = training();
    let raised = session.handle(Event::Pause(GEN), at(5));
    assert_eq!(raised, [Action::RaisePause(GEN)]);
    let told = session.handle(Event::Paused(GEN, Step(6)), at(5));
    assert_eq!(told, [Action::SayPaused(GEN, Step(6))]);
    assert_eq!(session.handle(Event::Pause(GEN), at(5)), [], "it rests");
    assert_eq!(session.handle(Event::Work(GEN), at(5)), []);
}

#[test]
fn a_broken_collective_is_told_and_the_worker_waits_for_the_next_generation() {
    let mut session = training();
    let told = session.handle(breaks(GEN, 8), at(5));
    assert_eq!(
        told,
        [Action::SayCollectiveFailed(GEN, Step(8), breakage())]
    );
    assert_eq!(session.handle(breaks(GEN, 8), at(5)), [], "once is enough");
    let actions = session.handle(Event::Assignment(Generation(4), None), at(6));
    assert_eq!(actions, [Action::Form]);
}

#[test]
fn a_hold_calls_the_generation_off_and_keeps_the_state() {
    let hold = |generation| Event::Hold(generation, "a death".to_owned());
    for mut session in [forming(), training()] {
        let actions = session.handle(hold(GEN), at(5));
        let abort = Action::Abort(Generation(4), "a death".to_owned());
        assert_eq!(actions, [abort, say_ready()]);
        assert_eq!(reconnect(&mut session, at(6))[0], {
            let step = session.step.0;
            standing(3, false, step)
        });
    }
    for mut session in [broken(), finishing(Finish::Complete)] {
        let actions = session.handle(hold(Generation(4)), at(5));
        assert_eq!(actions, [say_ready()], "there is nothing to call off");
    }
    assert_eq!(preparing().handle(hold(GEN), at(5)), []);
}

#[test]
fn a_generation_that_only_saves_is_formed_like_any_other() {
    let mut session = broken();
    let close = Event::Assignment(Generation(4), Some(Close::Left));
    assert_eq!(session.handle(close, at(5)), [Action::Form]);
    let end = Event::TrainingEnded(Generation(4), Step(9), Finish::Left);
    session.handle(end, at(6));
    let actions = session.handle(Event::Acknowledged, at(6));
    assert_eq!(exit(&actions), &Exit::Left);
}

#[test]
fn a_complete_job_is_reported_and_left_when_the_coordinator_knows() {
    let mut session = finishing(Finish::Complete);
    let actions = session.handle(Event::Acknowledged, at(6));
    assert_eq!(actions, [Action::Exit(Exit::Done)]);
    assert_eq!(session.next_deadline(), None);
    for event in [
        Event::Stop { drain: false },
        Event::Terminate,
        disconnected(),
    ] {
        assert_eq!(session.handle(event, at(7)), [], "it is over");
    }
    assert_eq!(session.handle_timeout(at(70)), []);
}

/// Invariant 7, and what it did itself counts more than that nobody has heard of it.
#[test]
fn the_last_word_is_not_waited_for_for_ever() {
    let ends = [
        (Finish::Complete, 0),
        (Finish::Stopped, 0),
        (Finish::Left, 75),
        (failed(), 1),
    ];
    for (finish, code) in ends {
        // The coordinator says nothing.
        let mut session = finishing(finish.clone());
        session.handle_timeout(at(23));
        let actions = session.handle_timeout(at(24));
        assert_eq!(exit(&actions).code(), code, "{finish:?}");
        // It is gone, and the farewell is long: but not for those who were told to go.
        let mut session = finishing(finish.clone());
        let actions = session.handle(disconnected(), at(5));
        if finish == Finish::Left {
            assert_eq!(exit(&actions).code(), code, "{finish:?}");
            continue;
        }
        session.handle_timeout(at(6));
        session.handle(unreachable(), at(23));
        let actions = session.handle_timeout(at(35));
        assert_eq!(exit(&actions).code(), code, "{finish:?}");
        // The job is over without its word.
        let over = Event::Ended {
            outcome: "o".to_owned(),
            good: false,
        };
        let actions = finishing(finish.clone()).handle(over, at(6));
        let code = match finish {
            // It had stopped with a job that has failed.
            Finish::Stopped => 1,
            _ => code,
        };
        assert_eq!(exit(&actions).code(), code, "{finish:?}");
    }
}

/// The leader died while it saved the last checkpoint: somebody else has to.
#[test]
fn who_has_finished_takes_part_again_if_it_is_needed() {
    let mut session = finishing(Finish::Complete);
    let actions = session.handle(Event::Assignment(Generation(4), None), at(5));
    assert_eq!(actions, [Action::Form]);

    let mut unknown = finishing(Finish::Complete);
    reconnect(&mut unknown, at(5));
    assert_eq!(unknown.handle(welcome(false), at(6)), [say_ready()]);
}

/// Whatever it hears, a worker that can't go on doesn't offer itself.
#[test]
fn who_has_failed_never_takes_part_again() {
    let mut session = finishing(failed());
    let actions = session.handle(Event::Assignment(Generation(4), None), at(5));
    let again = Action::SayFinished(Generation(4), Step(9), failed());
    assert_eq!(actions, [again], "the new generation must not wait for it");
    let hold = Event::Hold(Generation(4), "x".to_owned());
    assert_eq!(session.handle(hold, at(6)), []);
    reconnect(&mut session, at(7));
    let again = Action::SayFinished(Generation(4), Step(9), failed());
    assert_eq!(session.handle(welcome(false), at(8)), [again]);

    // Before it had any data, too.
    let mut early = preparing();
    early.handle(Event::Failed("no such folder".to_owned()), at(2));
    reconnect(&mut early, at(3));
    let actions = early.handle(welcome(false), at(4));
    assert!(
        matches!(actions[..], [Action::SayFinished(..)]),
        "{actions:?}"
    );
}

#[test]
fn a_worker_that_cannot_go_on_says_so_before_it_goes() {
    for mut session in [preparing(), waiting(), training()] {
        let actions = session.handle(Event::Failed("no memory".to_owned()), at(5));
        let [Action::SayFinished(generation, _, finish)] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!((*generation, finish), (session.generation(), &failed()));
        let actions = session.handle(Event::Acknowledged, at(6));
        assert_eq!(exit(&actions), &Exit::Failed("no memory".to_owned()));
    }
    // Where there is nobody to tell, it goes at once.
    let mut lost = training();
    lost.handle(disconnected(), at(5));
    let actions = lost.handle(ended(failed()), at(6));
    assert_eq!(exit(&actions).code(), 1);
    let actions = joining().handle(Event::Failed("no memory".to_owned()), at(6));
    assert_eq!(exit(&actions).code(), 1);
}

#[test]
fn a_stop_is_raised_in_band() {
    let told = |drain| training().handle(Event::Stop { drain }, at(5));
    assert_eq!(told(false), [Action::RaiseStop(GEN)]);
    assert_eq!(told(true), [Action::RaiseDrain(GEN)]);
}

#[test]
fn a_job_that_ends_well_without_a_worker_ends_it_well() {
    let code = |good| {
        let outcome = "o".to_owned();
        exit(&waiting().handle(Event::Ended { outcome, good }, at(5))).code()
    };
    assert_eq!((code(true), code(false)), (0, 1));
}

/// Whether it had something to save, and so finished, or not.
#[test]
fn a_job_that_fails_ends_those_who_stopped_with_it_as_failed() {
    let code = |mut session: Session, finish: Option<Finish>| {
        if let Some(finish) = finish {
            session.handle(ended(finish), at(5));
        }
        let outcome = "o".to_owned();
        let good = false;
        exit(&session.handle(Event::Ended { outcome, good }, at(6))).code()
    };
    assert_eq!(code(waiting(), None), 1);
    assert_eq!(code(training(), Some(Finish::Stopped)), 1);
    assert_eq!(
        code(training(), Some(Finish::Complete)),
        0,
        "it did all there was"
    );
    assert_eq!(
        code(training(), Some(Finish::Left)),
        75,
        "it was told to go"
    );
}

#[test]
fn a_signal_while_it_trains_is_told_to_everybody_and_leads_to_exit_code_75() {
    for mut session in [forming(), training()] {
        let actions = session.handle(Event::Terminate, at(5));
        assert_eq!(actions, [Action::RaiseLeaving, Action::SayLeaving(GEN)]);
        session.handle(Event::Paused(GEN, Step(6)), at(6));
        let actions = session.handle(Event::Release, at(7));
        assert_eq!(exit(&actions), &Exit::Left);
    }
    assert_eq!(Exit::Left.code(), 75);
    let mut last = training();
    last.handle(Event::Terminate, at(5));
    last.handle(ended(Finish::Left), at(6));
    let actions = last.handle(Event::Acknowledged, at(6));
    assert_eq!(exit(&actions), &Exit::Left);
}

#[test]
fn a_signal_before_it_ever_took_part_ends_it_at_once() {
    for mut session in [joining(), preparing(), waiting()] {
        let actions = session.handle(Event::Terminate, at(5));
        assert_eq!(actions, [Action::Exit(Exit::Left)]);
    }
}

/// It may be the last that holds the newest state.
#[test]
fn a_signal_while_it_rests_waits_to_be_let_go() {
    let mut session = broken();
    let actions = session.handle(Event::Terminate, at(5));
    assert_eq!(actions, [Action::SayLeaving(GEN)]);
    assert_eq!(
        session.handle(Event::Terminate, at(6)),
        [],
        "once is enough"
    );
    let mut saves = session;
    let close = Event::Assignment(Generation(4), Some(Close::Left));
    assert_eq!(saves.handle(close, at(7)), [Action::Form], "first it saves");
    saves.handle_timeout(at(30));
    let formed = Event::Formed(Generation(4), Step(9), Forming::default());
    let actions = saves.handle(formed, at(31));
    assert!(
        matches!(actions[..], [Action::SayFormed(..)]),
        "no deadline but the generation's"
    );

    // Invariant 7: but not for ever.
    let mut silent = broken();
    silent.handle(Event::Terminate, at(5));
    silent.handle_timeout(at(14));
    let actions = silent.handle_timeout(at(15));
    assert_eq!(exit(&actions), &Exit::Left);

    // Nor for a coordinator that is gone.
    let mut lost = broken();
    lost.handle(Event::Terminate, at(5));
    let actions = lost.handle(disconnected(), at(6));
    assert_eq!(exit(&actions), &Exit::Left);
    let mut alone = broken();
    alone.handle(disconnected(), at(6));
    let actions = alone.handle(Event::Terminate, at(7));
    assert_eq!(exit(&actions), &Exit::Left);
}

#[test]
fn a_signal_while_the_coordinator_is_away_is_told_when_it_is_back() {
    let mut session = training();
    session.handle(disconnected(), at(5));
    let actions = session.handle(Event::Terminate, at(6));
    assert_eq!(actions, [Action::RaiseLeaving], "its peers know in band");
    let mut rests = training();
    rests.handle(disconnected(), at(5));
    rests.handle(Event::Terminate, at(6));
    let actions = rests.handle(Event::Paused(GEN, Step(7)), at(7));
    assert_eq!(exit(&actions), &Exit::Left, "they hold what it holds");

    session.handle_timeout(at(7));
    session.handle(Event::Connected, at(7));
    let actions = session.handle(welcome(true), at(7));
    assert_eq!(actions, [Action::SayLeaving(GEN)]);
}

#[test]
fn a_signal_while_it_finishes_changes_nothing() {
    let mut session = finishing(Finish::Complete);
    assert_eq!(session.handle(Event::Terminate, at(5)), []);
    let actions = session.handle(Event::Acknowledged, at(6));
    assert_eq!(exit(&actions), &Exit::Done);
}

/// Its deadline is for being let go, not for what it does before.
#[test]
fn a_farewell_begins_when_there_is_nothing_left_to_do() {
    let rests = [
        Event::Paused(GEN, Step(7)),
        Event::Hold(GEN, "a death".to_owned()),
    ];
    for rest in rests {
        let mut session = training();
        session.handle(Event::Terminate, at(5));
        session.handle_timeout(at(30));
        session.handle(rest, at(30));
        session.handle_timeout(at(39));
        let actions = session.handle_timeout(at(40));
        assert_eq!(exit(&actions), &Exit::Left);
    }
}
