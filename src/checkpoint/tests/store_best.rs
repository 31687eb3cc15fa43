//! The link to the best checkpoint: it leads to a whole one, the one before or the new one.

use super::*;
use crate::checkpoint::read_manifest;

#[test]
fn best_leads_to_a_checkpoint_that_retention_spares() {
    let dir = folder();
    let store = store(dir.path(), &[10, 20, 30, 40]);
    let generation = about().generation;
    assert_eq!(store.best(), None);
    store.name_best(Step(20), generation).unwrap();
    assert_eq!(store.best(), Some(Step(20)));
    let link = store.dir().join("best");
    assert_eq!(read_manifest(&link).unwrap().step, Step(20));
    assert_eq!(read(&link).unwrap().1, sorted(tiny(20)));
    assert_eq!(steps(&store), [10, 20, 30, 40], "a link is no checkpoint");

    let removed = store
        .retain(1, 0, Step(40), &[Step(20)], generation)
        .unwrap();
    assert_eq!(removed, [10, 30].map(Step));
    store.name_best(Step(40), generation).unwrap();
    assert_eq!(store.best(), Some(Step(40)));
    store
        .retain(1, 0, Step(40), &[Step(40)], generation)
        .unwrap();
    assert_eq!(entries(store.dir()), ["best", "step-00000040"]);
    assert_whole(&store);
}

#[test]
fn a_link_that_leads_nowhere_names_no_checkpoint() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    store.name_best(Step(1), about().generation).unwrap();
    store
        .retain(1, 0, Step(2), &[], about().generation)
        .unwrap();
    assert_eq!(store.best(), None);
    store.name_best(Step(2), about().generation).unwrap();
    assert_eq!(store.best(), Some(Step(2)));
}

#[test]
fn killed_at_every_operation_best_leads_to_the_one_or_the_other() {
    let operations = killed_everywhere(
        |dir| {
            let store = store(dir, &[1, 2, 3]);
            store.name_best(Step(1), about().generation).unwrap();
            store
        },
        |doomed| {
            let done = doomed.name_best(Step(2), about().generation).is_ok();
            let best = Store::new(doomed.dir()).best();
            assert!([Some(Step(1)), Some(Step(2))].contains(&best), "{best:?}");
            assert_whole(doomed);
            done
        },
        &[Some(3)],
    );
    assert_eq!(operations, 3, "a link, its name, and the folder");
}

/// A crash leaves a link under a temporary name: sweeping it takes the link away, and not what is in
/// the checkpoint that it leads to.
#[test]
fn what_a_crash_leaves_is_swept_and_its_checkpoint_stays_whole() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    let (_, doomed) = FaultyDisk::store(Fault::Killed(1), store.dir());
    assert!(doomed.name_best(Step(1), about().generation).is_err());
    assert_eq!(entries(store.dir()).len(), 3, "the link is left");
    let next = Description {
        generation: about().generation.next(),
        ..about()
    };
    store.write(&tiny(3), &next).unwrap();
    let expected = ["step-00000001", "step-00000002", "step-00000003"];
    assert_eq!(entries(store.dir()), expected);
    assert_whole(&store);
}

#[test]
fn a_writer_that_is_superseded_names_nothing() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    store.name_best(Step(1), about().generation).unwrap();
    let older = Generation(about().generation.0 - 1);
    let error = store.name_best(Step(2), older).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Superseded { .. }),
        "{error}"
    );
    assert_eq!(store.best(), Some(Step(1)));
}
