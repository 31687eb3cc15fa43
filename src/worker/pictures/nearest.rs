//! `gan-worker nearest`: the training images that lie nearest to samples: whether the generator
//! has learned to draw, or has learned its images by heart.

use super::picks::Picks;
use super::source::{Source, checkpoint_in, psi, scale};
use super::{PictureError, Report, named, progress};
use crate::command::Failure;
use crate::config::Job;
use crate::data::Dataset;
use crate::evaluate::job_of;
use crate::random::{Domain, Key};
use crate::sample::{
    Format, Images, Nearest, Neighbour, Sheet, median, squared_distance, write_picture,
};
use crate::worker::cli::cores;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Which images are looked at, and among which.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: eight images, and the five training images nearest to each
  gan-worker nearest runs/mnist --images 0-7 --out nearest.png

A distance is the root of the mean squared difference of pixels, of 255. To judge it, the same is
computed for as many training images and their nearest other ones: a generator that draws new
images is about as far from its data as these are from each other, one that has learned them by
heart is much nearer.")]
pub(in crate::worker) struct NearestImages {
    #[command(flatten)]
    source: Source,
    /// The picture (PNG) to write: a row for each image, its neighbours on the right.
    #[arg(long)]
    out: PathBuf,
    /// Which images, as in 3,17,25 or 0-7; 9:3 is image 3 of seed 9.
    #[arg(long, default_value = "0-7")]
    images: Picks,
    /// Neighbours of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    neighbours: u32,
    /// The images to look among, as data.uri in a job file [default: what it was trained on].
    #[arg(long, value_name = "URI")]
    data: Option<String>,
    /// Move latents towards the middle of all: 1 leaves them, 0 gives what all have in common.
    #[arg(long, value_name = "PSI", default_value = "1", value_parser = psi)]
    truncation: f64,
    /// Threads that share the work [default: all cores]. Nothing depends on it.
    #[arg(long)]
    cores: Option<u32>,
    /// Repeat each pixel so often along a row [default: 64 pixels an image].
    #[arg(long, value_parser = scale())]
    scale: Option<u32>,
}

/// An image that neighbours are looked for.
struct Query {
    pixels: Vec<u8>,
    /// Its own place, if it is one of the data's.
    itself: Option<u64>,
    nearest: Nearest,
}

impl NearestImages {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.source.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let out = named(&self.out, "png");
        Format::expect(&out, &[Format::Png])?;
        let painter = self.source.open()?;
        let folder = checkpoint_in(&self.source.checkpoint)?;
        let manifest = &painter.weights.manifest;
        let dataset = open(&job_of(&folder, manifest, self.data.as_deref())?)?;
        let other = *dataset.digest() != painter.weights.manifest.data_digest;
        if other {
            eprintln!("note: this is not the data that the generator was trained on");
        }
        let latents = painter.latents_at(&self.images, self.truncation)?;
        let samples = painter.paint(&latents)?;
        let bytes = dataset.sample_bytes();
        let most = self
            .neighbours
            .min(u32::try_from(dataset.samples()).unwrap_or(u32::MAX));
        let query = |pixels: &[u8], itself, most: u32| Query {
            pixels: pixels.to_vec(),
            itself,
            nearest: Nearest::new(most as usize),
        };
        let drawn = samples.pixels.chunks(bytes);
        let mut queries: Vec<Query> = drawn.map(|pixels| query(pixels, None, most)).collect();
        let places = references(self.source.seed, dataset.samples(), queries.len());
        for &place in &places {
            queries.push(query(&at(&dataset, place)?.0, Some(place), 1));
        }
        search(&dataset, &mut queries, cores(self.cores))?;
        let references = queries.split_off(latents.len());

        let mut pixels = Vec::new();
        let mut captions = Vec::new();
        let mut told = Vec::new();
        for (query, pick) in queries.iter().zip(&self.images.0) {
            pixels.extend(&query.pixels);
            captions.push(pick.to_string());
            let mut neighbours = Vec::new();
            for found in query.nearest.found() {
                let (image, label) = at(&dataset, found.place)?;
                pixels.extend(image);
                let distance = found.distance(bytes);
                captions.push(format!("{distance:.1}"));
                let (shard, row) = shard_of(&dataset, found.place);
                neighbours.push(json!({
                    "shard": shard, "row": row, "label": label, "distance": distance,
                }));
            }
            told.push(json!({ "image": pick.to_string(), "nearest": neighbours }));
        }
        let sheet = Sheet {
            images: &Images { pixels, ..samples },
            columns: most + 1,
            captions,
            headers: Vec::new(),
            breaks: vec![1],
            band: None,
            scale: self.scale,
        };
        write_picture(&out, &sheet.draw()?)?;
        let middle = |queries: &[Query]| {
            let first = |query: &Query| query.nearest.found().first().copied();
            let nearest = queries.iter().filter_map(first);
            median(nearest.map(|n: Neighbour| n.distance(bytes)).collect())
        };
        let (ours, theirs) = (middle(&queries), middle(&references));
        let number = |n: Option<f64>| n.map_or("none".to_owned(), |n| format!("{n:.1}"));
        let text = format!(
            "{}: {} among {} images of the data; {}\n\
             median distance to the nearest: {}; of training images to each other: {}",
            out.display(),
            queries.len(),
            dataset.samples(),
            painter.says(),
            number(ours),
            number(theirs)
        );
        let object = json!({
            "out": out,
            "checkpoint": painter.weights.json(),
            "seed": self.source.seed,
            "truncation": self.truncation,
            "data_digest": dataset.digest(),
            "trained_on_this_data": !other,
            "samples": told,
            "median_distance": ours,
            "median_distance_of_the_data": theirs,
        });
        Ok(Report { text, object })
    }
}

