//! `[data]`: the samples.

use super::Job;
use super::validate::{Fault, SEEDS, require};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What stands before the name of a mixture.
pub(super) const SYNTHETIC: &str = "synthetic:";
const RING: &str = "synthetic:ring";
const GRID: &str = "synthetic:grid";

/// What stands before the path of images that are to be stacked.
pub(super) const STACKED: &str = "stacked:";

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder of IDX files (raw or `.gz`), an IDX file of images, or a folder of images (PNG,
    /// JPEG, at any depth); `stacked:` and such IDX files, for triples of their images as the three
    /// colours of one; `synthetic:ring` or `synthetic:grid` for points of a plane. A relative path
    /// starts at the job file's folder; one that comes from `--set`, at the current folder.
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
    /// Images are made this many times as large as `model.image_size`, 1, 2, 4 or 8, and averaged down
    /// to it: what a coarser level of a pyramid learns of. All levels share the packed images. Default
    /// 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub reduce: u32,
    /// Samples in a shard. Default 1024: a few megabytes, so that an epoch has many shards to deal.
    #[serde(default = "shard_samples")]
    pub shard_samples: u64,
    /// What `synthetic:ring` and `synthetic:grid` draw.
    #[serde(default, skip_serializing_if = "Synthetic::is_default")]
    pub synthetic: Synthetic,
    /// What `stacked:…` stacks.
    #[serde(default, skip_serializing_if = "Stacked::is_default")]
    pub stacked: Stacked,
}

fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

fn shard_samples() -> u64 {
    1024
}

/// `[data.synthetic]`: points of a plane. The defaults are PacGAN's (Lin et al. 2018, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    /// How many, 1 to 2^24. Default 100,000.
    pub samples: u64,
    /// What they are drawn by, beside their numbers: not the job's seed, so that jobs of other seeds
    /// share the data. Default 0.
    pub seed: u64,
    /// Normal distributions in the mixture, 1 to 10,000; of a grid, a square. Default 8 on a ring, 25
    /// on a grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modes: Option<u32>,
    /// The ring's radius, or what lies between neighbours on the grid. Default 1 and 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Standard deviation of each distribution. Default 0.01 and 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            samples: 100_000,
            seed: 0,
            modes: None,
            scale: None,
            deviation: None,
        }
    }
}

impl Synthetic {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[data.stacked]`: triples of grey images as the colours of one. The default is that of Lin et al.
/// 2018, section 4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stacked {
    /// How many triples, 1 to 2^24. Default 128,000.
    pub samples: u64,
    /// What they are drawn by, beside their numbers. Default 0.
    pub seed: u64,
}

impl Default for Stacked {
    fn default() -> Self {
        Self {
            samples: 128_000,
            seed: 0,
        }
    }
}

impl Stacked {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Data {
    /// Whether the samples are points of a plane.
    pub fn is_synthetic(&self) -> bool {
        self.uri.starts_with(SYNTHETIC)
    }

    /// The path that `uri` names, if it does; `stacked:` and `file://` before it are no part of it.
    pub fn path(&self) -> Option<&str> {
        if self.is_synthetic() {
            return None;
        }
        let path = self.uri.strip_prefix(STACKED).unwrap_or(&self.uri);
        Some(path.strip_prefix("file://").unwrap_or(path))
    }

    /// Whether the samples are triples of images.
    pub fn is_stacked(&self) -> bool {
        self.uri.starts_with(STACKED)
    }

    /// Distributions in the mixture of a synthetic `uri`.
    pub fn modes(&self) -> Option<u32> {
        let usual = match self.uri.as_str() {
            RING => 8,
            GRID => 25,
            _ => return None,
        };
        Some(self.synthetic.modes.unwrap_or(usual))
    }

    /// The radius of a ring, or the spacing of a grid.
    pub fn scale(&self) -> Option<f64> {
        let usual = match self.uri.as_str() {
            RING => 1.0,
            GRID => 2.0,
            _ => return None,
        };
        Some(self.synthetic.scale.unwrap_or(usual))
    }

    /// Standard deviation of the distributions in the mixture.
    pub fn deviation(&self) -> Option<f64> {
        let usual = match self.uri.as_str() {
            RING => 0.01,
            GRID => 0.05,
            _ => return None,
        };
        Some(self.synthetic.deviation.unwrap_or(usual))
    }
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

/// Refuses the first impossible value.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    let data = &job.data;
    let uri = format!("{:?}", data.uri);
    let points = job.model.has_points();
    match data.path() {
        None => {
            require(
                data.modes().is_some(),
                "data.uri",
                &uri,
                "synthetic:ring or synthetic:grid",
            )?;
            require(
                points,
                "data.uri",
                &uri,
                "model.architecture = \"mlp\" with it: these samples are points, no images",
            )?;
        }
        Some(path) => {
            require(!path.is_empty(), "data.uri", &uri, "a path")?;
            require(
                !path.contains("://"),
                "data.uri",
                &uri,
                "a path on this machine (or file://…)",
            )?;
            require(
                !points,
                "data.uri",
                &uri,
                "synthetic:ring or synthetic:grid with model.architecture = \"mlp\", whose samples \
                 are points",
            )?;
        }
    }
    require(
        !data.is_stacked() || job.model.channels == 3,
        "model.channels",
        job.model.channels,
        "3 with data.uri = \"stacked:…\": an image a colour",
    )?;
    require(
        [1, 2, 4, 8].contains(&data.reduce),
        "data.reduce",
        data.reduce,
        "1, 2, 4 or 8",
    )?;
    require(
        data.reduce == 1 || (!points && job.model.image_size * data.reduce <= 256),
        "data.reduce",
        data.reduce,
        "1 for points; for images, no more than 256 pixels when model.image_size is multiplied by it",
    )?;
    require(
        (1..=1 << 24).contains(&data.shard_samples),
        "data.shard_samples",
        data.shard_samples,
        "1 to 16777216",
    )?;
    for (key, samples) in [
        ("data.synthetic.samples", data.synthetic.samples),
        ("data.stacked.samples", data.stacked.samples),
    ] {
        require(
            (1..=1 << 24).contains(&samples),
            key,
            samples,
            "1 to 16777216",
        )?;
    }
    for (key, seed) in [
        ("data.synthetic.seed", data.synthetic.seed),
        ("data.stacked.seed", data.stacked.seed),
    ] {
        require(seed <= i64::MAX as u64, key, seed, SEEDS)?;
    }
    let modes = data.modes().unwrap_or(1);
    require(
        (1..=10_000).contains(&modes),
        "data.synthetic.modes",
        modes,
        "1 to 10000",
    )?;
    require(
        data.uri != GRID || modes.isqrt().pow(2) == modes,
        "data.synthetic.modes",
        modes,
        "a square, as 25, on a grid",
    )?;
    for (key, value) in [
        ("data.synthetic.scale", data.scale().unwrap_or(1.0)),
        ("data.synthetic.deviation", data.deviation().unwrap_or(1.0)),
    ] {
        require(
            value > 0.0 && value <= 1000.0,
            key,
            value,
            "above 0 up to 1000",
        )?;
    }
    Ok(())
}
