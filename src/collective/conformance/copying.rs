//! What every gather and every copy must do.

use super::{BRIEF, Form, PATIENT, now, on_threads, reduce, reduce_and_check, uneven, value};
use crate::collective::error::{CollectiveError, HolderFault, Operation};
use crate::ids::Rank;
use std::ops::Range;
use std::thread;
use std::time::Duration;

/// One replica a worker.
fn even(workers: u32) -> Vec<Range<u32>> {
    (0..workers).map(|rank| rank..rank + 1).collect()
}

/// Bits of every kind: numbers, NaNs with payloads, quiet and signalling, and zeros of both signs.
fn bits(index: usize) -> u32 {
    match index % 7 {
        0 => 0x7fa0_0001 ^ index as u32,
        1 => 0xffc0_1234,
        2 => 0x8000_0000,
        3 => 0x0000_0001,
        _ => (index as u32).wrapping_mul(0x9e37_79b9),
    }
}

fn vector(length: usize, holds: bool) -> Vec<f32> {
    let of = |index| f32::from_bits(if holds { bits(index) } else { 0x4242_4242 });
    (0..length).map(of).collect()
}

fn assert_copied(vector: &[f32], what: &dyn Fn() -> String) {
    let wrong = vector
        .iter()
        .enumerate()
        .find(|(index, value)| value.to_bits() != bits(*index));
    assert!(wrong.is_none(), "{}: {wrong:?}", what());
}

pub(in crate::collective) fn words(form: Form) {
    let words = [0, u64::MAX, 1 << 24 | 1, 70_000];
    for workers in 1..=4 {
        let ranges = even(workers);
        on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
            for round in 0..3 {
                let of = |rank: usize| words[(rank + round) % 4];
                let gathered = member.collective.gather(of(hosted.start as usize)).unwrap();
                let expected: Vec<u64> = (0..workers as usize).map(of).collect();
                assert_eq!(gathered, expected);
            }
        });
    }
}

pub(in crate::collective) fn copies(form: Form) {
    // The last is more than a holder may be ahead, even if four share it.
    let lengths = [0, 1, 3, 1001, 40_000, 1_500_001];
    for workers in 1..=4u32 {
        let ranges = even(workers);
        on_threads(form(&ranges, PATIENT), &ranges, |mut member, _| {
            let own = member.collective.rank();
            for choice in 1..1u32 << workers {
                let holds = |rank: Rank| choice >> rank.0 & 1 == 1;
                let holders: Vec<Rank> = (0..workers).map(Rank).filter(|&r| holds(r)).collect();
                for length in lengths {
                    let mut vector = vector(length, holds(own));
                    member.collective.copy(&holders, &mut vector).unwrap();
                    assert_copied(&vector, &|| {
                        format!("{length} elements from {holders:?} on rank {own} of {workers}")
                    });
                }
            }
            assert_eq!(
                member.collective.sent_bytes(),
                0,
                "copies are no reductions"
            );
        });
    }
}

pub(in crate::collective) fn in_a_row(form: Form) {
    let ranges = uneven(7, 3);
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let collective = &mut *member.collective;
        let own = collective.rank();
        for round in 0..10u32 {
            if round % 3 == own.0 {
                thread::sleep(Duration::from_millis(2));
            }
            // As survivors do: who holds the newest state, then a copy, then the next step.
            let steps = collective.gather(u64::from((own.0 + round) % 3)).unwrap();
            let newest = *steps.iter().max().unwrap();
            let holders: Vec<Rank> = (0..3)
                .map(Rank)
                .filter(|rank| steps[rank.0 as usize] == newest)
                .collect();
            let mut vector = vector(20_011, holders.contains(&own));
            collective.copy(&holders, &mut vector).unwrap();
            assert_copied(&vector, &|| format!("round {round}"));
            reduce_and_check(collective, hosted.clone(), 7, 1000).unwrap();
            collective.barrier().unwrap();
        }
    });
}