fn open(job: &Job) -> Result<Dataset, PictureError> {
    let mut bar = None;
    let dataset = Dataset::open(job, &mut |done, total| {
        let bar = bar.get_or_insert_with(|| progress(total, "packing the images"));
        bar.set_position(done);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(dataset?)
}

/// So many different places among `samples`, a keyed choice.
fn references(seed: u64, samples: u64, count: usize) -> Vec<u64> {
    let mut stream = Key::new(Domain::References, &[seed]).stream();
    let mut places = Vec::new();
    let count = count.min(usize::try_from(samples / 2).unwrap_or(usize::MAX));
    while places.len() < count {
        let place = stream.below(samples);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Shard and row of the sample at `place`, all shards in the manifest's order.
fn shard_of(dataset: &Dataset, place: u64) -> (u32, u64) {
    let mut row = place;
    for (shard, size) in dataset.shard_sizes().into_iter().enumerate() {
        if row < size {
            return (shard as u32, row);
        }
        row -= size;
    }
    (u32::MAX, row)
}

/// Pixels and label of the sample at `place`.
fn at(dataset: &Dataset, place: u64) -> Result<(Vec<u8>, Option<u32>), PictureError> {
    let (number, row) = shard_of(dataset, place);
    let shard = dataset.shard(number)?;
    let sample = shard.sample(row);
    sample
        .map(|sample| (sample.pixels.to_vec(), sample.label))
        .ok_or_else(|| PictureError::Command(format!("the data has no sample {place}")))
}

/// Looks through all of the data, shard by shard, on so many threads.
fn search(dataset: &Dataset, queries: &mut [Query], cores: u32) -> Result<(), PictureError> {
    let sizes = dataset.shard_sizes();
    let firsts = sizes.iter().scan(0, |next, size| {
        let first = *next;
        *next += size;
        Some(first)
    });
    let firsts: Vec<u64> = firsts.collect();
    let bar = progress(dataset.samples(), "looking at");
    let next = AtomicU32::new(0);
    let blank: Vec<Nearest> = queries.iter().map(|query| query.nearest.clone()).collect();
    let found = Mutex::new((blank.clone(), None));
    let asked: &[Query] = queries;
    let work = || {
        let mut own = blank.clone();
        let result = loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&first) = firsts.get(number as usize) else {
                break Ok(());
            };
            let shard = match dataset.shard(number) {
                Ok(shard) => shard,
                Err(error) => break Err(error),
            };
            let images = shard.pixels().chunks(dataset.sample_bytes());
            for (place, image) in (first..).zip(images) {
                for (query, nearest) in asked.iter().zip(&mut own) {
                    if query.itself != Some(place) {
                        let squared = squared_distance(&query.pixels, image);
                        nearest.offer(Neighbour { squared, place });
                    }
                }
            }
            bar.inc(shard.samples());
        };
        let mut all = found.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(error) => all.1 = Some(error),
            Ok(()) => all
                .0
                .iter_mut()
                .zip(&own)
                .for_each(|(all, own)| all.merge(own)),
        }
    };
    std::thread::scope(|threads| {
        for _ in 1..cores {
            threads.spawn(work);
        }
        work();
    });
    bar.finish_and_clear();
    let (all, failed) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failed {
        return Err(error.into());
    }
    for (query, nearest) in queries.iter_mut().zip(all) {
        query.nearest = nearest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_different_and_keyed() {
        let places = references(3, 40, 12);
        assert_eq!(places, references(3, 40, 12));
        assert_ne!(places, references(4, 40, 12));
        let distinct: std::collections::BTreeSet<_> = places.iter().collect();
        assert_eq!(distinct.len(), 12);
        assert!(places.iter().all(|&place| place < 40));
        assert_eq!(references(0, 5, 12).len(), 2, "no more than half of all");
        assert!(references(0, 0, 3).is_empty());
    }
}
