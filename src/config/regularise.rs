//! `[regularise]`: what is added to the game so that it trains well; and what can't be combined.

use super::validate::{Fault, require};
use super::{Job, Objective, Update};
use serde::{Deserialize, Serialize};

/// `[regularise]`. With the defaults, nothing is added but what the game has by itself.
///
/// Keys at their defaults are not written out: a checkpoint that was made before they existed is the
/// same job's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Regularise {
    /// λ of WGAN-GP's penalty on D, λ·E(‖∂D/∂x̂‖ - 1)² (Gulrajani et al. 2017), where each x̂ lies
    /// between a real sample and a fake; 0 turns it off. Default 10 in the Wasserstein game, which
    /// needs it, and 0 in others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_penalty: Option<f64>,
    /// γ of R1, a penalty on D of γ/2·E‖∂D/∂x‖² on real samples (Mescheder et al. 2018). Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub r1: f64,
    /// γ of R2, the same on fakes. Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub r2: f64,
    /// Taken off the label 1 of real images in D's cost: one-sided label smoothing (Salimans et al.
    /// 2016), which keeps D from being too sure. For games with labels: the tutorial's three and
    /// least squares. 0 up to, but below 0.5. Default 0; 0.1 is usual.
    #[serde(skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
    /// Standard deviation, at the first step, of the noise that is added to all that D sees, real
    /// and fake (Sønderby et al. 2017), where images are -1 … 1. It falls to 0 along a line. Default
    /// 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub instance_noise: f64,
    /// Steps until there is no noise any more. Needed with `instance_noise`, otherwise 0.
    #[serde(skip_serializing_if = "is_none")]
    pub instance_noise_steps: u64,
    /// What is done by chance to all images that D sees, real and fake, with gradients to G (Zhao et
    /// al. 2020): for small data sets. Default nothing, `[]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub augment: Vec<Augmentation>,
}

/// What may be done to images before D sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Brightness by up to half of the way to white, saturation by 0 … 2, contrast by ½ … 1½.
    Color,
    /// A shift by up to an eighth of the side, with grey coming in.
    Translation,
    /// A grey square of half the side.
    Cutout,
}

impl Regularise {
    /// Whether nothing is added.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_none(value: &u64) -> bool {
    *value == 0
}

/// λ of the Wasserstein game, if the job file doesn't say.
const GRADIENT_PENALTY: f64 = 10.0;

impl Job {
    /// λ of the gradient penalty: `regularise.gradient_penalty`, or the game's own.
    pub fn gradient_penalty(&self) -> f64 {
        match (self.regularise.gradient_penalty, self.train.objective) {
            (Some(lambda), _) => lambda,
            (None, Objective::Wasserstein) => GRADIENT_PENALTY,
            (None, _) => 0.0,
        }
    }
}

/// Refuses the first value that can't be, alone or beside others.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    penalties(job)?;
    labels(job)?;
    images(job)?;
    packing(job)?;
    rounds(job)
}

fn penalties(job: &Job) -> Result<(), Fault> {
    let ours = &job.regularise;
    let batch_norm = job.model.discriminator_has_batch_norm();
    const REASON: &str = "with batch norm D's output on a sample depends on its neighbours, and no \
                          sample has a gradient of its own";
    for (key, value) in [
        (
            "regularise.gradient_penalty",
            ours.gradient_penalty.unwrap_or_default(),
        ),
        ("regularise.r1", ours.r1),
        ("regularise.r2", ours.r2),
    ] {
        require(
            value.is_finite() && value >= 0.0,
            key,
            value,
            "0 (off) or a finite number above it",
        )?;
        require(
            value == 0.0 || !batch_norm,
            key,
            value,
            format!("0, or model.discriminator_norm = \"none\" or \"layer\" with it: {REASON}"),
        )?;
    }
    require(
        job.gradient_penalty() == 0.0 || !batch_norm,
        "train.objective",
        job.train.objective,
        format!(
            "model.discriminator_norm = \"none\" or \"layer\" with it, for its gradient penalty: \
             {REASON}; or regularise.gradient_penalty = 0 and model.spectral_norm = true"
        ),
    )
}

fn labels(job: &Job) -> Result<(), Fault> {
    let smoothing = job.regularise.label_smoothing;
    require(
        (0.0..0.5).contains(&smoothing),
        "regularise.label_smoothing",
        smoothing,
        "0 (off) up to, but below 0.5",
    )?;
    let named: Vec<String> = Objective::ALL
        .into_iter()
        .filter(|objective| objective.has_labels())
        .map(|objective| objective.to_string())
        .collect();
    require(
        smoothing == 0.0 || job.train.objective.has_labels(),
        "regularise.label_smoothing",
        smoothing,
        format!(
            "0, for D learns no labels in train.objective = \"{}\"; it does in {}",
            job.train.objective,
            named.join(", ")
        ),
    )
}

