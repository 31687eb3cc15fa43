//! The job file: what a job is.
//!
//! A job file is TOML. Every key is a field here, with its meaning, unit, default and reason in its
//! documentation. [`load`] reads one, applies `--set` overrides and checks it; whoever holds a
//! [`Job`] from there may rely on it. This room knows nothing of tensors, sockets or time.

mod durations;
mod evaluate;
mod guard;
mod load;
mod state_keys;
mod validate;

pub use evaluate::{Evaluate, Score};
pub use guard::{Guard, Policy};
pub use load::{ConfigError, Override, load, parse};
pub use state_keys::{KeyDifference, StateKeys, differences};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Its name and seed.
    pub job: JobSection,
    /// Its samples.
    pub data: Data,
    /// Its two networks.
    #[serde(default)]
    pub model: Model,
    /// Its game, its length and its global batch.
    pub train: Train,
    /// Adam, for each network.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// What is done about a run that goes wrong.
    #[serde(default)]
    pub guard: Guard,
    /// How many processes share the work.
    #[serde(default)]
    pub workers: Workers,
    /// When the state is saved, and what is kept.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// When sample grids are drawn.
    #[serde(default)]
    pub sample: Sample,
    /// When the generator is scored, and how.
    #[serde(default)]
    pub evaluate: Evaluate,
    /// How long each wait may last.
    #[serde(default)]
    pub deadlines: Deadlines,
}

/// `[job]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSection {
    /// Name of the job; the run directory is `runs/<name>` unless the command says otherwise.
    /// Letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Every random draw of the job derives from it: 0 to 2^63 - 1, TOML's largest integer.
    /// Default 0.
    #[serde(default)]
    pub seed: u64,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder of IDX files (raw or `.gz`), an IDX file of images, or a folder of images (PNG,
    /// JPEG, at any depth). A relative path starts at the job file's folder; one that comes from
    /// `--set`, at the current folder.
    pub uri: String,
    /// Folder of the packed shards. Default: `ganglion` in the user's cache folder.
    #[serde(default)]
    pub shard_folder: Option<PathBuf>,
    /// Where a worker keeps samples from one epoch to the next. Default `host`.
    #[serde(default)]
    pub cache: DataCache,
    /// How an image becomes a square of `model.image_size`. Default `cover`.
    #[serde(default)]
    pub fit: Fit,
    /// Samples in a shard. Default 1024: a few megabytes, so that an epoch has many shards to deal.
    #[serde(default = "defaults::shard_samples")]
    pub shard_samples: u64,
}

/// Where a worker keeps samples from one epoch to the next. No bit depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataCache {
    /// In the machine's page cache, over the packed shards.
    #[default]
    Host,
    /// All of the data set in the GPU's memory, if it fits there; else as `host`. On a CPU, where
    /// these are the same memory, as `host` too.
    Device,
}

/// How an image becomes a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Scale until the shorter side fits, then crop the centre.
    #[default]
    Cover,
    /// Keep the pixels and put black around them; an image larger than the square is refused.
    Pad,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Side of the square images, pixels: 32, 64, 128 or 256. Default 64, as in the DCGAN paper.
    pub image_size: u32,
    /// Colour channels: 1 (grey) or 3 (RGB). Default 3.
    pub channels: u32,
    /// Size of the latent z, 1 to 4096. Default 100.
    pub latent: u32,
    /// Feature maps of the generator's last hidden layer (`ngf`), 1 to 1024. Default 64.
    pub generator_width: u32,
    /// Feature maps of the discriminator's first layer (`ndf`), 1 to 1024. Default 64.
    pub discriminator_width: u32,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// What the two players minimise. Default `non-saturating`.
    #[serde(default)]
    pub objective: Objective,
    /// The order of the two players' updates. Default `alternating`.
    #[serde(default)]
    pub update: Update,
    /// Logical data-parallel workers, R. The most processes that can share the job. Default 8.
    #[serde(default = "defaults::replicas")]
    pub replicas: u32,
    /// Samples a replica and step, b; the global batch is R·b. Default 16.
    #[serde(default = "defaults::batch")]
    pub batch: u32,
    /// Length of the job in steps, 1 to 2^40. Exactly one of `steps` and `epochs` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length of the job in passes over the data, 1 to 2^40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Arithmetic of the networks. Default `f32`.
    #[serde(default)]
    pub precision: Precision,
    /// The order of an image's values in memory while the networks compute. Default
    /// `channels-last`, which is faster nearly everywhere.
    #[serde(default)]
    pub memory_format: MemoryFormat,
    /// Only kernels that give the same bits from run to run. `false` lets libraries choose kernels
    /// by timing them, and add in any order: faster on a GPU, and no two runs are alike, so that
    /// `gan-coord verify` refuses the result. On a CPU it changes nothing. Default `true`.
    #[serde(default = "defaults::deterministic")]
    pub deterministic: bool,
    /// How gradients are summed. Default `exact`.
    #[serde(default)]
    pub reduction: Reduction,
    /// Decay of the generator's exponential moving average, a step; 0 turns it off. In the first
    /// steps it is less, (1 + t)/(10 + t), so that the average forgets the initialisation. Default 0.
    #[serde(default)]
    pub ema_decay: f64,
}

