//! `[regularise]`: what is added to the game so that it trains well.

use super::validate::{Fault, require};
use super::{Job, Objective};
use serde::{Deserialize, Serialize};

/// `[regularise]`. With the defaults, nothing is added but what the game has by itself.
///
/// Keys at their defaults are not written out: a checkpoint that was made before they existed is the
/// same job's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Regularise {
    /// Taken off the label 1 of real images in D's cost: one-sided label smoothing (Salimans et al.
    /// 2016), which keeps D from being too sure. For games with labels: the tutorial's three and
    /// least squares. 0 up to, but below 0.5. Default 0; 0.1 is usual.
    #[serde(skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
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

/// Refuses the first value that can't be, alone or beside others.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    labels(job)
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

#[cfg(test)]
mod tests {
    use super::super::{Job, Objective, Override, parse};
    use std::path::Path;

    fn read(sets: &[&str]) -> Result<Job, String> {
        let text = "[job]\nname = \"j\"\n[data]\nuri = \"d\"\n[train]\nsteps = 3\n";
        let overrides: Vec<Override> = sets.iter().map(|s| s.parse().unwrap()).collect();
        parse(text, "job.toml", Path::new("/jobs"), &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn every_game_has_the_name_that_the_job_file_gives_it() {
        for objective in Objective::ALL {
            let set = format!("train.objective={objective}");
            assert_eq!(read(&[&set]).unwrap().train.objective, objective);
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
        ] {
            let error = read(sets).expect_err(&format!("{sets:?}"));
            for word in words {
                assert!(error.contains(word), "{sets:?}: {error}");
            }
        }
    }

    #[test]
    fn what_is_not_asked_for_is_no_part_of_a_states_identity() {
        let keys = read(&[]).unwrap().state_keys();
        assert!(!keys.keys().any(|key| key.starts_with("regularise.")));
        let smoothed = read(&["regularise.label_smoothing=0.1"]).unwrap();
        assert_eq!(smoothed.state_keys()["regularise.label_smoothing"], 0.1);
    }
}
