use super::{TempDirs, assert_says, idx, job, open, refusal};
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::fs;

/// Six images in two classes: red ones as PNG, blue ones as JPEG.
fn classes(dirs: &TempDirs) {
    for (class, extension, colour) in [("red", "png", [200, 0, 0]), ("blue", "JPG", [0, 0, 200])] {
        let folder = dirs.source.path().join(class).join("deeper");
        fs::create_dir_all(&folder).unwrap();
        for number in 0..3 {
            let image = RgbImage::from_pixel(40 + number, 50, Rgb(colour));
            let format = if extension == "png" {
                image::ImageFormat::Png
            } else {
                image::ImageFormat::Jpeg
            };
            let path = folder.join(format!("{number}.{extension}"));
            DynamicImage::from(image)
                .save_with_format(path, format)
                .unwrap();
        }
    }
}

#[test]
fn subfolders_are_classes_and_other_files_are_ignored() {
    let dirs = TempDirs::new();
    classes(&dirs);
    let root = dirs.source.path();
    for foreign in ["README.txt", ".DS_Store", "red/._0.png", "blue/old.webp"] {
        fs::write(root.join(foreign), "no image").unwrap();
    }
    fs::create_dir(root.join(".cache")).unwrap();
    fs::write(root.join(".cache/x.png"), "no image").unwrap();

    let data = open(&job(
        root,
        dirs.cache.path(),
        &["data.fit=cover", "model.channels=3"],
    ))
    .unwrap();
    assert_eq!((data.manifest().samples, data.manifest().labels), (6, true));
    let shard = data.shard(0).unwrap();
    let mut seen = [0, 0];
    for index in 0..6 {
        let sample = shard.sample(index).unwrap();
        let label = sample.label.unwrap();
        seen[label as usize] += 1;
        // blue is class 0, red is class 1; planes are red, green, blue.
        let bright = if label == 0 { 2 } else { 0 };
        for (plane, pixels) in sample.pixels.chunks(32 * 32).enumerate() {
            let expected = if plane == bright { 200 } else { 0 };
            assert!(
                pixels.iter().all(|&p| p.abs_diff(expected) < 4),
                "{label} {plane}"
            );
        }
    }
    assert_eq!(seen, [3, 3]);
    assert_eq!(shard.sample(6), None);
}

#[test]
fn images_of_other_formats_are_counted_and_jpegs_are_read_by_any_name() {
    let dirs = TempDirs::new();
    classes(&dirs);
    let root = dirs.source.path();
    for foreign in ["red/a.WEBP", "blue/b.gif", "blue/deeper/c.tiff"] {
        fs::write(root.join(foreign), "no image").unwrap();
    }
    for plain in ["red/notes.txt", "red/._d.webp"] {
        fs::write(root.join(plain), "no image").unwrap();
    }
    let jpeg = root.join("blue/deeper/0.JPG");
    for name in ["blue/x.jfif", "blue/x.JPE"] {
        fs::copy(&jpeg, root.join(name)).unwrap();
    }
    let job = job(root, dirs.cache.path(), &["data.fit=cover"]);
    let digest = open(&job).unwrap().digest().to_owned();
    // Packed now: listed again.
    let again = open(&job).unwrap();
    assert_eq!((again.manifest().samples, again.ignored()), (8, 3));
    fs::remove_file(root.join("blue/b.gif")).unwrap();
    let fewer = open(&job).unwrap();
    assert_eq!((fewer.ignored(), fewer.digest()), (2, &digest[..]));
}

#[test]
fn images_beside_subfolders_have_no_classes() {
    let dirs = TempDirs::new();
    classes(&dirs);
    let root = dirs.source.path();
    GrayImage::from_pixel(8, 8, Luma([9]))
        .save(root.join("top.png"))
        .unwrap();
    let data = open(&job(root, dirs.cache.path(), &["data.fit=cover"])).unwrap();
    assert_eq!(
        (data.manifest().samples, data.manifest().labels),
        (7, false)
    );
    assert_eq!(data.shard(0).unwrap().sample(0).unwrap().label, None);
}

