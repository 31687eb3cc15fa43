//! What a user does with a checkpoint: pictures, films, exports. Each command writes the same file
//! twice, byte for byte, and refuses to write something else than its name says.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{Place, WORKER, output, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A run of the small job, one for all tests.
fn run_dir() -> &'static Path {
    static RUN: OnceLock<(Place, PathBuf)> = OnceLock::new();
    let (_, run_dir) = RUN.get_or_init(|| {
        let place = Place::new();
        let run = place.run("run", &["--set", "sample.every_steps=2"]);
        assert!(run.status.success(), "{}", text(&run));
        let run_dir = place.run_dir("run");
        (place, run_dir)
    });
    run_dir
}

fn worker(arguments: &[&str]) -> Output {
    let mut command = Command::new(WORKER);
    command.args(arguments);
    output(command)
}

/// What the command says in JSON, and the bytes of the file `name` that it writes: in two places.
fn drawn(command: &str, name: &str, arguments: &[&str]) -> (serde_json::Value, Vec<u8>) {
    let place = Place::new();
    let mut told = serde_json::Value::Null;
    let files = ["one", "two"].map(|folder| {
        let out = place.path().join(folder).join(name);
        let run = run_dir().to_str().unwrap();
        let mut all = vec![command, run, "--json", "--out", out.to_str().unwrap()];
        all.extend(arguments);
        let said = worker(&all);
        assert!(said.status.success(), "{all:?}: {}", text(&said));
        told = serde_json::from_slice(&said.stdout).unwrap();
        std::fs::read(out).unwrap()
    });
    assert!(
        files[0] == files[1],
        "{command} {arguments:?} draws two pictures"
    );
    (told, files.into_iter().next().unwrap())
}

fn picture(bytes: &[u8]) -> image::DynamicImage {
    image::load_from_memory(bytes).unwrap()
}

#[test]
fn an_image_is_the_same_alone_and_among_others() {
    let (told, grid) = drawn("sample", "grid.png", &["--count", "9"]);
    assert_eq!(told["checkpoint"]["step"], 8);
    assert_eq!(told["checkpoint"]["weights"], "averaged");
    let grid = picture(&grid).into_luma8();
    assert_eq!(grid.dimensions(), (3 * 34 + 2, 3 * 34 + 2));
    let (_, alone) = drawn("sample", "one.png", &["--images", "5"]);
    let alone = picture(&alone).into_luma8();
    for (x, y) in (0..32).flat_map(|y| (0..32).map(move |x| (x, y))) {
        assert_eq!(alone[(2 + x, 2 + y)], grid[(2 + 34 * 2 + x, 2 + 34 + y)]);
    }
    // With the statistics of its batch it isn't: that is what the tutorial's figure 21 shows.
    let batch = |images| {
        let arguments = ["--images", images, "--statistics", "batch", "--scale", "1"];
        let (told, bytes) = drawn("sample", "batch.png", &arguments);
        assert_eq!(told["batch"], 8, "a replica's in training");
        picture(&bytes).into_rgb8()
    };
    let (one, other) = (batch("5,0,1,2,3,4,6,7"), batch("5,10-16"));
    let first = |page: &image::RgbImage| {
        let cell = image::imageops::crop_imm(page, 4, 4, 32, 32);
        cell.to_image().into_raw()
    };
    assert_ne!(first(&one), first(&other));
}

#[test]
fn weights_and_truncation_are_chosen() {
    let (_, averaged) = drawn("sample", "x.png", &["--count", "2"]);
    let (told, raw) = drawn("sample", "x.png", &["--count", "2", "--raw"]);
    assert_eq!(told["checkpoint"]["weights"], "newest");
    assert_ne!(averaged, raw);
    let (_, same) = drawn("sample", "x.png", &["--count", "2", "--truncation", "0"]);
    let same = picture(&same).into_luma8();
    for (x, y) in (0..32).flat_map(|y| (0..32).map(move |x| (x, y))) {
        assert_eq!(
            same[(2 + x, 2 + y)],
            same[(36 + x, 2 + y)],
            "both the middle one"
        );
    }
}

