//! A generator that draws images, without a job around it.

use super::TrainError;
use super::snapshot::load_network;
use crate::checkpoint::TensorData;
use crate::config::{Model, Precision};
use crate::model::{Architecture, Latents, Network, Statistics};
use crate::random::{Domain, Key};
use crate::torch::{self, TorchError};
use tch::{Device, Kind, Tensor};

/// Images that are drawn at a time. Fixed, and filled up at the end: kernels may add in another
/// order for other batch sizes, so an image would depend on how many are drawn with it.
const CHUNK: usize = 16;

/// A generator with its running statistics. Each image depends on its own latent only.
///
/// The bits also depend on the intra-op threads of the calling thread; see
/// [`set_threads`](crate::torch::set_threads).
#[derive(Debug)]
pub struct Sampler {
    architecture: Architecture,
    latent: usize,
    parameters: Tensor,
    running: Tensor,
    device: Device,
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
    pub(super) fn over(
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
            latent: model.latent as usize,
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

    /// Draws `count` images from this key.
    ///
    /// # Shapes
    /// `[count, c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn draw_from(&self, key: Key, count: usize) -> Result<Vec<u8>, TrainError> {
        self.sample(&Latents::draw(key, count, self.latent)?)
    }

    /// The first `count` latents of the seed's own. The n-th is the same however many are drawn.
    ///
    /// # Errors
    /// [`TrainError::Torch`].
    pub fn latents(&self, seed: u64, count: usize) -> Result<Latents, TrainError> {
        let key = Key::new(Domain::Samples, &[seed]);
        // libtorch draws by sixteen numbers, and its last ones overlap unless it comes out even.
        let even = Latents::draw(key, count.next_multiple_of(16), self.latent)?;
        let values = even.values()[..count * self.latent].to_vec();
        Latents::new(self.latent, values).ok_or(TrainError::Latents {
            found: 0,
            expected: self.latent,
        })
    }

    /// The images of these latents.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// [`TrainError::Latents`] for latents of another size, or [`TrainError::Torch`].
    pub fn sample(&self, latents: &Latents) -> Result<Vec<u8>, TrainError> {
        self.in_chunks(latents, CHUNK, Statistics::Running(&self.running))
    }

    /// The images of these latents in batches of `batch`, each with its own statistics, as in
    /// training: an image depends on its neighbours (the tutorial's figure 21). The last batch has
    /// what is left.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_batches(&self, latents: &Latents, batch: usize) -> Result<Vec<u8>, TrainError> {
        let computed = self.running.f_zeros_like().map_err(TorchError::from)?;
        self.in_chunks(latents, batch.max(1), Statistics::Batch(&computed))
    }

    fn in_chunks(
        &self,
        latents: &Latents,
        chunk: usize,
        statistics: Statistics<'_>,
    ) -> Result<Vec<u8>, TrainError> {
        if latents.size() != self.latent {
            return Err(TrainError::Latents {
                found: latents.size(),
                expected: self.latent,
            });
        }
        let mut pixels = Vec::new();
        for values in latents.values().chunks(chunk * self.latent) {
            let batch = match statistics {
                Statistics::Running(_) => chunk,
                Statistics::Batch(_) => values.len() / self.latent,
            };
            let images = self.images(values, batch, statistics)?;
            let old = pixels.len();
            pixels.resize(old + images.numel(), 0);
            images
                .f_copy_data_u8(&mut pixels[old..], images.numel())
                .map_err(TorchError::from)?;
        }
        Ok(pixels)
    }

    /// The images of these values, filled up to `batch`, as bytes in host memory.
    fn images(
        &self,
        values: &[f32],
        batch: usize,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TorchError> {
        let mut padded = vec![0.0; batch * self.latent];
        padded[..values.len()].copy_from_slice(values);
        let z = Tensor::f_from_slice(&padded)?
            .f_view([batch as i64, self.latent as i64, 1, 1])?
            .f_to_device(self.device)?;
        torch::catch("draw images", || {
            let images = Network::frozen(&self.architecture, &self.parameters, Precision::F32)?
                .forward(&z, statistics)?;
            Ok(images
                .f_narrow(0, 0, (values.len() / self.latent) as i64)?
                .f_add_scalar(1.0)?
                .f_mul_scalar(127.5)?
                .f_round()?
                .f_clamp(0.0, 255.0)?
                .f_to_kind(Kind::Uint8)?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?)
        })
    }
}
