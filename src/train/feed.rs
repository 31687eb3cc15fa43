//! What the hosted replicas compute on, on its way to the device: always to the same memory, and
//! from memory that a GPU fetches it from by itself, so that nobody waits.

use super::TrainError;
use super::step::{Game, Inputs};
use crate::data::{Batch, Pixels};
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
    /// `[replicas · b, c, s, s]`, bytes; or numbers, of points.
    pixels: Tensor,
    /// `[replicas · b]`: which samples of a set that lies on the device.
    places: Tensor,
    /// `[replicas · b, z, 1, 1]`.
    latents: Tensor,
    /// `[replicas · b]`, if the networks are told of labels.
    labels: Option<Tensor>,
    /// `[replicas · b, noise]`, if the generator has hidden noise.
    noise: Option<Tensor>,
    batch: i64,
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
    sent: Event,
}

impl Feed {
    pub(super) fn new(game: &Game, replicas: usize) -> Result<Self, TorchError> {
        let [batch, channels, high, wide] = game.images;
        let samples = batch * replicas as i64;
        let device = game.device;
        let zeros = |shape: &[i64], kind, device| Tensor::f_zeros(shape, (kind, device));
        let latents = |device| {
            let shape = [samples, i64::from(game.model.latent), 1, 1];
            zeros(&shape, Kind::Float, device)
        };
        let labels = |device| {
            let labels = || zeros(&[samples], Kind::Int64, device);
            game.takes_labels().then(labels).transpose()
        };
        let noise = |device| {
            let len = game.generator.noise as i64;
            let noise = || zeros(&[samples, len], Kind::Float, device);
            (len > 0).then(noise).transpose()
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
                sent: Event::new(device, false)?,
            })
        };
        Ok(Self {
            device,
            staging: [staging()?, staging()?],
            turn: 0,
            pixels: zeros(&[samples, channels, high, wide], game.kind, device)?,
            places: zeros(&[samples], Kind::Int64, device)?,
            latents: latents(device)?,
            labels: labels(device)?,
            noise: noise(device)?,
            batch,
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
        for (index, batch) in batches.iter().enumerate() {
            let from = index as i64 * self.batch;
            let latents = game.latents(batch.step, batch.replica)?;
            let narrow = |tensor: &Tensor| tensor.f_narrow(0, from, self.batch);
            let to = narrow(&staging.latents).map_err(TorchError::from)?;
            write(&to, latents.values())?;
            if let (Some(all), Some(labels)) = (&staging.labels, &batch.labels) {
                let labels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
                write(&narrow(all).map_err(TorchError::from)?, &labels)?;
            }
            if let Some(all) = &staging.noise {
                let noise = game.noise(batch.step, batch.replica)?;
                write(&narrow(all).map_err(TorchError::from)?, &noise)?;
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

    /// Each replica's inputs. Their memory stays the same.
    pub(super) fn inputs(&self) -> Result<Vec<Inputs>, TorchError> {
        let count = self.latents.size()[0] / self.batch;
        (0..count)
            .map(|index| {
                let part = |tensor: &Tensor| tensor.f_narrow(0, index * self.batch, self.batch);
                Ok(Inputs {
                    pixels: part(&self.pixels)?,
                    latents: part(&self.latents)?,
                    labels: self.labels.as_ref().map(part).transpose()?,
                    noise: self.noise.as_ref().map(part).transpose()?,
                    coarse: None,
                })
            })
            .collect()
    }
}

/// The tensor in host memory that the device reads by itself.
fn reachable(tensor: Tensor, device: Device) -> Result<Tensor, TorchError> {
    match device {
        Device::Cpu => Ok(tensor),
        _ => pin_memory(&tensor),
    }
}
