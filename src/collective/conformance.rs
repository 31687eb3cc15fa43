//! What every collective must do, whatever connects its ranks.
//!
//! [`suite!`] turns a function that forms a group into one test for each promise of
//! [`Collective`].

mod copying;

pub(super) use copying::*;

use super::abort::Abort;
use super::error::CollectiveError;
use super::in_process::InProcess;
use super::tree;
use super::{Collective, Operation};
use crate::ids::Rank;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

/// One rank of a group under test.
pub(super) struct Member {
    pub(super) collective: Box<dyn Collective>,
    pub(super) abort: Abort,
}

/// Forms a group whose ranks host these ranges and wait this long.
pub(super) type Form = fn(&[Range<u32>], Duration) -> Vec<Member>;

/// Longer than anything here takes on a machine that is busy with other things.
pub(super) const PATIENT: Duration = Duration::from_secs(60);

/// Short, for waits that are meant to fail.
const BRIEF: Duration = Duration::from_millis(200);

macro_rules! suite {
    ($form:expr) => {
        #[test]
        fn any_number_of_workers_gives_the_same_bits() {
            crate::collective::conformance::same_bits($form);
        }
        #[test]
        fn nan_infinity_and_negative_zero_come_through() {
            crate::collective::conformance::special_values($form);
        }
        #[test]
        fn many_reductions_and_barriers_follow_each_other() {
            crate::collective::conformance::repeated($form);
        }
        #[test]
        fn a_long_vector_never_makes_two_ranks_wait_for_each_other() {
            crate::collective::conformance::long($form);
        }
        #[test]
        fn vectors_that_do_not_fit_are_refused_before_anything_is_sent() {
            crate::collective::conformance::misfits($form);
        }
        #[test]
        fn ranks_that_are_out_of_step_name_the_difference() {
            crate::collective::conformance::out_of_step($form);
        }
        #[test]
        fn a_dead_peer_is_an_error_on_every_survivor() {
            crate::collective::conformance::death($form);
        }
        #[test]
        fn a_peer_that_dies_in_the_middle_is_an_error_on_every_survivor() {
            crate::collective::conformance::death_in_the_middle($form);
        }
        #[test]
        fn a_missing_peer_is_named_at_the_deadline() {
            crate::collective::conformance::missing($form);
        }
        #[test]
        fn an_abort_ends_a_wait_at_once_and_for_good() {
            crate::collective::conformance::aborted($form);
        }
        #[test]
        fn a_barrier_waits_for_the_last_rank() {
            crate::collective::conformance::barrier($form);
        }
        #[test]
        fn a_gather_tells_everybody_every_word() {
            crate::collective::conformance::words($form);
        }
        #[test]
        fn a_copy_is_the_holders_vector_bit_for_bit() {
            crate::collective::conformance::copies($form);
        }
        #[test]
        fn a_gather_a_copy_and_a_reduction_follow_each_other() {
            crate::collective::conformance::in_a_row($form);
        }
        #[test]
        fn an_impossible_list_of_holders_is_refused_before_anything_is_sent() {
            crate::collective::conformance::impossible_holders($form);
        }
        #[test]
        fn ranks_that_copy_and_reduce_or_copy_otherwise_name_the_difference() {
            crate::collective::conformance::copies_out_of_step($form);
        }
        #[test]
        fn a_holder_that_dies_in_the_middle_of_a_copy_is_an_error_on_everyone() {
            crate::collective::conformance::death_of_a_holder($form);
        }
        #[test]
        fn a_rank_that_is_missing_from_a_copy_is_named_at_the_deadline() {
            crate::collective::conformance::missing_from_a_copy($form);
        }
    };
}
pub(super) use suite;