#[test]
fn ways_begin_and_end_at_the_images_that_were_named() {
    let (told, strip) = drawn("interpolate", "ways.png", &["--between", "3,9:0,4"]);
    assert_eq!(told["between"], serde_json::json!(["3", "9:0", "4"]));
    let strip = picture(&strip).into_rgb8();
    let cell = |page: &image::RgbImage, column, row: u32| {
        let (side, line) = (64, 18);
        let (x, y) = (4 + column * (side + 4), 4 + row * (side + 4 + line));
        image::imageops::crop_imm(page, x, y, side, side)
            .to_image()
            .into_raw()
    };
    assert_eq!(cell(&strip, 9, 0), cell(&strip, 0, 1), "image 0 of seed 9");
    let (_, alone) = drawn("sample", "x.png", &["--images", "3,4", "--scale", "2"]);
    let alone = picture(&alone).into_rgb8();
    let plain = |column: u32| {
        image::imageops::crop_imm(&alone, 4 + column * 68, 4, 64, 64)
            .to_image()
            .into_raw()
    };
    assert_eq!(cell(&strip, 0, 0), plain(0));
    assert_eq!(cell(&strip, 9, 1), plain(1));
    for name in ["ways.gif", "ways.webp"] {
        let arguments = ["--between", "0,1,2", "--frames", "4", "--scale", "1"];
        let (_, film) = drawn("interpolate", name, &arguments);
        assert_eq!(frames(name, &film), 12);
    }
}

/// How many frames a film has.
fn frames(name: &str, film: &[u8]) -> usize {
    use image::AnimationDecoder;
    let bytes = std::io::Cursor::new(film.to_vec());
    let frames = match name.ends_with("gif") {
        true => image::codecs::gif::GifDecoder::new(bytes)
            .unwrap()
            .into_frames(),
        false => image::codecs::webp::WebPDecoder::new(bytes)
            .unwrap()
            .into_frames(),
    };
    frames.collect_frames().unwrap().len()
}

#[test]
fn a_term_less_itself_leaves_the_others() {
    let sum = |arguments: &[&str]| {
        let (told, bytes) = drawn("arithmetic", "sum.png", arguments);
        assert!(picture(&bytes).width() > 3 * 64);
        told["sum"].as_array().unwrap().clone()
    };
    let one = sum(&["--plus", "7"]);
    assert_eq!(one.len(), 16);
    let terms = ["--plus", "1,2,3", "--minus", "1-3", "--plus", "7"];
    assert_eq!(sum(&terms), one);
    // Terms are shown in the order in which they were typed.
    let (told, _) = drawn(
        "arithmetic",
        "sum.png",
        &["--minus", "4", "--plus", "5", "--minus", "6"],
    );
    assert_eq!(
        told["terms"],
        serde_json::json!(["- mean(4)", "+ mean(5)", "- mean(6)"])
    );
}

#[test]
fn truncations_are_columns() {
    let (told, bytes) = drawn(
        "truncate",
        "t.png",
        &["--images", "0,1", "--values", "0,0.5,1"],
    );
    assert_eq!(told["truncations"], serde_json::json!([0.0, 0.5, 1.0]));
    let page = picture(&bytes).into_rgb8();
    assert_eq!(page.dimensions(), (3 * 68 + 4, 2 * 68 + 4 + 18));
    let cell = |column: u32, row: u32| {
        let (x, y) = (4 + column * 68, 22 + row * 68);
        image::imageops::crop_imm(&page, x, y, 64, 64)
            .to_image()
            .into_raw()
    };
    assert_eq!(cell(0, 0), cell(0, 1), "at 0 all are one");
    assert_ne!(cell(2, 0), cell(2, 1));
}

#[test]
fn the_nearest_images_are_found_whoever_looks() {
    let arguments = ["--images", "0-2", "--neighbours", "3", "--cores"];
    let look = |cores| drawn("nearest", "near.png", &[&arguments[..], &[cores]].concat());
    let (told, bytes) = look("1");
    assert_eq!(look("3").1, bytes);
    assert_eq!(told["trained_on_this_data"], true);
    let samples = told["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for sample in samples {
        let nearest = sample["nearest"].as_array().unwrap();
        let far: Vec<f64> = nearest
            .iter()
            .map(|n| n["distance"].as_f64().unwrap())
            .collect();
        assert!(
            far.len() == 3 && far.is_sorted() && far[0] > 0.0,
            "{sample}"
        );
        assert!(
            nearest.iter().all(|n| n["label"].as_u64() < Some(10)),
            "{sample}"
        );
    }
    assert!(
        told["median_distance_of_the_data"].as_f64() > Some(0.0),
        "{told}"
    );
    // Among other images: these were not what it was trained on, and the command says so.
    let place = Place::new();
    let other = place.images(40);
    let other = other.strip_prefix("data.uri=").unwrap();
    let cached = Command::new(WORKER)
        .args([
            "nearest",
            run_dir().to_str().unwrap(),
            "--data",
            other,
            "--json",
        ])
        .arg("--out")
        .arg(place.path().join("near.png"))
        .output()
        .unwrap();
    assert!(cached.status.success(), "{}", text(&cached));
    assert!(text(&cached).contains("not the data"), "{}", text(&cached));
}

