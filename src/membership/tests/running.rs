//! Progress, leases, checkpoints, slow workers.

use super::*;

#[test]
fn work_is_handed_out_ahead_and_never_past_the_end() {
    let mut job = Job::forming(rules(2), 2);
    job.formed(&[1, 2], 0);
    assert_eq!(told(&job.progress(1, 0)), []);
    let actions = job.progress(1, 1);
    let work = |replicas, epochs| Order::Work {
        generation: Generation(1),
        replicas,
        epochs,
    };
    let (first, second) = (work(0..4, 10..11), work(4..8, 10..11));
    assert_eq!(orders(&actions), [(1, &first), (2, &second)]);
    let booked = actions
        .iter()
        .position(|a| matches!(a, Action::Persist(Record::Assigned { .. })));
    let spoken = actions.iter().position(|a| matches!(a, Action::Send(..)));
    assert!(booked.unwrap() < spoken.unwrap(), "{actions:?}");
    assert_eq!(told(&job.progress(2, 1)), [], "once");
    let actions = job.progress(1, 4500);
    assert_eq!(orders(&actions)[0].1, &work(0..4, 11..50));
    assert_eq!(told(&job.progress(1, 4999)), []);
}

#[test]
fn a_sign_of_life_is_progress_too() {
    let mut job = Job::running(rules(2), 2);
    let actions = job.say(2, Word::Heartbeat(Generation(1), Step(12), None));
    assert!(persists(&actions, &Record::Reached(Step(12))));
    assert_eq!(job.reached(), Step(12));
}

/// Invariant 2: what a checkpoint holds is done, even if its progress report comes later.
#[test]
fn a_checkpoint_marks_its_step_as_reached_first() {
    let mut job = Job::running(rules(1), 1);
    let actions = job.saved(1, 50);
    assert_eq!(actions[0], Action::Persist(Record::Reached(Step(50))));
    assert_eq!(
        actions[1],
        Action::Persist(Record::Checkpoint(checkpoint(50)))
    );
    assert_eq!(job.reached(), Step(50));
}

#[test]
fn an_older_checkpoint_does_not_take_the_place_of_a_newer_one() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.saved(1, 50);
    job.saved(1, 40);
    let actions = job.lost(2);
    assert_eq!(assignments(&actions)[0].checkpoint, Some(checkpoint(50)));
}

#[test]
fn a_checkpoint_that_fails_is_written_down_and_training_goes_on() {
    let mut job = Job::running(rules(1), 1);
    let word = Word::CheckpointFailed(Generation(1), Step(50), "no space".to_owned());
    let actions = job.say(1, word);
    let told = event(&actions, EventKind::CheckpointFailed).unwrap();
    assert!(told.contains("50") && told.contains("no space"), "{told}");
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn any_word_renews_a_lease_and_silence_ends_it() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.after(9).beat(&[1]);
    job.progress(2, 11);
    job.timeout();
    assert_eq!(job.next_deadline(), Some(at(119)));
    job.after(9).beat(&[1]);
    let actions = job.due();
    assert_eq!(told(&actions), [(1, "form")]);
    let died = event(&actions, EventKind::Died).unwrap();
    assert!(died.contains("worker 2") && died.contains("no sign of life for 10s"));
    assert!(actions.contains(&Action::Close(WorkerId(2))));
}

/// Even of a worker that has no seat.
#[test]
fn a_silent_spare_is_forgotten_and_nobody_else_notices() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.hello(3);
    job.ready(3, 0);
    job.after(9).beat(&[1, 2]);
    let actions = job.after(1).timeout();
    assert!(actions.contains(&Action::Close(WorkerId(3))));
    assert_eq!((told(&actions), job.phase()), (vec![], &Phase::Running));
}

#[test]
fn while_the_coordinator_slept_nobody_was_silent() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.timeout();
    assert_eq!(job.next_deadline(), Some(at(110)));
    job.slept(at(60));
    assert_eq!(job.next_deadline(), Some(at(170)));
    assert!(job.after(61).timeout().is_empty());
    assert_eq!(job.next_deadline(), Some(at(170)));
    assert_eq!(*job.phase(), Phase::Running);

    let mut forming = Job::forming(elastic(2, 2), 2);
    forming.fails(1, 0, None);
    forming.slept(at(60));
    assert!(forming.after(61).timeout().is_empty(), "nor was it late");
    assert_eq!(told(&forming.after(1).timeout()).len(), 2);
}

