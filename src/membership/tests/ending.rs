//! How a job ends, and that it ends whole.

use super::*;

fn stop() -> Event {
    Event::Stop("enough".to_owned())
}

#[test]
fn a_stop_is_told_to_all_and_ends_when_all_have_finished() {
    let mut job = Job::running(rules(2), 2);
    let actions = job.event(stop());
    assert_eq!(told(&actions), [(1, "stop"), (2, "stop")]);
    assert_eq!(event(&actions, EventKind::Stop), Some("enough"));
    assert!(job.event(stop()).is_empty(), "once is enough");
    assert!(job.waiting_for().contains("worker 1"));
    assert_eq!(told(&job.finished(1, 33, Finish::Stopped)), []);
    assert!(!job.waiting_for().contains("worker 1"));
    let actions = job.finished(2, 33, Finish::Stopped);
    assert_eq!(told(&actions), [(1, "acknowledged"), (2, "acknowledged")]);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(33))));
}

#[test]
fn a_job_that_is_drained_says_that_it_is_not_done() {
    let mut job = Job::running(rules(2), 2);
    let actions = job.event(Event::Drain("SIGTERM".to_owned()));
    assert_eq!(told(&actions), [(1, "drain"), (2, "drain")]);
    job.finished(1, 33, Finish::Left);
    let actions = job.finished(2, 33, Finish::Left);
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(33))));
}

#[test]
fn a_job_that_never_began_ends_at_once() {
    let mut job = Job::new(rules(2));
    job.hello(1);
    let actions = job.event(stop());
    assert_eq!(told(&actions), [(1, "ended")]);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(0))));
    let mut idle = Job::new(rules(2));
    let actions = idle.event(Event::Drain("SIGTERM".to_owned()));
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(0))));
}

#[test]
fn a_stop_while_forming_is_seen_by_the_generation_that_forms() {
    let mut job = Job::forming(rules(2), 2);
    assert_eq!(told(&job.event(stop())), [(1, "stop"), (2, "stop")]);
    job.formed(&[1, 2], 0);
    assert_eq!(*job.phase(), Phase::Stopping);
    job.finished(1, 1, Finish::Stopped);
    let actions = job.finished(2, 1, Finish::Stopped);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(1))));
}

/// Who rests sees no flag.
#[test]
fn a_stop_while_some_rest_forms_a_generation_that_only_saves() {
    let mut job = Job::running(elastic(2, 3), 2);
    job.hello(3);
    job.ready(3, 0);
    job.paused(&[1], 12);
    let actions = job.event(stop());
    let close = [(1, "close"), (2, "close"), (3, "close")];
    assert_eq!(told(&actions), close);
    assert_eq!(assignments(&actions)[0].close, Some(Close::Stopped));
    assert_eq!(*job.phase(), Phase::Stopping);
    job.formed(&[1, 2, 3], 12);
    job.saved(1, 12);
    for id in [1, 2] {
        job.finished(id, 12, Finish::Stopped);
    }
    let actions = job.finished(3, 12, Finish::Stopped);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(12))));
}

#[test]
fn a_job_that_its_guard_has_stopped_is_over_whatever_else_it_was_told() {
    let halt = || Halt {
        reason: "guard.collapsed".to_owned(),
        sound: Step(7),
    };
    let over = Outcome::Halted(Step(33), halt());
    let mut job = Job::running(rules(2), 2);
    job.finished(1, 33, Finish::Halted(halt()));
    assert_eq!(*job.phase(), Phase::Stopping);
    let actions = job.finished(2, 33, Finish::Halted(halt()));
    assert_eq!(outcome(&actions), Some(&over));

    // A person was quicker to ask, but not to stop it.
    let mut job = Job::running(rules(2), 2);
    job.event(stop());
    for id in [1, 2] {
        let actions = job.finished(id, 33, Finish::Halted(halt()));
        assert_eq!(outcome(&actions), (id == 2).then_some(&over));
    }

    // If the leader dies before it has saved the last state, whoever is left holds it, and says so.
    let mut job = Job::running(elastic(2, 2), 2);
    job.finished(2, 33, Finish::Halted(halt()));
    let actions = job.lost(1);
    let [assignment] = &assignments(&actions)[..] else {
        panic!("one is left: {actions:?}");
    };
    assert_eq!(
        assignment.close, None,
        "the state itself says that it is the last"
    );
    job.formed(&[2], 33);
    let actions = job.finished(2, 33, Finish::Halted(halt()));
    assert_eq!(outcome(&actions), Some(&over));
}

