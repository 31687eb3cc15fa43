//! One replica's mathematics in one step: from images and weights to the vectors that travel.
//!
//! Nothing here changes the state, knows how many replicas there are, where batches come from, or
//! waits for anybody.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::state::PlayerState;
use crate::config::{BatchNorm, Job, MemoryFormat, Model, Precision, Update};
use crate::data::{Batch, Pixels};
use crate::ids::{ReplicaId, Step};
use crate::model::{Architecture, Input, Latents, Network, Statistics, Values, reduced, view};
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
    /// Shape of a batch of samples as they are packed: `[b, c, s, s]`; a point's coordinates are
    /// channels of one pixel.
    pub(super) images: [i64; 4],
    /// Of the samples: bytes of images, or numbers of points.
    pub(super) kind: Kind,
    pub(super) model: Model,
    /// `data.reduce`.
    reduce: i64,
    pub(super) device: Device,
}

/// Both networks' flat parameters, and their running values, of which only spectral norm's vectors
/// are read.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) generator: Tensor,
    pub(super) discriminator: Tensor,
    pub(super) generator_running: Tensor,
    pub(super) discriminator_running: Tensor,
}

impl Weights {
    /// Those of this state, in its own memory.
    pub(super) fn of(generator: &PlayerState, discriminator: &PlayerState) -> Self {
        Self {
            generator: generator.parameters.shallow_clone(),
            discriminator: discriminator.parameters.shallow_clone(),
            generator_running: generator.running.shallow_clone(),
            discriminator_running: discriminator.running.shallow_clone(),
        }
    }

    /// The same memory, for another thread to read.
    pub(super) fn share(&self) -> Self {
        Self {
            generator: self.generator.shallow_clone(),
            discriminator: self.discriminator.shallow_clone(),
            generator_running: self.generator_running.shallow_clone(),
            discriminator_running: self.discriminator_running.shallow_clone(),
        }
    }

    fn generator(&self) -> Values<'_> {
        Values {
            parameters: &self.generator,
            running: &self.generator_running,
        }
    }

    fn discriminator(&self) -> Values<'_> {
        Values {
            parameters: &self.discriminator,
            running: &self.discriminator_running,
        }
    }
}

/// What a replica computes on in one step, on the device. On a GPU this may be memory that is filled
/// anew for every step.
#[derive(Debug)]
pub(super) struct Inputs {
    /// `[b, c, s, s]`: bytes, 0 is black; or the numbers of points.
    pub(super) pixels: Tensor,
    /// `[b, z, 1, 1]`.
    pub(super) latents: Tensor,
    /// `[b]`, `i64`, if the networks are told of labels: those of the real samples, and the fakes are
    /// made for the same.
    pub(super) labels: Option<Tensor>,
    /// `[b, noise]`, if the generator has hidden noise.
    pub(super) noise: Option<Tensor>,
    /// `[b, c, s/2, s/2]`: the real samples at half their side, for a level of a pyramid. Made of the
    /// pixels when a step begins.
    pub(super) coarse: Option<Tensor>,
}

impl Inputs {
    /// The same memory.
    pub(super) fn share(&self) -> Self {
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self {
            pixels: self.pixels.shallow_clone(),
            latents: self.latents.shallow_clone(),
            labels: share(&self.labels),
            noise: share(&self.noise),
            coarse: share(&self.coarse),
        }
    }

