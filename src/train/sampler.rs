//! A generator that draws images, without a job around it.

use super::TrainError;
use super::snapshot::load_network;
use crate::checkpoint::TensorData;
use crate::config::{Model, Precision};
use crate::model::{Architecture, Input, Latents, Network, Statistics, Values};
use crate::random::{Domain, Key};
use crate::torch::{self, TorchError};
use tch::{Device, Tensor};

/// Images that are drawn at a time. Fixed, and filled up at the end: kernels may add in another
/// order for other batch sizes, so an image would depend on how many are drawn with it.
const CHUNK: usize = 16;

/// Points that are drawn at a time: a product of matrices may add up a row in another order for its
/// place among the others.
const POINTS: usize = 1;

/// A generator with its running statistics. Each image depends on its own latent only.
///
/// The bits also depend on the intra-op threads of the calling thread; see
/// [`set_threads`](crate::torch::set_threads).
#[derive(Debug)]
pub struct Sampler {
    architecture: Architecture,
    model: Model,
    parameters: Tensor,
    running: Tensor,
    device: Device,
}

/// What some samples are made from.
struct Given<'a> {
    /// Coarser images, for a level of a pyramid.
    coarse: Option<&'a [f32]>,
    latents: &'a [f32],
    labels: &'a [u32],
}

impl Sampler {
    /// A generator from the state dict in a checkpoint's file `generator` or `generator_ema`.
    ///
    /// # Errors
    /// [`TrainError::State`], which names the first tensor that differs from `model`'s.
    pub fn new(model: &Model, tensors: &[TensorData], device: Device) -> Result<Self, TrainError> {
        let architecture = Architecture::generator(model);
        let (parameters, running) = load_network("generator", tensors, &architecture)?;
        Self::over(architecture, model, &parameters, &running, device)
    }

    /// A generator over parameters that are there already, in the architecture's order.
    pub(crate) fn over(
        architecture: Architecture,
        model: &Model,
        parameters: &Tensor,
        running: &Tensor,
        device: Device,
    ) -> Result<Self, TrainError> {
        let place = || -> Result<_, TorchError> {
            Ok((
                parameters.f_to_device(device)?,
                running.f_to_device(device)?,
            ))
        };
        let (parameters, running) = place()?;
        Ok(Self {
            architecture,
            model: model.clone(),
            parameters,
            running,
            device,
        })
    }

