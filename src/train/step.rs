//! One replica's mathematics in one step: from images and weights to the vectors that travel.
//!
//! Nothing here changes the state, knows how many replicas there are, where batches come from, or
//! waits for anybody.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::state::PlayerState;
use crate::config::{BatchNorm, Job, MemoryFormat, Model, Precision, Update};
use crate::data::{Batch, Pixels};
use crate::model::{Architecture, Input, Latents, Network, Statistics, Values, reduced, view};
use crate::objective::{self, Objective};
use crate::random::{Domain, Key};
use crate::regularise::{
    Chance, Regularisers, Round, Side, interpolate, squared_norm, squared_norm_off_one,
};
use crate::torch::{TorchError, channels_last};
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

/// A step's updates of both players, in their order. A round is what belongs to one of them: first
/// D's; G's first has the fakes of D's last round, and each further one has a round of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounds {
    /// D's updates, k.
    pub(super) discriminator: u32,
    /// G's.
    pub(super) generator: u32,
}

impl Rounds {
    /// All of a step's.
    pub(super) fn all(self) -> u32 {
        self.discriminator + self.generator - 1
    }

    /// The round of G's update with this number, from 0.
    pub(super) fn of_generator(self, update: u32) -> u32 {
        self.discriminator - 1 + update
    }