/// What the two players minimise; the equations are those of Goodfellow's tutorial
/// (arXiv 1701.00160). D's cost is equation 8 in all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Equation 10: G maximises D's cost.
    Minimax,
    /// Equation 13: G maximises the log-probability that D is mistaken.
    #[default]
    NonSaturating,
    /// Equation 14: G minimises KL(data ‖ model) when D is optimal.
    MaximumLikelihood,
}

/// The order of the two players' updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Update {
    /// D first, then G against the new D: the DCGAN paper's.
    #[default]
    Alternating,
    /// Both gradients at the same point, then one step for each: the tutorial's (section 3.1).
    Simultaneous,
}

/// Arithmetic of the networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision throughout.
    #[default]
    F32,
    /// Single precision, but convolutions and matrix products round their factors to 10 bits of
    /// mantissa: NVIDIA's TensorFloat-32. Needs a GPU of compute capability 8.0 or more.
    Tf32,
    /// Convolutions and what lies between them in bfloat16, but for D's last, whose logits are single
    /// precision. Weights, moments, gradients' sums, batch norm's parameters and statistics, and losses
    /// stay in single precision. Fast where the processor or GPU multiplies bfloat16 itself.
    Bf16,
}

/// The order of an image's values in memory while the networks compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFormat {
    /// All channels of a pixel side by side: NHWC.
    #[default]
    ChannelsLast,
    /// One channel after the other: NCHW, PyTorch's default.
    Contiguous,
}

/// How gradients are summed over the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Along one tree over the replicas, whoever hosts them: the same bits for any workers.
    #[default]
    Exact,
    /// By `ncclAllReduce`, in whatever order NCCL finds fastest on this machine: the bits depend on
    /// the workers. Over TCP there is nothing faster, and the sums are exact.
    Fast,
}

/// `[optimizer]`: Adam (Kingma and Ba 2014). A table `[optimizer.generator]` or
/// `[optimizer.discriminator]` overrides single values for one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Step size. Default 2e-4.
    pub learning_rate: f64,
    /// Decay of the first moment, a step. Default 0.5.
    pub beta1: f64,
    /// Decay of the second moment, a step. Default 0.999.
    pub beta2: f64,
    /// Added to the denominator. Default 1e-8.
    pub epsilon: f64,
    /// What differs for the generator.
    #[serde(skip_serializing_if = "AdamOverride::is_empty")]
    pub generator: AdamOverride,
    /// What differs for the discriminator.
    #[serde(skip_serializing_if = "AdamOverride::is_empty")]
    pub discriminator: AdamOverride,
}

/// `[optimizer.generator]`, `[optimizer.discriminator]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamOverride {
    /// As in `[optimizer]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// As in `[optimizer]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// As in `[optimizer]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,
    /// As in `[optimizer]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

impl AdamOverride {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Adam's settings for one network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

impl Optimizer {
    /// The generator's settings.
    pub fn generator(&self) -> Adam {
        self.with(self.generator)
    }

    /// The discriminator's settings.
    pub fn discriminator(&self) -> Adam {
        self.with(self.discriminator)
    }

    fn with(&self, network: AdamOverride) -> Adam {
        Adam {
            learning_rate: network.learning_rate.unwrap_or(self.learning_rate),
            beta1: network.beta1.unwrap_or(self.beta1),
            beta2: network.beta2.unwrap_or(self.beta2),
            epsilon: network.epsilon.unwrap_or(self.epsilon),
        }
    }
}

/// `[workers]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// The job starts when this many workers are there, and goes on with no fewer: below that it
    /// waits. Default 1.
    pub min: u32,
    /// No more than this many take part, and further ones stand by; 0 means `train.replicas`.
    /// Default 0.
    pub max: u32,
    /// Intra-op threads of a replica on a CPU. The bits depend on it, so it is the job's and not
    /// the machine's. Default 1: replicas run side by side.
    pub threads: u32,
    /// Whether a GPU is handed a step as one CUDA graph rather than kernel by kernel. No bit depends
    /// on it. Default `true`.
    pub cuda_graphs: bool,
}

