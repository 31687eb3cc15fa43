use crate::random::{Domain, Key};
use crate::torch::Generator;
use tch::{Device, Kind, Tensor};

/// Fails unless `found` is `expected`, but for `tolerance`.
#[track_caller]
pub(super) fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{found}, expected {expected}"
    );
}

/// Draws of N(0, 1), f64.
pub(super) fn normal(seed: u64, sides: &[i64]) -> Tensor {
    let mut drawn = Tensor::zeros(sides, (Kind::Double, Device::Cpu));
    Generator::new(Device::Cpu, Key::new(Domain::Evaluation, &[99, seed]))
        .unwrap()
        .normal_(&mut drawn, 0.0, 1.0)
        .unwrap();
    drawn
}

use super::{Crew, EvaluateError, Evaluator, Level, Settings};
use crate::checkpoint::TensorData;
use crate::config::{Job, Score};
use crate::data::Dataset;
use crate::ids::Step;
use crate::telemetry::evaluations::{Evaluation, SamplesOf};
use crate::train::{Setup, Trainer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::CModule;

/// 28×28 images of a bright bar on a ground of noise; the class is where the bar lies.
struct Bars {
    folder: tempfile::TempDir,
    classes: u8,
}

impl Bars {
    fn new(classes: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, classes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `count` images, with the labels beside them if they are `labelled`.
    fn write(&self, name: &str, count: u32, labelled: bool) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        let mut stream = Key::new(Domain::Evaluation, &[77, u64::from(count)]).stream();
        let mut images = [0x803u32, count, 28, 28].map(u32::to_be_bytes).concat();
        let mut labels = [0x801u32, count].map(u32::to_be_bytes).concat();
        for image in 0..count {
            let class = (image % u32::from(self.classes)) as u8;
            labels.push(class);
            let row = 28 * usize::from(class) / usize::from(self.classes);
            for pixel in 0..28 * 28 {
                let bright = (row..row + 3).contains(&(pixel / 28));
                images.push(stream.below(60) as u8 + if bright { 190 } else { 0 });
            }
        }
        fs::write(folder.join("x-images-idx3-ubyte"), images).unwrap();
        if labelled {
            fs::write(folder.join("x-labels-idx1-ubyte"), labels).unwrap();
        }
        folder
    }

    fn job(&self, data: &Path) -> Job {
        let text = format!(
            "[job]\nname = \"bars\"\n[data]\nuri = {data:?}\nshard_folder = {:?}\nfit = \"pad\"\n\
             shard_samples = 64\n[model]\nimage_size = 32\nchannels = 1\nlatent = 8\n\
             generator_width = 4\ndiscriminator_width = 4\n[train]\nsteps = 1\nreplicas = 1\n",
            self.path("cache"),
        );
        crate::config::parse(&text, "bars", Path::new("/"), &[]).unwrap()
    }
}

fn open(job: &Job) -> Arc<Dataset> {
    Arc::new(Dataset::open(job, &mut |_, _| {}).unwrap())
}

fn settings(workers: usize, extractor: Option<PathBuf>) -> Settings {
    Settings {
        samples: 300,
        seed: 0,
        extractor,
        device: Device::Cpu,
        crew: Crew::new(workers),
    }
}

fn prepare(job: &Job, settings: &Settings) -> Result<Evaluator, EvaluateError> {
    Evaluator::prepare(job, open(job), settings, &mut |_| {})
}

/// A generator that has not been trained.
fn generator(job: &Job) -> Vec<TensorData> {
    let setup = Setup {
        job,
        device: Device::Cpu,
        replicas: 0..0,
        cores: 1,
    };
    let mut snapshot = Trainer::new(setup).unwrap().snapshot().unwrap();
    snapshot.files.remove("generator").unwrap()
}

fn level<'a>(job: &'a Job, tensors: &'a [TensorData]) -> Level<'a> {
    Level {
        model: &job.model,
        tensors,
    }
}

fn of_generator(evaluator: &Evaluator, job: &Job) -> Evaluation {
    let tensors = generator(job);
    let newest = SamplesOf::Newest;
    evaluator
        .generator(&[level(job, &tensors)], newest, Step(0), "digest")
        .unwrap()
}

/// The whole way on labelled images: the extractor is trained, kept, and the same wherever it is
/// trained; scores are the same for any number of threads; real images fare as the floor does, and
/// noise far worse.
#[test]
fn scores_are_a_function_of_checkpoint_data_and_settings() {
    let bars = Bars::new(4);
    let job = bars.job(&bars.write("data", 200, true));
    let mut told = Vec::new();
    let mut hear = |what: &str| told.push(what.to_owned());
    let first = Evaluator::prepare(&job, open(&job), &settings(1, None), &mut hear).unwrap();
    assert!(told[0].contains("180 labelled samples"), "{told:?}");
    let alone = of_generator(&first, &job);
    let extractor = &alone.protocol.extractor;
    assert_eq!(
        (extractor.kind.as_str(), extractor.features),
        ("classifier", 128)
    );
    assert!(extractor.accuracy.unwrap() > 0.9, "{extractor:?}");
    assert_eq!(
        (alone.protocol.samples, alone.protocol.floor_samples),
        (200, 100)
    );
    for workers in [2, 3] {
        told.clear();
        let mut hear = |what: &str| told.push(what.to_owned());
        let crew = settings(workers, None);
        let evaluator = Evaluator::prepare(&job, open(&job), &crew, &mut hear).unwrap();
        assert!(!told.concat().contains("training"), "it was kept: {told:?}");
        assert_eq!(of_generator(&evaluator, &job), alone, "{workers} workers");
    }

    // Trained again, it is the same.
    fs::remove_dir_all(bars.path("cache/extractors")).unwrap();
    assert_eq!(
        of_generator(&prepare(&job, &settings(2, None)).unwrap(), &job),
        alone
    );

    let real = first.images(open(&job), Step(0), "digest").unwrap();
    assert_eq!(real.floor, alone.floor);
    let (of_noise, of_real, floor) = (&alone.scores, &real.scores, &real.floor);
    assert!(
        of_real[&Score::Fid] < floor[&Score::Fid],
        "nearly the same images"
    );
    assert!(
        of_noise[&Score::Fid] > 20.0 * floor[&Score::Fid],
        "{of_noise:?} {floor:?}"
    );
    assert!(of_noise[&Score::Kid] > 20.0 * floor[&Score::Kid].abs());
    assert!(of_noise[&Score::Coverage] < 0.1 && of_noise[&Score::Recall] < 0.5);
    assert!(
        floor[&Score::Coverage] > 0.8 && floor[&Score::Precision] > 0.5,
        "{floor:?}"
    );
    assert_eq!((of_real[&Score::Modes], first.modes()), (4.0, Some(4)));
    assert!(of_real[&Score::KlData] < 0.01 && of_noise[&Score::KlUniform] > 0.1);
}

/// Points are their own features, and their modes are the mixture's.
#[test]
fn points_are_scored_as_they_are() {
    let cache = tempfile::tempdir().unwrap();
    let text = format!(
        "[job]\nname = \"ring\"\n[data]\nuri = \"synthetic:ring\"\nshard_folder = {:?}\n\
         synthetic = {{ samples = 600 }}\n[model]\narchitecture = \"mlp\"\nlatent = 2\n\
         generator_width = 8\ndiscriminator_width = 8\n[train]\nsteps = 1\nreplicas = 1\n",
        cache.path()
    );
    let job = crate::config::parse(&text, "ring", Path::new("/"), &[]).unwrap();
    let evaluator = prepare(&job, &settings(1, None)).unwrap();
    let drawn = of_generator(&evaluator, &job);
    let extractor = &drawn.protocol.extractor;
    assert_eq!((extractor.kind.as_str(), extractor.features), ("none", 2));
    assert_eq!(evaluator.modes(), Some(8));
    assert_eq!(drawn.floor[&Score::Modes], 8.0);
    close(drawn.floor[&Score::HighQuality], 0.989, 0.02);
    assert!(
        drawn.scores[&Score::HighQuality] < 0.5,
        "it has learned nothing"
    );
    let real = evaluator.images(open(&job), Step(0), "digest").unwrap();
    assert_eq!(real.scores[&Score::Modes], 8.0);
    assert!(real.scores[&Score::Fid] < 0.1 * drawn.scores[&Score::Fid]);
    let again = prepare(&job, &settings(3, None)).unwrap();
    assert_eq!(of_generator(&again, &job), drawn);
}

/// Each colour of a stacked image is a digit of its label, and is told by one classifier.
#[test]
fn stacked_images_are_told_digit_by_digit() {
    let bars = Bars::new(4);
    let mut job = bars.job(&bars.write("data", 200, true));
    job.data.uri = format!("stacked:{}", job.data.uri);
    job.data.stacked.samples = 160;
    job.model.channels = 3;
    let evaluator = prepare(&job, &settings(2, None)).unwrap();
    let real = evaluator.images(open(&job), Step(0), "digest").unwrap();
    let extractor = &real.protocol.extractor;
    assert_eq!(extractor.features, 3 * 128);
    assert!(extractor.accuracy.unwrap() > 0.7, "{extractor:?}");
    let modes = evaluator.modes().unwrap();
    assert!(
        (40..=64).contains(&modes),
        "{modes} of the 64 triples of four digits"
    );
    let told = real.scores[&Score::Modes];
    assert!(told > 0.5 * modes as f64, "{told} of {modes}");
    assert!(
        real.scores[&Score::KlUniform] > 1.0,
        "64 triples are not 1000"
    );
}

/// A level alone refines the data's own images at half the side; with a coarser level it refines what
/// that one draws, and a coarser level is compared with the data at its own size.
#[test]
fn a_pyramid_is_scored_level_by_level_and_as_a_whole() {
    let bars = Bars::new(4);
    let plain = bars.job(&bars.write("data", 200, true));
    let mut fine = plain.clone();
    fine.model.pyramid = true;
    let mut coarse = plain.clone();
    coarse.model.image_size = 16;
    coarse.data.reduce = 2;
    let script = traced(&bars, "rows.pt", |images| {
        images
            .mean_dim(&[3i64][..], false, Kind::Float)
            .flatten(1, 2)
    });
    let some = |workers| settings(workers, Some(script.clone()));

    let evaluator = prepare(&fine, &some(1)).unwrap();
    let alone = of_generator(&evaluator, &fine);
    assert_eq!(
        of_generator(&prepare(&fine, &some(3)).unwrap(), &fine),
        alone
    );
    // An untrained level adds nearly nothing to what it is given.
    let from_nothing = of_generator(&prepare(&plain, &some(2)).unwrap(), &plain);
    assert!(alone.scores[&Score::Fid] < 0.1 * from_nothing.scores[&Score::Fid]);

    let below = prepare(&coarse, &some(2)).unwrap();
    let drawn = of_generator(&below, &coarse);
    let real = below.images(open(&coarse), Step(0), "digest").unwrap();
    assert!(real.scores[&Score::Fid] < 0.1 * drawn.scores[&Score::Fid]);

    let tensors = [&coarse, &fine].map(generator);
    let [first, second] = [level(&coarse, &tensors[0]), level(&fine, &tensors[1])];
    let score =
        |levels: &[Level<'_>]| evaluator.generator(levels, SamplesOf::Newest, Step(0), "digest");
    let whole = score(&[first, second]).unwrap();
    assert!(whole.scores[&Score::Fid] > 10.0 * alone.scores[&Score::Fid]);
    // What can't be compared has another protocol, and says so.
    assert!(alone.protocol.refines_data && !whole.protocol.refines_data);
    let error = score(&[second, first]).unwrap_err();
    assert!(
        error.is_users() && error.to_string().contains("doesn't refine"),
        "{error}"
    );
}

#[test]
fn the_settings_decide_what_is_compared() {
    let bars = Bars::new(2);
    let job = bars.job(&bars.write("data", 330, false));
    let script = traced(&bars, "mean.pt", |images| {
        images
            .mean_dim(&[2i64][..], false, Kind::Float)
            .flatten(1, 2)
    });
    let mut some = settings(1, Some(script.clone()));
    some.samples = 40;
    let few = of_generator(&prepare(&job, &some).unwrap(), &job);
    assert_eq!((few.protocol.samples, few.protocol.reals), (40, 40));
    assert_eq!(
        few.protocol.floor_samples, 40,
        "halves are no larger than what is compared"
    );
    some.seed = 1;
    let other = of_generator(&prepare(&job, &some).unwrap(), &job);
    assert_ne!(few.scores, other.scores, "the seed decides the latents");
}

/// A TorchScript file of what `features` does.
fn traced(bars: &Bars, name: &str, features: impl Fn(&Tensor) -> Tensor) -> PathBuf {
    let path = bars.path(name);
    let example = Tensor::zeros([2, 1, 32, 32], (Kind::Float, Device::Cpu));
    let mut trace = |images: &[Tensor]| vec![features(&images[0])];
    CModule::create_by_tracing("extractor", "forward", &[example], &mut trace)
        .unwrap()
        .save(&path)
        .unwrap();
    path
}

#[test]
fn a_named_extractor_needs_no_labels_and_is_known_by_its_file() {
    let bars = Bars::new(3);
    let job = bars.job(&bars.write("data", 120, false));
    let script = traced(&bars, "rows.pt", |images| {
        images
            .mean_dim(&[3i64][..], false, Kind::Float)
            .flatten(1, 2)
    });
    let evaluator = prepare(&job, &settings(2, Some(script.clone()))).unwrap();
    let found = of_generator(&evaluator, &job);
    let extractor = &found.protocol.extractor;
    let hash = super::script::sha256(&fs::read(&script).unwrap());
    assert_eq!(
        (extractor.kind.as_str(), extractor.features),
        ("torchscript", 32)
    );
    assert_eq!(
        (extractor.hash.as_str(), extractor.accuracy),
        (hash.as_str(), None)
    );
    assert!(
        !found.scores.contains_key(&Score::Modes),
        "nobody tells classes"
    );
    assert!(found.scores[&Score::Fid] > 10.0 * found.floor[&Score::Fid]);
    let alone = prepare(&job, &settings(1, Some(script))).unwrap();
    assert_eq!(of_generator(&alone, &job), found);
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_what_to_do() {
    let bars = Bars::new(3);
    let unlabelled = bars.job(&bars.write("unlabelled", 120, false));
    let refused = |job: &Job, extractor: Option<PathBuf>, phrases: &[&str]| {
        let error = prepare(job, &settings(1, extractor)).unwrap_err();
        let message = error.to_string();
        for phrase in phrases {
            assert!(message.contains(phrase), "{message:?} lacks {phrase:?}");
        }
        assert!(error.is_users() || matches!(error, EvaluateError::Io { .. }));
    };
    refused(
        &unlabelled,
        None,
        &["no labels", "--extractor FILE.pt", "folder of its own"],
    );
    let one = Bars::new(1);
    let same = one.job(&one.write("same", 60, true));
    refused(&same, None, &["labels of 1 class", "--extractor"]);
    let few = bars.job(&bars.write("few", 11, true));
    refused(&few, None, &["11 samples", "12 at least"]);

    let flat = traced(&bars, "flat.pt", |images| images.flatten(0, -1));
    refused(
        &unlabelled,
        Some(flat),
        &["flat.pt", "[64, features]", "a tensor ["],
    );
    let classes = traced(&bars, "classes.pt", |images| {
        images.flatten(1, -1).argmax(1, true)
    });
    refused(&unlabelled, Some(classes), &["classes.pt", "of kind Int64"]);
    let narrow = traced(&bars, "narrow.pt", |images| {
        images
            .flatten(1, -1)
            .matmul(&Tensor::zeros([1024, 4], (Kind::Float, Device::Cpu)))
    });
    prepare(&unlabelled, &settings(1, Some(narrow.clone()))).unwrap();
    let mut larger = unlabelled.clone();
    larger.model.image_size = 64;
    refused(
        &larger,
        Some(narrow),
        &["narrow.pt", "refuses images [64, 1, 64, 64]"],
    );
    let text = bars.path("text.pt");
    fs::write(&text, "no archive").unwrap();
    refused(&unlabelled, Some(text), &["text.pt", "torch.jit.save"]);
    refused(
        &unlabelled,
        Some(bars.path("nowhere.pt")),
        &["nowhere.pt", "can't read"],
    );
}

#[test]
fn features_that_are_not_finite_are_refused() {
    let bars = Bars::new(3);
    let job = bars.job(&bars.write("data", 120, false));
    let script = traced(&bars, "nan.pt", |images| images.flatten(1, -1).log());
    let error = prepare(&job, &settings(1, Some(script))).unwrap_err();
    assert!(matches!(error, EvaluateError::NotFinite { .. }), "{error}");
}

#[test]
fn an_evaluation_that_is_called_off_ends() {
    let bars = Bars::new(3);
    let job = bars.job(&bars.write("data", 120, true));
    let settings = settings(1, None);
    let called_off = settings.crew.called_off();
    called_off.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = prepare(&job, &settings).unwrap_err();
    assert!(matches!(error, EvaluateError::CalledOff), "{error}");
}
