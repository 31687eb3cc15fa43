//! Kills and full disks.

use super::*;

/// Everything that a ledger holds, as text.
fn dump(ledger: &Ledger) -> String {
    let epochs: Vec<_> = (0..4)
        .map(|epoch| ledger.epoch(Epoch(epoch)).unwrap())
        .collect();
    format!(
        "{:?}",
        (
            ledger.generations().unwrap(),
            ledger.newest_worker().unwrap(),
            epochs,
            ledger.reached_step().unwrap(),
            ledger.checkpoints().unwrap(),
            ledger.all_events().unwrap(),
        )
    )
}

/// A death, as the driver writes it: several things that belong together.
fn reconfigure(batch: &mut Batch<'_>, stop_before: usize) -> Result<(), LedgerError> {
    let plan = plan();
    let plans = plans(&plan, &(0..3));
    let killed = || LedgerError::Damaged {
        path: PathBuf::new(),
        what: "killed".to_owned(),
    };
    type Write<'a> = Box<dyn Fn(&mut Batch<'_>) -> Result<(), LedgerError> + 'a>;
    let writes: [Write<'_>; 7] = [
        Box::new(|b| b.reached(Step(6))),
        Box::new(|b| b.event(Generation(1), EventKind::Died, "worker 2", 2.0)),
        Box::new(|b| b.admit(WorkerId(3), &facts(3), 2.0)),
        Box::new(|b| b.vacate()),
        Box::new(|b| b.generation(Generation(2), Cause::Start, &seats(&[1, 3]), 2.0)),
        Box::new(|b| b.assign(Generation(2), &seats(&[1, 3]), &plans, Step(5), 8, 8)),
        Box::new(|b| b.checkpoint(&checkpoint(4), 2.0)),
    ];
    for (number, write) in writes.iter().enumerate() {
        if number == stop_before {
            return Err(killed());
        }
        write(batch)?;
    }
    Ok(())
}

#[test]
fn killed_between_any_two_writes_a_batch_was_never_begun() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..2);
    let before = dump(&ledger);
    for stop_before in 0..7 {
        // What is not committed when the connection goes is what a kill leaves.
        let stopped = ledger.batch(|batch| reconfigure(batch, stop_before));
        assert!(stopped.is_err());
        drop(ledger);
        ledger = Ledger::open(folder.path()).unwrap();
        assert_eq!(dump(&ledger), before, "before write {stop_before}");
    }
    ledger
        .batch(|batch| reconfigure(batch, usize::MAX))
        .unwrap();
    let after = dump(&ledger);
    assert_ne!(after, before);
    drop(ledger);
    assert_eq!(dump(&Ledger::open(folder.path()).unwrap()), after);
}

/// A kill at any byte: the log ends anywhere, and what it holds is one batch or the next.
#[test]
fn a_torn_log_is_a_ledger_of_whole_batches() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    let mut known = vec![dump(&ledger)];
    form(&mut ledger, 1, &[1, 2], 0, 0..2);
    // `form` is two batches.
    known.push(dump(&ledger));
    ledger
        .batch(|batch| reconfigure(batch, usize::MAX))
        .unwrap();
    known.push(dump(&ledger));
    let log = std::fs::read(folder.path().join("ledger.sqlite-wal")).unwrap();
    let tables = std::fs::read(folder.path().join("ledger.sqlite")).unwrap();
    let mut seen = HashSet::new();
    for cut in (0..=log.len()).rev().step_by(997).chain([0]) {
        let torn = tempfile::tempdir().unwrap();
        std::fs::write(torn.path().join("ledger.sqlite"), &tables).unwrap();
        std::fs::write(torn.path().join("ledger.sqlite-wal"), &log[..cut]).unwrap();
        let ledger = Ledger::open(torn.path()).unwrap();
        let found = dump(&ledger);
        let half_formed = ledger.generations().unwrap().len() == 1
            && ledger.generations().unwrap()[0].from.is_none();
        let position = known.iter().position(|known| *known == found);
        assert!(position.is_some() || half_formed, "cut at {cut}: {found}");
        seen.extend(position);
    }
    assert_eq!(seen.len(), 3, "all of them are seen");
}

#[test]
fn a_full_disk_leaves_nothing_of_a_batch_and_it_can_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    form(&mut ledger, 1, &[1, 2], 0, 0..2);
    let before = dump(&ledger);
    let pages = |ledger: &Ledger, most: u64| {
        let pragma = format!("PRAGMA max_page_count = {most}");
        let set = ledger
            .connection
            .query_row(&pragma, [], |row| row.get::<_, u64>(0));
        set.unwrap()
    };
    let long = "x".repeat(100_000);
    let write = |ledger: &mut Ledger| {
        ledger.batch(|batch| {
            reconfigure(batch, usize::MAX)?;
            batch.event(Generation(2), EventKind::Died, &long, 3.0)
        })
    };
    let now = pages(&ledger, 1); // No fewer than there are.
    let full = write(&mut ledger).unwrap_err();
    assert!(full.to_string().contains("full"), "{full}");
    assert_eq!(dump(&ledger), before);
    assert!(write(&mut ledger).is_err());
    pages(&ledger, now + 1000);
    write(&mut ledger).unwrap();
    assert_eq!(ledger.newest_generation().unwrap(), Generation(2));
    assert_eq!(ledger.all_events().unwrap().len(), 2);
}
