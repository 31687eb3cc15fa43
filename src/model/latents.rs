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

    /// `count` latents as a job's generator takes them: the first `model.binary_latents` numbers of each
    /// are -1 or 1, the others from `model.latent_distribution`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn of(model: &Model, key: Key, count: usize) -> Result<Self, TorchError> {
        let mut latents = Self::continuous(model, key, count)?;
        // Both distributions are symmetric, so a number's sign is a coin.
        for latent in latents.values.chunks_exact_mut(latents.size) {
            for number in &mut latent[..model.binary_latents as usize] {
                *number = if *number < 0.0 { -1.0 } else { 1.0 };
            }
        }
        Ok(latents)
    }

    /// `count` latents from `model.latent_distribution`.
    fn continuous(model: &Model, key: Key, count: usize) -> Result<Self, TorchError> {
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

    /// The first `count` latents of this key, as [`of`](Self::of) draws them. The n-th is the same however
    /// many are drawn, as it must be where images are known by their numbers.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn first(model: &Model, key: Key, count: usize) -> Result<Self, TorchError> {
        // libtorch draws by sixteen numbers, and its last ones overlap unless it comes out even.
        let mut latents = Self::of(model, key, count.next_multiple_of(16))?;
        latents.values.truncate(count * latents.size);
        latents.count = count;
        Ok(latents)
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

    #[test]
    fn a_latent_is_the_same_however_many_are_drawn() {
        let key = Key::new(Domain::Samples, &[3]);
        for (latent, latent_distribution, binary_latents) in [
            (1, Distribution::Normal, 0),
            (6, Distribution::Normal, 0),
            (100, Distribution::Normal, 0),
            (6, Distribution::Uniform, 0),
            (6, Distribution::Normal, 4),
        ] {
            let model = Model {
                latent,
                latent_distribution,
                binary_latents,
                ..Model::default()
            };
            let many = Latents::first(&model, key, 64).unwrap();
            for count in [1, 3, 16, 17] {
                let few = Latents::first(&model, key, count).unwrap();
                assert_eq!(few.count(), count);
                assert_eq!(few.values(), &many.values()[..count * few.size()]);
            }
        }
    }

    #[test]
    fn binary_latents_are_fair_coins_and_leave_the_others_alone() {
        let key = Key::new(Domain::Latents, &[5]);
        for latent_distribution in [Distribution::Normal, Distribution::Uniform] {
            let drawn = |binary_latents| {
                let model = Model {
                    latent: 5,
                    latent_distribution,
                    binary_latents,
                    ..Model::default()
                };
                Latents::of(&model, key, 4096).unwrap()
            };
            let (plain, binary) = (drawn(0), drawn(3));
            // Five deviations of a mean of 4096 coins.
            let most = 5.0 / 64.0;
            for number in 0..5 {
                let column = |of: &Latents| -> Vec<f32> {
                    of.values()
                        .iter()
                        .skip(number)
                        .step_by(5)
                        .copied()
                        .collect()
                };
                let (was, is) = (column(&plain), column(&binary));
                if number >= 3 {
                    assert_eq!(was, is);
                    continue;
                }
                assert!(is.iter().all(|coin| coin.abs() == 1.0));
                assert!((is.iter().sum::<f32>() / 4096.0).abs() < most);
            }
            let both = binary.values().chunks_exact(5).map(|z| z[0] * z[1]);
            assert!((both.sum::<f32>() / 4096.0).abs() < most, "independent");
            let all: Vec<f32> = drawn(5).values().to_vec();
            assert!(all.iter().all(|coin| coin.abs() == 1.0));
        }
    }
}