fn images(job: &Job) -> Result<(), Fault> {
    let ours = &job.regularise;
    require(
        (0.0..=10.0).contains(&ours.instance_noise),
        "regularise.instance_noise",
        ours.instance_noise,
        "0 (off) to 10, where images are -1 … 1",
    )?;
    match ours.instance_noise == 0.0 {
        true => require(
            ours.instance_noise_steps == 0,
            "regularise.instance_noise_steps",
            ours.instance_noise_steps,
            "0, or regularise.instance_noise above 0",
        ),
        false => require(
            ours.instance_noise_steps > 0,
            "regularise.instance_noise_steps",
            ours.instance_noise_steps,
            "the steps in which regularise.instance_noise falls to 0, at least 1",
        ),
    }?;
    let named = &ours.augment;
    let list = format!("{named:?}").to_lowercase();
    require(
        (1..named.len()).all(|index| !named[..index].contains(&named[index])),
        "regularise.augment",
        &list,
        "each at most once",
    )?;
    require(
        named.is_empty() || !job.model.has_points(),
        "regularise.augment",
        &list,
        "nothing, with model.architecture = \"mlp\": points have no colours and no neighbours",
    )?;
    require(
        named.is_empty() || !job.model.pyramid,
        "regularise.augment",
        &list,
        "nothing, with model.pyramid: the coarser images beside them would have to be altered alike",
    )
}

fn packing(job: &Job) -> Result<(), Fault> {
    let (packing, batch) = (job.train.packing, job.train.batch);
    require(
        (1..=64).contains(&packing),
        "train.packing",
        packing,
        "1 (off) to 64 samples",
    )?;
    require(
        batch.is_multiple_of(packing),
        "train.packing",
        packing,
        format!("a divisor of train.batch ({batch}), which counts samples, not packs"),
    )?;
    require(
        packing == 1 || !job.model.is_conditional(),
        "train.packing",
        packing,
        "1, with model.conditional: the samples of a pack have different labels",
    )?;
    require(
        packing == 1 || !job.model.pyramid,
        "train.packing",
        packing,
        "1, with model.pyramid: each sample of a pack goes on from another image",
    )
}

