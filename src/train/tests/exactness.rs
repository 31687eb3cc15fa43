//! The same bits, whoever computes them and however often.

use super::*;

#[test]
fn the_state_is_the_same_for_any_number_of_threads() {
    for update in UPDATES {
        let job = job(update, 0.0);
        let states = [1, 2, 4].map(|cores| train(&mut trainer(&job, 0..REPLICAS, cores), 5));
        assert!(
            states[0] == states[1] && states[0] == states[2],
            "{update:?}"
        );
    }
}

/// Other tests of this process run on one thread at the same time.
#[test]
fn a_jobs_intra_op_threads_are_its_own() {
    let mut job = job(Update::Alternating, 0.0);
    job.workers.threads = 2;
    // The second is wide enough for Winograd's filtering, which has threads of its own.
    for width in [4, 32] {
        job.model.generator_width = width;
        job.model.discriminator_width = width;
        let states = [2, 4, 4].map(|cores| train(&mut trainer(&job, 0..REPLICAS, cores), 3));
        assert!(states[0] == states[1] && states[0] == states[2], "{width}");
    }
}

#[test]
fn the_state_is_the_same_for_any_number_of_workers() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let alone = train(&mut trainer(&job, 0..REPLICAS, 2), 5);
        for ranges in [vec![0..2, 2..4], vec![0..1, 1..4], vec![0..1, 1..2, 2..4]] {
            for (state, _) in train_together(&job, &ranges, 5, |_| Flags::default()) {
                assert!(state == alone, "{update:?} on {ranges:?}");
            }
        }
    }
}

#[test]
fn replicas_move_without_changing_a_bit() {
    let job = job(Update::Alternating, 0.0);
    let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
    let mut moving = trainer(&job, 0..1, 2);
    moving.host(0..REPLICAS).unwrap();
    train(&mut moving, 2);
    moving.host(1..3).unwrap();
    moving.host(0..REPLICAS).unwrap();
    assert!(train(&mut moving, 2) == straight);
    assert!(matches!(
        moving.host(2..9),
        Err(TrainError::Replicas { .. })
    ));
    assert_eq!(moving.replicas(), 0..REPLICAS);
}

#[test]
fn a_trainer_without_replicas_waits_for_some() {
    let job = job(Update::Alternating, 0.9);
    let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 2);
    let mut idle = trainer(&job, 0..0, 2);
    assert_eq!(idle.replicas(), 0..0);
    let error = advance(&mut idle, &mut Alone::default()).unwrap_err();
    assert!(matches!(error, TrainError::Batches { .. }), "{error}");
    assert!(error.to_string().contains("hosts no replicas"), "{error}");
    idle.host(0..REPLICAS).unwrap();
    train(&mut idle, 1);
    idle.host(1..1).unwrap();
    idle.host(0..REPLICAS).unwrap();
    assert!(train(&mut idle, 1) == straight);
}

#[test]
fn a_resumed_job_is_the_uninterrupted_one() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 6);
        let mut saved = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
        // What is read back from disk is ordered by name.
        for tensors in saved.files.values_mut() {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let mut resumed = trainer(&job, 0..REPLICAS, 2);
        resumed.restore(&saved).unwrap();
        assert_eq!(resumed.step(), Step(3));
        assert!(train(&mut resumed, 3) == straight, "{update:?}");
    }
}
