//! One replica's mathematics in one step: from images and weights to the vectors that travel.
//!
//! Nothing here changes the state, knows how many replicas there are, where batches come from, or
//! waits for anybody.

use super::inputs::{Inputs, Rounds, Weights};
use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::vectors::Vectors;
use crate::config::{BatchNorm, Job, MemoryFormat, Model, Precision, Update};
use crate::model::{Architecture, Input, Network, Statistics, Values};
use crate::objective::{self, Objective};
use crate::regularise::{Regularisers, Side, interpolate, squared_norm, squared_norm_off_one};
use crate::torch::TorchError;
use tch::{Device, Kind, Tensor};

/// What all replicas of a job have in common.
#[derive(Debug)]
pub(super) struct Game {
    pub(super) generator: Architecture,
    pub(super) discriminator: Architecture,
    pub(super) objective: Box<dyn Objective>,
    pub(super) regularisers: Regularisers,
    pub(super) update: Update,
    pub(super) rounds: Rounds,
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
    pub(super) reduce: i64,
    pub(super) device: Device,
}

/// What a replica keeps between the two halves of an alternating step: its fakes, with the graph
/// that made them.
#[derive(Debug)]
pub(super) struct Fakes {
    /// As D sees them.
    images: Tensor,
    /// Real ones as D sees them, if G's cost needs D to look at them too.
    real: Option<Tensor>,
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

/// D's two looks: what it saw, and what it said.
struct Looks<'a> {
    real: (&'a Tensor, &'a Tensor),
    fake: (&'a Tensor, &'a Tensor),
}

