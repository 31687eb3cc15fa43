use super::super::idx::{read_images, read_labels};
use super::{TempDirs, assert_says, job, mnist, names, number, numbered, open};
use crate::data::{DataError, Dataset};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

#[test]
fn mnist_is_packed_whole_and_centred() {
    let dirs = TempDirs::new();
    let mut calls = Vec::new();
    let data = Dataset::open(
        &job(&mnist(), dirs.cache.path(), &[]),
        &mut |done, total| {
            calls.push((done, total));
        },
    )
    .unwrap();
    assert_eq!(
        calls,
        (0..=10_000).map(|done| (done, 10_000)).collect::<Vec<_>>()
    );
    let manifest = data.manifest();
    assert_eq!((manifest.samples, manifest.labels), (10_000, true));
    assert_eq!(data.shard_sizes().iter().sum::<u64>(), 10_000);
    assert_eq!(data.shard_sizes()[..9], [1024; 9]);
    // The data of every job on MNIST's test set; it changes only with FORMAT_VERSION.
    assert_eq!(
        data.digest(),
        "5cf8491437464590f344e674a39ab2240b1c7f5983598a05b784eccc2152661d"
    );

    let images = read_images(&mnist().join("t10k-images-idx3-ubyte.gz")).unwrap();
    let labels = read_labels(&mnist().join("t10k-labels-idx1-ubyte.gz")).unwrap();
    let mut raw: HashMap<(&[u8], u32), i32> = HashMap::new();
    for (index, &label) in (0..).zip(&labels) {
        *raw.entry((images.pixels(index), label.into())).or_default() += 1;
    }
    let mut blocks = Vec::new();
    for shard in 0..data.shard_sizes().len() as u32 {
        let shard = data.shard(shard).unwrap();
        for index in 0..shard.samples() {
            let sample = shard.sample(index).unwrap();
            let mut block = Vec::with_capacity(28 * 28);
            for (y, row) in sample.pixels.chunks(32).enumerate() {
                if (2..30).contains(&y) {
                    block.extend(&row[2..30]);
                    assert_eq!((&row[..2], &row[30..]), (&[0; 2][..], &[0; 2][..]));
                } else {
                    assert_eq!(row, [0; 32]);
                }
            }
            blocks.push((block, sample.label.unwrap()));
        }
    }
    for (block, label) in &blocks {
        *raw.get_mut(&(&block[..], *label))
            .expect("a digit that is not MNIST's") -= 1;
    }
    assert!(raw.values().all(|&left| left == 0));
    // And in another order than the file's.
    assert!((0..5).any(|index| images.pixels(index) != blocks[index as usize].0));
}

#[test]
fn the_digest_hangs_on_content_alone() {
    let digest = |folder: &Path, sets: &[&str]| {
        let cache = tempfile::tempdir().unwrap();
        open(&job(folder, cache.path(), sets))
            .unwrap()
            .digest()
            .to_owned()
    };
    let (here, there) = (TempDirs::new(), TempDirs::new());
    numbered(here.source.path(), 100);
    numbered(there.source.path(), 100);
    let images = there.source.path().join("n-images-idx3-ubyte");
    let file = fs::File::options().write(true).open(&images).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let first = digest(here.source.path(), &[]);
    assert_eq!(digest(there.source.path(), &[]), first);
    assert_eq!(digest(&images, &[]), first);

    for other in [
        "data.shard_samples=10",
        "model.channels=3",
        "model.image_size=64",
        "data.fit=cover",
    ] {
        assert_ne!(digest(here.source.path(), &[other]), first, "{other}");
    }
    let mut bytes = fs::read(&images).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&images, bytes).unwrap();
    assert_ne!(digest(there.source.path(), &[]), first);
}

#[test]
fn a_packed_data_set_is_not_packed_again_until_it_changes() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let job = job(
        dirs.source.path(),
        dirs.cache.path(),
        &["data.shard_samples=20"],
    );
    let first = open(&job).unwrap();
    assert_eq!(first.shard_sizes(), [20, 20, 10]);
    let mut packed = false;
    let second = Dataset::open(&job, &mut |_, _| packed = true).unwrap();
    assert!(!packed, "it was packed again");
    assert_eq!(second.manifest(), first.manifest());

    numbered(dirs.source.path(), 51);
    let third = open(&job).unwrap();
    assert_eq!(third.manifest().samples, 51);
    assert_eq!(names(dirs.cache.path()).len(), 2);
}

