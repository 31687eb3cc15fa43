//! The three strategies of figure 20.

use super::bumps::Bumps;
use super::learner::Learner;
use super::mixture::{Bins, Mixture, MixtureError, normal_strata};
use super::perceptron::{Between, Perceptron};
use super::{Use, key};
use crate::config::{self, Adam};
use crate::objective;
use crate::torch::{Generator, TorchError};
use std::fmt;
use tch::{Device, Kind, Tensor};

/// What a strategy can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CriterionError {
    /// libtorch refuses.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// The parameters are those of no distribution any more.
    #[error("learning has diverged: {0}")]
    Diverged(#[from] MixtureError),
}

impl From<tch::TchError> for CriterionError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}

/// V = E log D + E log(1 - D), from D's logits on data and on the generator's samples: the value of
/// the game of equation 8, 2·(-J_D).
///
/// # Shapes
/// `[n]` and `[m]` to a scalar.
///
/// # Errors
/// [`TorchError`].
pub fn value(data: &Tensor, generated: &Tensor) -> Result<Tensor, TorchError> {
    let game = objective::of(config::Objective::Minimax, 0.0);
    Ok(game.discriminator(data, generated)?.f_neg()?)
}

/// A strategy in the game.
pub trait Criterion: fmt::Debug {
    /// One update of whoever learns, on draws from the data. Gives V before it.
    ///
    /// # Shapes
    /// `[n]`, `f32`.
    ///
    /// # Errors
    /// [`CriterionError`].
    fn update(&mut self, data: &Tensor) -> Result<f64, CriterionError>;

    /// p_model, at the middles of `bins`.
    ///
    /// # Errors
    /// [`CriterionError`].
    fn model(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError>;

    /// p_generator, at the middles of `bins`.
    ///
    /// # Errors
    /// [`CriterionError`].
    fn generator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError>;

    /// D, at the middles of `bins`.
    ///
    /// # Errors
    /// [`CriterionError`].
    fn discriminator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError>;
}

/// Adam, as the strategies that learn a density have it.
const DENSITY_ADAM: Adam = Adam {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

/// Where a density of `count` bumps starts: as wide as `around`, its bumps side by side.
fn start(around: &Mixture, count: usize) -> Result<Vec<Tensor>, TorchError> {
    let deviation = around.variance().sqrt();
    let mean = |k: usize| around.mean() + deviation * ((k as f64 + 0.5) / count as f64 - 0.5);
    let means: Vec<f64> = (0..count).map(mean).collect();
    let options = (Kind::Double, Device::Cpu);
    Ok(vec![
        Tensor::f_from_slice(&means)?,
        Tensor::f_full([count as i64], deviation.ln(), options)?,
        Tensor::f_zeros([count as i64], options)?,
    ])
}

fn single(x: &[f64]) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_from_slice(x)?.f_to_kind(Kind::Float)?)
}

fn numbers(of: &Tensor) -> Result<Vec<f64>, TorchError> {
    let host = of.f_detach()?.f_to_kind(Kind::Double)?;
    Ok(Vec::<f64>::try_from(host)?)
}

/// Noise-contrastive estimation (Gutmann and Hyvärinen 2010): D is p_model against a noise that is
/// known and stays as it is, and p_model need not be normalised: its constant is learnt too.
#[derive(Debug)]
pub struct NoiseContrastive {
    model: Learner,
    noise: Mixture,
    seed: u64,
    updates: u64,
}