    /// Draws `count` images of the seed's own: the grid's, if the seed is the job's.
    ///
    /// # Shapes
    /// `[count, c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn draw(&self, seed: u64, count: usize) -> Result<Vec<u8>, TrainError> {
        self.sample(&self.latents(seed, count)?)
    }

    /// The first `count` latents of the seed's own. The n-th is the same however many are drawn.
    ///
    /// # Errors
    /// [`TrainError::Torch`].
    pub fn latents(&self, seed: u64, count: usize) -> Result<Latents, TrainError> {
        let key = Key::new(Domain::Samples, &[seed]);
        Ok(Latents::first(&self.model, key, count)?)
    }

    /// The images of these latents; of a conditional generator, the i-th has the label i modulo
    /// `model.classes`.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// [`TrainError::Latents`] for latents of another size, or [`TrainError::Torch`].
    pub fn sample(&self, latents: &Latents) -> Result<Vec<u8>, TrainError> {
        self.sample_of(latents, &self.labels_in_turn(latents.count()))
    }

    /// The images of these latents for these labels, one each; a generator that isn't conditional
    /// doesn't look at them.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub fn sample_of(&self, latents: &Latents, labels: &[u32]) -> Result<Vec<u8>, TrainError> {
        Ok(bytes(self.values(latents, labels)?))
    }

    /// The images of these latents for these labels in batches of `batch`, each with its own
    /// statistics, as in training: an image depends on its neighbours (the tutorial's figure 21). The
    /// last batch has what is left.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub fn sample_batches(
        &self,
        latents: &Latents,
        labels: &[u32],
        batch: usize,
    ) -> Result<Vec<u8>, TrainError> {
        let computed = self.running.f_zeros_like().map_err(TorchError::from)?;
        let statistics = Statistics::Batch(&computed);
        let values = self.in_chunks(None, latents, labels, statistics, batch.max(1))?;
        Ok(bytes(values))
    }

    /// What a level of a pyramid makes of these coarser images, one a latent: images of twice their
    /// side.
    ///
    /// # Shapes
    /// `[latents.count(), c, s/2, s/2]` to `[latents.count(), c, s, s]`, about -1 … 1.
    ///
    /// # Errors
    /// As [`values`](Self::values), and [`TrainError::Coarse`] for coarser images that are too few or
    /// not of half the side, or if the generator is no level of a pyramid.
    pub fn refine(
        &self,
        coarse: &[f32],
        latents: &Latents,
        labels: &[u32],
    ) -> Result<Vec<f32>, TrainError> {
        self.in_chunks(
            Some(coarse),
            latents,
            labels,
            Statistics::Running(&self.running),
            self.chunk_len(),
        )
    }

    /// The generator's `[model]`.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the generator is a level of a pyramid: it [refines](Self::refine) images.
    pub fn refines(&self) -> bool {
        self.model.pyramid
    }

    /// Numbers of a coarser image.
    fn coarse_len(&self) -> usize {
        let [channels, high, wide] = self.model.sample_shape().map(|side| side as usize);
        channels * (high / 2) * (wide / 2)
    }

    fn check_coarse(&self, coarse: Option<&[f32]>, count: usize) -> Result<(), TrainError> {
        let wrong = |detail: String| Err(TrainError::Coarse { detail });
        let side = self.model.image_size / 2;
        match (self.model.pyramid, coarse) {
            (true, None) => wrong(format!(
                "the generator is a level of a pyramid, and refines images of {side}×{side} pixels: it \
                 needs some"
            )),
            (false, Some(_)) => wrong("the generator is no level of a pyramid".to_owned()),
            (true, Some(coarse)) if coarse.len() != count * self.coarse_len() => wrong(format!(
                "{} numbers for {count} images of {side}×{side} pixels",
                coarse.len()
            )),
            _ => Ok(()),
        }
    }

    /// The labels 0, 1, 2 … `model.classes` - 1, 0, 1 …; zeros, if the generator isn't conditional.
    pub fn labels_in_turn(&self, count: usize) -> Vec<u32> {
        let classes = self.model.classes.max(1);
        (0..classes).cycle().take(count).collect()
    }

    /// What the generator makes of these latents for these labels, as it makes it: images in
    /// -1 … 1, or points.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, or `[latents.count(), 2]`.
    ///
    /// # Errors
    /// [`TrainError::Latents`] for latents of another size, [`TrainError::Labels`] for labels that
    /// are too few or that there aren't, or [`TrainError::Torch`].
    pub fn values(&self, latents: &Latents, labels: &[u32]) -> Result<Vec<f32>, TrainError> {
        self.in_chunks(
            None,
            latents,
            labels,
            Statistics::Running(&self.running),
            self.chunk_len(),
        )
    }

    fn in_chunks(
        &self,
        coarse: Option<&[f32]>,
        latents: &Latents,
        labels: &[u32],
        statistics: Statistics<'_>,
        chunk: usize,
    ) -> Result<Vec<f32>, TrainError> {
        let size = self.model.latent as usize;
        if latents.size() != size {
            return Err(TrainError::Latents {
                found: latents.size(),
                expected: size,
            });
        }
        self.check_labels(latents.count(), labels)?;
        self.check_coarse(coarse, latents.count())?;
        let mut coarse = coarse.map(|coarse| coarse.chunks(chunk * self.coarse_len()));
        let mut values = Vec::new();
        let mut labels = labels.chunks(chunk);
        for latents in latents.values().chunks(chunk * size) {
            let batch = match statistics {
                Statistics::Running(_) => chunk,
                // What fills it up would be part of the statistics.
                Statistics::Batch(_) => latents.len() / size,
            };
            let given = Given {
                coarse: coarse.as_mut().and_then(Iterator::next),
                latents,
                labels: labels.next().unwrap_or_default(),
            };
            let made = self.chunk(given, batch, statistics)?;
            let old = values.len();
            values.resize(old + made.numel(), 0.0);
            made.f_copy_data(&mut values[old..], made.numel())
                .map_err(TorchError::from)?;
        }
        Ok(values)
    }

    fn check_labels(&self, count: usize, labels: &[u32]) -> Result<(), TrainError> {
        if !self.model.is_conditional() {
            return Ok(());
        }
        let classes = self.model.classes;
        let wrong = |detail: String| Err(TrainError::Labels { detail });
        match labels.iter().find(|&&label| label >= classes) {
            Some(label) => wrong(format!(
                "there is no {label}: they are 0 to {}",
                classes - 1
            )),
            None if labels.len() != count => wrong(format!("{} for {count} latents", labels.len())),
            None => Ok(()),
        }
    }

    /// Samples that are drawn at a time.
    fn chunk_len(&self) -> usize {
        match self.model.has_points() {
            true => POINTS,
            false => CHUNK,
        }
    }

    /// The samples of what is given, computed as a batch of `batch`, in host memory.
    fn chunk(
        &self,
        given: Given<'_>,
        batch: usize,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TrainError> {
        let Given {
            coarse,
            latents,
            labels,
        } = given;
        let size = self.model.latent as usize;
        let count = latents.len() / size;
        let mut padded = vec![0.0; batch * size];
        padded[..latents.len()].copy_from_slice(latents);
        let mut classes = vec![0i64; batch];
        for (to, &label) in classes.iter_mut().zip(labels) {
            *to = i64::from(label);
        }
        let drawn: Result<Tensor, TorchError> = torch::catch("draw samples", || {
            let place = |tensor: Tensor, shape: &[i64]| -> Result<Tensor, TorchError> {
                Ok(tensor.f_view(shape)?.f_to_device(self.device)?)
            };
            let z = [batch as i64, size as i64, 1, 1];
            let z = place(Tensor::f_from_slice(&padded)?, &z)?;
            let labels = place(Tensor::f_from_slice(&classes)?, &[batch as i64])?;
            let noise = self.noise(latents, batch)?;
            let noise = noise
                .map(|noise| place(noise, &[batch as i64, -1]))
                .transpose()?;
            let coarse = coarse
                .map(|coarse| self.coarse(coarse, batch))
                .transpose()?;
            let input = Input {
                x: &z,
                labels: Some(&labels),
                noise: noise.as_ref(),
                coarse: coarse.as_ref(),
            };
            let values = Values {
                parameters: &self.parameters,
                running: &self.running,
            };
            let samples = Network::frozen(&self.architecture, values, Precision::F32)?
                .forward(input, statistics)?;
            Ok(samples
                .f_narrow(0, 0, count as i64)?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?)
        });
        Ok(drawn?)
    }

    /// Coarser images, filled up to `batch`.
    fn coarse(&self, images: &[f32], batch: usize) -> Result<Tensor, TorchError> {
        let mut padded = vec![0.0; batch * self.coarse_len()];
        padded[..images.len()].copy_from_slice(images);
        let [channels, high, wide] = self.model.sample_shape().map(i64::from);
        let shape = [batch as i64, channels, high / 2, wide / 2];
        Ok(Tensor::f_from_slice(&padded)?
            .f_view(shape)?
            .f_to_device(self.device)?)
    }

    /// Hidden noise for these latents, filled up to `batch`: of each, a function of the latent, so
    /// that what is drawn doesn't depend on what is drawn beside it.
    fn noise(&self, latents: &[f32], batch: usize) -> Result<Option<Tensor>, TorchError> {
        let len = self.architecture.noise;
        if len == 0 {
            return Ok(None);
        }
        let mut noise = vec![0.0; batch * len];
        let latents = latents.chunks(self.model.latent as usize);
        for (latent, place) in latents.zip(noise.chunks_exact_mut(len)) {
            let numbers: Vec<u64> = latent.iter().map(|z| u64::from(z.to_bits())).collect();
            let drawn = Latents::draw(Key::new(Domain::Noise, &numbers), 1, len)?;
            place.copy_from_slice(drawn.values());
        }
        Ok(Some(Tensor::f_from_slice(&noise)?))
    }
}

/// Values of images, -1 … 1, as 0 … 255.
pub fn bytes(values: Vec<f32>) -> Vec<u8> {
    values.into_iter().map(byte).collect()
}

/// A value of an image, -1 … 1, as 0 … 255, rounded as libtorch does: halves to even.
pub(super) fn byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round_ties_even().clamp(0.0, 255.0) as u8
}
