//! `[evaluate]`, and the scores that there are.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::path::PathBuf;

/// `[evaluate]`: scores of the generator while it trains, its averaged weights if there are any. They
/// are computed beside the training, and no bit of the state depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Steps from one evaluation to the next, a multiple of `checkpoint.every_steps`; the last state
    /// is evaluated too. One that is due while the one before still computes is left out. 0 means
    /// never. Default 0.
    pub every_steps: u64,
    /// Samples that are drawn, and compared with as many of the data set's; with all of them, if it
    /// has fewer. Default 10,000: scores of fewer are biased, the more so the fewer.
    pub samples: u64,
    /// A TorchScript file whose features are compared instead of those of the classifier that is
    /// trained on the data's labels. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extractor: Option<PathBuf>,
    /// Cores that an evaluation may use at a time, at the lowest priority. Default 1.
    pub cores: u32,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            every_steps: 0,
            samples: 10_000,
            extractor: None,
            cores: 1,
        }
    }
}

/// Something by which a generator is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// Fréchet distance of the features' Gaussians (Heusel et al. 2017).
    Fid,
    /// Squared maximum mean discrepancy of the features, unbiased (Bińkowski et al. 2018).
    Kid,
    /// Standard deviation of KID's subsets.
    KidDeviation,
    /// Share of the samples that lie among the data's (Kynkäänniemi et al. 2019).
    Precision,
    /// Share of the data that lies among the samples.
    Recall,
    /// How densely the data lies where the samples do (Naeem et al. 2020).
    Density,
    /// Share of the data that has a sample near it.
    Coverage,
    /// Classes that samples were found of; or modes of a mixture, with a good sample each.
    Modes,
    /// KL divergence of the samples' classes from the uniform distribution, nats.
    KlUniform,
    /// KL divergence of the samples' classes from the data's, nats.
    KlData,
    /// Share of the samples within three standard deviations of the mixture's nearest mode.
    HighQuality,
}

impl Score {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Score; 11] = [
        Score::Fid,
        Score::Kid,
        Score::KidDeviation,
        Score::Precision,
        Score::Recall,
        Score::Density,
        Score::Coverage,
        Score::Modes,
        Score::KlUniform,
        Score::KlData,
        Score::HighQuality,
    ];

    /// Its name, as in the job file.
    pub fn as_str(self) -> &'static str {
        match self {
            Score::Fid => "fid",
            Score::Kid => "kid",
            Score::KidDeviation => "kid-deviation",
            Score::Precision => "precision",
            Score::Recall => "recall",
            Score::Density => "density",
            Score::Coverage => "coverage",
            Score::Modes => "modes",
            Score::KlUniform => "kl-uniform",
            Score::KlData => "kl-data",
            Score::HighQuality => "high-quality",
        }
    }

    /// How `a` compares with `b`: `Less` if it is better.
    pub fn rank(self, a: f64, b: f64) -> Ordering {
        match self {
            Score::Fid | Score::Kid | Score::KidDeviation | Score::KlUniform | Score::KlData => {
                a.total_cmp(&b)
            }
            Score::Precision
            | Score::Recall
            | Score::Density
            | Score::Coverage
            | Score::Modes
            | Score::HighQuality => b.total_cmp(&a),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_spelled_alike_wherever_they_stand() {
        for score in Score::ALL {
            let json = serde_json::to_value(score).unwrap();
            assert_eq!(json, score.as_str());
        }
    }

    #[test]
    fn a_distance_is_better_when_it_is_smaller_and_a_share_when_it_is_larger() {
        assert_eq!(Score::Fid.rank(3.0, 4.0), Ordering::Less);
        assert_eq!(Score::Recall.rank(0.3, 0.4), Ordering::Greater);
        assert_eq!(Score::Modes.rank(8.0, 8.0), Ordering::Equal);
    }
}
