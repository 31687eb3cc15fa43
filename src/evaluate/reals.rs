//! The data set's samples, in an order of the evaluation's own.

use super::{EvaluateError, draws};
use crate::data::{DataError, Dataset, Shard, averages};
use crate::random::{Domain, Key};
use std::fmt;
use std::sync::Arc;

/// A data set, any sample of which can be had by its number, as a generator learns of it.
pub(super) struct Reals {
    dataset: Arc<Dataset>,
    /// `data.reduce`: images are averaged over squares of so many pixels.
    reduce: usize,
    /// Number of each shard's first sample.
    starts: Vec<u64>,
}

impl fmt::Debug for Reals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reals")
            .field("data", &self.dataset.digest())
            .field("reduce", &self.reduce)
            .finish_non_exhaustive()
    }
}

impl Reals {
    pub(super) fn new(dataset: Arc<Dataset>, reduce: u32) -> Self {
        let mut next = 0;
        let starts = dataset
            .shard_sizes()
            .into_iter()
            .map(|size| {
                next += size;
                next - size
            })
            .collect();
        Self {
            dataset,
            reduce: reduce as usize,
            starts,
        }
    }

    pub(super) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// `data.reduce`.
    pub(super) fn reduce(&self) -> u32 {
        self.reduce as u32
    }

    pub(super) fn count(&self) -> u64 {
        self.dataset.samples()
    }

    /// All numbers, shuffled by a key of their own.
    pub(super) fn shuffled(&self, seed: u64, purpose: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..self.count()).collect();
        Key::new(Domain::Evaluation, &[seed, draws::ORDER, purpose])
            .stream()
            .shuffle(&mut order);
        order
    }

    /// Of a sample: channels, rows, columns.
    pub(super) fn shape(&self) -> [u32; 3] {
        let [channels, high, wide] = self.dataset.sample_shape();
        let reduce = self.reduce as u32;
        [channels, high / reduce, wide / reduce]
    }

    /// Pixels of these samples, one after the other.
    pub(super) fn pixels(&self, numbers: &[u64]) -> Result<Vec<u8>, EvaluateError> {
        let mut pixels = Vec::with_capacity(numbers.len() * self.dataset.sample_bytes());
        for &number in numbers {
            let (shard, index) = self.place(number)?;
            let sample = self.sample(&shard, index)?.pixels;
            match self.reduce {
                1 => pixels.extend_from_slice(sample),
                by => pixels.extend(
                    self.averages(sample, by)
                        .map(|mean| mean.round_ties_even() as u8),
                ),
            }
        }
        Ok(pixels)
    }

    /// These images at half the side, in -1 … 1: what a level of a pyramid goes on from.
    pub(super) fn coarse(&self, numbers: &[u64]) -> Result<Vec<f32>, EvaluateError> {
        let mut values = Vec::new();
        for &number in numbers {
            let (shard, index) = self.place(number)?;
            let sample = self.sample(&shard, index)?.pixels;
            let means = self.averages(sample, 2 * self.reduce);
            values.extend(means.map(|mean| mean / 127.5 - 1.0));
        }
        Ok(values)
    }

    fn averages<'a>(&self, pixels: &'a [u8], by: usize) -> impl Iterator<Item = f32> + 'a {
        averages(pixels, self.dataset.sample_shape()[1] as usize, by)
    }

    /// Labels of these samples; none if the data has none.
    pub(super) fn labels(&self, numbers: &[u64]) -> Result<Option<Vec<u32>>, EvaluateError> {
        if !self.dataset.manifest().labels {
            return Ok(None);
        }
        let label = |&number: &u64| -> Result<Option<u32>, EvaluateError> {
            let (shard, index) = self.place(number)?;
            Ok(self.sample(&shard, index)?.label)
        };
        numbers.iter().map(label).collect()
    }

    fn place(&self, number: u64) -> Result<(Arc<Shard>, u64), EvaluateError> {
        // The last shard that begins at or before it.
        let shard = self.starts.partition_point(|&start| start <= number) - 1;
        let found = self.dataset.shard(shard as u32)?;
        Ok((found, number - self.starts[shard]))
    }

    fn sample<'a>(
        &self,
        shard: &'a Shard,
        index: u64,
    ) -> Result<crate::data::Sample<'a>, EvaluateError> {
        shard.sample(index).ok_or_else(|| {
            EvaluateError::Data(DataError::Corrupt {
                path: self.dataset.folder().to_owned(),
                found: format!("a shard without sample {index}"),
                expected: "those that its manifest lists".to_owned(),
            })
        })
    }
}
