//! What the hosted replicas compute on, on its way to the device: always to the same memory, and
//! from memory that a GPU fetches it from by itself, so that nobody waits.

use super::TrainError;
use super::inputs::{Inputs, Rounds};
use super::step::Game;
use crate::data::{Batch, Pixels};
use crate::regularise::Chance;
use crate::torch::{Event, Stream, TorchError, copy_async, pin_memory, write};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// How often the device is asked whether it has fetched what is to be overwritten. It has, unless
/// a step has failed in between.
const PATIENCE: Duration = Duration::from_micros(20);

/// The inputs of all hosted replicas.
#[derive(Debug)]
pub(super) struct Feed {
    device: Device,
    /// Filled in turns: one may still be on its way.
    staging: [Staging; 2],
    turn: usize,
    /// `[replicas · k · b, c, s, s]`, bytes; or numbers, of points.
    pixels: Tensor,
    /// `[replicas · k · b]`: which samples of a set that lies on the device.
    places: Tensor,
    /// `[replicas · rounds · b, z, 1, 1]`.
    latents: Tensor,
    /// `[replicas · k · b]`, if the networks are told of labels.
    labels: Option<Tensor>,
    /// `[replicas · rounds · b, noise]`, if the generator has hidden noise.
    noise: Option<Tensor>,
    /// `[replicas · rounds · draws]`: regularisers' uniform numbers.
    uniform: Tensor,
    /// One list a replica, of one a round; they see the numbers, and have memory for noise.
    chances: Vec<Vec<Chance>>,
    /// Samples of a minibatch, b.
    batch: i64,
    rounds: Rounds,
}

/// Host memory.
#[derive(Debug)]
struct Staging {
    /// Made when batches bring samples.
    pixels: Option<Tensor>,
    places: Tensor,
    latents: Tensor,
    labels: Option<Tensor>,
    noise: Option<Tensor>,
    uniform: Tensor,
    sent: Event,
}

impl Feed {
    pub(super) fn new(game: &Game, replicas: usize) -> Result<Self, TorchError> {
        let [batch, channels, high, wide] = game.images;
        let rounds = game.rounds;
        let samples = batch * replicas as i64 * i64::from(rounds.discriminator);
        let fakes = batch * replicas as i64 * i64::from(rounds.all());
        let draws = game.regularisers.draws() as i64;
        let device = game.device;
        let zeros = |shape: &[i64], kind, device| Tensor::f_zeros(shape, (kind, device));
        let latents = |device| {
            let shape = [fakes, i64::from(game.model.latent), 1, 1];
            zeros(&shape, Kind::Float, device)
        };
        let labels = |device| {
            let labels = || zeros(&[samples], Kind::Int64, device);
            game.takes_labels().then(labels).transpose()
        };
        let noise = |device| {
            let len = game.generator.noise as i64;
            let noise = || zeros(&[fakes, len], Kind::Float, device);
            (len > 0).then(noise).transpose()
        };
        let uniform = |device| {
            let len = replicas as i64 * i64::from(rounds.all()) * draws;
            zeros(&[len], Kind::Float, device)
        };
        let staging = || -> Result<Staging, TorchError> {
            let host = |tensor: Option<Tensor>| {
                let reachable = |tensor| reachable(tensor, device);
                tensor.map(reachable).transpose()
            };
            Ok(Staging {
                pixels: None,
                places: reachable(zeros(&[samples], Kind::Int64, Device::Cpu)?, device)?,
                latents: reachable(latents(Device::Cpu)?, device)?,
                labels: host(labels(Device::Cpu)?)?,
                noise: host(noise(Device::Cpu)?)?,
                uniform: reachable(uniform(Device::Cpu)?, device)?,
                sent: Event::new(device, false)?,
            })
        };
        let uniform = uniform(device)?;
        let chance = |replica: usize, round: u32| {
            let index = replica as i64 * i64::from(rounds.all()) + i64::from(round);
            Chance::over(
                &game.regularisers,
                uniform.f_narrow(0, index * draws, draws)?,
            )
        };
        let chances = (0..replicas)
            .map(|replica| {
                (0..rounds.all())
                    .map(|round| chance(replica, round))
                    .collect()
            })
            .collect::<Result<_, TorchError>>()?;
        Ok(Self {
            device,
            staging: [staging()?, staging()?],
            turn: 0,
            pixels: zeros(&[samples, channels, high, wide], game.kind, device)?,
            places: zeros(&[samples], Kind::Int64, device)?,
            latents: latents(device)?,
            labels: labels(device)?,
            noise: noise(device)?,
            uniform,
            chances,
            batch,
            rounds,
        })
    }

