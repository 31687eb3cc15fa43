//! The coordinator was started again.

use super::*;

/// What the ledger holds of a job whose workers 1..=n trained in generation 5.
fn past(workers: u64) -> Past {
    let mut job = Job::with(
        elastic(workers as u32, workers as u32),
        Past {
            generation: Generation(4),
            ..Past::default()
        },
    );
    for id in 1..=workers {
        job.hello(id);
        job.ready(id, 0);
    }
    // Those who came before were no longer expected: the job had begun.
    let ids: Vec<u64> = (1..=workers).collect();
    while job.seated() != ids {
        let seated = job.seated();
        job.formed(&seated, 0);
        job.paused(&seated, 0);
    }
    Past {
        generation: Generation(5),
        seats: job.seats.to_vec(),
        reached: Step(250),
        checkpoint: Some(checkpoint(140)),
    }
}

fn restarted(workers: u64) -> Job {
    let rules = Rules {
        device: Some(device("cpu")),
        ..elastic(workers as u32, workers as u32)
    };
    let job = Job::with(rules, past(workers));
    assert_eq!(*job.phase(), Phase::Recovering);
    job
}

/// Invariant 5.
#[test]
fn when_all_come_back_nothing_has_happened_and_work_is_told_again() {
    let mut job = restarted(2);
    assert!(job.waiting_for().contains("worker 1") && job.waiting_for().contains("worker 2"));
    let actions = job.back(1, 5, true, 251);
    assert_eq!(told(&actions), [(1, "resume"), (1, "work")]);
    assert_eq!(*job.phase(), Phase::Recovering);
    let actions = job.back(2, 5, true, 252);
    assert_eq!(told(&actions), [(2, "resume"), (2, "work")]);
    let Order::Work {
        generation,
        replicas,
        epochs,
    } = orders(&actions)[1].1
    else {
        panic!("{actions:?}");
    };
    assert_eq!((generation.0, replicas, epochs), (5, &(4..8), &(2..13)));
    assert_eq!((job.phase(), job.generation().0), (&Phase::Running, 5));
    assert_eq!(job.reached(), Step(252));
    assert_eq!(cause(&actions), None);
    let booked = records(&actions).into_iter().any(|record| {
        matches!(
            record,
            Record::Assigned {
                generation: Generation(5),
                from: Step(252),
                ..
            }
        )
    });
    assert!(booked, "what the coordinator of before had not booked");
    // And it goes on as ever.
    job.progress(1, 300);
    assert_eq!(job.reached(), Step(300));
}

#[test]
fn whoever_does_not_come_back_in_time_is_taken_for_dead() {
    let mut job = restarted(3);
    job.after(6).back(1, 5, true, 251);
    job.back(3, 5, true, 251);
    while job.phase == Phase::Recovering {
        let actions = job.due();
        if job.phase != Phase::Recovering {
            assert_eq!(job.now, at(110));
            assert_eq!(told(&actions), [(1, "form"), (3, "form")]);
            assert_eq!(cause(&actions), Some(Cause::CoordinatorRestart));
            let died = event(&actions, EventKind::Died).unwrap();
            assert!(
                died.contains("worker 2") && died.contains("come back"),
                "{died}"
            );
        }
    }
    assert_eq!(job.generation(), Generation(6));
}

#[test]
fn if_nobody_comes_back_the_job_gathers_workers_anew() {
    let mut job = restarted(2);
    while job.phase == Phase::Recovering {
        job.due();
    }
    assert_eq!((job.phase(), job.now), (&Phase::Gathering, at(110)));
    job.hello(3);
    let actions = job.ready(3, 0);
    assert_eq!(assignments(&actions)[0].checkpoint, Some(checkpoint(140)));
}

/// Invariant 3.
#[test]
fn a_worker_of_an_older_generation_joins_the_next() {
    let mut job = restarted(2);
    job.back(1, 5, true, 251);
    let actions = job.back(2, 4, true, 249);
    assert_eq!(told(&actions), [(2, "welcome"), (1, "form"), (2, "form")]);
    assert_eq!(cause(&actions), Some(Cause::CoordinatorRestart));
    assert_eq!(job.generation(), Generation(6));
}

