//! Collectives that fail: who is waited for, who is left out, and when it is enough.

use super::*;

/// All workers say that their collective broke, and whom they miss.
fn break_off(job: &mut Job, ids: &[(u64, Option<u32>)]) -> Vec<Action> {
    let mut actions = Vec::new();
    for (id, suspect) in ids {
        actions.extend(job.fails(*id, 10, *suspect));
    }
    if told(&actions).is_empty() && outcome(&actions).is_none() {
        actions.extend(job.after(2).timeout());
    }
    actions
}

#[test]
fn a_failed_collective_waits_for_the_death_that_explains_it() {
    let mut explained = Job::running(elastic(2, 2), 2);
    let actions = explained.fails(1, 10, Some(1));
    assert_eq!(told(&actions), []);
    let said = event(&actions, EventKind::Broken).unwrap();
    assert!(said.contains("worker 1") && said.contains("out of reach"));
    let actions = explained.after(1).lost(2);
    assert_eq!(told(&actions), [(1, "form")]);
    assert_eq!(cause(&actions), Some(Cause::Death));

    let mut unexplained = Job::running(elastic(2, 2), 2);
    unexplained.beat(&[1, 2]);
    unexplained.timeout();
    unexplained.fails(1, 10, Some(1));
    assert_eq!(unexplained.next_deadline(), Some(at(102)));
    let actions = unexplained.due();
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
    assert_eq!(cause(&actions), Some(Cause::CollectiveFailure));
}

/// Reports of steps that were done before the failure say nothing against it.
#[test]
fn signs_of_life_do_not_call_off_the_wait_for_an_explanation() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.fails(1, 10, Some(1));
    let beat = Word::Heartbeat(Generation(1), Step(10), None);
    job.after(1).say(1, beat.clone());
    job.say(2, beat);
    let actions = job.after(1).timeout();
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
}

#[test]
fn if_all_say_so_there_is_nothing_to_wait_for() {
    let mut job = Job::running(elastic(2, 2), 2);
    assert_eq!(told(&job.fails(1, 10, Some(1))), []);
    let actions = job.fails(2, 10, Some(0));
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
}

#[test]
fn a_recovery_is_timed_from_the_notice_to_the_first_step() {
    let recovered = |actions: &[Action]| {
        let records = records(actions).into_iter();
        let mut recoveries = records.filter_map(|record| match record {
            Record::Recovered(recovery) => Some(*recovery),
            _ => None,
        });
        recoveries.next()
    };
    let mut job = Job::running(elastic(2, 2), 2);
    job.after(3).lost(2);
    job.after(4);
    let forming = Forming {
        abort: at(1),
        connect: at(2),
        heal: at(1),
    };
    job.say(1, Word::Formed(Generation(2), Step(10), forming));
    assert_eq!(recovered(&job.progress(1, 10)), None, "no step yet");
    let actions = job.after(5).progress(1, 11);
    let expected = Recovery {
        cause: Cause::Death,
        generation: Generation(2),
        detect: at(3),
        forming,
        first_step: at(5),
        whole: at(9),
    };
    assert_eq!(recovered(&actions), Some(expected));
    assert_eq!(recovered(&job.progress(1, 12)), None, "once");

    let mut unexplained = Job::running(elastic(2, 2), 2);
    unexplained.fails(1, 10, None);
    unexplained.after(1).fails(2, 10, None);
    unexplained.formed(&[1, 2], 10);
    let recovery = recovered(&unexplained.after(1).progress(1, 11)).unwrap();
    assert_eq!(recovery.cause, Cause::CollectiveFailure);
    assert_eq!((recovery.whole, recovery.detect), (at(2), at(0)));
}

