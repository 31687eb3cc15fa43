//! Whatever a job goes through, against a naive account of who has read what.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Debug)]
enum Deed {
    /// A new generation of so many workers goes on, so many steps before or after the newest.
    Form(u64, i64),
    /// The same generation is dealt more.
    Ahead,
    /// So many steps.
    Reach(u64),
    /// Back by so many.
    Rewind(u64),
    /// The coordinator is killed, and comes back.
    Crash,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (1u64..4, -6i64..6).prop_map(|(workers, from)| Deed::Form(workers, from)),
        Just(Deed::Ahead),
        (0u64..9).prop_map(Deed::Reach),
        (0u64..20).prop_map(Deed::Rewind),
        Just(Deed::Crash),
    ]
}

/// What the ledger should say, by the number of each sample that a replica reads in an epoch.
#[derive(Default)]
struct Model {
    booked: BTreeMap<(u64, u32, u64), (Generation, WorkerId)>,
    reached: u64,
    epochs: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Invariant 2, whatever happens.
    #[test]
    fn each_used_sample_stands_exactly_once(
        shards in prop::collection::vec(1u64..30, 1..6),
        replicas in 1u32..5,
        batch in 1u32..4,
        deeds in prop::collection::vec(deed(), 1..14),
    ) {
        let Ok(plan) = Plan::new(&shards, 7, replicas, batch) else { return Ok(()) };
        let (a_pass, b) = (plan.steps_per_epoch(), u64::from(batch));
        let used = |epoch: u64, step: u64| step.saturating_sub(epoch * a_pass).min(a_pass) * b;
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        let mut model = Model::default();
        let (mut generation, mut seats) = (0, Vec::new());
        // Whatever was before, the last epoch that was dealt is brought to its end.
        for deed in deeds.into_iter().chain([Deed::Form(2, 0), Deed::Ahead, Deed::Reach(u64::MAX)]) {
            let mut deal = None;
            match deed {
                Deed::Form(workers, offset) => {
                    generation += 1;
                    let from = model.reached.saturating_add_signed(offset);
                    let shares = shares(replicas, workers.min(u64::from(replicas)) as usize);
                    seats = (1..).zip(shares).map(|(worker, replicas)| Seat {
                        worker: WorkerId(10 * generation + worker),
                        rank: Rank(worker as u32 - 1),
                        replicas,
                        address: String::new(),
                        incarnation: String::new(),
                    }).collect();
                    ledger.generation(Generation(generation), Cause::Start, &seats, 1.0).unwrap();
                    model.booked.retain(|(epoch, _, at), _| *at < used(*epoch, from));
                    model.reached = from;
                    let first = (from / a_pass).saturating_sub(u64::from(offset > 0));
                    model.epochs = from / a_pass + 1;
                    deal = Some(first..model.epochs);
                }
                Deed::Ahead if generation > 0 => {
                    deal = Some(model.epochs..model.epochs + 1);
                    model.epochs += 1;
                }
                Deed::Reach(steps) => {
                    // Nobody trains on what was not dealt.
                    let most = model.epochs * a_pass;
                    model.reached = model.reached.saturating_add(steps).min(most).max(model.reached);
                    ledger.reached(Step(model.reached)).unwrap();
                }
                Deed::Rewind(steps) => {
                    model.reached = model.reached.saturating_sub(steps);
                    ledger.rewind(Step(model.reached)).unwrap();
                    model.booked.retain(|(epoch, _, at), _| *at < used(*epoch, model.reached));
                    // Its workers are gone; the next deed that deals forms a generation.
                    generation += 1;
                    ledger.generation(Generation(generation), Cause::Start, &seats, 1.0).unwrap();
                    model.epochs = model.reached / a_pass;
                }
                Deed::Crash => {
                    drop(ledger);
                    ledger = Ledger::open(folder.path()).unwrap();
                }
                Deed::Ahead => {}
            }
            if let Some(epochs) = deal {
                let from = model.reached;
                let plans = plans(&plan, &epochs);
                ledger
                    .assign(Generation(generation), &seats, &plans, Step(from), a_pass, batch)
                    .unwrap();
                for epoch in epochs {
                    for seat in &seats {
                        let booking = (Generation(generation), seat.worker);
                        for replica in seat.replicas.clone() {
                            for at in 0..a_pass * b {
                                let place = (epoch, replica, at);
                                if at < used(epoch, from) {
                                    model.booked.entry(place).or_insert(booking);
                                } else {
                                    model.booked.insert(place, booking);
                                }
                            }
                        }
                    }
                }
            }
            // The ledger says what the model says.
            prop_assert_eq!(ledger.reached_step().unwrap(), Step(model.reached));
            let mut booked = BTreeMap::new();
            let last = model.booked.keys().map(|(epoch, ..)| epoch + 1).max().unwrap_or(0);
            for epoch in 0..last + 2 {
                let mut read = HashMap::new();
                for row in ledger.epoch(Epoch(epoch)).unwrap().0 {
                    let at: &mut u64 = read.entry(row.replica).or_default();
                    let mut all_used = true;
                    // Rows come in the order in which they are read; a hole shows as a shift.
                    let spans = &plan.epoch(Epoch(epoch)).replicas[row.replica as usize];
                    let before = spans.iter().take_while(|span| **span != row.span);
                    let first: u64 = before.map(|span| span.len).sum::<u64>() + row.part.start;
                    prop_assert!(first >= *at, "{row:?} overlaps");
                    *at = first;
                    for _ in row.part.clone() {
                        all_used &= *at < used(epoch, model.reached);
                        let twice = booked.insert(
                            (epoch, row.replica, *at), (row.generation, row.worker));
                        prop_assert_eq!(twice, None);
                        *at += 1;
                    }
                    prop_assert_eq!(row.done, all_used, "{:?}", row);
                }
            }
            prop_assert_eq!(&booked, &model.booked);
        }
        // Down to the samples: the epoch that is complete has each exactly once.
        let epoch = model.epochs - 1;
        let (rows, tail) = ledger.epoch(Epoch(epoch)).unwrap();
        prop_assert!(rows.iter().all(|row| row.done));
        let mut all: Vec<Sample> = rows.iter().flat_map(|row| samples(epoch, row)).collect();
        all.extend(tail.iter().flat_map(|span| {
            (span.start..span.start + span.len).map(|sample| (span.shard, sample))
        }));
        all.sort_unstable();
        let every = (0..).zip(&shards).flat_map(|(shard, len)| (0..*len).map(move |i| (shard, i)));
        prop_assert_eq!(all, every.collect::<Vec<_>>());
    }
}