/// Invariant 3: the ledger may have been put back from a copy.
#[test]
fn a_worker_of_a_newer_generation_makes_the_next_newer_still() {
    let mut job = restarted(2);
    job.back(1, 9, true, 251);
    let actions = job.back(2, 9, true, 251);
    assert_eq!(told(&actions), [(2, "welcome"), (1, "form"), (2, "form")]);
    assert_eq!(job.generation(), Generation(10));
}

#[test]
fn a_generation_that_was_persisted_but_never_spoken_is_followed_by_one_that_is() {
    let mut job = restarted(3);
    for id in [1, 2] {
        let actions = job.back(id, 4, true, 250);
        assert_eq!(told(&actions), [(id, "welcome")]);
        assert!(job.ready(id, 250).is_empty());
    }
    let actions = job.back(3, 0, false, 0);
    let all = [(3, "welcome"), (1, "form"), (2, "form"), (3, "form")];
    assert_eq!(told(&actions), all);
    assert_eq!(job.generation(), Generation(6));
}

#[test]
fn workers_that_rest_are_given_a_new_generation() {
    let mut job = restarted(2);
    job.back(1, 5, true, 251);
    job.paused(&[1], 251);
    let actions = job.back(2, 5, true, 251);
    assert_eq!(told(&actions)[2..], [(1, "form"), (2, "form")]);
    assert_eq!(cause(&actions), Some(Cause::CoordinatorRestart));
    assert_eq!((job.phase(), job.generation().0), (&Phase::Forming, 6));

    // It says so later.
    let mut late = restarted(2);
    late.back(1, 5, true, 251);
    late.back(2, 5, true, 251);
    assert_eq!(told(&late.paused(&[1], 252)), []);
    assert_eq!(*late.phase(), Phase::Pausing(Cause::CoordinatorRestart));
    let actions = late.paused(&[2], 252);
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
}

/// Invariant 7. Held workers wait for a seat: a coordinator that took them to train would wait
/// for their steps, and they for its word.
#[test]
fn workers_that_were_told_to_hold_are_not_taken_to_train() {
    let mut job = restarted(2);
    for id in [1, 2] {
        job.back(id, 5, false, 251);
    }
    assert_eq!((job.phase(), job.generation().0), (&Phase::Forming, 6));
    job.ready(1, 251);
    job.ready(2, 251);
    job.formed(&[1, 2], 251);
    assert_eq!(*job.phase(), Phase::Running);
}

/// Who is missing is the explanation.
#[test]
fn a_failed_collective_is_no_reason_to_give_up_those_who_may_still_come_back() {
    let mut job = restarted(2);
    job.back(1, 5, true, 251);
    job.fails(1, 251, Some(1));
    assert_eq!(told(&job.after(2).timeout()), []);
    assert_eq!(*job.phase(), Phase::Recovering);
    let actions = job.back(2, 5, true, 251);
    assert_eq!(told(&actions)[2..], [(1, "form"), (2, "form")]);
}

/// The workers were still forming when the coordinator went: what they agree on may be older than
/// what the dead had reached.
#[test]
fn a_generation_that_forms_after_a_restart_starts_where_its_workers_say() {
    let mut job = restarted(2);
    job.back(1, 5, true, 140);
    job.back(2, 5, true, 0);
    assert_eq!(job.reached(), Step(250));
    let actions = job.formed(&[1, 2], 140);
    assert_eq!(outcome(&actions), None);
    assert!(persists(&actions, &Record::Rewound(Step(140))));
    assert_eq!((job.phase(), job.reached()), (&Phase::Running, Step(140)));
}