/// Invariant 4.
#[test]
fn a_stop_below_the_minimum_saves_what_is_held() {
    let mut job = Job::running(rules(2), 2);
    job.lost(2);
    let actions = job.event(stop());
    assert_eq!(told(&actions), [(1, "close")]);
    job.formed(&[1], 10);
    job.saved(1, 10);
    let actions = job.finished(1, 10, Finish::Stopped);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(10))));

    let mut saved = Job::running(rules(2), 2);
    saved.saved(1, 10);
    saved.lost(2);
    let actions = saved.event(Event::Drain("SIGTERM".to_owned()));
    assert_eq!(told(&actions), [(1, "ended")], "nothing is unsaved");
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(10))));
}

/// Invariant 7.
#[test]
fn a_stop_that_takes_too_long_ends_and_says_who_was_waited_for() {
    let mut job = Job::running(rules(2), 2);
    job.event(stop());
    job.finished(1, 12, Finish::Stopped);
    for _ in 0..6 {
        job.after(5).beat(&[1, 2]);
    }
    let actions = job.timeout();
    let reason = failure(&actions);
    assert!(
        reason.contains("worker 2") && reason.contains("to finish"),
        "{reason}"
    );
    assert!(!reason.contains("worker 1"), "{reason}");
}

/// The last checkpoint is rank 0's; who is done earlier may be needed to save it.
#[test]
fn nobody_is_let_go_before_the_last_checkpoint_is_safe() {
    let mut job = Job::running(rules(3), 3);
    for id in [2, 3] {
        assert_eq!(told(&job.finished(id, 5000, Finish::Complete)), []);
    }
    assert_eq!(*job.phase(), Phase::Stopping);
    job.saved(1, 5000);
    let actions = job.finished(1, 5000, Finish::Complete);
    assert_eq!(told(&actions).len(), 3);
    assert!(
        told(&actions)
            .iter()
            .all(|(_, told)| *told == "acknowledged")
    );
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));
    assert!(persists(&actions, &Record::Reached(Step(5000))));
    assert_eq!(job.next_deadline(), None);
}

/// Invariant 4.
#[test]
fn if_the_leader_dies_while_it_saves_the_last_checkpoint_another_saves_it() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.finished(2, 5000, Finish::Complete);
    let actions = job.lost(1);
    assert_eq!(told(&actions), [(2, "form")], "there is no step left to do");
    assert_eq!((job.seated(), job.phase()), (vec![2], &Phase::Stopping));
    job.formed(&[2], 5000);
    job.saved(2, 5000);
    let actions = job.finished(2, 5000, Finish::Complete);
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));

    let mut stopped = Job::running(elastic(2, 2), 2);
    stopped.event(stop());
    stopped.finished(2, 12, Finish::Stopped);
    let actions = stopped.lost(1);
    assert_eq!(told(&actions), [(2, "close")]);
    stopped.formed(&[2], 12);
    let actions = stopped.finished(2, 12, Finish::Stopped);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(12))));
}

#[test]
fn once_the_last_checkpoint_is_safe_a_worker_may_go() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.finished(1, 5000, Finish::Complete);
    assert_eq!(told(&job.lost(1)), []);
    // Its silence is no reason to look again and again either.
    while job.now < at(120) {
        job.after(1).beat(&[2]);
        job.timeout();
    }
    let actions = job.finished(2, 5000, Finish::Complete);
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));
}

#[test]
fn a_death_after_the_last_checkpoint_is_no_reason_to_save_it_again() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.finished(1, 5000, Finish::Complete);
    let actions = job.lost(2);
    assert_eq!(told(&actions), [(1, "acknowledged")]);
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));

    let mut both = Job::running(elastic(2, 2), 2);
    both.saved(1, 5000);
    both.finished(1, 5000, Finish::Complete);
    both.lost(1);
    let actions = both.lost(2);
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));
}

#[test]
fn if_all_die_before_the_last_checkpoint_the_job_is_not_complete() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.saved(1, 4000);
    job.finished(2, 5000, Finish::Complete);
    job.lost(2);
    let actions = job.lost(1);
    assert_eq!((outcome(&actions), job.phase()), (None, &Phase::Gathering));
    job.hello(3);
    job.ready(3, 0);
    job.after(9).beat(&[3]);
    job.after(1).timeout();
    let actions = job.formed(&[3], 4000);
    assert!(persists(&actions, &Record::Rewound(Step(4000))));
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn if_all_die_while_they_stop_the_job_ends_where_it_is_saved() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.saved(1, 8);
    job.event(stop());
    job.lost(2);
    let actions = job.lost(1);
    assert!(persists(&actions, &Record::Rewound(Step(8))));
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(8))));
}

#[test]
fn a_collective_that_fails_while_all_stop_is_followed_by_one_that_saves() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.event(stop());
    assert_eq!(told(&job.fails(1, 10, Some(1))), []);
    let actions = job.fails(2, 10, Some(0));
    assert_eq!(told(&actions), [(1, "close"), (2, "close")]);
}

