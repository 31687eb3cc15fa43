//! `[optimizer]`: Adam, and how its step sizes fall.

use super::Job;
use super::validate::{Fault, MAX_LENGTH, require};
use serde::{Deserialize, Serialize};

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
    /// How both networks' step sizes fall in the course of the job.
    #[serde(skip_serializing_if = "Schedule::is_default")]
    pub schedule: Schedule,
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

/// `[optimizer.schedule]`: what both networks' step sizes are multiplied with, by step.
///
/// It goes by numbers of steps and not by the job's length: a job that is made longer, and resumed,
/// is what it would have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// How they fall. Default `constant`: they don't.
    pub decay: Decay,
    /// Steps at the full size, before they fall. Default 0.
    pub start: u64,
    /// Steps that the fall takes, at least 1; afterwards it stays at `end`.
    pub steps: u64,
    /// What is left of them, as a share: 0 up to, but below 1. Default 0.
    pub end: f64,
}

/// How step sizes fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Not at all.
    #[default]
    Constant,
    /// Along a line.
    Linear,
    /// Along half a period of a cosine: slowly at both ends (Loshchilov and Hutter 2016,
    /// arXiv 1608.03983, equation 5, one period).
    Cosine,
}

impl Schedule {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What the step sizes of the update that reaches `step` are multiplied with.
    pub fn share(&self, step: u64) -> f64 {
        let gone = step.saturating_sub(self.start) as f64 / self.steps.max(1) as f64;
        let left = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - gone.min(1.0),
            Decay::Cosine => (1.0 + (std::f64::consts::PI * gone.min(1.0)).cos()) / 2.0,
        };
        self.end + (1.0 - self.end) * left
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
            schedule: Schedule::default(),
        }
    }
}

/// Refuses the first impossible value.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    let shared = Adam {
        learning_rate: job.optimizer.learning_rate,
        beta1: job.optimizer.beta1,
        beta2: job.optimizer.beta2,
        epsilon: job.optimizer.epsilon,
    };
    adam(
        shared,
        &[
            "optimizer.learning_rate",
            "optimizer.beta1",
            "optimizer.beta2",
            "optimizer.epsilon",
        ],
    )?;
    adam(
        job.optimizer.generator(),
        &[
            "optimizer.generator.learning_rate",
            "optimizer.generator.beta1",
            "optimizer.generator.beta2",
            "optimizer.generator.epsilon",
        ],
    )?;
    adam(
        job.optimizer.discriminator(),
        &[
            "optimizer.discriminator.learning_rate",
            "optimizer.discriminator.beta1",
            "optimizer.discriminator.beta2",
            "optimizer.discriminator.epsilon",
        ],
    )?;
    schedule(&job.optimizer.schedule)
}

