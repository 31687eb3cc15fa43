//! Several writers: a newer generation has the say, whenever an older one wakes up again.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn of(generation: u64) -> Description {
    Description {
        generation: Generation(generation),
        ..about()
    }
}

/// A disk that has something else happen before its operation with this number.
struct Interrupted {
    at: usize,
    done: AtomicUsize,
    meanwhile: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

impl Interrupted {
    fn step(&self) -> &FileSystem {
        if self.done.fetch_add(1, Ordering::SeqCst) == self.at {
            (self.meanwhile)();
        }
        &FileSystem
    }
}

impl Disk for Interrupted {
    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.step().create_folders(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step().create_folder(path)
    }
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step().write(path, content)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step().sync_folder(path)
    }
    fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.step().link(target, path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step().rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step().remove_file(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step().remove_folder(path)
    }
}

/// Does `work`, with `meanwhile` before each of its operations in turn, each time in a folder that
/// `prepare` has prepared; `check` sees the store and what `work` came to.
fn interrupted_everywhere<T>(
    prepare: impl Fn(&Path) -> Store,
    work: impl Fn(&Store) -> T,
    meanwhile: impl Fn(&Store) + Clone + Send + Sync + 'static,
    check: impl Fn(&Store, T),
) {
    for at in 0.. {
        let dir = folder();
        let store = prepare(dir.path());
        let disk = Arc::new(Interrupted {
            at,
            done: AtomicUsize::new(0),
            meanwhile: {
                let (store, meanwhile) = (store.clone(), meanwhile.clone());
                Box::new(move || meanwhile(&store))
            },
        });
        let came_to = work(&Store::on(disk.clone(), store.dir()));
        if disk.done.load(Ordering::SeqCst) <= at {
            assert!(at > 3, "nothing was interrupted");
            return;
        }
        assert_whole(&store);
        check(&store, came_to);
        assert_whole(&store);
    }
}

/// A folder that a writer of this generation, in another process, is filling.
fn half_written(store: &Store, generation: u64) -> PathBuf {
    let folder = store
        .dir()
        .join(format!(".tmp-step-00000007-g{generation}-1-0-new"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("generator.safetensors"), "half").unwrap();
    folder
}

fn damage(store: &Store, step: u64) {
    let file = store.path(Step(step)).join("generator.safetensors");
    fs::write(file, "damage").unwrap();
}

#[test]
fn a_writer_sweeps_older_generations_and_never_newer_ones() {
    let dir = folder();
    let store = store(dir.path(), &[1]);
    let folders = [3, 4, 5, 6].map(|generation| half_written(&store, generation));
    let there = || folders.each_ref().map(|folder| folder.is_dir());

    // Generation 6 is at work: 5 may write what is new, and takes nothing away.
    store.write(&tiny(2), &of(5)).unwrap();
    assert_eq!(there(), [true; 4]);
    assert_eq!(steps(&store), [1, 2]);

    fs::remove_dir_all(&folders[3]).unwrap();
    // Of its own generation there is one writer, but that folder is not this process's.
    store.write(&tiny(3), &of(5)).unwrap();
    assert_eq!(there(), [false, false, true, false]);
    store.write(&tiny(4), &of(6)).unwrap();
    assert_eq!(there(), [false; 4]);
    assert_whole(&store);
}

#[test]
fn a_superseded_writer_replaces_and_removes_nothing() {
    type Trace = fn(&Store);
    let half_done: Trace = |store| drop(half_written(store, 6));
    let whole: Trace = |store| drop(store.write(&tiny(3), &of(6)).unwrap());
    for trace in [half_done, whole] {
        let dir = folder();
        let store = store(dir.path(), &[1, 2]);
        trace(&store);
        damage(&store, 2);
        let before = entries(store.dir());
        let superseded = |error: CheckpointError| {
            let expected = matches!(
                error,
                CheckpointError::Superseded {
                    generation: Generation(5),
                    newer: Generation(6),
                    ..
                }
            );
            assert!(expected, "{error}");
            assert!(
                error.to_string().contains("generation 5 is over"),
                "{error}"
            );
        };
        superseded(store.write(&tiny(2), &of(5)).unwrap_err());
        superseded(store.retain(1, 0, Step(2), &[], Generation(5)).unwrap_err());
        assert_eq!(entries(store.dir()), before);
        // What is there already is as good as written, and nothing to remove is no reason to ask.
        store.write(&tiny(1), &of(5)).unwrap();
        assert_eq!(store.retain(9, 0, Step(2), &[], Generation(5)).unwrap(), []);
        assert_eq!(entries(store.dir()), before);
        // The newer one is free to repair it.
        store.write(&tiny(2), &of(6)).unwrap();
        assert_whole(&store);
    }
}

/// The process of an old leader is stopped anywhere in a write, and continued when the new leader
/// has written the same step or the next one.
#[test]
fn an_old_writer_that_wakes_up_harms_nothing() {
    for (step, broken) in [(2, false), (3, false), (2, true), (3, true)] {
        interrupted_everywhere(
            |dir| {
                let store = store(dir, &[1, 2]);
                match broken {
                    true => damage(&store, 2),
                    false => fs::remove_dir_all(store.path(Step(2))).unwrap(),
                }
                store
            },
            |old| old.write(&tiny(2), &of(5)),
            move |store| {
                if broken {
                    store.write(&tiny(2), &of(6)).unwrap();
                }
                drop(store.write(&tiny(step), &of(6)).unwrap());
            },
            |store, came_to| {
                if let Err(error) = &came_to {
                    let clean = matches!(error, CheckpointError::Superseded { .. });
                    assert!(clean, "{error}");
                }
                if came_to.is_ok() || broken {
                    assert!(steps(store).contains(&2));
                }
                assert!(steps(store).contains(&step));
                store.write(&tiny(4), &of(7)).unwrap();
                let left = entries(store.dir());
                assert!(
                    left.iter().all(|name| name.starts_with("step-")),
                    "{left:?}"
                );
            },
        );
    }
}

/// The other way round: whatever an old writer does meanwhile, the new one's checkpoint is written.
#[test]
fn a_new_writer_does_not_fail_because_of_an_old_one() {
    for broken in [false, true] {
        interrupted_everywhere(
            |dir| {
                let store = store(dir, &[1, 2]);
                half_written(&store, 4);
                match broken {
                    true => damage(&store, 2),
                    false => fs::remove_dir_all(store.path(Step(2))).unwrap(),
                }
                store
            },
            |new| new.write(&tiny(2), &of(6)),
            |store| {
                let _ = store.write(&tiny(2), &of(5));
                let _ = store.write(&tiny(3), &of(5));
                let _ = store.retain(1, 0, Step(3), &[], Generation(5));
            },
            |store, came_to| {
                came_to.unwrap();
                assert!(steps(store).contains(&2));
            },
        );
    }
}

#[test]
fn writers_of_the_same_state_at_a_time_leave_one_whole_checkpoint() {
    for round in 0..20u64 {
        let dir = folder();
        let store = store(dir.path(), &[1]);
        if round % 3 == 1 {
            store.write(&tiny(2), &of(5)).unwrap();
            damage(&store, 2);
        }
        let generations = if round % 2 == 0 { [5, 5, 5] } else { [5, 6, 7] };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let store = &store;
            let writers = generations
                .map(|generation| scope.spawn(move || store.write(&tiny(2), &of(generation))));
            writers.map(|writer| writer.join().unwrap()).into()
        });
        assert_eq!(steps(&store), [1, 2], "{outcomes:?}");
        assert_whole(&store);
        assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
        for error in outcomes.into_iter().flat_map(Result::err) {
            let clean = matches!(error, CheckpointError::Superseded { .. });
            assert!(clean, "round {round}: {error}");
        }
        store.write(&tiny(3), &of(8)).unwrap();
        let expected = ["step-00000001", "step-00000002", "step-00000003"];
        assert_eq!(entries(store.dir()), expected);
    }
}

#[test]
fn retention_leaves_what_is_newer_than_its_own_newest() {
    let dir = folder();
    let store = store(dir.path(), &[10, 20, 30, 40, 50]);
    let removed = store
        .retain(1, 0, Step(30), &[], about().generation)
        .unwrap();
    assert_eq!(removed, [10, 20].map(Step));
    assert_eq!(steps(&store), [30, 40, 50]);
    assert_eq!(
        store
            .retain(1, 0, Step(5), &[], about().generation)
            .unwrap(),
        []
    );
}

#[test]
fn two_retentions_at_a_time_do_not_fail() {
    interrupted_everywhere(
        |dir| store(dir, &[1, 2, 3, 4]),
        |store| store.retain(1, 0, Step(4), &[], Generation(5)),
        |store| drop(store.retain(2, 0, Step(4), &[], Generation(5)).unwrap()),
        |store, came_to| {
            came_to.unwrap();
            assert_eq!(entries(store.dir()), ["step-00000004"]);
        },
    );
}
