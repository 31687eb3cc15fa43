//! Who comes, and the first generation.

use super::*;

#[test]
fn a_job_starts_when_all_expected_workers_are_ready() {
    let mut job = Job::new(rules(2));
    assert_eq!(told(&job.hello(1)), [(1, "welcome")]);
    assert_eq!(told(&job.hello(2)), [(2, "welcome")]);
    assert!(job.ready(1, 0).is_empty());
    assert!(job.waiting_for().contains("1 of 2 ready, 1 preparing"));
    let actions = job.ready(2, 0);
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
    for (rank, assignment) in assignments(&actions).into_iter().enumerate() {
        assert_eq!(assignment.generation, Generation(1));
        assert_eq!(assignment.rank.0 as usize, rank);
        let replicas = assignment.seats.iter().map(|seat| seat.replicas.clone());
        assert_eq!(replicas.collect::<Vec<_>>(), [0..4, 4..8]);
        assert_eq!(assignment.epochs, 0..10);
        assert_eq!((&assignment.checkpoint, assignment.close), (&None, None));
    }
    assert_eq!(cause(&actions), Some(Cause::Start));
    assert_eq!(*job.phase(), Phase::Forming);
}

#[test]
fn a_generation_runs_once_all_have_formed_and_is_booked_from_where_it_goes_on() {
    let mut job = Job::forming(rules(2), 2);
    let first = job.formed(&[2], 0);
    let assigned = |actions: &[Action]| {
        let records = records(actions).into_iter();
        let from = records.filter_map(|record| match record {
            Record::Assigned {
                generation,
                epochs,
                from,
                ..
            } => Some((generation.0, epochs.clone(), from.0)),
            _ => None,
        });
        from.collect::<Vec<_>>()
    };
    assert_eq!(assigned(&first), [(1, 0..10, 0)]);
    assert!(job.waiting_for().contains("worker 1"));
    let second = job.formed(&[1], 0);
    assert_eq!(assigned(&second), [], "once is enough");
    assert_eq!(*job.phase(), Phase::Running);
}

/// Invariant 3: a generation that is spoken is one that can't be forgotten. (Every test checks
/// this: see [`Job::check`]. Here is the order in which the first one comes.)
#[test]
fn a_generation_is_persisted_before_it_is_spoken() {
    let mut job = Job::new(rules(1));
    job.hello(1);
    let actions = job.ready(1, 0);
    assert!(
        matches!(
            &actions[..],
            [
                Action::Persist(Record::Device(_)),
                Action::Persist(Record::Generation { .. }),
                Action::Send(_, Order::Assignment(_)),
            ]
        ),
        "{actions:?}"
    );
}

/// A number that is spoken in a Welcome can't be given again by the next coordinator.
#[test]
fn a_worker_is_admitted_on_disk_before_it_is_welcomed() {
    let mut job = Job::new(rules(1));
    let actions = job.hello(1);
    assert_eq!(
        actions[0],
        Action::Persist(Record::Admitted(WorkerId(1), facts(1)))
    );
    assert!(matches!(
        actions.last(),
        Some(Action::Send(WorkerId(1), Order::Welcome { resumed: false }))
    ));
}