#[test]
fn concurrent_packs_agree_and_leave_one_folder() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 3000);
    let job = job(
        dirs.source.path(),
        dirs.cache.path(),
        &["data.shard_samples=100"],
    );
    // Each waits, at its first sample, until all are packing.
    let barrier = std::sync::Barrier::new(3);
    let digests: BTreeSet<String> = std::thread::scope(|scope| {
        let packs: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let data = Dataset::open(&job, &mut |done, _| {
                        if done == 0 {
                            barrier.wait();
                        }
                    });
                    data.unwrap().digest().to_owned()
                })
            })
            .collect();
        packs.into_iter().map(|pack| pack.join().unwrap()).collect()
    });
    assert_eq!(digests.len(), 1);
    assert_eq!(
        names(dirs.cache.path()).len(),
        1,
        "{:?}",
        names(dirs.cache.path())
    );
    let data = open(&job).unwrap();
    let mut seen: Vec<u32> = (0..30)
        .map(|shard| data.shard(shard).unwrap())
        .flat_map(|shard| {
            (0..100)
                .map(move |i| number(shard.sample(i).unwrap().pixels))
                .collect::<Vec<_>>()
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..3000).collect::<Vec<_>>());
}

#[test]
fn what_a_killed_packing_left_behind_is_taken_over() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let job = job(dirs.source.path(), dirs.cache.path(), &[]);
    let data = open(&job).unwrap();
    let folder = data.folder();
    // As a kill leaves it: a part of the files, no manifest, no final name.
    let name = folder.file_name().unwrap().to_str().unwrap();
    let left = dirs.cache.path().join(format!(".{name}.unfinished-0"));
    fs::rename(folder, &left).unwrap();
    fs::remove_file(left.join("manifest.json")).unwrap();
    fs::write(left.join("000007.shard"), "half").unwrap();

    let again = open(&job).unwrap();
    assert_eq!(again.digest(), data.digest());
    assert_eq!(names(again.folder()), ["000000.shard", "manifest.json"]);
    assert_eq!(names(dirs.cache.path()), [name]);

    // A folder whose owner lives is left alone.
    fs::rename(folder, &left).unwrap();
    let owner = fs::File::open(&left).unwrap();
    owner.try_lock().unwrap();
    open(&job).unwrap();
    assert_eq!(names(&left), ["000000.shard", "manifest.json"]);
}

#[test]
fn files_that_change_while_they_are_packed_are_refused() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let job = job(dirs.source.path(), dirs.cache.path(), &[]);
    let error = Dataset::open(&job, &mut |done, _| {
        if done == 20 {
            numbered(dirs.source.path(), 60);
        }
    })
    .err()
    .expect("it must be refused");
    assert!(matches!(error, DataError::Changed { .. }), "{error}");
    assert_eq!(names(dirs.cache.path()), [""; 0]);
    assert_eq!(open(&job).unwrap().manifest().samples, 60);
}

#[test]
fn a_corrupt_shard_is_named_with_the_way_out() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let job = job(
        dirs.source.path(),
        dirs.cache.path(),
        &["data.shard_samples=20"],
    );
    let data = open(&job).unwrap();
    let folder = data.folder().to_owned();
    let path = folder.join(&data.manifest().shards[1].file);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let data = open(&job).unwrap(); // the others are fine
        data.shard(0).unwrap();
        let message = data.shard(1).err().expect("it must be refused").to_string();
        assert_says(
            &message,
            &[
                path.to_str().unwrap(),
                "expected",
                "remove the folder",
                folder.to_str().unwrap(),
            ],
        );
        message
    };
    for at in [0, 9, 25, 40, whole.len() - 1] {
        let mut broken = whole.clone();
        broken[at] ^= 4;
        refused(Some(&broken));
    }
    assert_says(&refused(Some(&whole[..whole.len() - 1])), &["bytes"]);
    assert_says(&refused(Some(&[&whole[..], &[0]].concat())), &["bytes"]);
    assert_says(&refused(None), &["missing"]);
    fs::write(&path, &whole).unwrap();
    open(&job).unwrap().shard(1).unwrap();
    assert!(open(&job).unwrap().shard(3).is_err());

    // And the way out works.
    fs::remove_dir_all(&folder).unwrap();
    let again = open(&job).unwrap();
    assert_eq!(again.digest(), data.digest());
    again.shard(1).unwrap();
}

#[test]
fn a_corrupt_manifest_is_named() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let job = job(
        dirs.source.path(),
        dirs.cache.path(),
        &["data.shard_samples=20"],
    );
    let path = open(&job).unwrap().folder().join("manifest.json");
    let whole = fs::read_to_string(&path).unwrap();
    for broken in [
        whole[..whole.len() / 2].to_owned(),
        whole.replace("000001.shard", "../../secret"),
        whole.replace("\"samples\": 50", "\"samples\": 70"),
        whole.replace("\"samples\": 10", "\"samples\": 9"),
        whole.replace("\"version\": 1", "\"version\": 2"),
        whole.replace("\"image_size\": 32", "\"image_size\": 64"),
    ] {
        assert_ne!(broken, whole);
        fs::write(&path, broken).unwrap();
        assert_says(
            &super::refusal(&job),
            &["manifest.json", "remove the folder"],
        );
    }
    fs::remove_file(&path).unwrap();
    assert_says(&super::refusal(&job), &["manifest.json", "missing"]);
}
