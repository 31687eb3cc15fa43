//! The three games of Goodfellow's tutorial (arXiv 1701.00160, section 3.2). They share D's cost,
//! equation 8, and differ in G's. With logits s and sp = softplus, -log σ(s) = sp(-s) and
//! -log(1 - σ(s)) = sp(s). The ½ before each expectation, which only scales the step, is left out,
//! as in the DCGAN paper's code.

use super::Objective;
use crate::torch::TorchError;
use tch::{Kind, Tensor};

/// Equation 8: E sp(-s_real) + E sp(s_fake).
fn cross_entropy(real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
    let real = real.f_neg()?.f_softplus()?.f_mean(Kind::Float)?;
    let fake = fake.f_softplus()?.f_mean(Kind::Float)?;
    Ok(real.f_add(&fake)?)
}

/// Equation 10: a zero-sum game. G's cost is -E sp(s_fake); its gradient vanishes where D is sure.
#[derive(Clone, Copy, Debug)]
pub struct Minimax;

/// Equation 13: G's cost is E sp(-s_fake), whose gradient is largest where D is sure.
#[derive(Clone, Copy, Debug)]
pub struct NonSaturating;

/// Equation 14: G's cost is -E exp(s_fake), which has the gradient of KL(data ‖ model) when D is
/// optimal. Finite in f32 for logits up to 88.
#[derive(Clone, Copy, Debug)]
pub struct MaximumLikelihood;

impl Objective for Minimax {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        cross_entropy(real, fake)
    }

    fn generator(&self, fake: &Tensor) -> Result<Tensor, TorchError> {
        Ok(fake.f_softplus()?.f_mean(Kind::Float)?.f_neg()?)
    }
}

impl Objective for NonSaturating {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        cross_entropy(real, fake)
    }

    fn generator(&self, fake: &Tensor) -> Result<Tensor, TorchError> {
        Ok(fake.f_neg()?.f_softplus()?.f_mean(Kind::Float)?)
    }
}

impl Objective for MaximumLikelihood {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        cross_entropy(real, fake)
    }

    fn generator(&self, fake: &Tensor) -> Result<Tensor, TorchError> {
        Ok(fake.f_exp()?.f_mean(Kind::Float)?.f_neg()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const GAMES: [config::Objective; 3] = [
        config::Objective::Minimax,
        config::Objective::NonSaturating,
        config::Objective::MaximumLikelihood,
    ];

    fn logistic(s: f64) -> f64 {
        1.0 / (1.0 + (-s).exp())
    }

    /// Equations 10, 13 and 14 as functions of D(G(z)) = σ(s), without the ½, and their derivatives
    /// by s (figure 16).
    fn closed_form(game: config::Objective, s: f64) -> (f64, f64) {
        let d = logistic(s);
        match game {
            config::Objective::Minimax => ((1.0 - d).ln(), -d),
            config::Objective::NonSaturating => (-d.ln(), d - 1.0),
            config::Objective::MaximumLikelihood => (-(d / (1.0 - d)), -(d / (1.0 - d))),
        }
    }

    fn close(found: f64, expected: f64) {
        let scale = expected.abs().max(1e-3);
        assert!(
            (found - expected).abs() <= 2e-5 * scale,
            "{found} for {expected}"
        );
    }

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    #[test]
    fn the_generators_cost_and_gradient_are_the_tutorials() {
        for game in GAMES {
            for s in [-6.0f32, -1.5, 0.0, 0.5, 4.0] {
                let logits = leaf(&[s]);
                let cost = super::super::of(game).generator(&logits).unwrap();
                let (expected, slope) = closed_form(game, f64::from(s));
                close(cost.double_value(&[]), expected);
                cost.backward();
                close(logits.grad().double_value(&[0]), slope);
            }
        }
    }

    #[test]
    fn the_discriminators_cost_and_gradient_are_equation_8() {
        for game in GAMES {
            let (real, fake) = (leaf(&[-2.0, 3.0]), leaf(&[0.5, -4.0, 1.0]));
            let cost = super::super::of(game).discriminator(&real, &fake).unwrap();
            let expected = [-2.0, 3.0].map(|s| -logistic(s).ln()).iter().sum::<f64>() / 2.0
                + [0.5, -4.0, 1.0]
                    .map(|s| -(1.0 - logistic(s)).ln())
                    .iter()
                    .sum::<f64>()
                    / 3.0;
            close(cost.double_value(&[]), expected);
            cost.backward();
            close(real.grad().double_value(&[0]), (logistic(-2.0) - 1.0) / 2.0);
            close(fake.grad().double_value(&[1]), logistic(-4.0) / 3.0);
        }
    }

    #[test]
    fn costs_and_gradients_are_finite_for_logits_from_minus_80_to_80() {
        for game in GAMES {
            let logits: Vec<f32> = (-80..=80).map(|s| s as f32).collect();
            let (real, fake) = (leaf(&logits), leaf(&logits));
            let game = super::super::of(game);
            let (d, g) = (
                game.discriminator(&real, &fake).unwrap(),
                game.generator(&fake).unwrap(),
            );
            (&d + &g).backward();
            for tensor in [d, g, real.grad(), fake.grad()] {
                assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{game:?}");
            }
        }
    }
}