#[test]
fn a_new_coordinator_speaks_a_higher_generation() {
    let past = Past {
        generation: Generation(7),
        checkpoint: Some(checkpoint(250)),
        ..Past::default()
    };
    let mut job = Job::with(rules(1), past);
    job.hello(1);
    let actions = job.ready(1, 0);
    let [assignment] = assignments(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(assignment.generation, Generation(8));
    assert_eq!(assignment.checkpoint, Some(checkpoint(250)));
    assert_eq!(
        assignment.epochs.start, 2,
        "the epoch that step 250 lies in"
    );
}

/// Also over a ledger that was put back from a copy.
#[test]
fn a_generation_that_a_worker_has_heard_of_is_never_spoken_again() {
    let mut job = Job::new(rules(1));
    job.back(1, 41, false, 7);
    let actions = job.ready(1, 7);
    assert_eq!(assignments(&actions)[0].generation, Generation(42));
}

/// Invariant 1.
#[test]
fn another_kind_of_device_is_refused_for_good() {
    let mut job = Job::new(rules(3));
    job.hello(1);
    let mut other = facts(2);
    other.device = device("cuda");
    let actions = job.say(2, Word::Hello(other, Standing::default()));
    let (reason, permanent) = refusal(&actions);
    assert!(permanent, "{reason}");
    // It says which kinds these are, and what to do.
    let (cpu, cuda) = (device("cpu").to_string(), device("cuda").to_string());
    for says in [cpu.as_str(), cuda.as_str(), "use devices of one kind"] {
        assert!(reason.contains(says), "{says:?} in {reason}");
    }
    assert!(actions.contains(&Action::Close(WorkerId(2))));
    assert!(event(&actions, EventKind::Refused).is_some());
    assert_eq!(job.members().len(), 1);
}

/// Invariant 1: also over a resume.
#[test]
fn a_job_that_has_begun_is_not_continued_on_another_kind_of_device() {
    let mut first = Job::new(rules(1));
    first.hello(1);
    let record = Record::Device(device("cpu"));
    assert!(persists(&first.ready(1, 0), &record));

    let rules = Rules {
        device: Some(device("cpu")),
        ..rules(1)
    };
    let mut resumed = Job::new(rules);
    let mut other = facts(1);
    other.device = device("cuda");
    let actions = resumed.say(1, Word::Hello(other, Standing::default()));
    assert!(refusal(&actions).0.contains("other bits"), "{actions:?}");
    resumed.hello(2);
    assert!(
        !persists(&resumed.ready(2, 0), &record),
        "it is written down"
    );
}

#[test]
fn a_worker_with_other_data_is_refused_for_good() {
    let mut job = Job::new(rules(1));
    job.hello(1);
    let actions = job.say(1, Word::Ready("other".to_owned(), Step(0)));
    let (reason, permanent) = refusal(&actions);
    assert!(reason.contains("same samples") && permanent, "{reason}");
    assert!(actions.contains(&Action::Close(WorkerId(1))));
    assert!(job.members().is_empty());
}

#[test]
fn a_worker_of_another_job_is_refused_for_good() {
    let mut job = Job::new(rules(1));
    let mut stranger = facts(1);
    stranger.job_id = "another".to_owned();
    let actions = job.say(1, Word::Hello(stranger.clone(), Standing::default()));
    let (reason, permanent) = refusal(&actions);
    assert!(reason.contains("another") && permanent, "{reason}");
    stranger.job_id = "job".to_owned();
    let actions = job.say(1, Word::Hello(stranger, Standing::default()));
    assert_eq!(told(&actions), [(1, "welcome")]);
}

#[test]
fn spares_stand_by_and_step_in_when_a_seat_is_free() {
    let mut job = Job::running(elastic(2, 2), 2);
    assert_eq!(told(&job.hello(3)), [(3, "welcome")]);
    assert!(job.ready(3, 0).is_empty(), "the job has its workers");
    assert_eq!(*job.phase(), Phase::Running);
    let actions = job.lost(1);
    assert_eq!(told(&actions), [(2, "form"), (3, "form")]);
}

#[test]
fn a_worker_too_many_is_refused_for_now() {
    let mut job = Job::new(rules(1));
    for id in 1..=65 {
        assert_eq!(told(&job.hello(id)), [(id, "welcome")]);
    }
    let actions = job.hello(66);
    let (reason, permanent) = refusal(&actions);
    assert!(reason.contains("64 stand by") && !permanent, "{reason}");
    job.lost(3);
    assert_eq!(told(&job.hello(66)), [(66, "welcome")]);
}

#[test]
fn no_more_workers_take_part_than_there_are_replicas() {
    let rules = Rules {
        replicas: 2,
        ..elastic(2, 5)
    };
    let mut job = Job::running(rules, 2);
    job.hello(3);
    assert!(job.ready(3, 0).is_empty());
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn a_worker_that_is_lost_while_gathering_is_only_missing() {
    let mut job = Job::new(rules(2));
    job.hello(1);
    let actions = job.lost(1);
    assert!(
        event(&actions, EventKind::Died)
            .unwrap()
            .contains("worker 1")
    );
    assert_eq!(outcome(&actions), None);
    for id in [2, 3] {
        job.hello(id);
    }
    job.ready(2, 0);
    assert_eq!(told(&job.ready(3, 0)), [(2, "form"), (3, "form")]);
}

#[test]
fn a_worker_that_fails_before_it_has_a_seat_harms_nobody() {
    let mut job = Job::new(rules(1));
    job.hello(1);
    let failed = Finish::Failed("no such folder".to_owned());
    let word = Word::Finished(Generation(0), Step(0), failed);
    let actions = job.say(1, word);
    assert_eq!(told(&actions), [(1, "acknowledged")]);
    let died = event(&actions, EventKind::Died).unwrap();
    assert!(died.contains("no such folder"), "{died}");
    job.hello(2);
    assert_eq!(told(&job.ready(2, 0)), [(2, "form")]);
}

#[test]
fn strangers_are_not_heard() {
    let mut job = Job::running(rules(1), 1);
    assert!(job.finished(9, 5000, Finish::Complete).is_empty());
    assert!(job.ready(9, 0).is_empty());
    assert!(job.leaves(9).is_empty());
    assert!(job.lost(9).is_empty());
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn a_job_that_is_over_says_so_to_whoever_comes() {
    let mut job = Job::new(rules(1));
    job.event(Event::Stop("enough".to_owned()));
    let actions = job.hello(1);
    assert_eq!(told(&actions), [(1, "ended")]);
    assert!(actions.contains(&Action::Close(WorkerId(1))));
}

/// Invariant 7.
#[test]
fn the_wait_for_the_first_workers_ends_and_says_how_many_are_missing() {
    let mut job = Job::new(rules(2));
    job.hello(1);
    job.ready(1, 0);
    job.after(55).beat(&[1]);
    job.timeout();
    assert_eq!(job.next_deadline(), Some(at(160)));
    let actions = job.due();
    let reason = failure(&actions);
    assert!(
        reason.contains("1 of 2 ready") && reason.contains("1m"),
        "{reason}"
    );
    assert_eq!(told(&actions), [(1, "ended")]);
    assert_eq!(job.next_deadline(), None);
}

/// A session may be replaced before its end is noticed: that is no reason to break anything.
#[test]
fn a_spare_that_opens_another_session_disturbs_nobody() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.hello(3);
    job.ready(3, 0);
    let actions = job.back(3, 0, false, 0);
    assert_eq!(told(&actions), [(3, "welcome")]);
    assert_eq!(*job.phase(), Phase::Running);
    assert_eq!(job.generation(), Generation(1));
}
