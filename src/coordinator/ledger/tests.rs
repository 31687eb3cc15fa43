//! The ledger on a real file.

mod faults;
mod model;

use super::*;
use crate::ids::{Epoch, Rank};
use crate::membership::Recovery;
use crate::membership::balance::{self, Speed};
use crate::plan::Plan;
use std::collections::HashSet;
use std::time::Duration;

/// 130 samples in three shards; R = 2, b = 8: 8 steps an epoch and a tail of 2.
fn plan() -> Plan {
    Plan::new(&[50, 50, 30], 7, 2, 8).unwrap()
}

/// The replicas of workers that are alike.
fn shares(replicas: u32, workers: usize) -> Vec<Range<u32>> {
    let speed = Speed {
        cores: 1,
        round: Duration::from_secs(1),
    };
    balance::ranges(&balance::deal(replicas, &vec![speed; workers]))
}

fn seats(workers: &[u64]) -> Vec<Seat> {
    let shares = shares(2, workers.len());
    let seats = workers.iter().zip(shares).enumerate();
    seats
        .map(|(rank, (worker, replicas))| Seat {
            worker: WorkerId(*worker),
            rank: Rank(rank as u32),
            replicas,
            address: format!("127.0.0.1:{worker}"),
            incarnation: format!("incarnation {worker}"),
        })
        .collect()
}

/// A generation that has formed.
fn form(ledger: &mut Ledger, generation: u64, workers: &[u64], from: u64, epochs: Range<u64>) {
    let seats = seats(workers);
    ledger
        .generation(Generation(generation), Cause::Start, &seats, 1.0)
        .unwrap();
    assign(ledger, generation, workers, from, epochs);
}

fn assign(ledger: &mut Ledger, generation: u64, workers: &[u64], from: u64, epochs: Range<u64>) {
    let plan = plan();
    let plans = plans(&plan, &epochs);
    let (generation, a_pass) = (Generation(generation), plan.steps_per_epoch());
    ledger
        .assign(generation, &seats(workers), &plans, Step(from), a_pass, 8)
        .unwrap();
}

fn checkpoint(step: u64) -> CheckpointRecord {
    CheckpointRecord {
        step: Step(step),
        path: format!("checkpoints/{step}"),
        digest: "d".to_owned(),
    }
}

/// Its shard, and its place there.
type Sample = (u32, u64);

/// The samples of a row: those that are read there, by the order of their span.
fn samples(epoch: u64, row: &SpanRecord) -> Vec<Sample> {
    let order = crate::plan::order(7, Epoch(epoch), row.span);
    let part = row.part.start as usize..row.part.end as usize;
    let each = order[part].iter().map(|sample| (row.span.shard, *sample));
    each.collect()
}

/// The samples that the ledger says were used in an epoch, in no order, and its tail.
fn used(ledger: &Ledger, epoch: u64) -> (Vec<Sample>, Vec<Sample>) {
    let (rows, tail) = ledger.epoch(Epoch(epoch)).unwrap();
    let done = rows.iter().filter(|row| row.done);
    let used = done.flat_map(|row| samples(epoch, row)).collect();
    let tail = tail.iter().flat_map(|span| {
        let all = span.start..span.start + span.len;
        all.map(|sample| (span.shard, sample))
    });
    (used, tail.collect())
}

/// Invariant 2.
/// The epochs of a range, planned.
fn plans(plan: &Plan, epochs: &Range<u64>) -> Vec<EpochPlan> {
    epochs
        .clone()
        .map(|epoch| plan.epoch(Epoch(epoch)))
        .collect()
}

#[test]
fn an_epoch_that_is_done_has_each_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..2);
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
    let (assigned, done) = ledger.span_counts(Epoch(0)).unwrap();
    assert!(assigned == 0 && done > 0);
}

/// Invariant 2, over a change of the membership in mid-epoch.
#[test]
fn what_is_used_stays_with_who_used_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..1);
    ledger.reached(Step(3)).unwrap();
    form(&mut ledger, 2, &[3], 6, 0..1);
    assert_eq!(ledger.reached_step().unwrap(), Step(6));
    let rows = ledger.epoch(Epoch(0)).unwrap().0;
    let mut read = [[0; 2]; 2];
    for row in &rows {
        assert_eq!(row.done, row.generation == Generation(1), "{row:?}");
        let worker = if row.done {
            [1, 2][row.replica as usize]
        } else {
            3
        };
        assert_eq!(row.worker, WorkerId(worker), "{row:?}");
        read[row.replica as usize][usize::from(row.done)] += row.part.end - row.part.start;
    }
    assert_eq!(read, [[16, 48]; 2], "2 steps of 8 samples, and 6");
    ledger.reached(Step(8)).unwrap();
    assert_eq!(used(&ledger, 0).0.len(), 128);
}

