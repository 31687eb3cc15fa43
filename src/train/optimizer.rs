//! Adam (Kingma and Ba 2014) on flat vectors, from one buffer to another.

use super::state::PlayerState;
use crate::config::Adam;
use crate::ids::Step;
use crate::torch::{FusedAdam, TorchError};
use tch::{Device, Tensor};

/// Elements that are copied and updated at a time: seven slices of this length stay in a core's
/// cache, so that the copy costs little more than the update. Fixed, so that no bit depends on the
/// machine.
const CHUNK: i64 = 1 << 14;

/// Writes to `to` what Adam makes of `from` and the mean gradient; `step` is the one reached.
/// `from` stays as it is: if the step fails later, it is still the state.
pub(super) fn update(
    from: &PlayerState,
    to: &mut PlayerState,
    gradient: &Tensor,
    settings: Adam,
    step: Step,
) -> Result<(), TorchError> {
    let len = from.parameters.numel() as i64;
    let chunk = match gradient.device() {
        Device::Cpu => CHUNK,
        _ => len.max(1),
    };
    let mut start = 0;
    while start < len {
        let size = chunk.min(len - start);
        let copy = |from: &Tensor, to: &Tensor| -> Result<Tensor, TorchError> {
            let mut to = to.f_narrow(0, start, size)?;
            to.f_copy_(&from.f_narrow(0, start, size)?)?;
            Ok(to)
        };
        FusedAdam {
            parameters: &mut copy(&from.parameters, &to.parameters)?,
            gradients: &gradient.f_narrow(0, start, size)?,
            exp_avg: &mut copy(&from.exp_avg, &to.exp_avg)?,
            exp_avg_sq: &mut copy(&from.exp_avg_sq, &to.exp_avg_sq)?,
            step: step.0,
            learning_rate: settings.learning_rate,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
        }
        .apply()?;
        start += size;
    }
    Ok(())
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
            running: Vec::new(),
            batches_tracked: 0,
        }
    }

    #[test]
    fn an_update_in_chunks_leaves_its_source_alone_and_equals_adam() {
        let len = (CHUNK * 2 + 37) as usize;
        let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient = Tensor::from_slice(&values) * 0.01 + 0.003;
        let (from, mut to) = (player(&values), player(&vec![f32::NAN; len]));
        let settings = Optimizer::default().generator();
        update(&from, &mut to, &gradient, settings, Step(1)).unwrap();
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