pub(in crate::collective) fn impossible_holders(form: Form) {
    let ranges = even(2);
    on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
        let collective = &mut *member.collective;
        let order = |first, second| HolderFault::Order {
            first: Rank(first),
            second: Rank(second),
        };
        let stranger = HolderFault::NoSuchRank {
            rank: Rank(2),
            world_size: 2,
        };
        for (holders, expected) in [
            (vec![], HolderFault::Empty),
            (vec![Rank(1), Rank(0)], order(1, 0)),
            (vec![Rank(1), Rank(1)], order(1, 1)),
            (vec![Rank(0), Rank(2)], stranger),
        ] {
            let mut vector = [1.0; 10];
            match collective.copy(&holders, &mut vector).unwrap_err() {
                CollectiveError::Holders { fault, .. } => assert_eq!(fault, expected),
                error => panic!("{error}"),
            }
            assert_eq!(vector, [1.0; 10]);
        }
        // It is the caller's mistake, and the group is none the worse for it.
        reduce_and_check(collective, hosted, 2, 10).unwrap();
    });
}

pub(in crate::collective) fn copies_out_of_step(form: Form) {
    type Work = fn(&mut dyn crate::collective::Collective) -> Result<(), CollectiveError>;
    let reduction: Work = |collective| {
        let rank = collective.rank().0;
        reduce(collective, rank..rank + 1, 1000, value).map(drop)
    };
    let copy: Work = |collective| collective.copy(&[Rank(0)], &mut [0.0; 1000]);
    let from_all: Work = |collective| collective.copy(&[Rank(0), Rank(1)], &mut [0.0; 1000]);
    let shorter: Work = |collective| collective.copy(&[Rank(0)], &mut [0.0; 998]);
    let exchange: Work = |collective| collective.gather(5).map(drop);
    for (first, second, words) in [
        (copy, reduction, vec!["kind"]),
        (reduction, copy, vec!["kind"]),
        (exchange, copy, vec!["kind"]),
        (copy, from_all, vec!["list of holders"]),
        (from_all, copy, vec!["list of holders"]),
        (copy, shorter, vec!["vector length", "1000", "998"]),
    ] {
        let ranges = even(2);
        let outcomes = on_threads(form(&ranges, PATIENT), &ranges, |mut member, hosted| {
            let work = if hosted.start == 0 { first } else { second };
            work(&mut *member.collective)
        });
        // Whoever notices first cuts the other off, who may or may not have noticed too.
        let named = outcomes.iter().all(Result::is_err)
            && outcomes
                .iter()
                .flat_map(|outcome| outcome.as_ref().err())
                .any(|error| {
                    let text = error.to_string();
                    words.iter().all(|word| text.contains(word))
                });
        assert!(named, "{words:?}: {outcomes:?}");
    }
}

pub(in crate::collective) fn death_of_a_holder(form: Form) {
    let ranges = even(4);
    let members = form(&ranges, PATIENT);
    let dying = members[1].abort.clone();
    let start = now();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        dying.abort("killed");
    });
    let outcomes = on_threads(members, &ranges, |mut member, _| {
        let mut vector = vector(1_000_003, member.collective.rank().0 < 2);
        loop {
            if let Err(error) = member.collective.copy(&[Rank(0), Rank(1)], &mut vector) {
                let again = member.collective.gather(1).unwrap_err();
                assert!(matches!(again, CollectiveError::Broken { .. }), "{again}");
                return error;
            }
        }
    });
    killer.join().unwrap();
    assert!(start.elapsed() < PATIENT / 2, "{outcomes:?}");
    for (rank, error) in outcomes.iter().enumerate() {
        let expected = match rank {
            1 => matches!(error, CollectiveError::Aborted { .. }),
            _ => matches!(error, CollectiveError::PeerLost { .. }),
        };
        assert!(expected, "rank {rank}: {error}");
    }
}

pub(in crate::collective) fn missing_from_a_copy(form: Form) {
    for (operation, words) in [
        (Operation::Gather, "take part in the exchange of steps"),
        (Operation::Copy, "copy the state"),
    ] {
        let mut members = form(&even(2), BRIEF);
        let present = &mut *members[0].collective;
        let start = now();
        let error = match operation {
            Operation::Gather => present.gather(1).unwrap_err(),
            _ => present.copy(&[Rank(0)], &mut [1.0; 100_003]).unwrap_err(),
        };
        assert!(start.elapsed() >= BRIEF && start.elapsed() < PATIENT / 2);
        match &error {
            CollectiveError::Deadline {
                missing,
                operation: waited_for,
                ..
            } => {
                assert_eq!(missing.0[0].0, Rank(1));
                assert_eq!(*waited_for, operation);
            }
            _ => panic!("{error}"),
        }
        assert!(error.to_string().contains(words), "{error}");
    }
}