/// Invariant 2, when the most advanced worker dies and the others go on from an older state.
#[test]
fn what_is_used_again_is_booked_on_who_uses_it_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..3);
    ledger.reached(Step(9)).unwrap();
    form(&mut ledger, 2, &[1], 8, 1..2);
    assert_eq!(ledger.reached_step().unwrap(), Step(8));
    assert_eq!(used(&ledger, 0).0.len(), 128);
    let rows = ledger.epoch(Epoch(1)).unwrap().0;
    let of_the_new = |row: &SpanRecord| row.generation == Generation(2) && !row.done;
    assert!(!rows.is_empty() && rows.iter().all(of_the_new), "{rows:?}");
    let nobody = ledger.epoch(Epoch(2)).unwrap();
    assert_eq!(nobody, (vec![], vec![]), "nobody holds it any more");
    let made = ledger.generations().unwrap();
    let made: Vec<_> = made.iter().map(|g| (g.from, g.until)).collect();
    let steps = |from, until| (Some(Step(from)), Some(Step(until)));
    assert_eq!(made, [steps(0, 9), steps(8, 8)]);
}

#[test]
fn a_booking_that_is_repeated_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..1);
    form(&mut ledger, 2, &[3], 5, 0..1);
    assign(&mut ledger, 2, &[3], 7, 1..2);
    ledger.reached(Step(11)).unwrap();
    let before = (
        ledger.epoch(Epoch(0)).unwrap(),
        ledger.epoch(Epoch(1)).unwrap(),
    );
    for from in [5, 7, 11] {
        assign(&mut ledger, 2, &[3], from, 0..2);
        let after = (
            ledger.epoch(Epoch(0)).unwrap(),
            ledger.epoch(Epoch(1)).unwrap(),
        );
        assert_eq!(before, after);
        assert_eq!(ledger.reached_step().unwrap(), Step(11));
    }
}

#[test]
fn nothing_is_booked_on_a_generation_that_was_never_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    let plans = plans(&plan(), &(0..1));
    let refused = ledger.assign(Generation(4), &seats(&[1]), &plans, Step(0), 8, 8);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("generation 4"), "{refused}");
    assert_eq!(ledger.epoch(Epoch(0)).unwrap(), (vec![], vec![]));
}

/// Invariant 4: all have died, and the newest checkpoint is what is left.
#[test]
fn a_rewind_takes_back_what_lies_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1], 0, 0..3);
    ledger.checkpoint(&checkpoint(8), 1.0).unwrap();
    ledger.checkpoint(&checkpoint(10), 2.0).unwrap();
    ledger.checkpoint(&checkpoint(12), 3.0).unwrap();
    ledger.reached(Step(13)).unwrap();
    ledger.rewind(Step(10)).unwrap();
    assert_eq!(
        ledger.checkpoints().unwrap(),
        [checkpoint(8), checkpoint(10)]
    );
    assert_eq!(ledger.reached_step().unwrap(), Step(10));
    assert_eq!(used(&ledger, 0).0.len(), 128);
    assert_eq!(used(&ledger, 1).0.len(), 2 * 2 * 8);
    assert_eq!(ledger.epoch(Epoch(2)).unwrap(), (vec![], vec![]));
    form(&mut ledger, 2, &[2], 10, 1..2);
    ledger.reached(Step(16)).unwrap();
    let (used, tail) = used(&ledger, 1);
    let all: HashSet<_> = used.iter().chain(&tail).collect();
    assert_eq!((used.len(), all.len()), (128, 130));
}

/// A crash came before all that the checkpoint has used was marked.
#[test]
fn a_rewind_marks_what_the_checkpoint_has_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1], 0, 0..2);
    ledger.reached(Step(3)).unwrap();
    ledger.rewind(Step(8)).unwrap();
    assert_eq!(used(&ledger, 0).0.len(), 128);
    assert_eq!(used(&ledger, 1).0.len(), 0);
}

fn facts(worker: u64) -> Facts {
    Facts {
        incarnation: format!("incarnation {worker}"),
        job_id: String::new(),
        host: "h".to_owned(),
        pid: 7,
        collective: format!("127.0.0.1:{worker}"),
        device: device(),
        cores: 1,
    }
}

fn device() -> DeviceKind {
    DeviceKind {
        kind: "cpu".to_owned(),
        model: "m".to_owned(),
        libtorch: "2.11.0".to_owned(),
    }
}

/// Invariant 3: across coordinators too.
#[test]
fn a_worker_number_is_never_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.newest_worker().unwrap(), WorkerId(0));
    ledger.admit(WorkerId(4), &facts(4), 1.0).unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.newest_worker().unwrap(), WorkerId(4));
    assert!(ledger.admit(WorkerId(4), &facts(5), 2.0).is_err());
    ledger.admit(WorkerId(5), &facts(5), 2.0).unwrap();
}

