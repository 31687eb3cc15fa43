//! The job file: what a job is.
//!
//! A job file is TOML. Every key is a field here, with its meaning, unit, default and reason in its
//! documentation. [`load`] reads one, applies `--set` overrides and checks it; whoever holds a
//! [`Job`] from there may rely on it. This room knows nothing of tensors, sockets or time.

mod data;
mod durations;
mod evaluate;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod load;
mod model;
mod optimizer;
mod regularise;
mod state_keys;
mod telemetry;
mod validate;

pub use data::{Data, DataCache, Fit, Stacked, Synthetic};
pub use evaluate::{Evaluate, Score};
pub use guard::{Guard, Policy};
pub use load::{ConfigError, Override, load, parse};
pub use model::{
    BatchNorm, Conditional, Distribution, Family, HiddenNoise, LatentInput, Model, Normalisation,
};
pub use optimizer::{Adam, AdamOverride, Decay, Optimizer, Schedule};
pub use regularise::{Augmentation, Regularise};
pub use state_keys::{KeyDifference, StateKeys, differences};
pub use telemetry::Telemetry;

use serde::{Deserialize, Serialize};
use std::fmt;
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
    /// What is added to the game so that it trains well.
    #[serde(default, skip_serializing_if = "Regularise::is_default")]
    pub regularise: Regularise,
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
    /// What is written for other programs to look at.
    #[serde(default, skip_serializing_if = "Telemetry::is_default")]
    pub telemetry: Telemetry,
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
    /// Samples a replica and update, b. Default 16.
    #[serde(default = "defaults::batch")]
    pub batch: u32,
    /// Samples that D sees at a time, all real or all fake, m: PacGAN's packing (Lin et al. 2018),
    /// which shows D a lack of variety. D has m times the channels, and `batch` is a multiple of m.
    /// Default 1.
    #[serde(default = "defaults::one", skip_serializing_if = "is_one")]
    pub packing: u32,
    /// D's updates in a step, each with real samples and latents of its own, so that a step reads
    /// R·b·k samples. Default 1.
    #[serde(default = "defaults::one", skip_serializing_if = "is_one")]
    pub discriminator_steps: u32,
    /// G's updates in a step, after D's: the first with the fakes of D's last, and each other with
    /// latents of its own. Default 1.
    #[serde(default = "defaults::one", skip_serializing_if = "is_one")]
    pub generator_steps: u32,
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

/// What the two players minimise. `minimax`, `non-saturating` and `maximum-likelihood` are those of
/// Goodfellow's tutorial (arXiv 1701.00160), and share D's cost, equation 8.
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
    /// D is regressed on labels 1 and 0 (Mao et al. 2017).
    LeastSquares,
    /// D classifies with a margin (Lim and Ye 2017).
    Hinge,
    /// D is a critic (Arjovsky et al. 2017), held 1-Lipschitz by a gradient penalty (Gulrajani et
    /// al. 2017) unless `regularise.gradient_penalty` says otherwise.
    Wasserstein,
    /// D tells real image i from fake i (Jolicoeur-Martineau 2018).
    Relativistic,
    /// f-GAN (Nowozin et al. 2016): KL(data ‖ model).
    FKl,
    /// f-GAN: KL(model ‖ data).
    FReverseKl,
    /// f-GAN: Pearson's χ².
    FPearson,
    /// f-GAN: the squared Hellinger distance.
    FHellinger,
    /// f-GAN: the Jensen-Shannon divergence.
    FJs,
    /// f-GAN: the GAN's own, which is minimax in other words.
    FGan,
}

impl Objective {
    /// All games.
    pub const ALL: [Self; 13] = [
        Self::Minimax,
        Self::NonSaturating,
        Self::MaximumLikelihood,
        Self::LeastSquares,
        Self::Hinge,
        Self::Wasserstein,
        Self::Relativistic,
        Self::FKl,
        Self::FReverseKl,
        Self::FPearson,
        Self::FHellinger,
        Self::FJs,
        Self::FGan,
    ];

    /// Whether D learns labels, which may be smoothed.
    pub fn has_labels(self) -> bool {
        matches!(
            self,
            Self::Minimax | Self::NonSaturating | Self::MaximumLikelihood | Self::LeastSquares
        )
    }
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
    /// Whether workers of one host that reduce in host memory, as those on CPUs do, send each other
    /// their sums through memory that both map; if not, or if they can't, through a loopback
    /// connection. No bit depends on it. Default `true`.
    pub shared_memory: bool,
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

fn is_one(number: &u32) -> bool {
    *number == 1
}

mod defaults {
    pub(super) fn one() -> u32 {
        1
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

impl Default for Workers {
    fn default() -> Self {
        Self {
            min: 1,
            max: 0,
            threads: 1,
            cuda_graphs: true,
            shared_memory: true,
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
        LeastSquares => "least-squares",
        Hinge => "hinge",
        Wasserstein => "wasserstein",
        Relativistic => "relativistic",
        FKl => "f-kl",
        FReverseKl => "f-reverse-kl",
        FPearson => "f-pearson",
        FHellinger => "f-hellinger",
        FJs => "f-js",
        FGan => "f-gan",
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
    Family {
        Dcgan => "dcgan",
        Mlp => "mlp",
    }
    Conditional {
        None => "none",
        Concatenation => "concatenation",
        Projection => "projection",
    }
    Normalisation {
        Batch => "batch",
        Layer => "layer",
        None => "none",
    }
}

impl Job {
    /// Shape of a sample as it is packed: channels, rows, columns. Images are `data.reduce` times as
    /// large as the networks'.
    pub fn packed_shape(&self) -> [u32; 3] {
        let [channels, high, wide] = self.model.sample_shape();
        [channels, high * self.data.reduce, wide * self.data.reduce]
    }

    /// Samples that one replica reads in a step: b for each of D's updates.
    pub fn replica_samples(&self) -> u32 {
        self.train.batch * self.train.discriminator_steps
    }

    /// Samples an update over all replicas: R·b.
    pub fn minibatch(&self) -> u64 {
        u64::from(self.train.replicas) * u64::from(self.train.batch)
    }

    /// Samples a step over all replicas: R·b·k.
    pub fn global_batch(&self) -> u64 {
        u64::from(self.train.replicas) * u64::from(self.replica_samples())
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
