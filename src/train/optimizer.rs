//! Adam (Kingma and Ba 2014) on flat vectors, and what is reported of a gradient.

use super::state::PlayerState;
use crate::config::Adam;
use crate::torch::{FusedAdam, TorchError};
use tch::Tensor;

/// Writes to `to` what Adam makes of `from` and the mean gradient; `count` is the step reached.
///
/// `from` stays as it is: if the step fails later, it is still the state. The copy costs about half
/// a percent of a step at 64×64, width 64, batch 64.
pub(super) fn update(
    from: &PlayerState,
    to: &mut PlayerState,
    gradients: &Tensor,
    settings: Adam,
    count: &Tensor,
) -> Result<(), TorchError> {
    to.parameters.f_copy_(&from.parameters)?;
    to.exp_avg.f_copy_(&from.exp_avg)?;
    to.exp_avg_sq.f_copy_(&from.exp_avg_sq)?;
    FusedAdam {
        parameters: &mut to.parameters,
        gradients,
        exp_avg: &mut to.exp_avg,
        exp_avg_sq: &mut to.exp_avg_sq,
        count,
        learning_rate: settings.learning_rate,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
    }
    .apply()
}

/// The L2 norm of a gradient, and how many of its elements are not finite.
///
/// The sum has one order, fixed here: the figure doesn't depend on threads or workers.
pub(super) fn measure(gradient: &[f32]) -> (f64, u64) {
    const LANES: usize = 16;
    let mut squares = [0f64; LANES];
    let mut nonfinite = [0u32; LANES];
    let mut total_nonfinite = 0u64;
    for block in gradient.chunks(1 << 20) {
        for lane in block.chunks(LANES) {
            for ((square, bad), value) in squares.iter_mut().zip(&mut nonfinite).zip(lane) {
                *square += f64::from(*value) * f64::from(*value);
                *bad += u32::from(!value.is_finite());
            }
        }
        total_nonfinite += nonfinite.iter().map(|&bad| u64::from(bad)).sum::<u64>();
        nonfinite = [0; LANES];
    }
    (squares.iter().sum::<f64>().sqrt(), total_nonfinite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Optimizer;
    use tch::Kind;

    fn player(values: &[f32]) -> PlayerState {
        let parameters = Tensor::from_slice(values);
        PlayerState {
            exp_avg: parameters.zeros_like(),
            exp_avg_sq: parameters.zeros_like(),
            parameters,
            running: Tensor::from_slice(&[0f32; 0]),
            batches_tracked: 0,
        }
    }

    #[test]
    fn an_update_leaves_its_source_alone_and_equals_adam() {
        let len = 1037;
        let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient = Tensor::from_slice(&values) * 0.01 + 0.003;
        let (from, mut to) = (player(&values), player(&vec![f32::NAN; len]));
        let settings = Optimizer::default().generator();
        update(&from, &mut to, &gradient, settings, &Tensor::from(1f32)).unwrap();
        assert!(from.parameters.equal(&Tensor::from_slice(&values)));
        // After one step the corrected moments are g and g².
        let direction = &gradient / (gradient.abs() + settings.epsilon);
        let expected = &from.parameters - direction * settings.learning_rate;
        let error = (&to.parameters - expected).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{error}");
        let error = (&to.exp_avg - &gradient * 0.5)
            .abs()
            .max()
            .double_value(&[]);
        assert!(error < 1e-8, "{error}");
        assert_eq!(to.exp_avg_sq.kind(), Kind::Float);
    }

    #[test]
    fn the_norm_is_exact_and_counts_what_is_not_finite() {
        assert_eq!(measure(&[3.0, 4.0]), (5.0, 0));
        let mut values = vec![1.0f32; 1000];
        assert!((measure(&values).0 - 1000f64.sqrt()).abs() < 1e-12);
        values[3] = f32::NAN;
        values[999] = f32::INFINITY;
        assert_eq!(measure(&values).1, 2);
        assert_eq!(measure(&[]), (0.0, 0));
    }
}