/// Invariant 3.
#[test]
fn a_zombie_has_no_say_until_it_comes_as_a_new_worker() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.after(8).beat(&[1]);
    job.after(2).timeout();
    assert_eq!(job.seated(), [1]);
    job.formed(&[1], 10);
    let first = Generation(1);
    for word in [
        Word::Progress(first, Step(900)),
        Word::Heartbeat(first, Step(900), None),
        Word::CheckpointWritten(first, checkpoint(900)),
        Word::Finished(first, Step(5000), Finish::Complete),
        Word::Ready("data".to_owned(), Step(900)),
    ] {
        assert!(job.say(2, word).is_empty());
    }
    assert_eq!((job.reached(), job.phase()), (Step(10), &Phase::Running));
    assert_eq!(job.known("incarnation 2"), None, "so it gets a new number");
    let standing = Standing {
        generation: first,
        within: true,
        step: Step(11),
    };
    let actions = job.say(3, Word::Hello(facts(2), standing));
    assert_eq!(told(&actions), [(3, "welcome")]);
    assert_eq!(told(&job.ready(3, 11)), [(1, "pause")]);
    job.paused(&[1], 10);
    assert_eq!(job.seated(), [1, 3]);
}

/// Signs of life at every second; worker 2 takes so many milliseconds a round, worker 1 takes 10.
fn beat_for(job: &mut Job, seconds: u64, slow: impl Fn(u64) -> u64) -> Vec<Action> {
    let mut actions = Vec::new();
    for second in 0..seconds {
        job.after(1);
        for (id, round) in [(1, 10), (2, slow(second))] {
            let seat = job.members()[&WorkerId(id)].seat.clone().unwrap();
            let hosted = seat.replicas.len() as u32;
            let pace = Pace {
                compute: Duration::from_millis(round) * hosted,
                hosted,
            };
            let (generation, step) = (job.generation(), job.reached());
            actions.extend(job.say(id, Word::Heartbeat(generation, step, Some(pace))));
        }
        if job.next_deadline().is_some_and(|at| job.now >= at) {
            actions.extend(job.timeout());
        }
        if *job.phase() != Phase::Running {
            break;
        }
    }
    actions
}

#[test]
fn a_worker_that_is_slow_for_long_enough_gets_fewer_replicas() {
    let mut job = Job::running(elastic(2, 2), 2);
    let actions = beat_for(&mut job, 60, |_| 50);
    assert_eq!(told(&actions), [(1, "pause"), (2, "pause")]);
    let waited = job.now - at(100);
    assert!(waited >= at(20) && waited <= at(23), "{waited:?}");
    assert_eq!(*job.phase(), Phase::Pausing(Cause::Rebalance));
    let why = event(&actions, EventKind::Rebalanced).unwrap();
    for part in [
        "worker 2",
        "50.0 ms a round: 4 -> 1 replicas",
        "200.0 -> 70.0 ms",
    ] {
        assert!(why.contains(part), "{why}");
    }
    let actions = job.paused(&[1, 2], 30);
    assert_eq!(cause(&actions), Some(Cause::Rebalance));
    let shares: Vec<_> = job.seats.iter().map(|seat| seat.replicas.clone()).collect();
    assert_eq!(shares, [0..7, 7..8]);
    // And then it stays.
    job.formed(&[1, 2], 30);
    let actions = beat_for(&mut job, 100, |_| 50);
    assert_eq!(told(&actions), []);
}

#[test]
fn replicas_do_not_move_for_a_hiccup_or_a_small_gain() {
    let mut job = Job::running(elastic(2, 2), 2);
    let actions = beat_for(
        &mut job,
        100,
        |second| if second % 20 < 2 { 40 } else { 10 },
    );
    assert_eq!(told(&actions), []);
    let actions = beat_for(&mut job, 100, |_| 11);
    assert_eq!(told(&actions), []);
    assert_eq!(*job.phase(), Phase::Running);
}

#[test]
fn replicas_that_were_dealt_just_now_stay_for_a_while_and_come_back_later() {
    let mut job = Job::running(elastic(2, 2), 2);
    beat_for(&mut job, 60, |_| 50);
    job.paused(&[1, 2], 30);
    job.formed(&[1, 2], 30);
    let dealt_at = job.now;
    // It is fast again at once.
    let actions = beat_for(&mut job, 100, |_| 10);
    assert_eq!(told(&actions), [(1, "pause"), (2, "pause")]);
    assert!(job.now - dealt_at >= at(20), "{:?}", job.now - dealt_at);
    job.paused(&[1, 2], 60);
    let shares: Vec<_> = job.seats.iter().map(|seat| seat.replicas.len()).collect();
    assert_eq!(shares, [4, 4]);
}

/// Fairness to who is new: it is taken to be as fast as the others, and measured.
#[test]
fn who_is_new_is_dealt_as_much_as_the_others() {
    let mut job = Job::running(elastic(2, 3), 2);
    beat_for(&mut job, 5, |_| 12);
    job.hello(3);
    job.ready(3, 0);
    job.paused(&[1, 2], 30);
    let shares: Vec<_> = job.seats.iter().map(|seat| seat.replicas.len()).collect();
    assert_eq!(shares, [3, 3, 2]);
}
