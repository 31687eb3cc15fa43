//! Deaths, joins and leaves: what follows a generation that is over.

use super::*;

/// Who hosts what, in the present generation.
fn hosts(job: &Job) -> Vec<(u64, Range<u32>)> {
    let seats = job.seats.iter();
    seats
        .map(|seat| (seat.worker.0, seat.replicas.clone()))
        .collect()
}

#[test]
fn a_death_leads_to_the_next_generation_at_once_and_the_dead_is_named() {
    let mut job = Job::running(elastic(4, 4), 4);
    job.progress(2, 41);
    let actions = job.lost(2);
    assert_eq!(told(&actions), [(1, "form"), (3, "form"), (4, "form")]);
    assert_eq!(hosts(&job), [(1, 0..3), (3, 3..6), (4, 6..8)], "dealt anew");
    assert_eq!(cause(&actions), Some(Cause::Death));
    assert!(actions.contains(&Action::Close(WorkerId(2))));
    let died = event(&actions, EventKind::Died).unwrap();
    for part in ["worker 2", "host 2, pid 7", "its stream broke", "41"] {
        assert!(died.contains(part), "{died}");
    }
    job.formed(&[1, 3, 4], 41);
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn a_death_while_forming_forms_again_with_a_deadline_of_its_own() {
    let mut job = Job::forming(elastic(3, 3), 3);
    job.formed(&[1], 0);
    job.after(9).beat(&[1, 2]);
    let actions = job.lost(3);
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
    assert_eq!(job.phase_deadline(), Some(job.now + at(25)));
    job.formed(&[1], 0);
    assert_eq!(*job.phase(), Phase::Forming, "both have to form");
}

#[test]
fn a_death_while_pausing_takes_the_place_of_the_pause() {
    let mut job = Job::running(elastic(3, 4), 3);
    job.hello(4);
    job.ready(4, 0);
    job.paused(&[1], 11);
    let actions = job.lost(2);
    assert_eq!(told(&actions), [(1, "form"), (3, "form"), (4, "form")]);
    assert_eq!(cause(&actions), Some(Cause::Death));
}

#[test]
fn two_deaths_that_are_noticed_together_give_one_new_generation() {
    let mut job = Job::running(elastic(3, 3), 3);
    job.after(8).beat(&[1]);
    job.after(2);
    let actions = job.timeout();
    assert_eq!(told(&actions), [(1, "form")]);
    assert_eq!((job.generation(), job.seated()), (Generation(2), vec![1]));
    assert!(actions.contains(&Action::Close(WorkerId(2))));
    assert!(actions.contains(&Action::Close(WorkerId(3))));
}

#[test]
fn too_few_survivors_hold_their_state_and_wait() {
    let mut job = Job::running(rules(3), 3);
    let actions = job.lost(3);
    assert_eq!(told(&actions), [(1, "hold"), (2, "hold")]);
    let Order::Hold(generation, why) = orders(&actions)[0].1 else {
        panic!("{actions:?}");
    };
    assert_eq!(*generation, Generation(1));
    assert!(why.contains("death") && why.contains("3 workers"), "{why}");
    assert_eq!(*job.phase(), Phase::Gathering);
    assert!(job.waiting_for().contains("2 of 3 ready"));
    assert!(
        !persists(&actions, &Record::Vacated),
        "they are still there"
    );
    // They say that they are ready, and the job waits on.
    assert!(job.ready(1, 10).is_empty() && job.ready(2, 10).is_empty());
    job.hello(4);
    let actions = job.ready(4, 0);
    assert_eq!(told(&actions), [(1, "form"), (2, "form"), (4, "form")]);
    assert_eq!(
        cause(&actions),
        Some(Cause::Death),
        "what the pause was for"
    );
    job.formed(&[1, 2, 4], 10);
    assert_eq!(*job.phase(), Phase::Running);
}

/// Invariants 4 and 7.
#[test]
fn a_wait_that_ends_in_vain_saves_the_newest_state_first() {
    let mut job = Job::running(rules(2), 2);
    job.saved(1, 8);
    job.lost(2);
    let until = job.now + at(60);
    while job.phase == Phase::Gathering {
        assert!(job.now <= until);
        job.after(5).beat(&[1]);
        let actions = job.timeout();
        if job.phase != Phase::Gathering {
            assert_eq!((told(&actions), job.now), (vec![(1, "close")], until));
            assert_eq!(assignments(&actions)[0].close, Some(Close::Stopped));
            assert_eq!(cause(&actions), Some(Cause::Close));
        }
    }
    job.formed(&[1], 10);
    job.saved(1, 10);
    let actions = job.finished(1, 10, Finish::Stopped);
    // How a worker ends doesn't depend on whether a checkpoint was due where it waited.
    assert_eq!(told(&actions), [(1, "ended")]);
    assert!(failure(&actions).contains("1 of 2 ready"), "{actions:?}");
}

#[test]
fn a_wait_that_ends_in_vain_ends_at_once_if_all_is_saved() {
    let mut job = Job::running(rules(2), 2);
    job.saved(1, 10);
    job.lost(2);
    job.lost(1);
    // They may come back within a lease.
    assert_eq!(job.due(), [Action::Persist(Record::Vacated)]);
    let actions = job.due();
    assert!(failure(&actions).contains("0 of 2 ready"), "{actions:?}");

    let mut held = Job::running(rules(2), 2);
    held.saved(1, 10);
    held.lost(2);
    let until = held.now + at(60);
    let mut actions = Vec::new();
    while held.phase == Phase::Gathering {
        assert!(held.now <= until);
        held.after(5).beat(&[1]);
        actions = held.timeout();
    }
    assert_eq!(told(&actions), [(1, "ended")]);
    assert!(failure(&actions).contains("1 of 2 ready"), "{actions:?}");
}

#[test]
fn who_joins_is_waited_for_at_the_end_of_the_step() {
    let mut job = Job::running(elastic(2, 3), 2);
    assert_eq!(
        told(&job.hello(3)),
        [(3, "welcome")],
        "it prepares its data"
    );
    assert_eq!(*job.phase(), Phase::Running);
    let actions = job.ready(3, 0);
    assert_eq!(told(&actions), [(1, "pause"), (2, "pause")]);
    assert_eq!(orders(&actions)[0].1, &Order::Pause(Generation(1)));
    assert_eq!(*job.phase(), Phase::Pausing(Cause::Join));
    let waiting = job.waiting_for();
    assert!(waiting.contains("worker 1") && waiting.contains("worker 2"));
    assert!(job.paused(&[2], 12).is_empty());
    assert!(!job.waiting_for().contains("worker 2"));
    let actions = job.paused(&[1], 12);
    assert_eq!(told(&actions), [(1, "form"), (2, "form"), (3, "form")]);
    assert_eq!(cause(&actions), Some(Cause::Join));
    assert_eq!(hosts(&job), [(1, 0..3), (2, 3..6), (3, 6..8)]);
}

#[test]
fn who_joins_while_a_generation_forms_gets_a_seat_in_the_next() {
    let mut job = Job::forming(elastic(2, 3), 2);
    job.hello(3);
    assert!(job.ready(3, 0).is_empty());
    let actions = job.formed(&[1, 2], 0);
    assert_eq!(told(&actions), [(1, "pause"), (2, "pause")]);
}

#[test]
fn who_leaves_is_let_go_when_the_others_go_on_without_it() {
    let mut job = Job::running(elastic(2, 2), 2);
    let actions = job.leaves(2);
    assert!(
        event(&actions, EventKind::Leaving)
            .unwrap()
            .contains("worker 2")
    );
    assert_eq!(told(&actions), [(1, "pause"), (2, "pause")]);
    assert!(job.leaves(2).is_empty(), "once is enough");
    job.paused(&[2], 12);
    let actions = job.paused(&[1], 12);
    assert_eq!(told(&actions), [(2, "hold"), (1, "form"), (2, "release")]);
    assert_eq!(cause(&actions), Some(Cause::Leave));
    assert!(
        event(&actions, EventKind::Left)
            .unwrap()
            .contains("worker 2")
    );
    assert!(actions.contains(&Action::Close(WorkerId(2))));
    assert_eq!(hosts(&job), [(1, 0..8)]);
    assert!(job.lost(2).is_empty(), "its end is no death");
}

#[test]
fn two_leave_at_once_with_one_pause() {
    let mut job = Job::running(elastic(3, 3), 3);
    assert_eq!(told(&job.leaves(2)).len(), 3);
    assert_eq!(told(&job.leaves(3)), []);
    let actions = job.paused(&[1, 2, 3], 12);
    assert_eq!((job.generation(), job.seated()), (Generation(2), vec![1]));
    assert!(told(&actions).ends_with(&[(1, "form"), (2, "release"), (3, "release")]));
}

#[test]
fn a_spare_that_leaves_is_let_go_at_once() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.hello(3);
    job.ready(3, 0);
    let actions = job.leaves(3);
    assert_eq!(told(&actions), [(3, "release")]);
    assert!(event(&actions, EventKind::Left).is_some());
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn who_leaves_below_the_minimum_goes_and_the_others_wait() {
    let mut job = Job::running(rules(2), 2);
    job.leaves(2);
    let actions = job.paused(&[1, 2], 12);
    assert_eq!(told(&actions), [(1, "hold"), (2, "hold"), (2, "release")]);
    assert_eq!(*job.phase(), Phase::Gathering);
    assert!(job.waiting_for().contains("1 of 2 ready"));
}

#[test]
fn when_the_last_leaves_the_job_waits_and_is_not_over() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.leaves(1);
    job.leaves(2);
    job.saved(1, 12);
    assert_eq!(told(&job.finished(2, 12, Finish::Left)), []);
    let actions = job.finished(1, 12, Finish::Left);
    assert_eq!(told(&actions), [(1, "acknowledged"), (2, "acknowledged")]);
    assert!(persists(&actions, &Record::Vacated));
    assert!(event(&actions, EventKind::Left).is_some());
    assert_eq!((outcome(&actions), job.phase()), (None, &Phase::Gathering));
    assert!(job.members().is_empty());
    job.hello(3);
    let actions = job.ready(3, 0);
    assert_eq!(told(&actions), [(3, "form")]);
    assert_eq!(assignments(&actions)[0].checkpoint, Some(checkpoint(12)));
    assert_eq!(cause(&actions), Some(Cause::Leave));
}

