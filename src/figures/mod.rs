//! The tutorial's figures, drawn from runs: `gan-worker figures`.
//!
//! | file | figure |
//! |---|---|
//! | `divergences` | 14: a normal distribution fitted to a mixture of two, by either order of KL |
//! | `modes` | 15: GANs of several divergences on a ring of modes |
//! | `costs` | 16: G's cost by what D says of a sample, and which samples carry the gradient |
//! | `samples` | 18: what a generator that was trained draws |
//! | `arithmetic` | 19: sums and differences of its latents |
//! | `trained` | such a generator |
//! | `criteria` | 20: noise-contrastive estimation, maximum likelihood and the GAN |
//! | `chart` | panels, axes, colours: the only file that knows how a plot becomes SVG |
//!
//! Each figure computes what it shows and nothing is kept from earlier runs. The same seed gives the
//! same bytes on one kind of machine, if the thread that draws computes with one intra-op thread
//! ([`set_threads`](crate::torch::set_threads)).

mod arithmetic;
mod chart;
mod costs;
mod criteria;
mod divergences;
mod modes;
mod samples;
#[cfg(test)]
mod tests;
mod trained;

pub use trained::Trained;

use crate::density::{CriterionError, MixtureError};
use crate::sample::SampleError;
use crate::torch::TorchError;
use crate::train::TrainError;
use image::DynamicImage;
use std::fmt;

/// A figure of the tutorial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// 14
    Divergences,
    /// 15
    Modes,
    /// 16
    Costs,
    /// 18
    Samples,
    /// 19
    Arithmetic,
    /// 20
    Criteria,
}

impl Figure {
    /// All that can be drawn, by their numbers.
    pub const ALL: [Self; 6] = [
        Self::Divergences,
        Self::Modes,
        Self::Costs,
        Self::Samples,
        Self::Arithmetic,
        Self::Criteria,
    ];

    /// Its number in the tutorial.
    pub fn number(self) -> u32 {
        match self {
            Self::Divergences => 14,
            Self::Modes => 15,
            Self::Costs => 16,
            Self::Samples => 18,
            Self::Arithmetic => 19,
            Self::Criteria => 20,
        }
    }

    /// What is run for it.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Divergences => {
                "a normal distribution fitted to a mixture of two, by either order of KL"
            }
            Self::Modes => "GANs that minimise four divergences, on a ring of eight modes",
            Self::Costs => {
                "G's cost in the three games, and which samples carry its gradient when D is trained"
            }
            Self::Samples => "what a generator that was trained draws",
            Self::Arithmetic => "sums and differences of a trained generator's latents",
            Self::Criteria => {
                "a density learnt by noise-contrastive estimation, by maximum likelihood and by a GAN"
            }
        }
    }

    /// Whether it shows a generator that was trained, which [`Study`] has to bring.
    pub fn shows_a_generator(self) -> bool {
        matches!(self, Self::Samples | Self::Arithmetic)
    }

    /// Runs what it shows, and draws it.
    ///
    /// # Errors
    /// [`FigureError`].
    pub fn draw(self, study: &Study) -> Result<Drawing, FigureError> {
        match self {
            Self::Divergences => divergences::draw(study),
            Self::Modes => modes::draw(study),
            Self::Costs => costs::draw(study),
            Self::Samples => samples::draw(study, study.trained()?),
            Self::Arithmetic => arithmetic::draw(study, study.trained()?),
            Self::Criteria => criteria::draw(study),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "figure {}", self.number())
    }
}

/// How figures are computed.
#[derive(Debug)]
pub struct Study {
    /// Of every draw.
    pub seed: u64,
    /// Runs of a few updates, for tests: everything is computed and drawn, and nothing learnt.
    pub brief: bool,
    /// The generator that figures 18 and 19 show.
    pub trained: Option<Trained>,
    /// Is told what takes long, before it is done.
    pub say: fn(&str),
}

impl Study {
    fn trained(&self) -> Result<&Trained, FigureError> {
        self.trained.as_ref().ok_or(FigureError::NoGenerator)
    }

    /// Updates of a run that takes `full` of them.
    fn updates(&self, full: u32) -> u32 {
        if self.brief { full.min(20) } else { full }
    }
}

/// What a figure is drawn as.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// A plot: an SVG document.
    Svg(String),
    /// Images.
    Png(DynamicImage),
}

/// A figure that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// The picture.
    pub picture: Picture,
    /// What the runs have come to, a line each.
    pub findings: Vec<String>,
}

/// What can go wrong with a figure.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// libtorch refuses.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A run has failed.
    #[error(transparent)]
    Criterion(#[from] CriterionError),
    /// A run has ended at numbers that are no distribution.
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    /// The figure shows a generator, and there is none.
    #[error("there is no generator to show; name a checkpoint")]
    NoGenerator,
    /// The generator can't draw.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Its images can't be put on a picture.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The plot can't be drawn.
    #[error("can't draw the plot: {0}")]
    Plot(String),
}

impl From<tch::TchError> for FigureError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
