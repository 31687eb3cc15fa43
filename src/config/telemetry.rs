//! `[telemetry]`

use serde::{Deserialize, Serialize};

/// `[telemetry]`: what is written for other programs to look at. No bit of the state depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Whether `tensorboard/` in the run directory gets event files: the figures of every step, sample
    /// grids, scores. They take as much room again as `metrics.jsonl` and the grids. Default `true`.
    pub tensorboard: bool,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}

impl Telemetry {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