/// Invariant 4.
#[test]
fn the_last_that_leaves_saves_what_nobody_else_holds() {
    let mut job = Job::running(rules(1), 1);
    job.leaves(1);
    let actions = job.paused(&[1], 12);
    assert_eq!(told(&actions), [(1, "hold"), (1, "close")]);
    assert_eq!(assignments(&actions)[0].close, Some(Close::Left));
    job.formed(&[1], 12);
    job.saved(1, 12);
    let actions = job.finished(1, 12, Finish::Left);
    assert_eq!(told(&actions), [(1, "acknowledged")]);
    assert_eq!((outcome(&actions), job.phase()), (None, &Phase::Gathering));

    let mut saved = Job::running(rules(1), 1);
    saved.saved(1, 12);
    saved.leaves(1);
    let actions = saved.paused(&[1], 12);
    assert_eq!(told(&actions), [(1, "hold"), (1, "release")], "no need to");
}

/// Invariant 4.
#[test]
fn a_leaver_that_alone_holds_the_newest_state_saves_it_before_it_goes() {
    let mut job = Job::running(elastic(3, 3), 3);
    job.progress(2, 30);
    job.leaves(2);
    let actions = job.lost(1);
    assert_eq!(told(&actions), [(2, "hold"), (3, "hold"), (2, "close")]);
    job.formed(&[2], 30);
    job.saved(2, 30);
    let actions = job.finished(2, 30, Finish::Left);
    assert_eq!(told(&actions), [(2, "acknowledged"), (3, "form")]);
    assert_eq!(assignments(&actions)[0].checkpoint, Some(checkpoint(30)));
    assert_eq!(job.reached(), Step(30));
}

