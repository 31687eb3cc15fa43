//! `[guard]`: what a job does about a run that goes wrong.

use super::Job;
use super::validate::{Fault, require};
use serde::{Deserialize, Serialize};

/// `[guard]`. Everything that it does is part of the job's pure function: the same for any number of
/// workers, through deaths and restarts.
///
/// With the defaults, a run that stays finite is what it would be without a guard, to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// What is done after `nonfinite_steps` steps in a row whose mean gradients or batch statistics
    /// hold a value that is not finite. Each such step is skipped: parameters, moments, running
    /// statistics and averages stay, and the next step has other data and latents. With `warn` it
    /// stays at that; with `off` such steps are not skipped, but ruin the state. Default `stop`.
    pub nonfinite: Policy,
    /// Steps in a row that are skipped before `nonfinite` acts, at least 1. Default 20: a state that
    /// can't do any of them is broken.
    pub nonfinite_steps: u64,
    /// What is done about a discriminator that overpowers the generator. Default `off`.
    pub overpowered: Policy,
    /// It does if the mean of D(x) - D(G(z)), of the probabilities that D gives, is above this over
    /// `overpowered_steps` steps; -1 to 1. Default 0.98: G's samples are told from data nearly
    /// always.
    pub overpowered_gap: f64,
    /// It does too if J_D is below this over `overpowered_steps` steps: for objectives whose D gives
    /// no probabilities. Default: J_D is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overpowered_loss: Option<f64>,
    /// Steps that the means are taken over: the newest weighs 1/n, and older ones less and less. At
    /// least 1. Default 500.
    pub overpowered_steps: u64,
    /// What is done about a generator whose samples are all alike. Watching it costs two more
    /// numbers a step. Default `off`.
    pub collapsed: Policy,
    /// They are if a pixel's standard deviation over a replica's fakes, in the mean over pixels and
    /// replicas, is below this share of that over the real images, over `collapsed_steps` steps;
    /// above 0. Modes that are missed while others are not are no collapse in this sense. Default 0.2.
    pub collapsed_diversity: f64,
    /// As `overpowered_steps`. Default 200.
    pub collapsed_steps: u64,
    /// Where `roll-back` leads: the newest state but one whose step is a multiple of this. It is at
    /// least this old, so that it was not in trouble yet: no window above may be longer. It and the
    /// one after it lie in memory beside the state, and in each checkpoint, which are three times
    /// as large then; only if a policy is `roll-back`. Default 1000.
    pub anchor_every: u64,
    /// What both learning rates are multiplied with at each rollback, above 0, at most 1. Default
    /// 0.5.
    pub rate_factor: f64,
    /// Rollbacks in the job's life, at most; one more is a stop instead. Default 3.
    pub rollbacks: u32,
}

/// What is done about trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It is not looked for.
    Off,
    /// It is told.
    Warn,
    /// The networks, with all that belongs to them, are set back, and the learning rates lowered.
    /// The step goes on: no data is read twice.
    RollBack,
    /// The job ends.
    Stop,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            nonfinite: Policy::Stop,
            nonfinite_steps: 20,
            overpowered: Policy::Off,
            overpowered_gap: 0.98,
            overpowered_loss: None,
            overpowered_steps: 500,
            collapsed: Policy::Off,
            collapsed_diversity: 0.2,
            collapsed_steps: 200,
            anchor_every: 1000,
            rate_factor: 0.5,
            rollbacks: 3,
        }
    }
}

impl Guard {
    /// Whether the job can be rolled back, and so keeps what it takes.
    pub fn rolls_back(&self) -> bool {
        [self.nonfinite, self.overpowered, self.collapsed].contains(&Policy::RollBack)
    }

    /// Whether the diversity of images is watched.
    pub fn watches_diversity(&self) -> bool {
        self.collapsed != Policy::Off
    }
}

/// Windows longer than this are no windows; and far from overflow.
const MAX_STEPS: u64 = 1 << 40;

