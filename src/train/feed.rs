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
    /// `[replicas · b, c, s, s]`, bytes.
    pixels: Tensor,
    /// `[replicas · b]`: which samples of a set that lies on the device.
    places: Tensor,
    /// `[replicas · b, z, 1, 1]`.
    latents: Tensor,
    batch: i64,
}

/// Host memory.
#[derive(Debug)]
struct Staging {
    /// Made when batches bring bytes.
    pixels: Option<Tensor>,
    places: Tensor,
    latents: Tensor,
    sent: Event,
}

impl Feed {
    pub(super) fn new(game: &Game, replicas: usize) -> Result<Self, TorchError> {
        let [batch, channels, side, _] = game.images;
        let samples = batch * replicas as i64;
        let device = game.device;
        let staging = || -> Result<Staging, TorchError> {
            let places = Tensor::f_zeros([samples], (Kind::Int64, Device::Cpu))?;
            let latents = [samples, game.latent as i64, 1, 1];
            let latents = Tensor::f_zeros(latents, (Kind::Float, Device::Cpu))?;
            Ok(Staging {
                pixels: None,
                places: reachable(places, device)?,
                latents: reachable(latents, device)?,
                sent: Event::new(device, false)?,
            })
        };
        let pixels = [samples, channels, side, side];
        Ok(Self {
            device,
            staging: [staging()?, staging()?],
            turn: 0,
            pixels: Tensor::f_zeros(pixels, (Kind::Uint8, device))?,
            places: Tensor::f_zeros([samples], (Kind::Int64, device))?,
            latents: Tensor::f_zeros([samples, game.latent as i64, 1, 1], (Kind::Float, device))?,
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
        let mut bytes = false;
        let mut places = false;
        for (index, batch) in batches.iter().enumerate() {
            let from = index as i64 * self.batch;
            let latents = game.latents(batch.step, batch.replica)?;
            let narrow = |tensor: &Tensor| tensor.f_narrow(0, from, self.batch);
            let to = narrow(&staging.latents).map_err(TorchError::from)?;
            write(&to, latents.values())?;
            match &batch.pixels {
                Pixels::Bytes(pixels) => {
                    let all = match staging.pixels.take() {
                        Some(all) => all,
                        None => {
                            let size = self.pixels.size();
                            let all = Tensor::f_zeros(size, (Kind::Uint8, Device::Cpu));
                            reachable(all.map_err(TorchError::from)?, self.device)?
                        }
                    };
                    write(&narrow(&all).map_err(TorchError::from)?, pixels)?;
                    staging.pixels = Some(all);
                    bytes = true;
                }
                Pixels::Places(numbers) => {
                    let to = narrow(&staging.places).map_err(TorchError::from)?;
                    write(&to, numbers)?;
                    places = true;
                }
            }
        }
        copy_async(&mut self.latents, &staging.latents)?;
        if let Some(pixels) = staging.pixels.as_ref().filter(|_| bytes) {
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