/// Invariant 4, its second half.
#[test]
fn when_all_die_the_job_goes_on_from_the_checkpoint_and_the_ledger_says_so() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.saved(1, 140);
    job.progress(1, 250);
    job.lost(1);
    let actions = job.lost(2);
    assert_eq!(told(&actions), []);
    assert_eq!(*job.phase(), Phase::Gathering);
    job.hello(3);
    // They may have lost nothing but their sessions: a lease is waited for, by a coordinator that
    // is started again meanwhile too.
    assert!(!persists(&actions, &Record::Vacated));
    assert_eq!(told(&job.ready(3, 0)), []);
    job.after(9).beat(&[3]);
    let actions = job.after(1).timeout();
    assert!(persists(&actions, &Record::Vacated));
    let assignment = assignments(&actions)[0];
    assert_eq!(assignment.checkpoint, Some(checkpoint(140)));
    assert_eq!(
        assignment.epochs.start, 1,
        "the epoch that step 140 lies in"
    );
    let actions = job.formed(&[3], 140);
    assert!(
        event(&actions, EventKind::Rewound)
            .unwrap()
            .contains("250 to 140")
    );
    let from = records(&actions).into_iter().map(|record| match record {
        Record::Rewound(step) => Some(("rewound", step.0)),
        Record::Assigned { from, .. } => Some(("assigned", from.0)),
        _ => None,
    });
    let from: Vec<_> = from.flatten().collect();
    assert_eq!(from, [("rewound", 140), ("assigned", 140)]);
    assert_eq!(job.reached(), Step(140));
}