    /// Which of a batch's minibatches of b real samples a round has: fakes of rounds without any are
    /// of the last one's labels, and paired with it.
    pub(super) fn minibatch(self, round: u32) -> u32 {
        round.min(self.discriminator - 1)
    }
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

/// What a replica computes on in one round of a step, on the device. On a GPU this may be memory that is filled
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
    /// What regularisers draw.
    pub(super) chance: Chance,
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
            chance: self.chance.share(),
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
    fn together(&self) -> bool {
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

    /// The inputs with what is made of the pixels.
    fn complete(&self, inputs: &Inputs) -> Result<Inputs, TorchError> {
        let mut inputs = inputs.share();
        if self.model.pyramid {
            inputs.coarse = Some(reduced(&self.real(&inputs.pixels)?, 2)?);
        }
        Ok(inputs)
    }

    /// A round's share of a batch, and what else it takes, brought to the device. `cache` is the data
    /// set, if that lies there.
    pub(super) fn inputs(
        &self,
        batch: &Batch,
        round: u32,
        cache: Option<&Tensor>,
    ) -> Result<Inputs, TorchError> {
        let minibatch = self.rounds.minibatch(round) as usize;
        let pixels = match (&batch.pixels, cache) {
            (Pixels::Bytes(bytes), _) => {
                let bytes = share(bytes, minibatch, self.samples_len());
                Tensor::f_from_data_size(bytes, &self.images, Kind::Uint8)?
                    .f_to_device(self.device)?
            }
            (Pixels::Numbers(numbers), _) => {
                Tensor::f_from_slice(share(numbers, minibatch, self.samples_len()))?
                    .f_view(self.images)?
                    .f_to_device(self.device)?
            }
            (Pixels::Places(places), Some(cache)) => {
                let places = share(places, minibatch, self.samples());
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
                let labels = share(labels, minibatch, self.samples());
                let labels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
                Some(Tensor::f_from_slice(&labels)?.f_to_device(self.device)?)
            }
            None => None,
        };
        let of = (batch.step, batch.replica, round);
        let noise = match self.generator.noise {
            0 => None,
            len => Some(
                Tensor::f_from_slice(&self.noise(of)?)?
                    .f_view([self.images[0], len as i64])?
                    .f_to_device(self.device)?,
            ),
        };
        let uniform = Tensor::f_from_slice(&self.regularisers.draw(of))?;
        let uniform = uniform.f_to_device(self.device)?;
        let mut chance = Chance::over(&self.regularisers, uniform)?;
        chance.draw_noise(&self.regularisers, of)?;
        Ok(Inputs {
            pixels,
            latents: self.latents(of)?.to_tensor(self.device)?,
            labels,
            noise,
            coarse: None,
            chance,
        })
    }

    /// Samples of a minibatch, b.
    pub(super) fn samples(&self) -> usize {
        self.images[0] as usize
    }

    /// Numbers of a minibatch's samples.
    pub(super) fn samples_len(&self) -> usize {
        self.images.iter().product::<i64>() as usize
    }

    /// Whether the networks are told of labels.
    pub(super) fn takes_labels(&self) -> bool {
        self.model.is_conditional()
    }

    /// What D's batch norm saw in one of its updates, in the order of the forward passes, from the
    /// mean of D's vectors: real images, fakes; or both together.
    pub(super) fn looks(&self, of_d: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        let d = &self.discriminator_layout;
        let mut looks = vec![part(of_d, &d.real)?];
        if !self.together() {
            looks.push(part(of_d, &d.fake)?);
        }
        Ok(looks)
    }

    /// What both networks' batch norms saw in one of G's updates, from the mean of G's vectors: D the
    /// fakes, if it looked at them once more, and G latents.
    pub(super) fn judgements(&self, of_g: &Tensor) -> Result<(Option<Tensor>, Tensor), TorchError> {
        let g = &self.generator_layout;
        let judged = match self.update {
            Update::Alternating => Some(part(of_g, &g.judged)?),
            Update::Simultaneous => None,
        };
        Ok((judged, part(of_g, &g.generated)?))
    }

    /// How many batches the running statistics of G and of D follow in a step. D's real images of
    /// paired games and those between real and fake are not among them.
    pub(super) fn tracked(&self) -> [i64; 2] {
        let Rounds {
            discriminator,
            generator,
        } = self.rounds;
        let judged = match self.update {
            Update::Alternating => generator,
            Update::Simultaneous => 0,
        };
        let looks = if self.together() { 1 } else { 2 };
        [generator.into(), (looks * discriminator + judged).into()]
    }

    /// A round's latents: the same, whoever computes it and however often.
    pub(super) fn latents(&self, of: Round) -> Result<Latents, TorchError> {
        Latents::of(&self.model, self.key(Domain::Latents, of), self.samples())
    }

    /// A round's hidden noise, `[b, noise]`.
    pub(super) fn noise(&self, of: Round) -> Result<Vec<f32>, TorchError> {
        let key = self.key(Domain::Noise, of);
        let drawn = Latents::draw(key, self.samples(), self.generator.noise)?;
        Ok(drawn.values().to_vec())
    }

    fn key(&self, domain: Domain, (step, replica, round): Round) -> Key {
        let numbers = [self.seed, step.0, replica.0.into(), round.into()];
        // The first round's have no number: they are those of a step that has one round.
        let len = if round == 0 { 3 } else { 4 };
        Key::new(domain, &numbers[..len])
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
        let beliefs = self
            .objective
            .beliefs(&on_real.f_detach()?, &on_fake.f_detach()?)?;
        for (place, belief) in [to.belief_real, to.belief_fake].into_iter().zip(beliefs) {
            write_scalar(vector, place, &belief.f_mean(Kind::Float)?)?;
        }
        Ok(())
    }

    /// How much the samples of each batch, real and fake, differ from each other: a pixel's standard
    /// deviation over the batch, in the mean over channels and pixels. Before augmentation and noise,
    /// which are no merit of G's.
    fn write_diversity(
        &self,
        vector: &Tensor,
        inputs: &Inputs,
        fake: &Tensor,
    ) -> Result<(), TorchError> {
        let places = self.discriminator_layout.diversity.clone();
        if places.is_empty() {
            return Ok(());
        }
        let real = self.real(&inputs.pixels)?;
        for (place, images) in places.zip([&real, fake]) {
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

/// A minibatch's part of a batch.
fn share<T>(all: &[T], minibatch: usize, len: usize) -> &[T] {
    &all[minibatch * len..][..len]
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