/// One has seen the end, the other's last collective broke: it needs the first one's state.
#[test]
fn who_rests_short_of_the_end_is_taken_along() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.finished(1, 5000, Finish::Complete);
    let actions = job.fails(2, 4999, Some(0));
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
}

#[test]
fn a_stop_that_is_under_way_is_not_made_a_failure_from_outside() {
    let mut job = Job::running(rules(1), 1);
    job.event(stop());
    let fail = || Event::Fail("a worker ended".to_owned());
    assert!(job.event(fail()).is_empty());
    let mut other = Job::running(rules(1), 1);
    let actions = other.event(fail());
    assert_eq!(failure(&actions), "a worker ended");
    assert!(persists(&actions, &Record::Vacated));
}

#[test]
fn a_worker_that_cannot_go_on_is_left_out_and_the_last_ends_the_job() {
    let mut job = Job::running(elastic(2, 2), 2);
    let failed = |why: &str| Finish::Failed(why.to_owned());
    let actions = job.finished(1, 10, failed("no memory"));
    assert_eq!(told(&actions), [(1, "acknowledged"), (2, "form")]);
    assert!(
        event(&actions, EventKind::Died)
            .unwrap()
            .contains("no memory")
    );
    job.formed(&[2], 10);
    let actions = job.finished(2, 10, failed("no memory either"));
    assert!(failure(&actions).contains("no memory either"));
}

/// Invariant 4: it crossed the Hold that followed another's death.
#[test]
fn a_last_word_of_a_generation_that_is_over_does_not_cost_the_state_it_speaks_of() {
    let mut job = Job::running(rules(2), 2);
    job.lost(2);
    assert_eq!(*job.phase(), Phase::Gathering);
    let late = Word::Finished(Generation(1), Step(5000), Finish::Complete);
    assert!(job.say(1, late).is_empty());
    job.ready(1, 5000);
    job.hello(3);
    let actions = job.ready(3, 0);
    assert_eq!(told(&actions), [(1, "form"), (3, "form")]);
}

/// The last workers were told to go and save; then a person stops the job.
#[test]
fn a_stop_while_the_last_workers_leave_is_not_forgotten() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.leaves(1);
    job.leaves(2);
    job.finished(2, 12, Finish::Left);
    let actions = job.event(stop());
    assert_eq!(event(&actions, EventKind::Stop), Some("enough"));
    assert_eq!(told(&actions), [], "they are about to go anyway");
    job.saved(1, 12);
    let actions = job.finished(1, 12, Finish::Left);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(12))));
}

/// Invariants 4 and 7.
#[test]
fn a_leaver_that_does_not_finish_is_given_up_and_not_the_job() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.leaves(1);
    job.leaves(2);
    job.finished(2, 12, Finish::Left);
    for _ in 0..6 {
        job.after(5).beat(&[1, 2]);
    }
    let actions = job.timeout();
    assert_eq!(outcome(&actions), None);
    assert!(
        event(&actions, EventKind::Died)
            .unwrap()
            .contains("worker 1")
    );
    assert_eq!(
        told(&actions),
        [(2, "hold"), (2, "close")],
        "it saves instead"
    );
    job.formed(&[2], 12);
    job.saved(2, 12);
    job.finished(2, 12, Finish::Left);
    assert_eq!(*job.phase(), Phase::Gathering);
}

/// Who was told to go while all hold is gone; a stop finds what it left.
#[test]
fn after_all_have_left_a_stop_ends_the_job_where_it_is_saved() {
    let mut job = Job::running(rules(1), 1);
    job.saved(1, 10);
    job.leaves(1);
    job.paused(&[1], 10);
    let actions = job.event(stop());
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(10))));
}

/// What an earlier leader saved is not the last checkpoint.
#[test]
fn each_generation_saves_its_own_last_state() {
    let mut job = Job::running(elastic(1, 2), 1);
    job.leaves(1);
    job.saved(1, 12);
    job.finished(1, 12, Finish::Left);
    for id in [2, 3] {
        job.hello(id);
    }
    job.ready(2, 0);
    job.ready(3, 0);
    job.formed(&[2], 12);
    job.paused(&[2], 12);
    job.formed(&[2, 3], 12);
    assert_eq!(*job.phase(), Phase::Running);
    job.finished(3, 5000, Finish::Complete);
    let actions = job.lost(2);
    assert_eq!(
        (told(&actions), outcome(&actions)),
        (vec![(3, "form")], None)
    );
}

/// The pause's flag was seen before the stop's.
#[test]
fn a_stop_that_comes_after_a_pause_still_ends_the_job() {
    let mut job = Job::running(rules(2), 2);
    job.event(stop());
    assert_eq!(told(&job.paused(&[1], 12)), []);
    let actions = job.paused(&[2], 12);
    assert_eq!(told(&actions), [(1, "close"), (2, "close")]);
}
