//! State(0): what is drawn from keys.

use super::architecture::{Architecture, Initial, Parameter, Spectral};
use super::network::view;
use crate::random::{Domain, Key};
use crate::torch::{Generator, TorchError};
use tch::{Device, Kind, Tensor};

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
        let (mean, deviation) = match parameter.initial {
            Initial::Normal { mean, deviation } => (mean, deviation),
            Initial::Constant(value) => {
                let _ = view(&flat, parameter)?.f_fill_(value)?;
                continue;
            }
        };
        let shape: Vec<i64> = parameter.shape.iter().map(|&side| side as i64).collect();
        // Drawn in the order of the shape, whatever the order in memory.
        let mut draw = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
        let key = Key::new(Domain::Weights, &numbers(architecture, parameter, seed));
        Generator::new(Device::Cpu, key)?.normal_(&mut draw, mean, deviation)?;
        view(&flat, parameter)?.f_copy_(&draw)?;
    }
    Ok(flat)
}

fn numbers(architecture: &Architecture, parameter: &Parameter, seed: u64) -> [u64; 3] {
    [seed, architecture.player.number(), parameter.layer as u64]
}

/// Power iterations before the first step, as many as `torch.nn.utils.parametrizations.spectral_norm`
/// does: the estimate of a random vector is far too small.
const ITERATIONS: usize = 15;

/// The initial running values: means 0 and variances 1, as PyTorch starts them, and spectral norm's
/// vectors for `parameters`, those of State(0).
///
/// The vectors are computed in double precision in an order that is fixed here, so that they are the
/// same on every processor.
///
/// # Errors
/// [`TorchError`].
pub fn initial_running(
    architecture: &Architecture,
    parameters: &Tensor,
    seed: u64,
) -> Result<Vec<f32>, TorchError> {
    let mut running = vec![0.0; architecture.running];
    for norm in architecture.norms() {
        if let Some(offset) = norm.statistics {
            let variances = offset + norm.features..offset + 2 * norm.features;
            running[variances].fill(1.0);
        }
    }
    for parameter in &architecture.parameters {
        let Some(spectral) = parameter.spectral else {
            continue;
        };
        let mut weight = vec![0f32; parameter.len()];
        view(parameters, parameter)?
            .f_contiguous()?
            .f_copy_data(&mut weight, parameter.len())?;
        let mut draw = Tensor::f_zeros([spectral.rows as i64], (Kind::Float, Device::Cpu))?;
        let key = Key::new(Domain::Spectral, &numbers(architecture, parameter, seed));
        Generator::new(Device::Cpu, key)?.normal_(&mut draw, 0.0, 1.0)?;
        let mut u = vec![0f32; spectral.rows];
        draw.f_copy_data(&mut u, spectral.rows)?;
        let (u, v) = settled(&weight, &u, spectral);
        running[spectral.u()].copy_from_slice(&u);
        running[spectral.v()].copy_from_slice(&v);
    }
    Ok(running)
}

/// What [`ITERATIONS`] power iterations make of u.
fn settled(weight: &[f32], u: &[f32], spectral: Spectral) -> (Vec<f32>, Vec<f32>) {
    let mut u: Vec<f64> = u.iter().copied().map(f64::from).collect();
    let mut v = vec![0.0; spectral.columns];
    normalise(&mut u);
    for _ in 0..ITERATIONS {
        v.fill(0.0);
        for (row, &factor) in weight.chunks_exact(spectral.columns).zip(&u) {
            for (sum, &value) in v.iter_mut().zip(row) {
                *sum += f64::from(value) * factor;
            }
        }
        normalise(&mut v);
        for (row, result) in weight.chunks_exact(spectral.columns).zip(&mut u) {
            let products = row.iter().zip(&v);
            *result = products
                .map(|(&value, &factor)| f64::from(value) * factor)
                .sum();
        }
        normalise(&mut u);
    }
    let single = |vector: Vec<f64>| vector.into_iter().map(|value| value as f32).collect();
    (single(u), single(v))
}

fn normalise(vector: &mut [f64]) {
    let norm = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector
        .iter_mut()
        .for_each(|value| *value /= norm.max(1e-12));
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