impl NoiseContrastive {
    /// Learns a density of `count` bumps against `noise`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn new(noise: Mixture, count: usize, seed: u64) -> Result<Self, TorchError> {
        let mut parts = start(&noise, count)?;
        parts.push(Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?);
        Ok(Self {
            model: Learner::new(&parts, DENSITY_ADAM)?,
            noise,
            seed,
            updates: 0,
        })
    }

    /// ln p_model(x) = ln f(x) + c
    fn log_model(leaves: &[Tensor], x: &Tensor) -> Result<Tensor, TorchError> {
        Ok(Bumps::of(leaves).log_heights(x)?.f_add(&leaves[3])?)
    }

    /// D's logit is ln p_model - ln p_noise.
    fn logits(&self, leaves: &[Tensor], x: &Tensor) -> Result<Tensor, TorchError> {
        Ok(Self::log_model(leaves, x)?.f_sub(&self.noise.log_densities(x)?)?)
    }

    /// The integral of p_model, which is 1 once c = -ln Z.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn mass(&self) -> Result<f64, TorchError> {
        let leaves = self.model.leaves()?;
        let log = Bumps::of(&leaves).log_mass()?.f_add(&leaves[3])?;
        Ok(log.f_exp()?.f_double_value(&[0])?)
    }

    /// p_model, divided by its integral.
    ///
    /// # Errors
    /// [`CriterionError`].
    pub fn mixture(&self) -> Result<Mixture, CriterionError> {
        Ok(Bumps::of(&self.model.leaves()?).mixture()?)
    }
}

impl Criterion for NoiseContrastive {
    fn update(&mut self, data: &Tensor) -> Result<f64, CriterionError> {
        let count = data.size().iter().product::<i64>() as usize;
        let noise = self
            .noise
            .draw(key(self.seed, Use::Noise, self.updates), count);
        let leaves = self.model.leaves()?;
        let worth = value(
            &self.logits(&leaves, data)?,
            &self.logits(&leaves, &single(&noise)?)?,
        )?;
        self.model.descend(&worth.f_neg()?, &leaves)?;
        self.updates += 1;
        Ok(worth.f_double_value(&[])?)
    }

    fn model(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        let log = Self::log_model(&self.model.leaves()?, &single(&bins.middles())?)?;
        Ok(numbers(&log.f_exp()?)?)
    }

    fn generator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        Ok(bins
            .middles()
            .iter()
            .map(|&x| self.noise.density(x))
            .collect())
    }

    fn discriminator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        let logits = self.logits(&self.model.leaves()?, &single(&bins.middles())?)?;
        Ok(numbers(&logits.f_sigmoid()?)?)
    }
}

/// Maximum likelihood, as a game: D is p_model against a copy of itself, made anew before each
/// update. D says ½ everywhere, and yet V's gradient is half that of the likelihood.
#[derive(Debug)]
pub struct MaximumLikelihood {
    model: Learner,
    seed: u64,
    updates: u64,
}

impl MaximumLikelihood {
    /// Learns a normalised density of `count` bumps, from one that is about as wide as `around`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn new(around: &Mixture, count: usize, seed: u64) -> Result<Self, TorchError> {
        Ok(Self {
            model: Learner::new(&start(around, count)?, DENSITY_ADAM)?,
            seed,
            updates: 0,
        })
    }

    /// p_model
    ///
    /// # Errors
    /// [`CriterionError`].
    pub fn mixture(&self) -> Result<Mixture, CriterionError> {
        Ok(Bumps::of(&self.model.leaves()?).mixture()?)
    }
}

impl Criterion for MaximumLikelihood {
    fn update(&mut self, data: &Tensor) -> Result<f64, CriterionError> {
        let count = data.size().iter().product::<i64>() as usize;
        // The copy, as a sampler.
        let generator = self.mixture()?;
        let generated = generator.draw(key(self.seed, Use::Generator, self.updates), count);
        let leaves = self.model.leaves()?;
        let model = Bumps::of(&leaves);
        // The same density twice, of which one stays as it is.
        let logits = |x: &Tensor| -> Result<Tensor, TorchError> {
            let log = model.log_density(x)?;
            Ok(log.f_sub(&log.f_detach()?)?)
        };
        let worth = value(&logits(data)?, &logits(&single(&generated)?)?)?;
        self.model.descend(&worth.f_neg()?, &leaves)?;
        self.updates += 1;
        Ok(worth.f_double_value(&[])?)
    }

    fn model(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        let model = self.mixture()?;
        Ok(bins.middles().iter().map(|&x| model.density(x)).collect())
    }

    fn generator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        self.model(bins)
    }

    fn discriminator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        Ok(vec![0.5; bins.count])
    }
}

/// The GAN: D is a network and knows no density; the generator is another, and is the model. D follows
/// V up, the generator follows it down.
#[derive(Debug)]
pub struct Adversarial {
    discriminator: Perceptron,
    generator: Perceptron,
    /// The generator's deviation before it has learnt anything.
    spread: f64,
    seed: u64,
    updates: u64,
}

