//! What a replica computes on in a step: weights, samples, latents and everything else that it draws.

use super::state::PlayerState;
use super::step::Game;
use crate::config::MemoryFormat;
use crate::data::{Batch, Pixels};
use crate::model::{Input, Latents, Values, reduced};
use crate::random::{Domain, Key};
use crate::regularise::{Chance, Round};
use crate::torch::{TorchError, channels_last};
use tch::{Kind, Tensor};

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

    pub(super) fn generator(&self) -> Values<'_> {
        Values {
            parameters: &self.generator,
            running: &self.generator_running,
        }
    }

    pub(super) fn discriminator(&self) -> Values<'_> {
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

impl Game {
    /// Pixels 0 … 255 to -1 … 1, ordered as all activations are; points as they are.
    pub(super) fn real(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
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
    pub(super) fn complete(&self, inputs: &Inputs) -> Result<Inputs, TorchError> {
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
}

/// A minibatch's part of a batch.
fn share<T>(all: &[T], minibatch: usize, len: usize) -> &[T] {
    &all[minibatch * len..][..len]
}
