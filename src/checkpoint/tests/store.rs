//! Crashes, full disks and damage: invariant 6, a checkpoint is whole or invisible.

use super::super::manifest::tests::about;
use super::super::read_file;
use super::super::state::tests::{any_snapshot, tiny};
use super::*;
use proptest::prelude::*;
use std::sync::Mutex;

#[path = "store_best.rs"]
mod best;
#[path = "store_fencing.rs"]
mod fencing;

/// How a disk goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// After so many operations the process is gone: nothing it tries has an effect, and a file
    /// that it was writing is cut short.
    Killed(usize),
    /// Files of more than so many bytes in all don't fit; everything else works.
    Full(usize),
    /// A file of more than so many bytes is refused.
    Short(usize),
    /// Nothing goes wrong; operations are only recorded.
    None,
}

#[derive(Debug)]
struct FaultyDisk {
    fault: Fault,
    trace: Mutex<Vec<String>>,
    written: Mutex<usize>,
}

impl FaultyDisk {
    fn store(fault: Fault, dir: &Path) -> (Arc<Self>, Store) {
        let disk = Arc::new(Self {
            fault,
            trace: Mutex::default(),
            written: Mutex::default(),
        });
        (disk.clone(), Store::on(disk, dir))
    }

    fn operations(&self) -> Vec<String> {
        self.trace.lock().unwrap().clone()
    }

    fn killed(&self) -> bool {
        matches!(self.fault, Fault::Killed(after) if self.operations().len() > after)
    }