fn rounds(job: &Job) -> Result<(), Fault> {
    for (key, rounds) in [
        ("train.discriminator_steps", job.train.discriminator_steps),
        ("train.generator_steps", job.train.generator_steps),
    ] {
        require(
            (1..=64).contains(&rounds),
            key,
            rounds,
            "1 to 64 updates a step",
        )?;
        require(
            rounds == 1 || job.train.update == Update::Alternating,
            key,
            rounds,
            "1, with train.update = \"simultaneous\": both gradients are of one point, and each \
             player makes one step from it; use train.update = \"alternating\"",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Objective;
    use super::super::load::least as read;

    const NO_NORM: &str = "model.discriminator_norm=none";
    const RING: &str = "data.uri=synthetic:ring";

    #[test]
    fn every_game_has_the_name_that_the_job_file_gives_it() {
        for objective in Objective::ALL {
            let set = format!("train.objective={objective}");
            assert_eq!(read(&[&set, NO_NORM]).unwrap().train.objective, objective);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason_and_the_way_out() {
        for (sets, words) in [
            (
                &["regularise.label_smoothing=0.5"][..],
                &["label_smoothing", "0.5"][..],
            ),
            (
                &["regularise.label_smoothing=0.1", "train.objective=hinge"],
                &["label_smoothing", "hinge", "least-squares"],
            ),
            (
                &["regularise.r1=1"],
                &[
                    "regularise.r1",
                    "model.discriminator_norm = \"none\"",
                    "neighbours",
                ],
            ),
            (&["regularise.r2=1"], &["regularise.r2", "batch norm"]),
            (
                &["regularise.gradient_penalty=1"],
                &["regularise.gradient_penalty", "batch norm"],
            ),
            (
                &["train.objective=wasserstein"],
                &[
                    "wasserstein",
                    "model.discriminator_norm",
                    "model.spectral_norm",
                ],
            ),
            (&["regularise.r1=-1", NO_NORM], &["regularise.r1", "-1"]),
            (
                &["regularise.r1=nan", NO_NORM],
                &["regularise.r1", "finite"],
            ),
            (
                &["regularise.instance_noise=0.1"],
                &["instance_noise_steps", "at least 1"],
            ),
            (
                &["regularise.instance_noise_steps=9"],
                &["instance_noise_steps", "instance_noise above 0"],
            ),
            (
                &[
                    "regularise.instance_noise=-1",
                    "regularise.instance_noise_steps=9",
                ],
                &["instance_noise", "-1"],
            ),
            (
                &["regularise.augment=[\"color\", \"color\"]"],
                &["augment", "color", "once"],
            ),
            (
                &[
                    "regularise.augment=[\"color\"]",
                    "model.architecture=mlp",
                    RING,
                ],
                &["augment", "mlp"],
            ),
            (&["train.packing=3"], &["train.packing", "train.batch (16)"]),
            (&["train.packing=0"], &["train.packing"]),
            (
                &[
                    "train.packing=2",
                    "model.conditional=projection",
                    "model.classes=10",
                ],
                &["train.packing", "labels"],
            ),
            (
                &["train.discriminator_steps=2", "train.update=simultaneous"],
                &["discriminator_steps", "alternating"],
            ),
            (
                &["train.generator_steps=2", "train.update=simultaneous"],
                &["generator_steps", "alternating"],
            ),
            (&["train.generator_steps=0"], &["generator_steps"]),
        ] {
            let error = read(sets).expect_err(&format!("{sets:?}"));
            for word in words {
                assert!(error.contains(word), "{sets:?}: {error}");
            }
        }
    }

    #[test]
    fn what_goes_together_is_taken() {
        for sets in [
            &["train.objective=wasserstein", NO_NORM][..],
            &[
                "train.objective=wasserstein",
                "regularise.gradient_penalty=0",
                "model.spectral_norm=true",
            ],
            &[
                "train.objective=relativistic",
                "regularise.r1=1",
                "regularise.r2=1",
                "regularise.augment=[\"color\", \"translation\", \"cutout\"]",
                "regularise.instance_noise=0.1",
                "regularise.instance_noise_steps=9",
                "train.packing=4",
                "train.discriminator_steps=2",
                "train.generator_steps=3",
                "model.discriminator_norm=layer",
            ],
            &[
                "regularise.r1=1",
                "model.architecture=mlp",
                RING,
                "train.packing=2",
            ],
        ] {
            read(sets).unwrap();
        }
        let penalty = |sets: &[&str]| read(sets).unwrap().gradient_penalty();
        assert_eq!(penalty(&[]), 0.0);
        assert_eq!(penalty(&["train.objective=wasserstein", NO_NORM]), 10.0);
        assert_eq!(penalty(&["regularise.gradient_penalty=3", NO_NORM]), 3.0);
    }

    #[test]
    fn what_is_not_asked_for_is_no_part_of_a_states_identity() {
        let keys = read(&[]).unwrap().state_keys();
        for key in [
            "regularise.",
            "train.packing",
            "train.discriminator_steps",
            "train.gen",
        ] {
            assert!(!keys.keys().any(|found| found.starts_with(key)), "{key}");
        }
        for set in [
            "regularise.label_smoothing=0.1",
            "regularise.r1=1",
            "regularise.r2=1",
            "regularise.gradient_penalty=1",
            "regularise.augment=[\"color\"]",
            "train.packing=2",
            "train.discriminator_steps=2",
            "train.generator_steps=2",
        ] {
            let (base, found) = (read(&[NO_NORM]), read(&[set, NO_NORM]));
            assert_ne!(
                found.unwrap().state_keys(),
                base.unwrap().state_keys(),
                "{set}"
            );
        }
        let noise = |steps: &str| {
            let sets = ["regularise.instance_noise=0.1", steps];
            read(&sets).unwrap().state_keys()
        };
        assert_ne!(
            noise("regularise.instance_noise_steps=5"),
            noise("regularise.instance_noise_steps=6")
        );
        // What the game has by itself, said aloud, is the same job.
        let wasserstein = &["train.objective=wasserstein", NO_NORM];
        let aloud = &[
            "train.objective=wasserstein",
            NO_NORM,
            "regularise.gradient_penalty=10",
        ];
        assert_eq!(
            read(wasserstein).unwrap().state_keys(),
            read(aloud).unwrap().state_keys()
        );
        assert_eq!(
            read(&[]).unwrap().state_keys(),
            read(&["regularise.gradient_penalty=0"])
                .unwrap()
                .state_keys()
        );
    }
}