#[test]
fn a_film_has_every_grid_of_the_run() {
    for name in ["film.gif", "film.webp"] {
        let (told, film) = drawn("film", name, &[]);
        assert_eq!(told["frames"], 4);
        assert_eq!(told["last_step"], 8);
        assert_eq!(frames(name, &film), 4);
    }
    let (told, film) = drawn("film", "film.gif", &["--every", "3", "--plain"]);
    assert_eq!(told["first_step"], 2, "{told}");
    assert_eq!(frames("film.gif", &film), 2);
}

#[test]
fn exports_are_what_their_names_say() {
    let (told, bytes) = drawn("export", "g.safetensors", &[]);
    assert_eq!(told["format"], "safetensors");
    let file = run_dir().join("checkpoints/step-00000008/generator_ema.safetensors");
    assert_eq!(bytes, std::fs::read(file).unwrap());
    let (_, onnx) = drawn("export", "g.onnx", &[]);
    assert!(onnx.windows(13).any(|part| part == b"ConvTranspose"));
    let (_, script) = drawn("export", "g.pt", &[]);
    let module = tch::CModule::load_data(&mut &script[..]).unwrap();
    let latents = tch::Tensor::zeros([2, 16], (tch::Kind::Float, tch::Device::Cpu));
    assert_eq!(
        module.forward_ts(&[latents]).unwrap().size(),
        [2, 1, 32, 32]
    );
}