    /// What the generator makes fakes of.
    pub(super) fn latent(&self) -> Input<'_> {
        Input {
            x: &self.latents,
            labels: self.labels.as_ref(),
            noise: self.noise.as_ref(),
            coarse: self.coarse.as_ref(),
        }
    }

    /// These samples, real or fake, as the discriminator looks at them.
    pub(super) fn judged<'a>(&'a self, samples: &'a Tensor) -> Input<'a> {
        Input {
            labels: self.labels.as_ref(),
            coarse: self.coarse.as_ref(),
            ..Input::from(samples)
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
    /// What they were made of.
    inputs: Inputs,
    /// D's running values at the start of the step.
    running: Tensor,
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
        let discriminator = Architecture::discriminator(model, 1).ordered(order);
        let [channels, high, wide] = job.packed_shape().map(i64::from);
        Self {
            discriminator_layout: DiscriminatorLayout::new(&discriminator),
            generator_layout: GeneratorLayout::new(&generator, &discriminator, job.train.update),
            generator,
            discriminator,
            objective: objective::of(job.train.objective),
            update: job.train.update,
            precision: job.train.precision,
            order,
            seed: job.job.seed,
            images: [i64::from(job.train.batch), channels, high, wide],
            kind: match model.has_points() {
                true => Kind::Float,
                false => Kind::Uint8,
            },
            model: model.clone(),
            reduce: i64::from(job.data.reduce),
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
        let generator = self.trainable(&self.generator, weights.generator())?;
        let discriminator = self.trainable(&self.discriminator, weights.discriminator())?;
        let (x, inputs) = self.begin(inputs)?;
        let inputs = &inputs;

        let fake = generator.forward(inputs.latent(), Statistics::Batch(&generated))?;
        let detached = fake.f_detach()?;
        let [on_real, on_fake] =
            self.judge(&discriminator, inputs, [&x, &detached], [&real, &faked])?;
        let j_d = self.objective.discriminator(&on_real, &on_fake)?;
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), false, false)?;

        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
        Ok(Fakes {
            images: fake,
            inputs: inputs.share(),
            running: weights.discriminator_running.shallow_clone(),
            leaves: generator.into_leaves(),
            vector: vectors.generator,
        })
    }

    /// The second half of an alternating step, against the new D: fills the rest of G's vector.
    /// D is frozen: G's gradient passes through it, and D's own is never computed.
    pub(super) fn deceive(&self, fakes: Fakes, discriminator: &Tensor) -> Result<(), TorchError> {
        let values = Values {
            parameters: discriminator,
            running: &fakes.running,
        };
        let discriminator = Network::frozen(&self.discriminator, values, self.precision)?;
        let judged = part(&fakes.vector, &self.generator_layout.judged)?;

        let on_fake = match self.together() {
            true => {
                let x = self.real(&fakes.inputs.pixels)?;
                let [_, on_fake] = self.judge(
                    &discriminator,
                    &fakes.inputs,
                    [&x, &fakes.images],
                    [&judged, &judged],
                )?;
                on_fake
            }
            false => {
                let input = fakes.inputs.judged(&fakes.images);
                discriminator.forward(input, Statistics::Batch(&judged))?
            }
        };
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
        let generator = self.trainable(&self.generator, weights.generator())?;
        let discriminator = self.trainable(&self.discriminator, weights.discriminator())?;
        let (x, inputs) = self.begin(inputs)?;
        let inputs = &inputs;

        let fake = generator.forward(inputs.latent(), Statistics::Batch(&generated))?;
        let first = if self.together() { &look } else { &real };
        let [on_real, on_fake] = self.judge(&discriminator, inputs, [&x, &fake], [first, &look])?;
        let j_d = self.objective.discriminator(&on_real, &on_fake)?;
        let j_g = self.objective.generator(&on_fake)?;
        // It computes what it is asked for: J_D's gradient stops at D's weights.
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), true, false)?;

        let mut travelling = if self.together() { real } else { faked };
        travelling.f_copy_(&look)?;
        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
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

    /// D's logits on real samples and on fakes. For batch norm they are minibatches of their own,
    /// whose statistics go to places of their own; or one, whose statistics go to the first place.
    fn judge(
        &self,
        discriminator: &Network<'_>,
        inputs: &Inputs,
        [real, fake]: [&Tensor; 2],
        [of_real, of_fake]: [&Tensor; 2],
    ) -> Result<[Tensor; 2], TorchError> {
        if !self.together() {
            let look = |samples, place| {
                discriminator.forward(inputs.judged(samples), Statistics::Batch(place))
            };
            return Ok([look(real, of_real)?, look(fake, of_fake)?]);
        }
        let both = Tensor::f_cat(&[&real.f_to_kind(fake.kind())?, fake], 0)?;
        let twice = |labels: &Tensor| Tensor::f_cat(&[labels, labels], 0);
        let labels = inputs.labels.as_ref().map(twice).transpose()?;
        let coarse = inputs.coarse.as_ref().map(twice).transpose()?;
        let input = Input {
            labels: labels.as_ref(),
            coarse: coarse.as_ref(),
            ..Input::from(&both)
        };
        let logits = discriminator.forward(input, Statistics::Batch(of_real))?;
        let (first, second) = (real.size()[0], fake.size()[0]);
        Ok([
            logits.f_narrow(0, 0, first)?,
            logits.f_narrow(0, first, second)?,
        ])
    }

    /// Whether D's batch norm takes real samples and fakes for one batch.
    fn together(&self) -> bool {
        self.model.batch_norm == BatchNorm::Together
    }

    /// Batches that D's running statistics see in a step.
    pub(super) fn looks(&self) -> i64 {
        let judged = i64::from(self.update == Update::Alternating);
        judged + if self.together() { 1 } else { 2 }
    }

    fn trainable<'a>(
        &self,
        architecture: &'a Architecture,
        values: Values<'_>,
    ) -> Result<Network<'a>, TorchError> {
        Network::trainable(architecture, values, self.precision)
    }

    /// Pixels 0 … 255 to -1 … 1, ordered as all activations are; points as they are.
    fn real(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        if self.kind == Kind::Float {
            return Ok(pixels.shallow_clone());
        }
        let pixels = match self.order {
            MemoryFormat::ChannelsLast => channels_last(pixels)?,
            MemoryFormat::Contiguous => pixels.f_contiguous()?,
        };
        let images = pixels
            .f_to_kind(Kind::Float)?
            .f_divide_scalar_(127.5)?
            .f_sub_scalar_(1.0)?;
        reduced(&images, self.reduce)
    }

    /// The real samples, and the inputs with all that is made of them.
    fn begin(&self, inputs: &Inputs) -> Result<(Tensor, Inputs), TorchError> {
        let x = self.real(&inputs.pixels)?;
        let mut inputs = inputs.share();
        if self.model.pyramid {
            inputs.coarse = Some(reduced(&x, 2)?);
        }
        Ok((x, inputs))
    }

    /// A batch's samples, and what else a step takes, brought to the device. `cache` is the data
    /// set, if that lies there.
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
            (Pixels::Numbers(numbers), _) => Tensor::f_from_slice(numbers)?
                .f_view(self.images)?
                .f_to_device(self.device)?,
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
        let labels = match batch.labels.as_ref().filter(|_| self.takes_labels()) {
            Some(labels) => {
                let labels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
                Some(Tensor::f_from_slice(&labels)?.f_to_device(self.device)?)
            }
            None => None,
        };
        let noise = match self.generator.noise {
            0 => None,
            len => Some(
                Tensor::f_from_slice(&self.noise(batch.step, batch.replica)?)?
                    .f_view([self.images[0], len as i64])?
                    .f_to_device(self.device)?,
            ),
        };
        Ok(Inputs {
            pixels,
            latents: self
                .latents(batch.step, batch.replica)?
                .to_tensor(self.device)?,
            labels,
            noise,
            coarse: None,
        })
    }

    /// Whether the networks are told of labels.
    pub(super) fn takes_labels(&self) -> bool {
        self.model.is_conditional()
    }

    /// What batch norm saw in a step, in the order of the forward passes, from the means of both
    /// vectors. D: real images, fakes, and in an alternating step the new D the fakes, or each time
    /// real images and fakes together; G: latents.
    pub(super) fn statistics(
        &self,
        of_d: &Tensor,
        of_g: &Tensor,
    ) -> Result<[Vec<Tensor>; 2], TorchError> {
        let (d, g) = (&self.discriminator_layout, &self.generator_layout);
        let mut judgements = vec![part(of_d, &d.real)?];
        if !self.together() {
            judgements.push(part(of_d, &d.fake)?);
        }
        if self.update == Update::Alternating {
            judgements.push(part(of_g, &g.judged)?);
        }
        Ok([judgements, vec![part(of_g, &g.generated)?]])
    }

    /// The replica's latents: of this step, whoever computes it and however often.
    pub(super) fn latents(&self, step: Step, replica: ReplicaId) -> Result<Latents, TorchError> {
        let key = Key::new(Domain::Latents, &[self.seed, step.0, u64::from(replica.0)]);
        Latents::of(&self.model, key, self.images[0] as usize)
    }

    /// The replica's hidden noise in this step, `[b, noise]`.
    pub(super) fn noise(&self, step: Step, replica: ReplicaId) -> Result<Vec<f32>, TorchError> {
        let key = Key::new(Domain::Noise, &[self.seed, step.0, u64::from(replica.0)]);
        let drawn = Latents::draw(key, self.images[0] as usize, self.generator.noise)?;
        Ok(drawn.values().to_vec())
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