#[test]
fn a_broken_image_is_named_and_nothing_is_left_behind() {
    for (extension, cut) in [("png", 2), ("JPG", 2), ("JPG", 1)] {
        let dirs = TempDirs::new();
        classes(&dirs);
        let class = if extension == "png" { "red" } else { "blue" };
        let path = dirs
            .source
            .path()
            .join(class)
            .join(format!("deeper/1.{extension}"));
        let bytes = fs::read(&path).unwrap();
        let end = if cut == 1 {
            bytes.len() - 2
        } else {
            bytes.len() / cut
        };
        fs::write(&path, &bytes[..end]).unwrap();
        let message = refusal(&job(
            dirs.source.path(),
            dirs.cache.path(),
            &["data.fit=cover"],
        ));
        assert_says(&message, &[path.to_str().unwrap(), "repair or remove"]);
        assert_eq!(super::names(dirs.cache.path()), [""; 0]);
    }
}

#[test]
fn an_image_too_large_to_pad_is_named() {
    let dirs = TempDirs::new();
    classes(&dirs);
    let message = refusal(&job(dirs.source.path(), dirs.cache.path(), &[]));
    assert_says(&message, &[".", "×50", "32×32", "cover"]);
}

#[test]
fn what_is_not_there_is_said() {
    let dirs = TempDirs::new();
    let missing = dirs.source.path().join("nothing");
    let message = refusal(&job(&missing, dirs.cache.path(), &[]));
    assert_says(
        &message,
        &[missing.to_str().unwrap(), "no such file", "data.uri"],
    );

    fs::write(dirs.source.path().join("notes.txt"), "x").unwrap();
    let message = refusal(&job(dirs.source.path(), dirs.cache.path(), &[]));
    assert_says(&message, &["no images found", "idx3-ubyte", "*.png"]);
    assert_eq!(super::names(dirs.cache.path()), [""; 0]);
}

#[test]
fn a_link_to_its_own_folder_is_refused_and_others_are_followed() {
    let dirs = TempDirs::new();
    classes(&dirs);
    let elsewhere = TempDirs::new();
    let root = elsewhere.source.path();
    std::os::unix::fs::symlink(dirs.source.path(), root.join("linked")).unwrap();
    let job = job(root, elsewhere.cache.path(), &["data.fit=cover"]);
    assert_eq!(open(&job).unwrap().manifest().samples, 6);
    std::os::unix::fs::symlink(root, root.join("loop")).unwrap();
    assert_says(&refusal(&job), &["loop", "link"]);
}

#[test]
fn idx_files_are_taken_in_order_with_their_labels() {
    let dirs = TempDirs::new();
    let root = dirs.source.path();
    let write = |name: &str, bytes: Vec<u8>| fs::write(root.join(name), bytes).unwrap();
    write("b.idx3-ubyte", idx(&[2, 1, 1], &[3, 4]));
    write("b.idx1-ubyte", idx(&[2], &[13, 14]));
    write("a-images-idx3-ubyte", idx(&[2, 1, 1], &[1, 2]));
    write("a-images-idx3-ubyte.gz", idx(&[2, 1, 1], &[1, 2])); // the same once more
    write("a-labels-idx1-ubyte", idx(&[2], &[11, 12]));
    let whole = job(root, dirs.cache.path(), &[]);
    let data = open(&whole).unwrap();
    let shard = data.shard(0).unwrap();
    let mut seen: Vec<(u8, u32)> = (0..data.manifest().samples)
        .map(|i| shard.sample(i).unwrap())
        .map(|sample| (*sample.pixels.iter().max().unwrap(), sample.label.unwrap()))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 11), (2, 12), (3, 13), (4, 14)]);

    let one = open(&job(&root.join("b.idx3-ubyte"), dirs.cache.path(), &[])).unwrap();
    assert_eq!((one.manifest().samples, one.manifest().labels), (2, true));

    write("b.idx1-ubyte", idx(&[3], &[13, 14, 15]));
    assert_says(
        &refusal(&whole),
        &["b.idx1-ubyte", "3 labels", "expected 2"],
    );
    fs::remove_file(root.join("b.idx1-ubyte")).unwrap();
    assert_says(&refusal(&whole), &["b.idx3-ubyte", "labels", "a-images"]);
    fs::remove_file(root.join("a-labels-idx1-ubyte")).unwrap();
    assert!(!open(&whole).unwrap().manifest().labels);
}