#[test]
fn what_cant_be_done_is_refused_with_a_reason() {
    let place = Place::new();
    let run = run_dir().to_str().unwrap();
    let empty = place.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["sample", run, "--out", "x.gif"], ".png"),
        (
            &["sample", run, "--out", "x.png", "--batch", "4"],
            "--statistics batch",
        ),
        (
            &["sample", run, "--out", "x.png", "--images", "3,x"],
            "\"x\" is no image",
        ),
        (
            &["sample", run, "--out", "x.png", "--truncation", "11"],
            "0 to 10",
        ),
        (&["sample", empty, "--out", "x.png"], "is no checkpoint"),
        (
            &["interpolate", run, "--out", "x.jpg"],
            ".png or .gif or .webp",
        ),
        (
            &["interpolate", run, "--out", "x.png", "--between", "3"],
            "two or more",
        ),
        (&["arithmetic", run, "--out", "x.png"], "--plus"),
        (
            &["truncate", run, "--out", "x.png", "--values", "0,a"],
            "no truncation",
        ),
        (&["nearest", run, "--out", "x.webp"], ".png"),
        (&["film", run, "--out", "x.png"], ".gif or .webp"),
        (&["film", empty, "--out", "x.gif"], "there are no grids"),
        (&["export", run, "--out", "x"], ".safetensors, .pt or .onnx"),
        (
            &["export", run, "--out", "x.pt", "--format", "onnx"],
            ".onnx",
        ),
    ];
    for (arguments, reason) in cases {
        let mut command = Command::new(WORKER);
        command.args(*arguments).current_dir(place.path());
        let refused = output(command);
        let message = text(&refused);
        assert_eq!(refused.status.code(), Some(64), "{arguments:?}: {message}");
        assert!(message.contains(reason), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{message}");
    }
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_name_without_an_extension_gets_the_usual_one() {
    let place = Place::new();
    let run = run_dir().to_str().unwrap();
    for (arguments, name) in [
        (&["sample", run, "--count", "1", "--out", "x"][..], "x.png"),
        (&["film", run, "--out", "x"], "x.gif"),
        (
            &["export", run, "--format", "torchscript", "--out", "x"],
            "x.pt",
        ),
    ] {
        let mut command = Command::new(WORKER);
        command.args(arguments).current_dir(place.path());
        let said = output(command);
        assert!(said.status.success(), "{}", text(&said));
        assert!(place.path().join(name).is_file(), "{}", text(&said));
        let told = String::from_utf8_lossy(&said.stdout);
        assert!(told.starts_with(&format!("{name}: ")), "{told}");
    }
}

/// A short run of another job, which `sets` make of the small one.
fn other_run(place: &Place, name: &str, sets: &[&str]) -> String {
    let all = [&["train.steps=2", "sample.every_steps=0"], sets].concat();
    let arguments: Vec<&str> = all.into_iter().flat_map(|set| ["--set", set]).collect();
    let run = place.run(name, &arguments);
    assert!(run.status.success(), "{}", text(&run));
    place.run_dir(name).to_str().unwrap().to_owned()
}

/// What `sample` writes for these arguments, or the reason that it gives.
fn sampled(place: &Place, run: &str, arguments: &[&str]) -> Result<image::RgbImage, String> {
    let out = place.path().join("sampled.png");
    let mut all = vec!["sample", run, "--out", out.to_str().unwrap()];
    all.extend(arguments);
    let said = worker(&all);
    match said.status.code() {
        Some(0) => Ok(picture(&std::fs::read(out).unwrap()).into_rgb8()),
        Some(64) => Err(text(&said)),
        _ => panic!("{all:?}: {}", text(&said)),
    }
}

#[test]
fn a_class_is_drawn_by_a_generator_that_is_told_of_labels() {
    let place = Place::new();
    let sets = ["model.conditional=\"projection\"", "model.classes=10"];
    let run = other_run(&place, "classes", &sets);
    let draw = |arguments: &[&str]| sampled(&place, &run, arguments);
    // Rows of one label in turn, unless one is named.
    let rows = draw(&["--count", "8", "--columns", "4"]).unwrap();
    let zeros = draw(&["--count", "8", "--columns", "4", "--class", "0"]).unwrap();
    let ones = draw(&["--count", "8", "--columns", "4", "--class", "1"]).unwrap();
    let row = |page: &image::RgbImage, number| {
        let high = page.height() / 2;
        let row = image::imageops::crop_imm(page, 0, number * high, page.width(), high);
        row.to_image().into_raw()
    };
    assert_eq!(row(&rows, 0), row(&zeros, 0));
    assert_eq!(row(&rows, 1), row(&ones, 1));
    assert_ne!(row(&zeros, 1), row(&ones, 1), "the label says nothing");
    let refused = draw(&["--class", "10"]).unwrap_err();
    assert!(refused.contains("the labels are 0 to 9"), "{refused}");
    let refused = sampled(&place, run_dir().to_str().unwrap(), &["--class", "1"]).unwrap_err();
    assert!(refused.contains("not told of labels"), "{refused}");
}

#[test]
fn a_pyramid_is_drawn_from_its_coarsest_level_to_its_finest() {
    let place = Place::new();
    let coarse = other_run(&place, "coarse", &["model.image_size=16", "data.reduce=2"]);
    let fine = other_run(&place, "fine", &["model.pyramid=true"]);
    let draw = |count: &str| {
        let arguments = ["--coarser", &coarse, "--count", count, "--columns", "2"];
        sampled(&place, &fine, &arguments).unwrap()
    };
    let four = draw("4");
    assert_eq!(four.dimensions(), (2 * 34 + 2, 2 * 34 + 2));
    // The first images don't depend on how many are drawn.
    let two = draw("2");
    let same = image::imageops::crop_imm(&four, 0, 0, two.width(), two.height());
    assert!(same.to_image() == two);
    let alone = sampled(&place, &fine, &[]).unwrap_err();
    assert!(alone.contains("--coarser: the coarsest level"), "{alone}");
    let turned = sampled(&place, &coarse, &["--coarser", &fine]).unwrap_err();
    assert!(
        turned.contains("16×16") || turned.contains("32×32"),
        "{turned}"
    );
}

#[test]
fn points_are_scattered_over_their_plane() {
    let place = Place::new();
    let sets = [
        "data.uri=synthetic:ring",
        "model.architecture=mlp",
        "model.generator_width=16",
        "model.discriminator_width=8",
    ];
    let run = other_run(&place, "points", &sets);
    let page = sampled(&place, &run, &["--count", "500"]).unwrap();
    // Lines and numbers are grey.
    let dots = page.pixels().filter(|pixel| pixel.0 == [255; 3]).count();
    assert!((10..=4 * 500).contains(&dots), "{dots}");
    let refused = sampled(&place, &run, &["--images", "3"]).unwrap_err();
    assert!(refused.contains("of points"), "{refused}");
}

/// What lies between the codes of a generator that has seen only -1 and 1 is nothing to draw.
#[test]
fn binary_latents_are_not_truncated() {
    let place = Place::new();
    let run = other_run(
        &place,
        "coins",
        &["model.latent=4", "model.binary_latents=4"],
    );
    sampled(&place, &run, &["--count", "4"]).unwrap();
    let refused = sampled(&place, &run, &["--truncation", "0.5"]).unwrap_err();
    assert!(refused.contains("model.binary_latents"), "{refused}");
    let run = other_run(
        &place,
        "some",
        &["model.latent=4", "model.binary_latents=2"],
    );
    let draw = |psi| sampled(&place, &run, &["--count", "64", "--truncation", psi]).unwrap();
    let cells = |page: image::RgbImage| {
        let cell = |n: u32| {
            let (x, y) = (2 + n % 8 * 34, 2 + n / 8 * 34);
            image::imageops::crop_imm(&page, x, y, 32, 32)
                .to_image()
                .into_raw()
        };
        let cells: std::collections::BTreeSet<_> = (0..64).map(cell).collect();
        cells.len()
    };
    assert_eq!(cells(draw("0")), 4, "an image for each code is left");
    assert!(cells(draw("1")) > 4);
}
