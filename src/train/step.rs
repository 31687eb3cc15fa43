//! One replica's mathematics in one step: from images and weights to the vectors that travel.
//!
//! Nothing here changes the state, knows how many replicas there are, where batches come from, or
//! waits for anybody.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use crate::config::{Job, MemoryFormat, Precision, Update};
use crate::data::{Batch, Pixels};
use crate::ids::{ReplicaId, Step};
use crate::model::{Architecture, Latents, Network, Statistics, view};
use crate::objective::{self, Objective};
use crate::random::{Domain, Key};
use crate::torch::{TorchError, channels_last};
use tch::{Device, Kind, Tensor};

/// What all replicas of a job have in common.
#[derive(Debug)]
pub(super) struct Game {
    pub(super) generator: Architecture,
    pub(super) discriminator: Architecture,
    pub(super) objective: Box<dyn Objective>,
    pub(super) update: Update,
    pub(super) precision: Precision,
    /// Of activations and weights.
    pub(super) order: MemoryFormat,
    pub(super) discriminator_layout: DiscriminatorLayout,
    pub(super) generator_layout: GeneratorLayout,
    pub(super) seed: u64,
    /// Shape of a batch of images: `[b, c, s, s]`.
    pub(super) images: [i64; 4],
    pub(super) latent: usize,
    pub(super) device: Device,
}

/// Both networks' flat parameters.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) generator: Tensor,
    pub(super) discriminator: Tensor,
}

impl Weights {
    /// The same memory, for another thread to read.
    pub(super) fn share(&self) -> Self {
        Self {
            generator: self.generator.shallow_clone(),
            discriminator: self.discriminator.shallow_clone(),
        }
    }
}

/// What a replica computes on in one step, on the device. On a GPU this may be memory that is filled
/// anew for every step.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Bytes, 0 is black: `[b, c, s, s]`.
    pub(super) pixels: Tensor,
    /// `[b, z, 1, 1]`.
    pub(super) latents: Tensor,
}

impl Inputs {
    /// The same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            pixels: self.pixels.shallow_clone(),
            latents: self.latents.shallow_clone(),
        }
    }
}

/// A replica's two vectors, to be written.
#[derive(Debug)]
pub(super) struct Vectors {
    pub(super) discriminator: Tensor,
    pub(super) generator: Tensor,
}

impl Vectors {
    /// The same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            discriminator: self.discriminator.shallow_clone(),
            generator: self.generator.shallow_clone(),
        }
    }
}

/// What a replica keeps between the two halves of an alternating step: its fakes, with the graph
/// that made them.
#[derive(Debug)]
pub(super) struct Fakes {
    images: Tensor,
    /// G's parameters in that graph.
    leaves: Vec<Tensor>,
    /// G's vector.
    vector: Tensor,
}

/// What a replica keeps between the two halves of a simultaneous step: G's cost, with the graph
/// that made it.
#[derive(Debug)]
pub(super) struct Answer {
    cost: Tensor,
    /// G's parameters in that graph.
    leaves: Vec<Tensor>,
    /// G's vector.
    vector: Tensor,
}

impl Game {
    pub(super) fn new(job: &Job, device: Device) -> Self {
        let model = &job.model;
        let order = job.train.memory_format;
        let generator = Architecture::generator(model).ordered(order);
        let discriminator = Architecture::discriminator(model).ordered(order);
        let side = i64::from(model.image_size);
        Self {
            discriminator_layout: DiscriminatorLayout::new(
                &discriminator,
                job.guard.watches_diversity(),
            ),
            generator_layout: GeneratorLayout::new(&generator, &discriminator, job.train.update),
            generator,
            discriminator,
            objective: objective::of(job.train.objective),
            update: job.train.update,
            precision: job.train.precision,
            order,
            seed: job.job.seed,
            images: [
                i64::from(job.train.batch),
                i64::from(model.channels),
                side,
                side,
            ],
            latent: model.latent as usize,
            device,
        }
    }