/// Numbers of many magnitudes, so that another order of additions gives other bits.
fn value(replica: u32, index: usize) -> f32 {
    let mut x = (u64::from(replica) << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    let magnitude = 10f32.powi((x >> 40) as i32 % 9 - 4);
    ((x & 0xff_ffff) as f32 / 8_388_608.0 - 1.0) * magnitude
}

/// The definition of the tree and of the mean, word for word.
fn reference(values: &[f32]) -> f32 {
    fn reduce(values: &[f32]) -> f32 {
        match values.len() {
            1 => values[0],
            count => {
                let (left, right) = values.split_at(tree::split(0, count as u32) as usize);
                reduce(left) + reduce(right)
            }
        }
    }
    reduce(values) / values.len() as f32
}

/// Runs one reduction on one rank, and checks the mean of every element.
fn reduce_and_check(
    collective: &mut dyn Collective,
    hosted: Range<u32>,
    replicas: u32,
    length: usize,
) -> Result<(), CollectiveError> {
    let mean = reduce(collective, hosted, length, value)?;
    for (index, mean) in mean.iter().enumerate() {
        let values: Vec<f32> = (0..replicas).map(|replica| value(replica, index)).collect();
        assert_eq!(
            mean.to_bits(),
            reference(&values).to_bits(),
            "element {index} of {length}"
        );
    }
    Ok(())
}

fn reduce(
    collective: &mut dyn Collective,
    hosted: Range<u32>,
    length: usize,
    value: impl Fn(u32, usize) -> f32,
) -> Result<Vec<f32>, CollectiveError> {
    let mut vectors: Vec<Vec<f32>> = hosted
        .map(|replica| (0..length).map(|index| value(replica, index)).collect())
        .collect();
    let mut hosted: Vec<&mut [f32]> = vectors.iter_mut().map(|vector| &mut vector[..]).collect();
    let mut mean = vec![f32::MAX; length];
    collective.reduce_mean(&mut hosted, &mut mean)?;
    Ok(mean)
}

/// Gives every member a thread; returns what each came to.
fn on_threads<T: Send>(
    members: Vec<Member>,
    ranges: &[Range<u32>],
    work: impl Fn(Member, Range<u32>) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = members
            .into_iter()
            .zip(ranges)
            .map(|(member, range)| {
                let work = &work;
                scope.spawn(move || work(member, range.clone()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Workers of one, two, three, … replicas: no two alike, and none at a power of two for long.
fn uneven(replicas: u32, workers: u32) -> Vec<Range<u32>> {
    let mut ends: Vec<u32> = (1..workers)
        .map(|worker| (worker * (worker + 1) / 2).min(replicas - (workers - worker)))
        .collect();
    ends.push(replicas);
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

pub(super) fn same_bits(form: Form) {
    for (replicas, workers) in [(1, 1), (2, 2), (5, 1), (5, 2), (8, 3), (11, 4), (6, 6)] {
        let ranges = uneven(replicas, workers);
        let lengths = [0, 1, 3, 1000, 100_003];
        let alone = lengths.map(|length| {
            let mut solo = InProcess::solo(replicas).unwrap();
            reduce(&mut solo, 0..replicas, length, value).unwrap()
        });
        on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
            for (length, alone) in lengths.into_iter().zip(&alone) {
                let mean = reduce(&mut *member.collective, hosted.clone(), length, value).unwrap();
                let same = mean
                    .iter()
                    .zip(alone)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{length} elements, {replicas} replicas in {ranges:?}");
            }
            let collective = &mut *member.collective;
            reduce_and_check(collective, hosted, replicas, 1000).unwrap();
        });
    }
}

#[expect(
    clippy::single_range_in_vec_init,
    reason = "a worker that hosts one range is meant"
)]
pub(super) fn special_values(form: Form) {
    // By element: every replica's value, the same on all but the second.
    let quiet = f32::from_bits(0x7fc0_1111);
    let cases = [
        (-0.0, -0.0, -0.0),
        (-0.0, 0.0, 0.0),
        (1.0, f32::INFINITY, f32::INFINITY),
        (f32::INFINITY, f32::NEG_INFINITY, f32::NAN),
        (1.0, quiet, f32::NAN),
        (-f32::NAN, quiet, f32::NAN),
        (f32::MAX, f32::MAX, f32::INFINITY),
        (1e-45, 1e-45, 1e-45),
    ];
    for ranges in [vec![0..4], vec![0..1, 1..4], vec![0..1, 1..2, 2..4]] {
        on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
            let of = |replica, index: usize| match replica {
                1 => cases[index].1,
                _ => cases[index].0,
            };
            let mean = reduce(&mut *member.collective, hosted, cases.len(), of).unwrap();
            for (index, (mean, case)) in mean.iter().zip(cases).enumerate() {
                assert_eq!(
                    mean.to_bits(),
                    case.2.to_bits(),
                    "case {index} in {ranges:?}"
                );
            }
        });
    }
}

pub(super) fn repeated(form: Form) {
    let ranges = uneven(7, 3);
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let collective = &mut *member.collective;
        for round in 0..30 {
            // Now and then a rank is late.
            if round % 10 == hosted.start {
                thread::sleep(Duration::from_millis(3));
            }
            reduce_and_check(collective, hosted.clone(), 7, 17 * round as usize).unwrap();
            collective.barrier().unwrap();
        }
    });
}

pub(super) fn long(form: Form) {
    // Far more than sockets and queues hold, so that a rank that only wrote would never end.
    let length = 2_000_003;
    let ranges = [0..1, 1..2, 2..4];
    let means = on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let few = |replica, index: usize| value(replica, index % 1009);
        reduce(&mut *member.collective, hosted, length, few).unwrap()
    });
    for mean in means {
        let values = |index: usize| (0..4).map(move |replica| value(replica, index % 1009));
        let expected: Vec<f32> = (0..1009)
            .map(|index| reference(&values(index).collect::<Vec<_>>()))
            .collect();
        for (index, mean) in mean.iter().enumerate() {
            assert_eq!(
                mean.to_bits(),
                expected[index % 1009].to_bits(),
                "element {index}"
            );
        }
    }
}