/// What a member was once known to hold is no reason to look for it again.
#[test]
fn after_a_rewind_nobody_is_taken_to_hold_what_is_lost() {
    let mut job = Job::running(elastic(3, 3), 3);
    job.progress(3, 250);
    job.lost(1);
    job.formed(&[2], 40);
    assert_eq!(job.reached(), Step(40));
    assert!(job.members().values().all(|member| member.step <= Step(40)));
}

#[test]
fn workers_that_disagree_about_the_state_end_the_job() {
    let mut job = Job::forming(elastic(2, 2), 2);
    job.formed(&[1], 0);
    let actions = job.formed(&[2], 7);
    let reason = failure(&actions);
    assert!(
        reason.contains("worker 2") && reason.contains("step 7"),
        "{reason}"
    );
}

/// Invariant 7.
#[test]
fn who_does_not_connect_in_time_is_left_out() {
    let mut job = Job::forming(elastic(2, 2), 2);
    job.formed(&[1], 0);
    for _ in 0..5 {
        job.after(5).beat(&[1, 2]);
    }
    let actions = job.timeout();
    let died = event(&actions, EventKind::Died).unwrap();
    assert!(died.contains("worker 2") && died.contains("deadlines.form"));
    assert_eq!(told(&actions), [(1, "form")]);
}

/// Invariant 7.
#[test]
fn who_does_not_end_its_step_in_time_is_left_out() {
    let mut job = Job::running(elastic(2, 3), 2);
    job.hello(3);
    job.ready(3, 0);
    job.paused(&[1], 12);
    for _ in 0..3 {
        job.after(5).beat(&[1, 2, 3]);
    }
    let actions = job.timeout();
    let died = event(&actions, EventKind::Died).unwrap();
    assert!(died.contains("worker 2") && died.contains("deadlines.collective"));
    assert_eq!(told(&actions), [(1, "form"), (3, "form")]);
}
