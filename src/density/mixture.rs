//! Mixtures of normal distributions on a line: densities, draws and divergences that are known.

use crate::random::Key;
use crate::torch::TorchError;
use std::f64::consts::TAU;
use tch::{Device, Kind, Tensor};

/// What is no mixture.
#[derive(Debug, thiserror::Error)]
pub enum MixtureError {
    /// There are no components.
    #[error("a mixture needs at least one component")]
    Empty,
    /// A component's weight or deviation is not positive, or a number is not finite.
    #[error("component {index} of a mixture is no distribution: {component:?}")]
    Component {
        /// Which one, from 0.
        index: usize,
        /// What it was to be.
        component: Component,
    },
    /// The weights don't add up.
    #[error("the weights of a mixture add up to {total}, expected 1")]
    Weights {
        /// Their sum.
        total: f64,
    },
}

/// One normal distribution of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Component {
    /// Its share, 0 … 1.
    pub weight: f64,
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

/// A mixture of normal distributions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    components: Vec<Component>,
}

impl Mixture {
    /// A mixture of these.
    ///
    /// # Errors
    /// [`MixtureError`], if it is none.
    pub fn new(components: Vec<Component>) -> Result<Self, MixtureError> {
        if components.is_empty() {
            return Err(MixtureError::Empty);
        }
        for (index, &component) in components.iter().enumerate() {
            let Component {
                weight,
                mean,
                deviation,
            } = component;
            let positive = |x: f64| x > 0.0 && x.is_finite();
            if !(positive(weight) && positive(deviation) && mean.is_finite()) {
                return Err(MixtureError::Component { index, component });
            }
        }
        let total: f64 = components.iter().map(|of| of.weight).sum();
        if (total - 1.0).abs() > 1e-6 {
            return Err(MixtureError::Weights { total });
        }
        Ok(Self { components })
    }

    /// The normal distribution.
    ///
    /// # Errors
    /// [`MixtureError::Component`].
    pub fn normal(mean: f64, deviation: f64) -> Result<Self, MixtureError> {
        Self::new(vec![Component {
            weight: 1.0,
            mean,
            deviation,
        }])
    }

    /// Its components.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// ln p(x), finite for every finite x.
    pub fn log_density(&self, x: f64) -> f64 {
        let logs = self.components.iter().map(|of| {
            let z = (x - of.mean) / of.deviation;
            of.weight.ln() - of.deviation.ln() - 0.5 * (TAU.ln() + z * z)
        });
        let most = logs.clone().fold(f64::NEG_INFINITY, f64::max);
        most + logs.map(|log| (log - most).exp()).sum::<f64>().ln()
    }

    /// p(x)
    pub fn density(&self, x: f64) -> f64 {
        self.log_density(x).exp()
    }

    /// ln p(x), one a number of `x`.
    ///
    /// # Shapes
    /// `[n]` to `[n]`, of the same kind.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn log_densities(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        let kind = x.kind();
        let of = |field: fn(&Component) -> f64| {
            let values: Vec<f64> = self.components.iter().map(field).collect();
            Tensor::f_from_slice(&values)?.f_to_kind(kind)
        };
        let heights = of(|c| c.weight.ln() - c.deviation.ln() - 0.5 * TAU.ln())?;
        let z = x
            .f_unsqueeze(-1)?
            .f_sub(&of(|c| c.mean)?)?
            .f_div(&of(|c| c.deviation)?)?;
        let logs = z.f_square()?.f_mul_scalar(-0.5)?.f_add(&heights)?;
        Ok(logs.f_logsumexp([-1], false)?)
    }

    /// E x
    pub fn mean(&self) -> f64 {
        self.components.iter().map(|c| c.weight * c.mean).sum()
    }

    /// E (x - E x)²
    pub fn variance(&self) -> f64 {
        let of = |c: &Component| c.weight * (c.deviation.powi(2) + (c.mean - self.mean()).powi(2));
        self.components.iter().map(of).sum()
    }

    /// `count` draws.
    pub fn draw(&self, key: Key, count: usize) -> Vec<f64> {
        let mut stream = key.stream();
        // In (0, 1): a logarithm is taken of it.
        let mut uniform = move || (stream.below(1 << 53) as f64 + 0.5) / (1u64 << 53) as f64;
        let draw = |_| {
            let mut at = uniform();
            let found = self.components.iter().find(|c| {
                at -= c.weight;
                at < 0.0
            });
            // The weights may add up to a little less than 1.
            let of = found.unwrap_or(&self.components[self.components.len() - 1]);
            // Box and Muller 1958.
            let (length, turn) = ((-2.0 * uniform().ln()).sqrt(), TAU * uniform());
            of.mean + of.deviation * length * turn.cos()
        };
        (0..count).map(draw).collect()
    }

    /// Points that stand for the whole distribution, about `count` of them: the middles, by
    /// probability, of each component's equally probable parts. A mean over them is an expectation
    /// without the noise of draws.
    ///
    /// # Shapes
    /// `[n]`, `f64`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn strata(&self, count: usize) -> Result<Tensor, TorchError> {
        let of = |c: &Component| -> Result<Tensor, TorchError> {
            let part = (c.weight * count as f64).round().max(1.0) as usize;
            Ok(normal_strata(part)?
                .f_mul_scalar(c.deviation)?
                .f_add_scalar(c.mean)?)
        };
        let parts: Vec<Tensor> = self.components.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

/// The middles, by probability, of `count` equally probable parts of N(0, 1).
///
/// # Shapes
/// `[count]`, `f64`, ascending.
///
/// # Errors
/// [`TorchError`].
pub fn normal_strata(count: usize) -> Result<Tensor, TorchError> {
    let middles = Tensor::f_arange(count as i64, (Kind::Double, Device::Cpu))?;
    Ok(middles
        .f_add_scalar(0.5)?
        .f_div_scalar(count as f64)?
        .f_special_ndtri()?)
}

/// Equal parts of an interval, on which densities are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    /// Where the first begins.
    pub from: f64,
    /// Where the last ends.
    pub to: f64,
    /// How many.
    pub count: usize,
}

impl Bins {
    /// How wide one is.
    pub fn width(&self) -> f64 {
        (self.to - self.from) / self.count as f64
    }

    /// Their middles.
    pub fn middles(&self) -> Vec<f64> {
        let middle = |i: usize| self.from + (i as f64 + 0.5) * self.width();
        (0..self.count).map(middle).collect()
    }

    /// The density that these points have in each: their share, by its width. Points outside count
    /// as points and lie in none.
    pub fn histogram(&self, points: &[f64]) -> Vec<f64> {
        let mut density = vec![0.0; self.count];
        let one = 1.0 / (points.len().max(1) as f64 * self.width());
        for point in points {
            let at = ((point - self.from) / self.width()).floor();
            if at >= 0.0 && at < self.count as f64 {
                density[at as usize] += one;
            }
        }
        density
    }
}

/// KL(p ‖ q) = ∫ p·ln(p/q) - p + q, in nats, of two densities that are given at the middles of
/// `bins`. The last two terms are 0 if both are normalised; where one isn't, they count its mass.
/// A q below 1e-6 counts as that.
pub fn divergence(p: &[f64], q: &[f64], bins: &Bins) -> f64 {
    const LEAST: f64 = 1e-6;
    let at = |(&p, &q): (&f64, &f64)| {
        let log = if p > 0.0 {
            p * (p / q.max(LEAST)).ln()
        } else {
            0.0
        };
        log - p + q
    };
    p.iter().zip(q).map(at).sum::<f64>() * bins.width()
}
