//! State(0): weights drawn from keys.

use super::architecture::{Architecture, Initial};
use super::network::view;
use crate::random::{Domain, Key};
use crate::torch::{Generator, TorchError};
use tch::{Device, Kind, Tensor};

/// Standard deviation of every initial draw (Radford et al. 2015, section 4).
const DEVIATION: f64 = 0.02;

/// A flat vector of initial parameters, on the CPU: the same for every device.
///
/// Each layer has a key of its own, (seed, network, layer), so that no layer's draw depends on
/// another's size.
///
/// # Errors
/// [`TorchError`].
pub fn initial_parameters(architecture: &Architecture, seed: u64) -> Result<Tensor, TorchError> {
    let flat = Tensor::f_zeros([architecture.len() as i64], (Kind::Float, Device::Cpu))?;
    for parameter in &architecture.parameters {
        let Initial::Normal { mean } = parameter.initial else {
            continue;
        };
        let numbers = [seed, architecture.player.number(), parameter.layer as u64];
        let shape: Vec<i64> = parameter.shape.iter().map(|&side| side as i64).collect();
        // Drawn in the order of the shape, whatever the order in memory.
        let mut draw = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
        Generator::new(Device::Cpu, Key::new(Domain::Weights, &numbers))?
            .normal_(&mut draw, mean, DEVIATION)?;
        view(&flat, parameter)?.f_copy_(&draw)?;
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;

    #[test]
    fn weights_follow_the_papers_distribution_and_their_keys() {
        let model = Model {
            image_size: 32,
            generator_width: 16,
            ..Model::default()
        };
        let architecture = Architecture::generator(&model);
        let flat = initial_parameters(&architecture, 1).unwrap();
        let part = |name: &str| {
            let parameter = architecture
                .parameters
                .iter()
                .find(|p| p.name == name)
                .unwrap();
            view(&flat, parameter).unwrap()
        };
        let mean = |t: &Tensor| t.mean(Kind::Float).double_value(&[]);
        let deviation = |t: &Tensor| t.std(true).double_value(&[]);
        let weight = part("main.0.weight");
        assert!(mean(&weight).abs() < 1e-3 && (deviation(&weight) - 0.02).abs() < 1e-3);
        let scale = part("main.1.weight");
        assert!((mean(&scale) - 1.0).abs() < 0.01 && (deviation(&scale) - 0.02).abs() < 0.01);
        assert_eq!(part("main.1.bias").abs().max().double_value(&[]), 0.0);
        assert!(flat.equal(&initial_parameters(&architecture, 1).unwrap()));
        assert!(!flat.equal(&initial_parameters(&architecture, 2).unwrap()));
    }
}
