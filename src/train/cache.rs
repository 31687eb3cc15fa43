//! A data set that lies whole on the device.

use super::{TrainError, Trainer};
use crate::data::Dataset;
use crate::torch::{self, TorchError};
use tch::{Device, Tensor};

/// The share of a GPU's free memory that a data set may take: the networks' activations want room
/// too, and so does everybody else on that GPU.
const SHARE: u64 = 2;

/// Whether a data set of so many bytes may take that much of what is free.
fn fits(bytes: u64, free: u64) -> bool {
    bytes <= free / SHARE
}

impl Trainer {
    /// Brings the data set to the device, if that is a GPU and has room, and says whether batches
    /// name places from now on. Otherwise it logs why, and batches bring bytes.
    ///
    /// # Errors
    /// [`TrainError::Data`], if a shard is not what was packed.
    pub fn cache(&mut self, dataset: &Dataset) -> Result<bool, TrainError> {
        let bytes = dataset
            .samples()
            .saturating_mul(dataset.sample_bytes() as u64);
        if self.game.device == Device::Cpu {
            tracing::debug!("data.cache = \"device\" is as \"host\" on a CPU");
            return Ok(false);
        }
        let host = "samples stay in the host's memory (data.cache = \"device\"):";
        match torch::free_memory(self.game.device) {
            Ok((free, _)) if fits(bytes, free) => {}
            Ok((free, _)) => {
                tracing::warn!(
                    "{host} they take {bytes} bytes, more than half of the {free} that are free"
                );
                return Ok(false);
            }
            Err(error) => {
                tracing::warn!("{host} nobody knows how much of the GPU's is free: {error}");
                return Ok(false);
            }
        }
        match self.hold(dataset) {
            Ok(()) => {
                tracing::info!("all {} samples lie on the device", dataset.samples());
                Ok(true)
            }
            // Somebody else may have taken the memory meanwhile.
            Err(TrainError::Torch(error)) => {
                tracing::warn!("{host} {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the data set to the device, whatever that is.
    pub(super) fn hold(&mut self, dataset: &Dataset) -> Result<(), TrainError> {
        let [channels, height, width] = dataset.sample_shape().map(i64::from);
        let samples = dataset.samples().cast_signed();
        let shape = [samples, channels, height, width];
        let all =
            Tensor::f_empty(shape, (self.game.kind, self.game.device)).map_err(TorchError::from)?;
        let mut from = 0;
        for number in 0..dataset.shard_sizes().len() as u32 {
            let shard = dataset.shard(number)?;
            let count = shard.samples().cast_signed();
            let shape = [count, channels, height, width];
            Tensor::f_from_data_size(shard.pixels(), &shape, self.game.kind)
                .and_then(|samples| all.f_narrow(0, from, count)?.f_copy_(&samples))
                .map_err(TorchError::from)?;
            from += count;
        }
        self.cache = Some(all);
        Ok(())
    }

    /// Whether the data set lies on the device, so that batches may name places.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_leaves_half_of_what_is_free() {
        assert!(fits(0, 0) && fits(50, 100) && fits(50, 101));
        assert!(!fits(51, 100) && !fits(1, 1) && !fits(u64::MAX, u64::MAX));
    }
}