/// `[checkpoint]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps from one checkpoint to the next; 0 means only at the end. Default 500.
    pub every_steps: u64,
    /// How many of the newest are kept. Default 3.
    pub keep_last: u32,
    /// Those whose step is a multiple of this are kept for ever; 0 means none. Default 0.
    pub keep_every: u64,
    /// The one with the best score of this name is kept too, and `checkpoints/best` leads to it:
    /// `"fid"`, `"kid"`, `"precision"`, `"recall"`, `"density"`, `"coverage"`, `"modes"`,
    /// `"kl-uniform"`, `"kl-data"` or `"high-quality"`. GANs collapse late, so the newest is often
    /// not the best. Needs `evaluate.every_steps`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<Score>,
}

/// `[sample]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// Steps from one grid to the next; 0 means only at the end. Default 500.
    pub every_steps: u64,
    /// Images along a side of the square grid. Default 8.
    pub grid: u32,
}

/// `[deadlines]`: how long each wait may last, as `"500ms"`, `"30s"`, `"5m"`. Each ends in an error
/// that says who was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// For `workers.min` workers to be there and ready, at the start and whenever fewer are left.
    /// Default 5m: images may have to be pulled.
    #[serde(with = "durations")]
    pub join: Duration,
    /// Without a sign of life from a worker, it is taken for dead; a broken connection says so at
    /// once. Also for the workers of before to come back to a new coordinator. Default 10s.
    #[serde(with = "durations")]
    pub heartbeat: Duration,
    /// For the workers of a new generation to connect to each other and share the newest state.
    /// Default 1m.
    #[serde(with = "durations")]
    pub form: Duration,
    /// For a peer's part of a reduction. Default 2m: a peer may compute slower.
    #[serde(with = "durations")]
    pub collective: Duration,
    /// For the coordinator to be back, when a worker has lost it or has nothing left to do.
    /// Default 5m.
    #[serde(with = "durations")]
    pub coordinator: Duration,
    /// For a batch from the loader. Default 1m.
    #[serde(with = "durations")]
    pub data: Duration,
    /// For a checkpoint to be on disk; and, when all steps are done, for the last evaluation. Default
    /// 5m.
    #[serde(with = "durations")]
    pub checkpoint: Duration,
}

mod defaults {
    pub(super) fn shard_samples() -> u64 {
        1024
    }
    pub(super) fn replicas() -> u32 {
        8
    }
    pub(super) fn batch() -> u32 {
        16
    }
    pub(super) fn deterministic() -> bool {
        true
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            image_size: 64,
            channels: 3,
            latent: 100,
            generator_width: 64,
            discriminator_width: 64,
        }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            beta1: 0.5,
            beta2: 0.999,
            epsilon: 1e-8,
            generator: AdamOverride::default(),
            discriminator: AdamOverride::default(),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            min: 1,
            max: 0,
            threads: 1,
            cuda_graphs: true,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            every_steps: 500,
            keep_last: 3,
            keep_every: 0,
            keep_best: None,
        }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            every_steps: 500,
            grid: 8,
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(300),
            heartbeat: Duration::from_secs(10),
            form: Duration::from_secs(60),
            collective: Duration::from_secs(120),
            coordinator: Duration::from_secs(300),
            data: Duration::from_secs(60),
            checkpoint: Duration::from_secs(300),
        }
    }
}

/// Shows a choice as the job file spells it.
macro_rules! spelled {
    ($($choice:ident { $($variant:ident => $text:literal),* $(,)? })*) => {
        $(impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($choice::$variant => $text,)*
                })
            }
        })*
    };
}

spelled! {
    Policy {
        Off => "off",
        Warn => "warn",
        RollBack => "roll-back",
        Stop => "stop",
    }
    Objective {
        Minimax => "minimax",
        NonSaturating => "non-saturating",
        MaximumLikelihood => "maximum-likelihood",
    }
    Update {
        Alternating => "alternating",
        Simultaneous => "simultaneous",
    }
    Precision {
        F32 => "f32",
        Tf32 => "tf32",
        Bf16 => "bf16",
    }
    MemoryFormat {
        ChannelsLast => "channels-last",
        Contiguous => "contiguous",
    }
    Reduction {
        Exact => "exact",
        Fast => "fast",
    }
}

impl Job {
    /// Samples a step over all replicas: R·b.
    pub fn global_batch(&self) -> u64 {
        u64::from(self.train.replicas) * u64::from(self.train.batch)
    }

    /// The length of the job in steps, for a data set with `steps_per_epoch` of them a pass.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        match (self.train.steps, self.train.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => epochs.saturating_mul(steps_per_epoch),
            (None, None) => 0,
        }
    }

    /// The most workers that can take part.
    pub fn max_workers(&self) -> u32 {
        match self.workers.max {
            0 => self.train.replicas,
            max => max.min(self.train.replicas),
        }
    }
}
