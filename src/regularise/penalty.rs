//! What D pays for its slope: one norm a sample.

use crate::torch::TorchError;
use tch::{Kind, Tensor};

/// ∂output/∂input of each sample, as a function that autograd can go through again.
///
/// # Shapes
/// `[n]` outputs of `[n, …]` inputs to `[n, numbers of an input]`.
fn slopes(outputs: &Tensor, inputs: &Tensor) -> Result<Tensor, TorchError> {
    // The gradient of the sum: a sample's output depends on no other sample.
    let gradient = Tensor::f_run_backward(&[outputs], &[inputs], true, true)?.remove(0);
    Ok(gradient.f_to_kind(Kind::Float)?.f_flatten(1, -1)?)
}

/// E‖∂D/∂x‖²: what R1 on real samples and R2 on fakes have γ/2 of (Mescheder et al. 2018, arXiv
/// 1801.04406, equation 9).
///
/// # Shapes
/// `[n]` outputs of `[n, …]` inputs, which have a graph between them, to a scalar.
///
/// # Errors
/// [`TorchError`], if the outputs don't depend on the inputs.
pub fn squared_norm(outputs: &Tensor, inputs: &Tensor) -> Result<Tensor, TorchError> {
    let squares = slopes(outputs, inputs)?.f_square()?;
    let samples = squares.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
    Ok(samples.f_mean(Kind::Float)?)
}

/// E(‖∂D/∂x‖ - 1)²: the gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028, equation 3) has λ
/// of it.
///
/// # Shapes
/// As [`squared_norm`].
///
/// # Errors
/// As [`squared_norm`].
pub fn squared_norm_off_one(outputs: &Tensor, inputs: &Tensor) -> Result<Tensor, TorchError> {
    // This norm's gradient at 0 is 0, where that of a square root would be infinite.
    let norms = slopes(outputs, inputs)?.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?;
    Ok(norms.f_sub_scalar(1.0)?.f_square()?.f_mean(Kind::Float)?)
}

/// Samples between real ones and fakes, `mix`·real + (1 - `mix`)·fake, of which D's slope can be
/// asked.
///
/// # Shapes
/// `[n, …]`, `[n, …]` and `[n]` to `[n, …]`.
///
/// # Errors
/// [`TorchError`], if shapes don't fit.
pub fn interpolate(real: &Tensor, fake: &Tensor, mix: &Tensor) -> Result<Tensor, TorchError> {
    let mut shape = vec![1; real.dim()];
    shape[0] = -1;
    let mix = mix.f_view(shape.as_slice())?;
    let (real, fake) = (real.f_detach()?, fake.f_detach()?.f_to_kind(Kind::Float)?);
    // fake + mix·(real - fake), in the memory order of the images.
    let between = real.f_sub(&fake)?.f_mul(&mix)?.f_add(&fake)?;
    Ok(between.f_detach()?.f_set_requires_grad(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D(x) = ½·a·Σx² + b·Σx: its slope is a·x + b.
    fn outputs(inputs: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
        let flat = inputs.flatten(1, -1);
        let squares = flat
            .square()
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            * 0.5;
        squares * a + flat.sum_dim_intlist([1i64].as_slice(), false, Kind::Float) * b
    }

    fn setting() -> (Tensor, Tensor, Tensor) {
        let values: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
        let inputs = Tensor::from_slice(&values).view([3, 2, 2, 2]);
        let number = |value: f32| Tensor::from(value).set_requires_grad(true);
        (inputs.set_requires_grad(true), number(0.6), number(-0.3))
    }

    /// ‖a·x + b‖ of each sample, in f64.
    fn norms(inputs: &Tensor, a: f64, b: f64) -> Vec<f64> {
        let values = Vec::<f32>::try_from(inputs.detach().view([-1])).unwrap();
        let slope = |x: &f32| (a * f64::from(*x) + b).powi(2);
        values
            .chunks(8)
            .map(|sample| sample.iter().map(slope).sum::<f64>().sqrt())
            .collect()
    }

    #[test]
    fn penalties_are_one_norm_a_sample_and_have_gradients() {
        type Penalty = fn(&Tensor, &Tensor) -> Result<Tensor, TorchError>;
        type OfNorm = fn(f64) -> f64;
        let cases: [(Penalty, OfNorm); 2] = [
            (squared_norm, |norm| norm * norm),
            (squared_norm_off_one, |norm| (norm - 1.0).powi(2)),
        ];
        for (penalty, of_norm) in cases {
            let (inputs, a, b) = setting();
            let expected = |a: f64, b: f64| -> f64 {
                norms(&inputs, a, b).into_iter().map(of_norm).sum::<f64>() / 3.0
            };
            let found = penalty(&outputs(&inputs, &a, &b), &inputs).unwrap();
            assert!((found.double_value(&[]) - expected(0.6, -0.3)).abs() < 1e-6);
            found.backward();
            let h = 1e-6;
            let by_a = (expected(0.6 + h, -0.3) - expected(0.6 - h, -0.3)) / (2.0 * h);
            let by_b = (expected(0.6, -0.3 + h) - expected(0.6, -0.3 - h)) / (2.0 * h);
            assert!((a.grad().double_value(&[]) - by_a).abs() < 1e-5);
            assert!((b.grad().double_value(&[]) - by_b).abs() < 1e-5);
        }
    }

    #[test]
    fn a_flat_d_has_a_finite_penalty() {
        let (inputs, a, b) = setting();
        let flat = outputs(&inputs, &(&a * 0.0), &(&b * 0.0));
        let penalty = squared_norm_off_one(&flat, &inputs).unwrap();
        penalty.backward();
        assert_eq!(penalty.double_value(&[]), 1.0);
        assert!(a.grad().double_value(&[]).is_finite());
    }

    #[test]
    fn what_lies_between_lies_between() {
        let real = Tensor::full([3, 1, 2, 2], 1.0, (Kind::Float, tch::Device::Cpu));
        let fake = Tensor::full([3, 1, 2, 2], -1.0, (Kind::Float, tch::Device::Cpu));
        let mix = Tensor::from_slice(&[0f32, 0.25, 1.0]);
        let between = interpolate(&real, &fake, &mix).unwrap();
        assert!(between.requires_grad());
        let values: Vec<f64> = (0..3)
            .map(|i| between.double_value(&[i, 0, 1, 1]))
            .collect();
        assert_eq!(values, [-1.0, -0.5, 1.0]);
    }
}