    /// Queues the batches' way to the device. Those that name places get their images from `cache`.
    ///
    /// The memory that they come to is read by the step before, which the queue has first.
    pub(super) fn fill(
        &mut self,
        game: &Game,
        batches: &[Batch],
        cache: Option<&Tensor>,
    ) -> Result<(), TrainError> {
        self.turn = 1 - self.turn;
        let staging = &mut self.staging[self.turn];
        while !staging.sent.is_complete()? {
            std::thread::sleep(PATIENCE);
        }
        let mut brought = false;
        let mut places = false;
        let all = self.rounds.all();
        for (index, batch) in batches.iter().enumerate() {
            for round in 0..all {
                let of = (batch.step, batch.replica, round);
                let place = index as i64 * i64::from(all) + i64::from(round);
                let narrow = |tensor: &Tensor| {
                    let len = tensor.size()[0] / (batches.len() as i64 * i64::from(all));
                    tensor.f_narrow(0, place * len, len)
                };
                let to = narrow(&staging.latents).map_err(TorchError::from)?;
                write(&to, game.latents(of)?.values())?;
                if let Some(all) = &staging.noise {
                    write(&narrow(all).map_err(TorchError::from)?, &game.noise(of)?)?;
                }
                let to = narrow(&staging.uniform).map_err(TorchError::from)?;
                write(&to, &game.regularisers.draw(of))?;
                self.chances[index][round as usize].draw_noise(&game.regularisers, of)?;
            }
            let samples = self.batch * i64::from(self.rounds.discriminator);
            let narrow = |tensor: &Tensor| tensor.f_narrow(0, index as i64 * samples, samples);
            if let (Some(all), Some(labels)) = (&staging.labels, &batch.labels) {
                let labels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
                write(&narrow(all).map_err(TorchError::from)?, &labels)?;
            }
            if !matches!(batch.pixels, Pixels::Places(_)) && staging.pixels.is_none() {
                let shape = self.pixels.size();
                let all = Tensor::f_zeros(shape, (game.kind, Device::Cpu));
                let all = reachable(all.map_err(TorchError::from)?, self.device)?;
                staging.pixels = Some(all);
            }
            let room = staging.pixels.as_ref().map(narrow).transpose();
            let room = room.map_err(TorchError::from)?;
            match &batch.pixels {
                Pixels::Bytes(values) => {
                    if let Some(room) = room {
                        write(&room, values)?;
                    }
                    brought = true;
                }
                Pixels::Numbers(values) => {
                    if let Some(room) = room {
                        write(&room, values)?;
                    }
                    brought = true;
                }
                Pixels::Places(numbers) => {
                    let to = narrow(&staging.places).map_err(TorchError::from)?;
                    write(&to, numbers)?;
                    places = true;
                }
            }
        }
        copy_async(&mut self.latents, &staging.latents)?;
        copy_async(&mut self.uniform, &staging.uniform)?;
        for (to, from) in [
            (&mut self.labels, &staging.labels),
            (&mut self.noise, &staging.noise),
        ] {
            if let (Some(to), Some(from)) = (to, from) {
                copy_async(to, from)?;
            }
        }
        if let Some(pixels) = staging.pixels.as_ref().filter(|_| brought) {
            copy_async(&mut self.pixels, pixels)?;
        }
        if let Some(cache) = cache.filter(|_| places) {
            copy_async(&mut self.places, &staging.places)?;
            let _ = cache
                .f_index_select_out(&self.pixels, 0, &self.places)
                .map_err(TorchError::from)?;
        }
        staging.sent.record(Stream::current(self.device)?)?;
        Ok(())
    }

    /// Each replica's inputs, one a round. Their memory stays the same.
    pub(super) fn inputs(&self) -> Result<Vec<Vec<Inputs>>, TorchError> {
        let replica = |index: usize| {
            (0..self.rounds.all())
                .map(|round| self.round(index, round))
                .collect()
        };
        (0..self.chances.len()).map(replica).collect()
    }

    fn round(&self, replica: usize, round: u32) -> Result<Inputs, TorchError> {
        let part = |tensor: &Tensor, rounds: u32, round: u32| {
            let place = replica as i64 * i64::from(rounds) + i64::from(round);
            tensor.f_narrow(0, place * self.batch, self.batch)
        };
        let minibatch = self.rounds.minibatch(round);
        let real = |tensor: &Tensor| part(tensor, self.rounds.discriminator, minibatch);
        let fake = |tensor: &Tensor| part(tensor, self.rounds.all(), round);
        Ok(Inputs {
            pixels: real(&self.pixels)?,
            latents: fake(&self.latents)?,
            labels: self.labels.as_ref().map(real).transpose()?,
            noise: self.noise.as_ref().map(fake).transpose()?,
            coarse: None,
            chance: self.chances[replica][round as usize].share(),
        })
    }
}

/// The tensor in host memory that the device reads by itself.
fn reachable(tensor: Tensor, device: Device) -> Result<Tensor, TorchError> {
    match device {
        Device::Cpu => Ok(tensor),
        _ => pin_memory(&tensor),
    }
}