/// Refuses the first impossible value.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    let guard = &job.guard;
    let windows = [
        (
            "guard.nonfinite_steps",
            guard.nonfinite,
            guard.nonfinite_steps,
        ),
        (
            "guard.overpowered_steps",
            guard.overpowered,
            guard.overpowered_steps,
        ),
        (
            "guard.collapsed_steps",
            guard.collapsed,
            guard.collapsed_steps,
        ),
    ];
    for (key, _, steps) in windows {
        require(
            (1..=MAX_STEPS).contains(&steps),
            key,
            steps,
            "1 to 1099511627776 (2^40)",
        )?;
    }
    require(
        (-1.0..=1.0).contains(&guard.overpowered_gap),
        "guard.overpowered_gap",
        guard.overpowered_gap,
        "-1 to 1: a difference of two probabilities",
    )?;
    let loss = guard.overpowered_loss.unwrap_or_default();
    require(
        loss.is_finite(),
        "guard.overpowered_loss",
        loss,
        "a finite number",
    )?;
    require(
        guard.collapsed_diversity.is_finite() && guard.collapsed_diversity > 0.0,
        "guard.collapsed_diversity",
        guard.collapsed_diversity,
        "a finite number above 0",
    )?;
    require(
        !guard.watches_diversity() || job.train.batch >= 2,
        "guard.collapsed",
        guard.collapsed,
        "\"off\" with train.batch = 1: one image has no diversity; take train.batch of at least 2",
    )?;
    require(
        (1..=MAX_STEPS).contains(&guard.anchor_every),
        "guard.anchor_every",
        guard.anchor_every,
        "1 to 1099511627776 (2^40)",
    )?;
    for (key, policy, steps) in windows {
        require(
            policy != Policy::RollBack || steps <= guard.anchor_every,
            key,
            steps,
            format!(
                "at most guard.anchor_every ({}): a rollback would lead to a state that was in \
                 trouble already",
                guard.anchor_every
            ),
        )?;
    }
    require(
        guard.rate_factor > 0.0 && guard.rate_factor <= 1.0,
        "guard.rate_factor",
        guard.rate_factor,
        "above 0, at most 1",
    )
}

#[cfg(test)]
mod tests {
    use super::super::load::least as read;
    use super::super::parse;
    use std::path::Path;

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        for (sets, words) in [
            (
                &["guard.nonfinite_steps=0"][..],
                &["guard.nonfinite_steps"][..],
            ),
            (&["guard.overpowered_gap=1.5"], &["guard.overpowered_gap"]),
            (&["guard.overpowered_loss=inf"], &["guard.overpowered_loss"]),
            (
                &["guard.collapsed_diversity=0"],
                &["guard.collapsed_diversity"],
            ),
            (
                &["guard.collapsed=warn", "train.batch=1"],
                &["guard.collapsed", "train.batch"],
            ),
            (&["guard.rate_factor=0"], &["guard.rate_factor"]),
            (&["guard.rate_factor=1.5"], &["guard.rate_factor"]),
            (&["guard.anchor_every=0"], &["guard.anchor_every"]),
            (
                &["guard.overpowered=roll-back", "guard.anchor_every=499"],
                &["guard.overpowered_steps", "guard.anchor_every (499)"],
            ),
            (&["guard.collapsed=perhaps"], &["collapsed", "roll-back"]),
        ] {
            let message = read(sets).unwrap_err();
            for word in words {
                assert!(message.contains(word), "{sets:?}: {message}");
            }
        }
        // Only a rollback needs anchors that are older than a window.
        read(&["guard.overpowered=stop", "guard.anchor_every=1"]).unwrap();
        read(&["train.batch=1"]).unwrap();
    }

    #[test]
    fn a_job_that_is_written_out_reads_back() {
        let job = read(&["guard.nonfinite=roll-back", "guard.overpowered_loss=0.25"]).unwrap();
        let text = toml::to_string(&job).unwrap();
        let again = parse(&text, "job.toml", Path::new("/jobs"), &[]).unwrap();
        assert_eq!(again, job);
        assert!(job.guard.rolls_back() && !job.guard.watches_diversity());
    }
}
