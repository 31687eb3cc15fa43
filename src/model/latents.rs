//! Latents: the generator's inputs.

use crate::config::{Distribution, Model};
use crate::random::Key;
use crate::torch::{Generator, TorchError};
use tch::{Device, Kind, Tensor};

/// A list of latents z. They are drawn on the CPU, so one key gives the same on every device.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    count: usize,
    size: usize,
    values: Vec<f32>,
}

impl Latents {
    /// `count` latents of `size` numbers from N(0, 1).
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn draw(key: Key, count: usize, size: usize) -> Result<Self, TorchError> {
        let mut drawn = Tensor::f_zeros([count as i64, size as i64], (Kind::Float, Device::Cpu))?;
        Generator::new(Device::Cpu, key)?.normal_(&mut drawn, 0.0, 1.0)?;
        let mut values = vec![0.0; count * size];
        drawn.f_copy_data(&mut values, count * size)?;
        Ok(Self {
            count,
            size,
            values,
        })
    }

    /// `count` latents as a job's generator takes them: from `model.latent_distribution`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn of(model: &Model, key: Key, count: usize) -> Result<Self, TorchError> {
        let size = model.latent as usize;
        match model.latent_distribution {
            Distribution::Normal => Self::draw(key, count, size),
            Distribution::Uniform => {
                let mut stream = key.stream();
                // 24 bits, all that a number below 1 has in single precision.
                let mut draw = || (stream.below(1 << 24) as f32) / (1 << 23) as f32 - 1.0;
                let values = (0..count * size).map(|_| draw()).collect();
                Ok(Self {
                    count,
                    size,
                    values,
                })
            }
        }
    }

    /// Latents that were computed, as on the way from one to another; `None` unless `values` is a
    /// whole number of latents of `size`.
    pub fn new(size: usize, values: Vec<f32>) -> Option<Self> {
        (size > 0 && values.len().is_multiple_of(size)).then(|| Self {
            count: values.len() / size,
            size,
            values,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Numbers in each.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The numbers, one latent after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As the generator takes them: `[count, size, 1, 1]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn to_tensor(&self, device: Device) -> Result<Tensor, TorchError> {
        Ok(Tensor::f_from_slice(&self.values)?
            .f_view([self.count as i64, self.size as i64, 1, 1])?
            .f_to_device(device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Domain;

    #[test]
    fn latents_are_whole() {
        assert!(Latents::new(3, vec![0.0; 7]).is_none());
        assert!(Latents::new(0, Vec::new()).is_none());
        let latents = Latents::new(3, (0..6u8).map(f32::from).collect()).unwrap();
        assert_eq!((latents.count(), latents.size()), (2, 3));
        let tensor = latents.to_tensor(Device::Cpu).unwrap();
        assert_eq!(tensor.size(), [2, 3, 1, 1]);
        assert_eq!(tensor.double_value(&[1, 2, 0, 0]), 5.0);
        let key = Key::new(Domain::Samples, &[0]);
        assert_eq!(
            Latents::draw(key, 4, 5).unwrap(),
            Latents::draw(key, 4, 5).unwrap()
        );
    }
}