    /// The first half of an alternating step: fills D's vector, and the part of G's that tells of
    /// the fakes.
    pub(super) fn discriminate(
        &self,
        weights: &Weights,
        inputs: &Inputs,
        vectors: Vectors,
    ) -> Result<Fakes, TorchError> {
        let (generated, real, faked) = self.clear(&vectors)?;
        let generator = self.trainable(&self.generator, &weights.generator)?;
        let discriminator = self.trainable(&self.discriminator, &weights.discriminator)?;
        let x = self.real(&inputs.pixels)?;

        let fake = generator.forward(&inputs.latents, Statistics::Batch(&generated))?;
        // Real images and fakes are minibatches of their own for batch norm.
        let on_real = discriminator.forward(&x, Statistics::Batch(&real))?;
        let on_fake = discriminator.forward(&fake.f_detach()?, Statistics::Batch(&faked))?;
        let j_d = self.objective.discriminator(&on_real, &on_fake)?;
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), false, false)?;

        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
        self.write_diversity(&vectors.discriminator, [&x, &fake])?;
        Ok(Fakes {
            images: fake,
            leaves: generator.into_leaves(),
            vector: vectors.generator,
        })
    }

    /// The second half of an alternating step, against the new D: fills the rest of G's vector.
    /// D is frozen: G's gradient passes through it, and D's own is never computed.
    pub(super) fn deceive(&self, fakes: Fakes, discriminator: &Tensor) -> Result<(), TorchError> {
        let discriminator = Network::frozen(&self.discriminator, discriminator, self.precision)?;
        let judged = part(&fakes.vector, &self.generator_layout.judged)?;

        let on_fake = discriminator.forward(&fakes.images, Statistics::Batch(&judged))?;
        let j_g = self.objective.generator(&on_fake)?;
        let d_g = Tensor::f_run_backward(&[&j_g], &fakes.leaves, false, false)?;

        self.write_generator(&fakes.vector, &d_g, &j_g)
    }

    /// The first half of a simultaneous step, in which both gradients are of the same point, from one
    /// look of D at the fakes: fills D's vector, and the part of G's that tells of the fakes.
    pub(super) fn oppose(
        &self,
        weights: &Weights,
        inputs: &Inputs,
        vectors: Vectors,
    ) -> Result<Answer, TorchError> {
        let (generated, real, faked) = self.clear(&vectors)?;
        // Not where they travel from: D's vector is written, and may be on its way, before the
        // gradient passes through this look for the second time.
        let look = faked.f_zeros_like()?;
        let generator = self.trainable(&self.generator, &weights.generator)?;
        let discriminator = self.trainable(&self.discriminator, &weights.discriminator)?;
        let x = self.real(&inputs.pixels)?;

        let fake = generator.forward(&inputs.latents, Statistics::Batch(&generated))?;
        let on_real = discriminator.forward(&x, Statistics::Batch(&real))?;
        let on_fake = discriminator.forward(&fake, Statistics::Batch(&look))?;
        let j_d = self.objective.discriminator(&on_real, &on_fake)?;
        let j_g = self.objective.generator(&on_fake)?;
        // It computes what it is asked for: J_D's gradient stops at D's weights.
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), true, false)?;

        part(&vectors.discriminator, &self.discriminator_layout.fake)?.f_copy_(&look)?;
        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
        self.write_diversity(&vectors.discriminator, [&x, &fake])?;
        Ok(Answer {
            cost: j_g,
            leaves: generator.into_leaves(),
            vector: vectors.generator,
        })
    }

    /// The second half of a simultaneous step: fills the rest of G's vector. J_G's gradient passes
    /// D's weights by.
    pub(super) fn respond(&self, answer: Answer) -> Result<(), TorchError> {
        let d_g = Tensor::f_run_backward(&[&answer.cost], &answer.leaves, false, false)?;
        self.write_generator(&answer.vector, &d_g, &answer.cost)
    }

    fn trainable<'a>(
        &self,
        architecture: &'a Architecture,
        flat: &Tensor,
    ) -> Result<Network<'a>, TorchError> {
        Network::trainable(architecture, flat, self.precision)
    }

    /// Pixels 0 … 255 to -1 … 1, ordered as all activations are.
    fn real(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        let pixels = match self.order {
            MemoryFormat::ChannelsLast => channels_last(pixels)?,
            MemoryFormat::Contiguous => pixels.f_contiguous()?,
        };
        Ok(pixels
            .f_to_kind(Kind::Float)?
            .f_divide_scalar_(127.5)?
            .f_sub_scalar_(1.0)?)
    }

    /// A batch's images and latents, brought to the device. `cache` is the data set, if that lies
    /// there.
    pub(super) fn inputs(
        &self,
        batch: &Batch,
        cache: Option<&Tensor>,
    ) -> Result<Inputs, TorchError> {
        let pixels = match (&batch.pixels, cache) {
            (Pixels::Bytes(bytes), _) => {
                Tensor::f_from_data_size(bytes, &self.images, Kind::Uint8)?
                    .f_to_device(self.device)?
            }
            (Pixels::Places(places), Some(cache)) => {
                let places = Tensor::f_from_slice(places)?.f_to_device(self.device)?;
                cache.f_index_select(0, &places)?
            }
            (Pixels::Places(_), None) => {
                return Err(TorchError::Shim {
                    doing: "find a batch's images",
                    message: "they are named by their places, but no data set is on the device"
                        .to_owned(),
                });
            }
        };
        Ok(Inputs {
            pixels,
            latents: self
                .latents(batch.step, batch.replica)?
                .to_tensor(self.device)?,
        })
    }

    /// What batch norm saw in a step, in the order of the forward passes, from the means of both
    /// vectors. D: real images, fakes, and in an alternating step the new D the fakes; G: latents.
    pub(super) fn statistics(
        &self,
        of_d: &Tensor,
        of_g: &Tensor,
    ) -> Result<[Vec<Tensor>; 2], TorchError> {
        let (d, g) = (&self.discriminator_layout, &self.generator_layout);
        let mut judgements = vec![part(of_d, &d.real)?, part(of_d, &d.fake)?];
        if self.update == Update::Alternating {
            judgements.push(part(of_g, &g.judged)?);
        }
        Ok([judgements, vec![part(of_g, &g.generated)?]])
    }

    /// The replica's latents: of this step, whoever computes it and however often.
    pub(super) fn latents(&self, step: Step, replica: ReplicaId) -> Result<Latents, TorchError> {
        let key = Key::new(Domain::Latents, &[self.seed, step.0, u64::from(replica.0)]);
        Latents::draw(key, self.images[0] as usize, self.latent)
    }

    /// The places of the statistics of G(z), D(real) and D(fake), zeroed, as those of a second D's
    /// are: batch norm multiplies what is there by 0, which would keep a NaN.
    ///
    /// All of them, before the first forward pass: between a pass that leaves statistics in a vector
    /// and the end of the backward pass through it, autograd would take a write anywhere in that
    /// vector for a change of the statistics, and refuse.
    fn clear(&self, vectors: &Vectors) -> Result<(Tensor, Tensor, Tensor), TorchError> {
        let (d, g) = (&self.discriminator_layout, &self.generator_layout);
        let zeroed = |vector, range| part(vector, range)?.f_zero_();
        let _judged = zeroed(&vectors.generator, &g.judged)?;
        Ok((
            zeroed(&vectors.generator, &g.generated)?,
            zeroed(&vectors.discriminator, &d.real)?,
            zeroed(&vectors.discriminator, &d.fake)?,
        ))
    }

    fn write_discriminator(
        &self,
        vector: &Tensor,
        gradients: &[Tensor],
        loss: &Tensor,
        [on_real, on_fake]: [&Tensor; 2],
    ) -> Result<(), TorchError> {
        let to = &self.discriminator_layout;
        write_gradients(&self.discriminator, vector, gradients)?;
        write_scalar(vector, to.loss, loss)?;
        for (place, logits) in [(to.belief_real, on_real), (to.belief_fake, on_fake)] {
            let belief = logits.f_detach()?.f_sigmoid()?.f_mean(Kind::Float)?;
            write_scalar(vector, place, &belief)?;
        }
        Ok(())
    }

    /// How much the images of each batch differ from each other: a pixel's standard deviation over
    /// the batch, in the mean over channels and pixels.
    fn write_diversity(&self, vector: &Tensor, images: [&Tensor; 2]) -> Result<(), TorchError> {
        for (place, images) in self.discriminator_layout.diversity.clone().zip(images) {
            let images = images.f_detach()?.f_to_kind(Kind::Float)?;
            let deviation = images.f_std_dim(&[0i64][..], false, false)?;
            write_scalar(vector, place, &deviation.f_mean(Kind::Float)?)?;
        }
        Ok(())
    }

    fn write_generator(
        &self,
        vector: &Tensor,
        gradients: &[Tensor],
        loss: &Tensor,
    ) -> Result<(), TorchError> {
        write_gradients(&self.generator, vector, gradients)?;
        write_scalar(vector, self.generator_layout.loss, loss)
    }
}

/// The gradients begin every vector, in the order of the flat parameters.
fn write_gradients(
    architecture: &Architecture,
    vector: &Tensor,
    gradients: &[Tensor],
) -> Result<(), TorchError> {
    for (parameter, gradient) in architecture.parameters.iter().zip(gradients) {
        view(vector, parameter)?.f_copy_(gradient)?;
    }
    Ok(())
}

fn write_scalar(vector: &Tensor, place: usize, value: &Tensor) -> Result<(), TorchError> {
    let value = value.f_detach()?.f_reshape([1])?;
    part(vector, &(place..place + 1))?.f_copy_(&value)?;
    Ok(())
}
