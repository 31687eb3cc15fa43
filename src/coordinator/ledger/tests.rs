//! The ledger on a real file.

use super::*;
use crate::ids::Rank;
use crate::plan::Plan;
use std::collections::HashSet;

/// 130 samples in three shards; R = 2, b = 8: 8 steps an epoch and a tail of 2.
fn plan() -> Plan {
    Plan::new(&[50, 50, 30], 7, 2, 8).unwrap()
}

fn seats(workers: &[u64]) -> Vec<Seat> {
    let shares = crate::membership::deal(2, workers.len() as u32);
    let seats = workers.iter().zip(shares).enumerate();
    seats
        .map(|(rank, (worker, replicas))| Seat {
            worker: WorkerId(*worker),
            rank: Rank(rank as u32),
            replicas,
            address: "127.0.0.1:1".to_owned(),
        })
        .collect()
}

fn assign(ledger: &mut Ledger, generation: u64, workers: &[u64], epochs: Range<u64>) {
    let seats = seats(workers);
    let generation = Generation(generation);
    ledger
        .generation(generation, Cause::Start, &seats, 1.0)
        .unwrap();
    let plan = plan();
    let plans = plans(&plan, &epochs);
    let a_pass = plan.steps_per_epoch();
    ledger
        .assign(generation, &seats, &plans, a_pass, 8)
        .unwrap();
}

/// Its shard, and its place there.
type Sample = (u32, u64);

/// The samples that the ledger says were used in an epoch, in no order, and its tail.
fn used(ledger: &Ledger, epoch: u64) -> (Vec<Sample>, Vec<Sample>) {
    let samples = |span: &Span| {
        let shard = span.shard;
        (span.start..span.start + span.len).map(move |sample| (shard, sample))
    };
    let (spans, tail) = ledger.epoch(Epoch(epoch)).unwrap();
    let done = spans.iter().filter(|record| record.done);
    let used = done.flat_map(|record| samples(&record.span).collect::<Vec<_>>());
    (used.collect(), tail.iter().flat_map(samples).collect())
}

/// Invariant 2.
#[test]
fn an_epoch_that_is_done_has_each_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assign(&mut ledger, 1, &[1, 2], 0..2);
    ledger.reached(Step(7)).unwrap();
    assert!(
        used(&ledger, 0).0.len() < 128,
        "the last step of the epoch is missing"
    );
    ledger.reached(Step(8)).unwrap();
    let (used, tail) = used(&ledger, 0);
    let all: HashSet<_> = used.iter().chain(&tail).collect();
    assert_eq!((used.len(), tail.len(), all.len()), (128, 2, 130));
    let (assigned, done) = ledger.span_counts(Epoch(1)).unwrap();
    assert!(assigned > 0 && done == 0);
}

/// Invariant 2, over a change of the membership in mid-epoch.
#[test]
fn what_is_done_stays_with_who_did_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assign(&mut ledger, 1, &[1, 2], 0..1);
    ledger.reached(Step(6)).unwrap();
    let before = ledger.epoch(Epoch(0)).unwrap().0;
    assert!(before.iter().any(|s| s.done) && before.iter().any(|s| !s.done));
    assign(&mut ledger, 2, &[3], 0..1);
    for (was, is) in before.iter().zip(ledger.epoch(Epoch(0)).unwrap().0) {
        assert_eq!((was.span, was.done), (is.span, is.done));
        let expected = if was.done {
            was.generation
        } else {
            Generation(2)
        };
        assert_eq!(is.generation, expected);
        assert_eq!(is.worker == WorkerId(3), !was.done);
    }
    ledger.reached(Step(8)).unwrap();
    assert_eq!(used(&ledger, 0).0.len(), 128);
}

#[test]
fn a_rewind_takes_back_what_lies_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assign(&mut ledger, 1, &[1], 0..2);
    // A crash came before all that was reached was marked.
    ledger.reached(Step(3)).unwrap();
    let checkpoint = |step| CheckpointRecord {
        step: Step(step),
        path: format!("checkpoints/{step}"),
        digest: "d".to_owned(),
    };
    ledger.checkpoint(&checkpoint(8), 1.0).unwrap();
    ledger.checkpoint(&checkpoint(12), 2.0).unwrap();
    ledger.rewind(Step(8)).unwrap();
    assert_eq!(ledger.checkpoints().unwrap(), [checkpoint(8)]);
    assert_eq!(used(&ledger, 0).0.len(), 128);
    assert_eq!(used(&ledger, 1).0.len(), 0);
    assign(&mut ledger, 2, &[2], 1..2);
    ledger.reached(Step(16)).unwrap();
    let (spans, _) = ledger.epoch(Epoch(1)).unwrap();
    assert!(
        spans
            .iter()
            .all(|s| s.done && s.generation == Generation(2))
    );
}

/// Invariant 3: across coordinators too.
#[test]
fn a_generation_is_never_recorded_twice() {
    let folder = tempfile::tempdir().unwrap();
    let seats = seats(&[1]);
    {
        let mut ledger = Ledger::open(folder.path()).unwrap();
        assert_eq!(ledger.newest_generation().unwrap(), Generation(0));
        for generation in [1, 2] {
            let generation = Generation(generation);
            ledger
                .generation(generation, Cause::Start, &seats, 1.0)
                .unwrap();
        }
    }
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.newest_generation().unwrap(), Generation(2));
    let again = ledger.generation(Generation(2), Cause::Start, &seats, 1.0);
    assert!(
        matches!(again, Err(LedgerError::Sqlite { .. })),
        "{again:?}"
    );
}

#[test]
fn a_run_directory_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let owner = Ledger::open(folder.path()).unwrap();
    let second = Ledger::open(folder.path()).unwrap_err();
    assert!(matches!(second, LedgerError::Owned { .. }), "{second}");
    drop(owner);
    Ledger::open(folder.path()).unwrap();
}

#[test]
fn another_format_and_a_torn_file_are_refused_with_their_path() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ledger::open(folder.path()).unwrap());
    let path = folder.path().join("ledger.sqlite");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 9).unwrap();
    drop(connection);
    let newer = Ledger::open(folder.path()).unwrap_err();
    assert!(
        matches!(newer, LedgerError::Format { found: 9, .. }),
        "{newer}"
    );
    std::fs::write(
        &path,
        b"no database at all, but long enough to be looked at",
    )
    .unwrap();
    let torn = Ledger::open(folder.path()).unwrap_err();
    assert!(torn.to_string().contains("ledger.sqlite"), "{torn}");
}

#[test]
fn events_come_back_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    for (at, detail) in [(1.0, "a"), (2.0, "b"), (3.0, "c")] {
        ledger
            .event(Generation(1), EventKind::Joined, detail, at)
            .unwrap();
    }
    let newest: Vec<_> = ledger.events(2).unwrap();
    let details: Vec<_> = newest.iter().map(|event| event.detail.as_str()).collect();
    assert_eq!(details, ["b", "c"]);
    assert_eq!(newest[0].kind, "joined");
}

#[test]
fn the_device_of_a_job_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.device().unwrap(), None);
    let device = DeviceKind {
        kind: "cpu".to_owned(),
        model: "m".to_owned(),
        libtorch: "2.11.0".to_owned(),
    };
    ledger.set_device(&device).unwrap();
    assert_eq!(ledger.device().unwrap(), Some(device.clone()));
    assert!(ledger.set_device(&device).is_err());
}