pub(super) fn misfits(form: Form) {
    let ranges = [0..2, 2..4];
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let collective = &mut *member.collective;
        let error = reduce(collective, 0..1, 10, value).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("hosts 2 replicas and was given 1"),
            "{error}"
        );
        let (mut one, mut two, mut mean) = ([0.0; 10], [0.0; 9], [0.0; 10]);
        let error = collective
            .reduce_mean(&mut [&mut one, &mut two], &mut mean)
            .unwrap_err();
        assert!(
            error.to_string().contains("vector 1 has 9 elements"),
            "{error}"
        );
        // It is the caller's mistake, and the group is none the worse for it.
        reduce_and_check(collective, hosted, 4, 10).unwrap();
    });
}

pub(super) fn out_of_step(form: Form) {
    let ranges = [0..2, 2..4];
    let outcomes = on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let length = if hosted.start == 0 { 1000 } else { 998 };
        reduce(&mut *member.collective, hosted, length, value).map(drop)
    });
    // Whoever notices first cuts the other off, who may or may not have noticed too.
    let named = outcomes.iter().flat_map(Result::as_ref).count() == 0
        && outcomes.iter().any(|outcome| {
            let fault = outcome.as_ref().unwrap_err().to_string();
            fault.contains("vector length") && fault.contains("1000") && fault.contains("998")
        });
    assert!(named, "{outcomes:?}");
}

pub(super) fn death(form: Form) {
    let ranges = [0..2, 2..3, 3..6];
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let collective = &mut *member.collective;
        reduce_and_check(collective, hosted.clone(), 6, 1000).unwrap();
        if collective.rank() == Rank(1) {
            return;
        }
        let start = now();
        let error = reduce(collective, hosted.clone(), 100_003, value).unwrap_err();
        assert!(start.elapsed() < PATIENT / 2, "{error}");
        assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
        let again = reduce(collective, hosted, 10, value).unwrap_err();
        assert!(matches!(again, CollectiveError::Broken { .. }), "{again}");
    });
}

pub(super) fn death_in_the_middle(form: Form) {
    // One rank is cut off while the others send to it, and it to them, for as long as it takes.
    let ranges = [0..1, 1..2, 2..3];
    let members = form(&ranges, PATIENT);
    let dying = members[2].abort.clone();
    let start = now();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        dying.abort("killed");
    });
    let outcomes = on_threads(members, &ranges, |mut member, hosted| {
        let mut vector = vec![hosted.start as f32; 1_000_003];
        let mut mean = vec![0.0; vector.len()];
        loop {
            if let Err(error) = member.collective.reduce_mean(&mut [&mut vector], &mut mean) {
                return error;
            }
        }
    });
    killer.join().unwrap();
    assert!(start.elapsed() < PATIENT / 2, "{outcomes:?}");
    for (rank, error) in outcomes.iter().enumerate() {
        let expected = match rank {
            2 => matches!(error, CollectiveError::Aborted { .. }),
            _ => matches!(error, CollectiveError::PeerLost { .. }),
        };
        assert!(expected, "rank {rank}: {error}");
    }
}

pub(super) fn missing(form: Form) {
    let ranges = [0..1, 1..3];
    let mut members = form(&ranges, BRIEF);
    let start = now();
    let present = &mut *members[0].collective;
    let error = reduce(present, 0..1, 1000, value).unwrap_err();
    assert!(start.elapsed() >= BRIEF && start.elapsed() < PATIENT / 2);
    match &error {
        CollectiveError::Deadline {
            missing,
            waited,
            operation,
            ..
        } => {
            let ranks: Vec<_> = missing.0.iter().map(|(rank, _)| *rank).collect();
            assert_eq!(ranks, [Rank(1)]);
            assert!(*waited >= BRIEF);
            assert_eq!(*operation, Operation::Reduce);
        }
        _ => panic!("{error}"),
    }
    assert!(error.to_string().contains("for rank 1 ("), "{error}");
}

pub(super) fn aborted(form: Form) {
    let ranges = [0..1, 1..3];
    let mut members = form(&ranges, PATIENT);
    let abort = members[0].abort.clone();
    let start = now();
    let other = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        abort.abort("a worker died");
    });
    let waiting = &mut *members[0].collective;
    let error = reduce(waiting, 0..1, 100_003, value).unwrap_err();
    assert!(matches!(error, CollectiveError::Aborted { .. }), "{error}");
    assert!(error.to_string().ends_with("a worker died"), "{error}");
    let again = waiting.barrier().unwrap_err();
    assert!(again.to_string().ends_with("a worker died"), "{again}");
    assert!(start.elapsed() < PATIENT / 2);
    other.join().unwrap();
    // Before a collective it has the same effect as in one.
    members[1].abort.abort("a worker died");
    let error = members[1].collective.barrier().unwrap_err();
    assert!(matches!(error, CollectiveError::Aborted { .. }), "{error}");
}

pub(super) fn barrier(form: Form) {
    use std::sync::atomic::{AtomicU32, Ordering};
    let ranges = [0..1, 1..2, 2..4];
    let here = AtomicU32::new(0);
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        for round in 1..=5 {
            if hosted.start == round % 3 {
                thread::sleep(Duration::from_millis(5));
            }
            here.fetch_add(1, Ordering::SeqCst);
            member.collective.barrier().unwrap();
            assert!(here.load(Ordering::SeqCst) >= round * 3);
        }
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "these tests hold real waits against their deadlines"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}