#[test]
fn a_worker_that_has_finished_says_so_and_the_job_ends() {
    let mut job = restarted(2);
    job.back(1, 5, true, 5000);
    assert_eq!(told(&job.finished(1, 5000, Finish::Complete)), []);
    assert_eq!(*job.phase(), Phase::Recovering);
    job.back(2, 5, true, 5000);
    assert_eq!(*job.phase(), Phase::Stopping);
    let actions = job.finished(2, 5000, Finish::Complete);
    let acknowledged = [(1, "acknowledged"), (2, "acknowledged")];
    assert_eq!(told(&actions), acknowledged);
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));
}

#[test]
fn a_worker_that_has_failed_does_not_end_the_job_of_those_who_come_later() {
    let mut job = restarted(2);
    job.back(1, 5, true, 251);
    let actions = job.finished(1, 251, Finish::Failed("no disk".to_owned()));
    assert_eq!((outcome(&actions), job.phase()), (None, &Phase::Recovering));
    let actions = job.back(2, 5, true, 251);
    assert_eq!(told(&actions)[2..], [(2, "form")]);
}

#[test]
fn a_stop_while_recovering_is_told_to_those_who_come_back() {
    let mut job = restarted(2);
    job.back(1, 5, true, 251);
    let actions = job.event(Event::Stop("enough".to_owned()));
    assert_eq!(told(&actions), []);
    let actions = job.back(2, 5, true, 251);
    assert_eq!(told(&actions)[2..], [(1, "stop"), (2, "stop")]);
    job.finished(1, 252, Finish::Stopped);
    let actions = job.finished(2, 252, Finish::Stopped);
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(252))));

    // Whoever is left saves what there is.
    let mut alone = restarted(2);
    alone.event(Event::Drain("SIGTERM".to_owned()));
    alone.back(1, 5, true, 251);
    while alone.phase == Phase::Recovering {
        alone.after(5).beat(&[1]);
        alone.timeout();
    }
    assert_eq!(*alone.phase(), Phase::Stopping);
    alone.formed(&[1], 251);
    alone.saved(1, 251);
    let actions = alone.finished(1, 251, Finish::Left);
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(251))));
}

#[test]
fn a_pause_that_the_coordinator_of_before_asked_for_is_seen_through() {
    let mut job = restarted(2);
    job.hello(3);
    job.ready(3, 0);
    for id in [1, 2] {
        job.back(id, 5, false, 251);
    }
    let (phase, seated) = (job.phase().clone(), job.seated());
    assert_eq!(
        (phase, seated),
        (Phase::Forming, vec![1, 2]),
        "no more than max"
    );
}

/// The lease of whoever has not come back is the recovery's, not its own.
#[test]
fn a_coordinator_that_sleeps_waits_so_much_longer() {
    let mut job = restarted(2);
    job.slept(at(30));
    job.after(30).timeout();
    assert_eq!(*job.phase(), Phase::Recovering);
    job.back(1, 5, true, 251);
    job.back(2, 5, true, 251);
    assert_eq!(*job.phase(), Phase::Running);
}

/// A session may be replaced before its end is noticed.
#[test]
fn who_is_back_before_it_was_missed_goes_on() {
    let mut job = Job::running(elastic(2, 3), 2);
    let actions = job.back(2, 1, true, 11);
    assert_eq!(told(&actions), [(2, "resume"), (2, "work")]);
    assert_eq!(*job.phase(), Phase::Running);

    job.hello(3);
    job.ready(3, 0);
    let actions = job.back(2, 1, true, 11);
    assert_eq!(told(&actions), [(2, "resume"), (2, "work"), (2, "pause")]);
    job.event(Event::Stop("enough".to_owned()));
    let actions = job.back(2, 1, true, 11);
    assert_eq!(told(&actions), [(2, "resume"), (2, "work"), (2, "stop")]);
}

/// Its assignment was lost with its session.
#[test]
fn who_is_back_without_its_assignment_gets_another() {
    let mut job = Job::running(elastic(3, 3), 3);
    job.lost(3);
    let actions = job.back(2, 1, true, 11);
    assert_eq!(told(&actions), [(2, "welcome"), (1, "form"), (2, "form")]);
    assert_eq!(job.generation(), Generation(3));
}
