//! Spectral norm (Miyato et al. 2018): a weight divided by an estimate of its largest singular
//! value, as `torch.nn.utils.spectral_norm` has it.
//!
//! One power iteration a step: State(t) has u and v, all of the step that starts from it divides by
//! σ(W, u) of this state's u, and State(t+1) has what the iteration with State(t)'s W made of them. So
//! what a replica computes depends on the state alone, and not on how often D looks at something.

use super::architecture::{Architecture, Parameter, Spectral};
use super::network::view;
use crate::torch::TorchError;
use tch::{Kind, Tensor};

/// Added where a vector might be 0, PyTorch's default.
const EPSILON: f64 = 1e-12;

/// W / σ. Gradients flow through σ to W, and not to its vectors.
///
/// # Shapes
/// Those of the weight; `running` is the flat vector of running values.
pub(super) fn divide(
    weight: &Tensor,
    spectral: Spectral,
    running: &Tensor,
) -> Result<Tensor, TorchError> {
    let (u, v) = step(weight, spectral, running)?;
    let matrix = matrix(weight, spectral)?;
    let sigma = u.f_dot(&matrix.f_mv(&v)?)?;
    Ok(weight.f_div(&sigma)?)
}

/// What a power iteration makes of all vectors: the running values that follow the statistics.
///
/// # Errors
/// [`TorchError`], if the vectors are too short.
pub fn iterate(
    architecture: &Architecture,
    parameters: &Tensor,
    running: &Tensor,
) -> Result<Tensor, TorchError> {
    let mut vectors = Vec::new();
    for parameter in &architecture.parameters {
        if let Some(spectral) = parameter.spectral {
            let (u, v) = step(&weight(parameters, parameter)?, spectral, running)?;
            vectors.extend([u, v]);
        }
    }
    if vectors.is_empty() {
        return Ok(Tensor::f_zeros([0], (Kind::Float, running.device()))?);
    }
    Ok(Tensor::f_cat(&vectors, 0)?)
}

fn weight(parameters: &Tensor, parameter: &Parameter) -> Result<Tensor, TorchError> {
    Ok(view(parameters, parameter)?.f_detach()?)
}

/// One power iteration: the next u and v.
fn step(
    weight: &Tensor,
    spectral: Spectral,
    running: &Tensor,
) -> Result<(Tensor, Tensor), TorchError> {
    let u = running.f_narrow(0, spectral.offset as i64, spectral.rows as i64)?;
    let matrix = matrix(&weight.f_detach()?, spectral)?;
    let v = normalise(&matrix.f_transpose(0, 1)?.f_mv(&u)?)?;
    let u = normalise(&matrix.f_mv(&v)?)?;
    Ok((u, v))
}

/// A weight as a matrix of as many rows as it has outputs; its order in memory doesn't matter.
fn matrix(weight: &Tensor, spectral: Spectral) -> Result<Tensor, TorchError> {
    Ok(weight.f_reshape([spectral.rows as i64, spectral.columns as i64])?)
}

fn normalise(vector: &Tensor) -> Result<Tensor, TorchError> {
    let norm = vector.f_norm_scalaropt_dtype(2.0, Kind::Float)?;
    Ok(vector.f_div(&norm.f_clamp_min(EPSILON)?)?)
}