    fn step(&self, operation: &str, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.trace
            .lock()
            .unwrap()
            .push(format!("{operation} {name}"));
        if self.killed() {
            return Err(io::Error::other("killed"));
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.step("create_folders", path)?;
        FileSystem.create_folders(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step("create_folder", path)?;
        FileSystem.create_folder(path)
    }
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let alive = !self.killed();
        let result = self.step("write", path);
        if result.is_err() && alive {
            FileSystem.write(path, &content[..content.len() / 2])?;
        }
        result?;
        let mut written = self.written.lock().unwrap();
        *written += content.len();
        if matches!(self.fault, Fault::Full(space) if *written > space) {
            FileSystem.write(path, &content[..content.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Fault::Short(limit) = self.fault
            && content.len() > limit
        {
            FileSystem.write(path, &content[..limit])?;
            // EFBIG, as under `ulimit -f`.
            return Err(io::Error::from_raw_os_error(27));
        }
        FileSystem.write(path, content)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step("sync", path)?;
        FileSystem.sync_folder(path)
    }
    fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.step("link", path)?;
        FileSystem.link(target, path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename to", to)?;
        FileSystem.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step("remove", path)?;
        FileSystem.remove_file(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step("remove_folder", path)?;
        FileSystem.remove_folder(path)
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A store in `dir` with the checkpoints of `steps`.
fn store(dir: &Path, steps: &[u64]) -> Store {
    let store = Store::new(dir.join("checkpoints"));
    for &step in steps {
        store.write(&tiny(step), &about()).unwrap();
    }
    store
}

fn steps(store: &Store) -> Vec<u64> {
    store
        .list()
        .unwrap()
        .iter()
        .map(|(step, _)| step.0)
        .collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What is read back: tensors ordered by name.
fn sorted(mut snapshot: Snapshot) -> Snapshot {
    for tensors in snapshot.files.values_mut() {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
    }
    snapshot
}

/// Everything in sight is whole, and holds the state of its step.
fn assert_whole(store: &Store) {
    for (step, path) in store.folders().unwrap() {
        let (manifest, snapshot) = read(&path).unwrap();
        assert_eq!(manifest.step, step);
        assert_eq!(snapshot, sorted(tiny(step.0)));
    }
}

#[test]
fn a_checkpoint_is_read_back_and_found() {
    let dir = folder();
    let store = Store::new(dir.path().join("runs/tiny/checkpoints"));
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.newest().unwrap(), None);

    let written = store.write(&tiny(3), &about()).unwrap();
    let newest = store.newest().unwrap().unwrap();
    assert_eq!(newest.manifest, written);
    assert_eq!(newest.path, store.path(Step(3)));
    assert_eq!(written.digest, digest(&tiny(3)));
    assert_eq!(
        entries(&newest.path),
        [
            "discriminator.safetensors",
            "generator.safetensors",
            "manifest.json"
        ]
    );

    let (manifest, snapshot) = read(&newest.path).unwrap();
    assert_eq!((manifest, snapshot), (written.clone(), sorted(tiny(3))));
    let (_, tensors) = read_file(&newest.path, "generator").unwrap();
    assert_eq!(tensors, sorted(tiny(3)).files["generator"]);
    let missing = read_file(&newest.path, "generator_ema")
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("it has discriminator.safetensors, generator.safetensors"),
        "{missing}"
    );
}

#[test]
fn foreign_and_temporary_folders_are_no_checkpoints() {
    let dir = folder();
    let store = store(dir.path(), &[20, 100_000_000]);
    for name in [
        "step-3",
        "step-00000004.bak",
        "best",
        ".tmp-step-00000009-1-new",
    ] {
        let copy = store.dir().join(name);
        fs::create_dir(&copy).unwrap();
        fs::copy(
            store.path(Step(20)).join("manifest.json"),
            copy.join("manifest.json"),
        )
        .unwrap();
    }
    fs::create_dir(store.dir().join("step-00000001")).unwrap();
    fs::write(store.dir().join("step-00000002"), "a file").unwrap();
    assert_eq!(steps(&store), [20, 100_000_000]);
}

#[test]
fn the_same_state_twice_is_fine_and_another_is_two_histories() {
    let dir = folder();
    let store = store(dir.path(), &[1]);
    let first = store.newest().unwrap().unwrap();
    let mut later = about();
    later.generation = crate::ids::Generation(9);
    assert_eq!(store.write(&tiny(1), &later).unwrap(), first.manifest);

    let mut other = tiny(1);
    other.files.get_mut("generator").unwrap()[1].bytes[0] ^= 1;
    let error = store.write(&other, &about()).unwrap_err();
    assert!(matches!(
        error,
        CheckpointError::TwoHistories { step: Step(1), .. }
    ));
    assert!(error.to_string().contains("TWO HISTORIES"), "{error}");
    assert_eq!(store.newest().unwrap().unwrap(), first);
    assert_eq!(entries(store.dir()), ["step-00000001"]);
}

#[test]
fn a_damaged_checkpoint_of_the_same_step_is_replaced() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    let file = store.path(Step(2)).join("generator.safetensors");
    fs::write(&file, "damage").unwrap();
    assert_eq!(store.newest().unwrap().unwrap().manifest.step, Step(1));
    store.write(&tiny(2), &about()).unwrap();
    assert_whole(&store);
    assert_eq!(entries(store.dir()), ["step-00000001", "step-00000002"]);
}

#[test]
fn content_is_on_disk_before_the_name_and_the_manifest_is_last() {
    let dir = folder();
    let (disk, store) = FaultyDisk::store(Fault::None, &dir.path().join("checkpoints"));
    store.write(&tiny(5), &about()).unwrap();
    let operations = disk.operations();
    let temporary = operations[2].strip_prefix("create_folder ").unwrap();
    let start = format!(".tmp-step-00000005-g5-{}-", std::process::id());
    assert!(temporary.starts_with(&start), "{temporary}");
    // `write` returns when the content is on the disk.
    assert_eq!(
        operations,
        [
            "create_folders checkpoints",
            &format!("sync {}", dir.path().file_name().unwrap().to_string_lossy()),
            &format!("create_folder {temporary}"),
            "write discriminator.safetensors",
            "write generator.safetensors",
            "write manifest.json",
            &format!("sync {temporary}"),
            "rename to step-00000005",
            "sync checkpoints",
        ]
    );
}

/// Kills `work` after every number of operations that it can get to, and says how many there are.
/// Afterwards, what is in sight is whole, and the newest is one of `allowed`; a new process writes
/// step 9 and leaves no trace of the crash.
fn killed_everywhere(
    prepare: impl Fn(&Path) -> Store,
    work: impl Fn(&Store) -> bool,
    allowed: &[Option<u64>],
) -> usize {
    for after in 0.. {
        let dir = folder();
        let healthy = prepare(dir.path());
        let (disk, doomed) = FaultyDisk::store(Fault::Killed(after), healthy.dir());
        let done = work(&doomed);
        if !disk.killed() {
            assert!(done, "nothing failed, and yet the work did");
            return after;
        }
        let newest = healthy
            .newest()
            .unwrap()
            .map(|stored| stored.manifest.step.0);
        assert!(
            allowed.contains(&newest),
            "killed after {after}: {newest:?}"
        );
        healthy.write(&tiny(9), &about()).unwrap();
        assert_eq!(healthy.newest().unwrap().unwrap().manifest.step, Step(9));
        assert!(
            entries(healthy.dir())
                .iter()
                .all(|name| !name.starts_with('.'))
        );
    }
    unreachable!("work ends")
}

#[test]
fn killed_at_every_operation_a_checkpoint_is_whole_or_invisible() {
    let write = |store: &Store| store.write(&tiny(2), &about()).is_ok();
    let whole = |dir: &Path, steps: &[u64]| {
        let store = store(dir, steps);
        assert_whole(&store);
        store
    };

    let first = killed_everywhere(|dir| whole(dir, &[]), write, &[None, Some(2)]);
    assert_eq!(first, 9, "the first checkpoint creates the store");
    let next = killed_everywhere(|dir| whole(dir, &[1]), write, &[Some(1), Some(2)]);
    assert_eq!(next, 7);

    // A crash on top of a crash: the second process has the first one's leftovers to sweep.
    let again = killed_everywhere(
        |dir| {
            let store = whole(dir, &[1]);
            assert!(!write(&FaultyDisk::store(Fault::Killed(4), store.dir()).1));
            assert_eq!(entries(store.dir()).len(), 2);
            store
        },
        write,
        &[Some(1), Some(2)],
    );
    assert!(again > next);

    // A damaged checkpoint in its place.
    killed_everywhere(
        |dir| {
            let store = whole(dir, &[1, 2]);
            fs::write(store.path(Step(2)).join("generator.safetensors"), "x").unwrap();
            store
        },
        write,
        &[Some(1), Some(2)],
    );
}

#[test]
fn killed_at_every_operation_retention_leaves_whole_checkpoints() {
    let operations = killed_everywhere(
        |dir| store(dir, &[1, 2, 3, 4]),
        |store| {
            let done = store.retain(1, 2, Step(4), &[], about().generation).is_ok();
            assert_whole(store);
            assert!(steps(store).contains(&2) && steps(store).contains(&4));
            done
        },
        &[Some(4)],
    );
    assert_eq!(
        operations,
        2 * 5,
        "two go: a rename, three files and a folder each"
    );
}

#[test]
fn a_full_disk_leaves_the_last_good_checkpoint_and_no_trace() {
    let mut refused = 0;
    for space in (0..3000).step_by(50) {
        let dir = folder();
        let healthy = store(dir.path(), &[1]);
        let (_, full) = FaultyDisk::store(Fault::Full(space), healthy.dir());
        if let Err(error) = full.write(&tiny(2), &about()) {
            refused += 1;
            assert!(matches!(error, CheckpointError::DiskFull { .. }), "{error}");
            assert!(
                error
                    .to_string()
                    .contains("earlier checkpoints are untouched"),
                "{error}"
            );
            assert_eq!(entries(healthy.dir()), ["step-00000001"]);
            assert_whole(&healthy);
        }
    }
    assert!(
        (10..60).contains(&refused),
        "{refused} of 60 sizes were too small"
    );
}

#[test]
fn a_file_that_may_not_be_as_long_is_no_room_either() {
    let mut refused = 0;
    for limit in (0..3000).step_by(100) {
        let dir = folder();
        let healthy = store(dir.path(), &[1]);
        let (_, limited) = FaultyDisk::store(Fault::Short(limit), healthy.dir());
        if let Err(error) = limited.write(&tiny(2), &about()) {
            refused += 1;
            assert!(matches!(error, CheckpointError::DiskFull { .. }), "{error}");
            assert!(error.to_string().contains("ulimit -f"), "{error}");
            assert_eq!(entries(healthy.dir()), ["step-00000001"]);
            assert_whole(&healthy);
        }
    }
    assert!((5..30).contains(&refused), "{refused} of 30 limits");
}

#[test]
fn retention_keeps_the_last_and_the_multiples() {
    let dir = folder();
    let store = store(dir.path(), &[10, 20, 25, 30, 40, 50]);
    let retain = |keep_last, keep_every| {
        let generation = about().generation;
        store
            .retain(keep_last, keep_every, Step(50), &[], generation)
            .unwrap()
    };
    assert_eq!(retain(2, 20), [10, 25, 30].map(Step));
    assert_eq!(steps(&store), [20, 40, 50]);
    assert_eq!(retain(0, 0), [20, 40].map(Step));
    assert_eq!(steps(&store), [50], "the newest always stays");
    assert_eq!(entries(store.dir()), ["step-00000050"]);
    assert_whole(&store);
}

#[test]
fn a_changed_byte_anywhere_is_noticed_and_its_file_named() {
    let dir = folder();
    let store = store(dir.path(), &[1]);
    let checkpoint = store.path(Step(1));
    for file in entries(&checkpoint) {
        let path = checkpoint.join(&file);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let error = read(&checkpoint).unwrap_err().to_string();
            assert!(error.contains(&file), "byte {at} of {file}: {error}");
        }
        fs::write(&path, &good).unwrap();
    }
    read(&checkpoint).unwrap();
}

#[test]
fn a_short_or_missing_file_is_noticed_and_the_one_before_is_taken() {
    for file in ["manifest.json", "generator.safetensors"] {
        let dir = folder();
        let store = store(dir.path(), &[1, 2]);
        let path = store.path(Step(2)).join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        let short = read(&store.path(Step(2))).unwrap_err().to_string();
        assert!(short.contains(file) && short.contains("damaged"), "{short}");
        assert_eq!(store.newest().unwrap().unwrap().manifest.step, Step(1));

        fs::remove_file(&path).unwrap();
        let missing = read(&store.path(Step(2))).unwrap_err().to_string();
        assert!(
            missing.contains(file) && missing.contains("missing")
                || file == "manifest.json" && missing.contains("is no checkpoint"),
            "{missing}"
        );
        assert_eq!(store.newest().unwrap().unwrap().manifest.step, Step(1));
    }
}

#[test]
fn a_later_format_is_no_reason_to_fall_back() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    fs::write(
        store.path(Step(2)).join("manifest.json"),
        "{\"format\": 99}",
    )
    .unwrap();
    assert!(matches!(
        store.newest().unwrap_err(),
        CheckpointError::NewerFormat { found: 99, .. }
    ));
    assert!(
        store.write(&tiny(2), &about()).is_err(),
        "it is not overwritten"
    );
}

#[test]
fn a_manifest_can_not_name_files_elsewhere() {
    let dir = folder();
    let store = store(dir.path(), &[1]);
    let checkpoint = store.path(Step(1));
    let mut manifest = read_manifest(&checkpoint).unwrap();
    let info = manifest.files.remove("generator.safetensors").unwrap();
    manifest
        .files
        .insert("../generator.safetensors".to_owned(), info);
    let path = checkpoint.join("manifest.json");
    fs::write(&path, manifest.seal(&path).unwrap()).unwrap();
    for error in [
        read(&checkpoint).unwrap_err(),
        read_file(&checkpoint, "../generator").unwrap_err(),
    ] {
        assert!(error.to_string().contains("no name for a file"), "{error}");
    }
}

#[test]
fn a_renamed_checkpoint_is_not_taken_for_another_step() {
    let dir = folder();
    let store = store(dir.path(), &[1, 2]);
    fs::rename(store.path(Step(2)), store.path(Step(3))).unwrap();
    assert_eq!(store.newest().unwrap().unwrap().manifest.step, Step(1));
}

#[test]
fn an_error_of_the_disk_says_what_and_where() {
    let dir = folder();
    fs::write(dir.path().join("file"), "").unwrap();
    let store = Store::new(dir.path().join("file/checkpoints"));
    let error = store.write(&tiny(1), &about()).unwrap_err().to_string();
    assert!(error.contains("file/checkpoints: can't create"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_state_is_read_back(snapshot in any_snapshot()) {
        let dir = folder();
        let store = Store::new(dir.path());
        let written = store.write(&snapshot, &about()).unwrap();
        let (manifest, read) = read(&store.path(snapshot.step)).unwrap();
        prop_assert_eq!(manifest, written);
        prop_assert_eq!(read, sorted(snapshot));
    }
}

#[test]
fn what_is_no_checkpoint_is_called_that_and_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [dir.path().join("nothing"), dir.path().to_owned(), file] {
        for error in [
            read_manifest(&path).unwrap_err(),
            read(&path).map(|_| ()).unwrap_err(),
            read_file(&path, "generator").map(|_| ()).unwrap_err(),
        ] {
            let message = error.to_string();
            let start = format!("{} is no checkpoint; expected a folder", path.display());
            assert!(message.starts_with(&start), "{message}");
            assert!(!message.contains("damaged"), "{message}");
        }
    }
}