fn adam(adam: Adam, keys: &[&'static str; 4]) -> Result<(), Fault> {
    require(
        adam.learning_rate.is_finite() && adam.learning_rate > 0.0,
        keys[0],
        adam.learning_rate,
        "a finite number above 0",
    )?;
    for (key, beta) in [(keys[1], adam.beta1), (keys[2], adam.beta2)] {
        require(
            (0.0..1.0).contains(&beta),
            key,
            beta,
            "0 up to, but below 1",
        )?;
    }
    require(
        adam.epsilon.is_finite() && adam.epsilon > 0.0,
        keys[3],
        adam.epsilon,
        "a finite number above 0",
    )
}

fn schedule(schedule: &Schedule) -> Result<(), Fault> {
    const START: &str = "optimizer.schedule.start";
    const STEPS: &str = "optimizer.schedule.steps";
    const END: &str = "optimizer.schedule.end";
    let Schedule {
        decay,
        start,
        steps,
        end,
    } = *schedule;
    if decay == Decay::Constant {
        let why =
            "nothing with optimizer.schedule.decay = \"constant\": take \"linear\" or \"cosine\"";
        require(start == 0, START, start, why)?;
        require(steps == 0, STEPS, steps, why)?;
        return require(end == 0.0, END, end, why);
    }
    require(
        start <= MAX_LENGTH,
        START,
        start,
        "0 to 1099511627776 (2^40) steps",
    )?;
    require(
        (1..=MAX_LENGTH).contains(&steps),
        STEPS,
        steps,
        "1 to 1099511627776 (2^40) steps",
    )?;
    require(
        (0.0..1.0).contains(&end),
        END,
        end,
        "0 up to, but below 1: a share of the learning rate",
    )
}

#[cfg(test)]
mod tests {
    use super::super::load::least as read;
    use super::super::parse;
    use std::path::Path;

    const LINEAR: [&str; 3] = [
        "optimizer.schedule.decay=linear",
        "optimizer.schedule.start=10",
        "optimizer.schedule.steps=20",
    ];

    #[test]
    fn step_sizes_fall_from_the_start_for_so_many_steps_and_stay() {
        let linear = read(&LINEAR).unwrap().optimizer.schedule;
        let shares = [0, 10, 15, 20, 30, 31, u64::MAX].map(|step| linear.share(step));
        assert_eq!(shares, [1.0, 1.0, 0.75, 0.5, 0.0, 0.0, 0.0]);

        let end = [&LINEAR[1..], &["optimizer.schedule.end=0.25"]].concat();
        let cosine = [&end[..], &["optimizer.schedule.decay=cosine"]].concat();
        let cosine = read(&cosine).unwrap().optimizer.schedule;
        let shares = [10, 15, 20, 30, 99].map(|step| cosine.share(step));
        // cos(π/4) = √½
        let quarter = 0.25 + 0.75 * (1.0 + 0.5f64.sqrt()) / 2.0;
        for (share, expected) in shares.into_iter().zip([1.0, quarter, 0.625, 0.25, 0.25]) {
            assert!((share - expected).abs() < 1e-15, "{share} for {expected}");
        }

        let constant = read(&[]).unwrap().optimizer.schedule;
        assert_eq!([0, 1, u64::MAX].map(|step| constant.share(step)), [1.0; 3]);
    }

    #[test]
    fn a_schedule_that_can_not_be_is_refused_by_name() {
        for (sets, words) in [
            (
                &["optimizer.schedule.decay=cosine"][..],
                &["optimizer.schedule.steps = 0", "1 to"][..],
            ),
            (
                &["optimizer.schedule.steps=9"],
                &["optimizer.schedule.steps = 9", "constant", "linear"],
            ),
            (
                &["optimizer.schedule.start=9"],
                &["optimizer.schedule.start = 9", "constant"],
            ),
            (
                &["optimizer.schedule.end=0.5"],
                &["optimizer.schedule.end = 0.5", "constant"],
            ),
            (
                &[LINEAR[0], LINEAR[2], "optimizer.schedule.end=1.0"],
                &["optimizer.schedule.end = 1", "below 1"],
            ),
            (
                &[LINEAR[0], LINEAR[2], "optimizer.schedule.end=nan"],
                &["optimizer.schedule.end = NaN", "below 1"],
            ),
            (
                &["optimizer.schedule.decay=step"],
                &["decay", "constant", "linear", "cosine"],
            ),
        ] {
            let message = read(sets).unwrap_err();
            for word in words {
                assert!(message.contains(word), "{sets:?}: {message}");
            }
        }
    }

    #[test]
    fn a_schedule_is_written_out_reads_back_and_is_part_of_the_state() {
        let job = read(&LINEAR).unwrap();
        let text = toml::to_string(&job).unwrap();
        assert_eq!(
            parse(&text, "job.toml", Path::new("/jobs"), &[]).unwrap(),
            job
        );
        let keys = job.state_keys();
        assert_eq!(keys["optimizer.schedule.start"], 10);
        // A state from before there was a schedule can be gone on from.
        let keys = read(&[]).unwrap().state_keys();
        assert!(keys.keys().all(|key| !key.contains("schedule")));
    }
}
