//! Samples that are made rather than found: points of mixtures, stacked images; and what conditional
//! models need of labels.

use super::*;
use crate::data::{Element, Mixture};

fn points(cache: &Path, sets: &[&str]) -> Job {
    let mut sets = sets.to_vec();
    sets.extend(["model.architecture=mlp", "data.uri=synthetic:grid"]);
    job(Path::new("synthetic:grid"), cache, &sets)
}

#[test]
fn points_are_packed_as_they_are_drawn_with_the_numbers_of_their_modes() {
    let dirs = TempDirs::new();
    let job = points(
        dirs.cache.path(),
        &["data.synthetic.samples=300", "data.shard_samples=128"],
    );
    let dataset = open(&job).unwrap();
    assert_eq!(
        (dataset.samples(), dataset.sample_shape()),
        (300, [2, 1, 1])
    );
    assert_eq!(
        (dataset.element(), dataset.sample_bytes()),
        (Element::Float, 8)
    );
    assert_eq!(dataset.manifest().classes, Some(25));
    let mixture = Mixture::of(&job.data).unwrap();
    let mut seen = Vec::new();
    for shard in 0..3 {
        let shard = dataset.shard(shard).unwrap();
        for index in 0..shard.samples() {
            let sample = shard.sample(index).unwrap();
            let (values, _) = sample.pixels.as_chunks();
            let point: Vec<f32> = values
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect();
            let centre = mixture.centres[sample.label.unwrap() as usize];
            let off = centre
                .iter()
                .zip(&point)
                .map(|(c, x)| (c - f64::from(*x)).powi(2));
            assert!(off.sum::<f64>().sqrt() < 6.0 * mixture.deviation);
            seen.push((point[0].to_bits(), point[1].to_bits()));
        }
    }
    let mut drawn: Vec<(u32, u32)> = (0..300)
        .map(|i| mixture.point(0, i).map(f32::to_bits).into())
        .collect();
    seen.sort_unstable();
    drawn.sort_unstable();
    assert_eq!(seen, drawn);
    // The bytes are for ever: whoever packs them.
    assert_eq!(open(&job).unwrap().digest(), dataset.digest());
    let other = points(
        dirs.cache.path(),
        &["data.synthetic.samples=300", "data.synthetic.seed=1"],
    );
    assert_ne!(open(&other).unwrap().digest(), dataset.digest());
}

#[test]
fn stacked_images_are_three_of_the_source_and_their_labels_digits() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 50);
    let uri = format!("stacked:{}", dirs.source.path().display());
    let sets = ["model.channels=3", "data.stacked.samples=200"];
    let job = job(Path::new(&uri), dirs.cache.path(), &sets);
    let dataset = open(&job).unwrap();
    assert_eq!(
        (dataset.samples(), dataset.sample_shape()),
        (200, [3, 32, 32])
    );
    let shard = dataset.shard(0).unwrap();
    let mut labels = std::collections::BTreeSet::new();
    for index in 0..shard.samples() {
        let sample = shard.sample(index).unwrap();
        let of = sample.pixels.chunks(32 * 32).map(number);
        let digits: Vec<u32> = of.map(|number| number % 7).collect();
        let label = sample.label.unwrap();
        assert_eq!(label, 100 * digits[0] + 10 * digits[1] + digits[2]);
        labels.insert(label);
    }
    assert!(labels.len() > 100, "200 draws of 343");
    // Other triples by another seed, of the same files.
    let mut other = job.clone();
    other.data.stacked.seed = 1;
    assert_ne!(open(&other).unwrap().digest(), dataset.digest());
}

#[test]
fn only_idx_files_with_digits_are_stacked() {
    let dirs = TempDirs::new();
    let image = image::GrayImage::new(4, 4);
    image.save(dirs.source.path().join("a.png")).unwrap();
    let uri = format!("stacked:{}", dirs.source.path().display());
    let job = job(Path::new(&uri), dirs.cache.path(), &["model.channels=3"]);
    assert_says(&refusal(&job), &["IDX", "stacked"]);
}

#[test]
fn conditional_models_are_refused_data_without_fitting_labels() {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 20);
    let told = |classes: u32| {
        let classes = format!("model.classes={classes}");
        let sets = ["model.conditional=projection", &classes];
        job(dirs.source.path(), dirs.cache.path(), &sets)
    };
    assert!(open(&told(7)).is_ok() && open(&told(9)).is_ok());
    assert_says(&refusal(&told(6)), &["0 to 6", "model.classes = 6"]);
    std::fs::remove_file(dirs.source.path().join("n-labels-idx1-ubyte")).unwrap();
    assert_says(
        &refusal(&told(7)),
        &["no labels", "model.conditional", "projection"],
    );
}