/// Step sizes of D and of G.
const GAN_RATES: [f64; 2] = [4e-3, 1e-3];
/// D's updates for one of G, whose gradient is worth the more the better D is.
const ASCENTS: u64 = 2;

impl Adversarial {
    /// Two networks of two hidden layers of `width`. The generator is G(z) = `spread`·z + network(z),
    /// so that it starts about where the other strategies start.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn new(spread: f64, width: usize, seed: u64) -> Result<Self, TorchError> {
        let network = |purpose, rate| {
            let adam = Adam {
                learning_rate: rate,
                beta1: 0.5,
                beta2: 0.999,
                epsilon: 1e-8,
            };
            let key = key(seed, purpose, 0);
            Perceptron::new(&[1, width, width, 1], Between::Tanh, key, adam)
        };
        Ok(Self {
            discriminator: network(Use::Discriminator, GAN_RATES[0])?,
            generator: network(Use::Generator, GAN_RATES[1])?,
            spread,
            seed,
            updates: 0,
        })
    }

    /// The step sizes of the updates to come, as a share of those at the start. The players circle
    /// each other until their steps grow small.
    pub fn set_pace(&mut self, share: f64) {
        self.discriminator.learner().set_rate(GAN_RATES[0] * share);
        self.generator.learner().set_rate(GAN_RATES[1] * share);
    }

    /// G(z)
    fn generate(&self, leaves: &[Tensor], z: &Tensor) -> Result<Tensor, TorchError> {
        let learnt = self.generator.on_line(leaves, z)?;
        Ok(z.f_mul_scalar(self.spread)?.f_add(&learnt)?)
    }

    fn latents(&self, shape: Vec<i64>, draw: u64) -> Result<Tensor, TorchError> {
        let key = key(self.seed, Use::Latents, draw);
        let mut z = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
        Generator::new(Device::Cpu, key)?.normal_(&mut z, 0.0, 1.0)?;
        Ok(z)
    }
}

impl Criterion for Adversarial {
    fn update(&mut self, data: &Tensor) -> Result<f64, CriterionError> {
        let g = self.generator.leaves()?;
        let mut first = None;
        for ascent in 0..ASCENTS {
            let z = self.latents(data.size(), self.updates * (ASCENTS + 1) + ascent)?;
            let fake = self.generate(&g, &z)?.f_detach()?;
            let d = self.discriminator.leaves()?;
            let worth = value(
                &self.discriminator.on_line(&d, data)?,
                &self.discriminator.on_line(&d, &fake)?,
            )?;
            self.discriminator.learner().descend(&worth.f_neg()?, &d)?;
            first = first.or(Some(worth.f_double_value(&[])?));
        }
        let z = self.latents(data.size(), self.updates * (ASCENTS + 1) + ASCENTS)?;
        let frozen: Vec<Tensor> = self
            .discriminator
            .leaves()?
            .iter()
            .map(Tensor::f_detach)
            .collect::<Result<_, _>>()?;
        let fake = self.generate(&g, &z)?;
        let game = objective::of(config::Objective::Minimax, 0.0);
        let cost = game.generator(&self.discriminator.on_line(&frozen, &fake)?, None)?;
        self.generator.learner().descend(&cost, &g)?;
        self.updates += 1;
        Ok(first.unwrap_or(f64::NAN))
    }

    fn model(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        /// Latents that stand for all of them: some hundred to a bin.
        const LATENTS: usize = 1 << 16;
        let z = normal_strata(LATENTS)?.f_to_kind(Kind::Float)?;
        let points = self.generate(&self.generator.leaves()?, &z)?;
        Ok(bins.histogram(&numbers(&points)?))
    }

    fn generator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        self.model(bins)
    }

    fn discriminator(&self, bins: &Bins) -> Result<Vec<f64>, CriterionError> {
        let x = single(&bins.middles())?;
        let leaves = self.discriminator.leaves()?;
        let logits = self.discriminator.on_line(&leaves, &x)?;
        Ok(numbers(&logits.f_sigmoid()?)?)
    }
}