#[test]
fn whom_the_others_cannot_reach_is_left_out_for_a_while() {
    let mut job = Job::running(elastic(3, 3), 3);
    let accuse = [(1, Some(1)), (2, Some(0)), (3, Some(1))];
    assert_eq!(
        told(&break_off(&mut job, &accuse)).len(),
        3,
        "they try again"
    );
    // From now on even what all say is waited with: no storm of generations.
    job.fails(1, 10, Some(1));
    job.fails(2, 10, Some(0));
    assert_eq!(told(&job.fails(3, 10, Some(1))), []);
    assert_eq!(told(&job.after(2).timeout()).len(), 3, "and again");
    let actions = break_off(&mut job, &accuse);
    assert_eq!(told(&actions), [(2, "hold"), (1, "form"), (3, "form")]);
    assert!(event(&actions, EventKind::Broken).is_some());
    let barred_until = job.now + at(20);
    assert!(job.ready(2, 10).is_empty(), "it is ready, but barred");
    job.formed(&[1, 3], 10);
    job.progress(1, 20);
    assert_eq!(*job.phase(), Phase::Running);
    while job.phase == Phase::Running {
        job.after(4).beat(&[1, 2, 3]);
        let actions = job.timeout();
        if job.phase != Phase::Running {
            assert_eq!(job.now, barred_until);
            assert_eq!(told(&actions), [(1, "pause"), (3, "pause")]);
        }
    }
    job.paused(&[1, 3], 25);
    assert_eq!(job.seated(), [1, 3, 2]);
}

#[test]
fn of_two_that_accuse_each_other_the_younger_is_left_out() {
    let mut job = Job::running(elastic(2, 2), 2);
    let accuse = [(1, Some(1)), (2, Some(0))];
    break_off(&mut job, &accuse);
    break_off(&mut job, &accuse);
    break_off(&mut job, &accuse);
    assert_eq!(job.seated(), [1]);
}

#[test]
fn a_bar_that_leaves_too_few_makes_the_job_wait_until_it_is_lifted() {
    let mut job = Job::running(rules(2), 2);
    let accuse = [(1, Some(1)), (2, Some(0))];
    break_off(&mut job, &accuse);
    break_off(&mut job, &accuse);
    assert_eq!(
        told(&break_off(&mut job, &accuse)),
        [(1, "hold"), (2, "hold")]
    );
    assert_eq!(*job.phase(), Phase::Gathering);
    for _ in 0..4 {
        job.after(5).beat(&[1, 2]);
    }
    let actions = job.timeout();
    assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
}

#[test]
fn a_step_makes_up_for_what_broke_before() {
    let mut job = Job::running(elastic(2, 2), 2);
    for step in 11..40 {
        let accuse = [(1, Some(1)), (2, Some(0))];
        let actions = break_off(&mut job, &accuse);
        assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
        job.formed(&[1, 2], step - 1);
        job.progress(1, step);
    }
}

/// Invariant 7.
#[test]
fn generations_that_break_without_a_step_are_not_formed_for_ever() {
    let mut job = Job::running(elastic(2, 2), 2);
    for _ in 1..12 {
        let actions = break_off(&mut job, &[(1, None), (2, None)]);
        assert_eq!(told(&actions), [(1, "form"), (2, "form")]);
    }
    let actions = break_off(&mut job, &[(1, None), (2, None)]);
    let reason = failure(&actions);
    assert!(
        reason.contains("12 generations") && reason.contains("out of reach"),
        "{reason}"
    );
}

/// Invariant 7: also of a pause that was said although forming never was.
#[test]
fn a_generation_whose_forming_was_never_said_is_followed_by_another() {
    let mut job = Job::forming(elastic(1, 1), 1);
    job.paused(&[1], 0);
    assert_eq!(*job.phase(), Phase::Forming);
    for _ in 0..5 {
        job.after(5).beat(&[1]);
    }
    assert_eq!(told(&job.timeout()), [(1, "form")]);
}

#[test]
fn only_the_present_generations_accusations_count() {
    let mut job = Job::running(elastic(3, 3), 3);
    let accuse = |rank| [(1, Some(rank)), (2, Some(rank)), (3, Some(rank))];
    break_off(&mut job, &accuse(1));
    break_off(&mut job, &accuse(1));
    break_off(&mut job, &accuse(0));
    assert_eq!(job.seated(), [2, 3]);
}