/// A restarted coordinator expects them to say hello again.
#[test]
fn the_newest_generation_lives_until_it_is_vacated() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.live_generation().unwrap(), None);
    form(&mut ledger, 1, &[1, 2], 0, 0..1);
    let next = seats(&[1, 3]);
    ledger
        .generation(Generation(2), Cause::Start, &next, 2.0)
        .unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(folder.path()).unwrap();
    let live = ledger.live_generation().unwrap();
    assert_eq!(live, Some((Generation(2), next)), "formed or not");
    ledger.vacate().unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.live_generation().unwrap(), None);
    form(&mut ledger, 3, &[1], 4, 0..1);
    let (live, _) = ledger.live_generation().unwrap().unwrap();
    assert_eq!(live, Generation(3));
    let vacated: Vec<bool> = ledger
        .generations()
        .unwrap()
        .iter()
        .map(|g| g.vacated)
        .collect();
    assert_eq!(vacated, [false, true, false]);
}

#[test]
fn anybody_may_read_while_the_owner_writes() {
    let folder = tempfile::tempdir().unwrap();
    let missing = |path: &Path| LedgerReader::open(path).unwrap_err();
    let error = missing(&folder.path().join("nowhere"));
    assert!(
        error.is_users() && error.to_string().contains("nowhere"),
        "{error}"
    );
    let error = missing(folder.path());
    assert!(error.to_string().contains("ledger.sqlite"), "{error}");
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1], 0, 0..1);
    let reader = LedgerReader::open(folder.path()).unwrap();
    assert_eq!(reader.reached_step().unwrap(), Step(0));
    ledger.reached(Step(3)).unwrap();
    ledger
        .event(Generation(1), EventKind::Died, "w", 1.0)
        .unwrap();
    // A reader sees one moment.
    assert_eq!(reader.reached_step().unwrap(), Step(0));
    assert_eq!(reader.all_events().unwrap(), []);
    let reader = LedgerReader::open(folder.path()).unwrap();
    assert_eq!(reader.reached_step().unwrap(), Step(3));
    drop(ledger);
    let reader = LedgerReader::open(folder.path()).unwrap();
    let rows = reader.epoch(Epoch(0)).unwrap().0;
    let done = rows.iter().filter(|row| row.done).count() as u64;
    let counted = reader.span_counts(Epoch(0)).unwrap();
    assert_eq!(counted, (rows.len() as u64 - done, done));
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
    assert_eq!(newest[0].generation, Generation(1));
    assert_eq!(ledger.all_events().unwrap().len(), 3);
    let details: Vec<_> = newest.iter().map(|event| event.detail.as_str()).collect();
    assert_eq!(details, ["b", "c"]);
    assert_eq!(newest[0].kind, "joined");
}

#[test]
fn the_newest_of_a_long_history_come_oldest_first_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.admit(WorkerId(2), &facts(2), 1.0).unwrap();
    for generation in 1..=9 {
        let workers = if generation == 9 { &[1, 2][..] } else { &[1] };
        form(&mut ledger, generation, workers, generation, 0..1);
        ledger.checkpoint(&checkpoint(generation), 1.0).unwrap();
    }
    let recovery = Recovery {
        cause: Cause::Join,
        generation: Generation(9),
        detect: Duration::ZERO,
        forming: crate::membership::Forming::default(),
        first_step: Duration::from_millis(250),
        whole: Duration::from_millis(500),
    };
    // What could not be written is written again.
    for _ in 0..2 {
        let written = ledger.batch(|batch| batch.recovery(&recovery, 1.0));
        written.unwrap();
    }
    let reader = LedgerReader::open(dir.path()).unwrap();
    let generations = reader.recent_generations(2).unwrap();
    let numbers: Vec<u64> = generations.iter().map(|g| g.generation.0).collect();
    assert_eq!(numbers, [8, 9]);
    assert_eq!((generations[0].workers, generations[1].workers), (1, 2));
    assert_eq!(generations[0].recovery, None);
    assert_eq!(generations[1].recovery.unwrap().whole, 0.5);
    let checkpoints = reader.recent_checkpoints(2).unwrap();
    let steps: Vec<u64> = checkpoints.iter().map(|(c, _)| c.step.0).collect();
    assert_eq!(steps, [8, 9]);
    assert_eq!(reader.counts().unwrap(), [9, 9, 0]);
    assert_eq!(reader.newest_seats().unwrap().len(), 2);
    let worker = reader.worker(WorkerId(2)).unwrap().unwrap();
    assert_eq!(worker.device, Some(device()));
    assert_eq!(reader.worker(WorkerId(7)).unwrap(), None);
}

#[test]
fn the_device_of_a_job_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.device().unwrap(), None);
    let device = device();
    ledger.set_device(&device).unwrap();
    assert_eq!(ledger.device().unwrap(), Some(device.clone()));
    assert!(ledger.set_device(&device).is_err());
}