impl Game {
    pub(super) fn new(job: &Job, device: Device) -> Self {
        let model = &job.model;
        let order = job.train.memory_format;
        let generator = Architecture::generator(model).ordered(order);
        let discriminator = Architecture::discriminator(model, job.train.packing).ordered(order);
        let [channels, high, wide] = job.packed_shape().map(i64::from);
        Self {
            discriminator_layout: DiscriminatorLayout::new(
                &discriminator,
                job.guard.watches_diversity(),
            ),
            generator_layout: GeneratorLayout::new(&generator, &discriminator, job.train.update),
            generator,
            discriminator,
            objective: objective::of(job.train.objective, job.regularise.label_smoothing),
            regularisers: Regularisers::of(job),
            update: job.train.update,
            rounds: Rounds {
                discriminator: job.train.discriminator_steps,
                generator: job.train.generator_steps,
            },
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
        let inputs = &self.complete(inputs)?;
        let x = self.seen(inputs)?;

        let fake = generator.forward(inputs.latent(), Statistics::Batch(&generated))?;
        let images = self.regularisers.show(&fake, Side::Fake, &inputs.chance)?;
        let x_fake = images
            .f_detach()?
            .f_set_requires_grad(self.regularisers.r2 > 0.0)?;
        let [on_real, on_fake] =
            self.judge(&discriminator, inputs, [&x, &x_fake], [&real, &faked])?;
        let looks = Looks {
            real: (&x, &on_real),
            fake: (&x_fake, &on_fake),
        };
        let j_d = self.cost(&discriminator, inputs, looks)?;
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), false, false)?;

        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
        self.write_diversity(&vectors.discriminator, inputs, &fake)?;
        let kept = self.keeps_real().then(|| x.f_detach());
        Ok(Fakes {
            images,
            real: kept.transpose()?,
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

        let (on_real, on_fake) = match &fakes.real {
            Some(real) if self.together() => {
                let both = [real, &fakes.images];
                let places = [&judged, &judged];
                let [on_real, on_fake] = self.judge(&discriminator, &fakes.inputs, both, places)?;
                (Some(on_real.f_detach()?), on_fake)
            }
            real => {
                let look = |samples: &Tensor, place: &Tensor| {
                    discriminator.forward(fakes.inputs.judged(samples), Statistics::Batch(place))
                };
                // Running statistics follow what D sees of fakes here, and nothing else.
                let aside = judged.f_zeros_like()?;
                let on_real = real.as_ref().map(|real| look(real, &aside)).transpose()?;
                (on_real, look(&fakes.images, &judged)?)
            }
        };
        let j_g = self.objective.generator(&on_fake, on_real.as_ref())?;
        let d_g = Tensor::f_run_backward(&[&j_g], &fakes.leaves, false, false)?;

        self.write_generator(&fakes.vector, &d_g, &j_g)
    }

    /// A further update of G, after D's: new fakes, which the same D judges. Fills G's vector.
    pub(super) fn again(
        &self,
        weights: &Weights,
        inputs: &Inputs,
        vector: Tensor,
    ) -> Result<(), TorchError> {
        let to = &self.generator_layout;
        let generated = part(&vector, &to.generated)?.f_zero_()?;
        let _judged = part(&vector, &to.judged)?.f_zero_()?;
        let generator = self.trainable(&self.generator, weights.generator())?;
        let inputs = &self.complete(inputs)?;
        let fake = generator.forward(inputs.latent(), Statistics::Batch(&generated))?;
        let real = match self.keeps_real() {
            true => Some(self.seen(inputs)?.f_detach()?),
            false => None,
        };
        let fakes = Fakes {
            images: self.regularisers.show(&fake, Side::Fake, &inputs.chance)?,
            real,
            inputs: inputs.share(),
            running: weights.discriminator_running.shallow_clone(),
            leaves: generator.into_leaves(),
            vector,
        };
        self.deceive(fakes, &weights.discriminator)
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
        let inputs = &self.complete(inputs)?;
        let x = self.seen(inputs)?;

        let fake = generator.forward(inputs.latent(), Statistics::Batch(&generated))?;
        let x_fake = self.regularisers.show(&fake, Side::Fake, &inputs.chance)?;
        let first = if self.together() { &look } else { &real };
        let [on_real, on_fake] =
            self.judge(&discriminator, inputs, [&x, &x_fake], [first, &look])?;
        let looks = Looks {
            real: (&x, &on_real),
            fake: (&x_fake, &on_fake),
        };
        let j_d = self.cost(&discriminator, inputs, looks)?;
        let paired = self.objective.pairs().then(|| on_real.f_detach());
        let paired = paired.transpose()?;
        let j_g = self.objective.generator(&on_fake, paired.as_ref())?;
        // It computes what it is asked for: J_D's gradient stops at D's weights.
        let d_d = Tensor::f_run_backward(&[&j_d], discriminator.leaves(), true, false)?;

        let mut travelling = if self.together() { real } else { faked };
        travelling.f_copy_(&look)?;
        self.write_discriminator(&vectors.discriminator, &d_d, &j_d, [&on_real, &on_fake])?;
        self.write_diversity(&vectors.discriminator, inputs, &fake)?;
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
    pub(super) fn together(&self) -> bool {
        self.model.batch_norm == BatchNorm::Together
    }

    /// Whether G's cost needs D to look at real samples too.
    fn keeps_real(&self) -> bool {
        self.objective.pairs() || self.together()
    }

    /// Real images as D sees them; its slope by them can be asked for if R1 needs it.
    fn seen(&self, inputs: &Inputs) -> Result<Tensor, TorchError> {
        let images = self.real(&inputs.pixels)?;
        let seen = self
            .regularisers
            .show(&images, Side::Real, &inputs.chance)?;
        Ok(match self.regularisers.r1 > 0.0 {
            true => seen.f_detach()?.f_set_requires_grad(true)?,
            false => seen,
        })
    }

    /// J_D: the game's cost, and the penalties on D's slope.
    fn cost(
        &self,
        discriminator: &Network<'_>,
        inputs: &Inputs,
        looks: Looks<'_>,
    ) -> Result<Tensor, TorchError> {
        let ((x, on_real), (x_fake, on_fake)) = (looks.real, looks.fake);
        let ours = &self.regularisers;
        let mut cost = self.objective.discriminator(on_real, on_fake)?;
        for (gamma, on, x) in [(ours.r1, on_real, x), (ours.r2, on_fake, x_fake)] {
            if gamma > 0.0 {
                let penalty = squared_norm(on, x)?.f_mul_scalar(gamma / 2.0)?;
                cost = cost.f_add(&penalty)?;
            }
        }
        if let Some(mixes) = inputs.chance.mixes() {
            let between = interpolate(x, x_fake, mixes)?;
            // There is no batch norm in a D with a penalty, so nothing is written.
            let nothing = Tensor::f_zeros(
                [self.discriminator.statistics as i64],
                (Kind::Float, self.device),
            )?;
            let on = discriminator.forward(inputs.judged(&between), Statistics::Batch(&nothing))?;
            let penalty = squared_norm_off_one(&on, &between)?;
            cost = cost.f_add(&penalty.f_mul_scalar(ours.gradient_penalty)?)?;
        }
        Ok(cost)
    }

    fn trainable<'a>(
        &self,
        architecture: &'a Architecture,
        values: Values<'_>,
    ) -> Result<Network<'a>, TorchError> {
        Network::trainable(architecture, values, self.precision)
    }
}
