use super::*;
use crate::telemetry::evaluations::tests::line;
use crate::telemetry::records::{RecordLog, tests::record};

/// A run directory with records of the steps 1 to `last`, a grid of step 2 and a score of step 3.
fn run_of(last: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    records(dir.path(), 1, last);
    picture(dir.path(), 2);
    evaluations::append(dir.path(), &line(3, 12.5)).unwrap();
    dir
}

fn records(run_dir: &Path, first: u64, last: u64) {
    let records: Vec<Record> = (first..=last).map(record).collect();
    let mut log = RecordLog::open(&run_dir.join("metrics.jsonl")).unwrap();
    log.append(&records).unwrap();
}

fn picture(run_dir: &Path, step: u64) {
    let path = run_dir.join(format!("samples/step-{step:08}.png"));
    crate::sample::write_picture(&path, &image::DynamicImage::new_rgb8(6, 4)).unwrap();
}

fn events(path: &Path) -> Vec<Event> {
    let (mut file, mut found) = (File::open(path).unwrap(), Vec::new());
    while let Some(payload) = frame::read(&mut file).unwrap() {
        found.push(Event::decode(payload.as_slice()).unwrap());
    }
    found
}

/// Step and tag of all that the files say, in TensorBoard's order and by its rule of what a new file
/// makes void.
fn shown(run_dir: &Path) -> Vec<(i64, String)> {
    let mut shown: Vec<(i64, String)> = Vec::new();
    for path in event_files(&run_dir.join(FOLDER)).unwrap() {
        for event in events(&path) {
            if let Some(What::SessionLog(SessionLog { status: 1 })) = event.what {
                shown.retain(|(step, _)| *step < event.step);
            }
            let tags = event.values().iter();
            shown.extend(tags.map(|value| (event.step, value.tag.clone())));
        }
    }
    shown.sort();
    shown
}

fn complete(last: i64) -> Vec<(i64, String)> {
    let figures = [
        "gradient_norm/discriminator",
        "gradient_norm/generator",
        "images_per_second",
        "loss/discriminator",
        "loss/generator",
        "probability/fake",
        "probability/real",
    ];
    let of_step = |step| figures.map(|tag| (step, tag.to_owned()));
    let mut all: Vec<(i64, String)> = (1..=last).flat_map(of_step).collect();
    all.push((2, "samples".to_owned()));
    all.push((3, "evaluation/fid".to_owned()));
    all.push((3, "evaluation/kl-data".to_owned()));
    all.sort();
    all
}

fn catch_up(run_dir: &Path, recorded: u64) -> Board {
    let mut board = Board::open(run_dir, Step(recorded), 1_700_000_000.5).unwrap();
    while board.catch_up().unwrap() {}
    board
}

#[test]
fn every_step_grid_and_score_stands_once() {
    let dir = run_of(3);
    let mut board = catch_up(dir.path(), 0);
    records(dir.path(), 4, 5);
    while board.catch_up().unwrap() {}
    assert!(!board.catch_up().unwrap(), "nothing is new");
    assert_eq!(shown(dir.path()), complete(5));

    let files = event_files(&dir.path().join(FOLDER)).unwrap();
    let events = events(&files[0]);
    let version = What::FileVersion("brain.Event:2".to_owned());
    assert_eq!(events[0].what, Some(version), "every file begins with it");
    let value = |tag: &str| {
        let values = events.iter().flat_map(Event::values);
        values.clone().find(|value| value.tag == tag).unwrap()
    };
    let loss = value("loss/discriminator").content.as_ref();
    assert_eq!(loss, Some(&Content::Simple(record(1).loss_d as f32)));
    let Some(Content::Image(image)) = &value("samples").content else {
        panic!("no image");
    };
    assert_eq!((image.width, image.height), (6, 4));
    assert!(image.encoded.starts_with(b"\x89PNG"));
}

#[test]
fn a_coordinator_that_comes_back_leaves_no_hole_and_nothing_twice() {
    let dir = run_of(3);
    drop(catch_up(dir.path(), 0));
    records(dir.path(), 4, 6);
    // It had died before it could write of the steps 4 to 6.
    drop(catch_up(dir.path(), 6));
    assert_eq!(shown(dir.path()), complete(6));
    let files = event_files(&dir.path().join(FOLDER)).unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(
        events(&files[1])[1].step,
        4,
        "what the new file goes on with"
    );
}

#[test]
fn a_torn_event_is_written_anew() {
    let dir = run_of(6);
    drop(catch_up(dir.path(), 6));
    let files = event_files(&dir.path().join(FOLDER)).unwrap();
    let whole = fs::read(&files[0]).unwrap();
    for cut in [1, 40, 150, whole.len() / 2, whole.len() - 3, whole.len()] {
        fs::write(&files[0], &whole[..whole.len() - cut]).unwrap();
        drop(catch_up(dir.path(), 6));
        assert_eq!(shown(dir.path()), complete(6), "without {cut} bytes");
        let files = event_files(&dir.path().join(FOLDER)).unwrap();
        fs::remove_file(&files[1]).unwrap();
    }
}

#[test]
fn steps_that_the_records_have_lost_are_void() {
    let dir = run_of(6);
    picture(dir.path(), 6);
    drop(catch_up(dir.path(), 6));
    // The machine crashed, and its disk has kept three of the six lines.
    fs::remove_file(dir.path().join("metrics.jsonl")).unwrap();
    fs::remove_file(dir.path().join("samples/step-00000006.png")).unwrap();
    records(dir.path(), 1, 3);
    let mut board = catch_up(dir.path(), 3);
    assert_eq!(shown(dir.path()), complete(3));
    records(dir.path(), 4, 6);
    picture(dir.path(), 6);
    while board.catch_up().unwrap() {}
    let mut expected = complete(6);
    expected.push((6, "samples".to_owned()));
    expected.sort();
    assert_eq!(shown(dir.path()), expected);
}

#[test]
fn an_error_says_where() {
    let dir = run_of(1);
    fs::write(dir.path().join(FOLDER), "no folder").unwrap();
    let error = Board::open(dir.path(), Step(1), 0.0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tensorboard: can't make the folder"),
        "{error}"
    );
}
