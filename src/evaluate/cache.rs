//! Extractors that are trained already: two files each in the cache folder. The weights are written
//! first; the description, which has their hash, makes them count.

use super::EvaluateError;
use super::classifier::{Classifier, RECIPE, Shape};
use super::script::sha256;
use crate::torch::device_description;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tch::{Device, Tensor};

/// The folder, in that of packed data sets.
const FOLDER: &str = "extractors";

/// A trained classifier, and how it is known.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) classifier: Classifier,
    /// SHA-256 of its weights.
    pub(super) hash: String,
    /// On samples that it was not trained on.
    pub(super) accuracy: f64,
}

/// What the weights depend on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    data: String,
    shape: Shape,
    recipe: String,
    libtorch: String,
    processor: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    origin: Origin,
    hash: String,
    accuracy: f64,
}

impl Origin {
    pub(super) fn of(data_digest: &str, shape: Shape) -> Result<Self, EvaluateError> {
        let device = device_description(Device::Cpu)?;
        Ok(Self {
            data: data_digest.to_owned(),
            shape,
            recipe: RECIPE.to_owned(),
            libtorch: device.libtorch,
            processor: device.model,
        })
    }

    /// The files' name, without an ending.
    fn key(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        sha256(text.as_bytes())[..32].to_owned()
    }
}

impl Trained {
    pub(super) fn new(classifier: Classifier, accuracy: f64) -> Result<Self, EvaluateError> {
        Ok(Self {
            hash: hash(&classifier)?,
            classifier,
            accuracy,
        })
    }
}

/// SHA-256 of the weights' bytes, little endian.
fn hash(classifier: &Classifier) -> Result<String, EvaluateError> {
    let weights = Vec::<f32>::try_from(classifier.weights())?;
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    Ok(sha256(&bytes))
}

/// The classifier of this origin, if the cache has it. One that is damaged is as good as none.
pub(super) fn find(cache: &Path, origin: &Origin) -> Option<Trained> {
    let (weights, description) = files(cache, origin);
    let text = fs::read(&description).ok()?;
    let damaged = |what: &str| {
        tracing::warn!(
            "{}: {what}; the feature extractor is trained again",
            description.display()
        );
    };
    let found: Description = serde_json::from_slice(&text)
        .map_err(|error| damaged(&error.to_string()))
        .ok()?;
    if found.origin != *origin {
        damaged("it is of another origin");
        return None;
    }
    let classifier = Tensor::read_safetensors(&weights)
        .ok()
        .and_then(|tensors| tensors.into_iter().find(|(name, _)| name == "weights"))
        .and_then(|(_, flat)| Classifier::over(origin.shape, flat));
    let trained = classifier.and_then(|classifier| Trained::new(classifier, found.accuracy).ok());
    match trained {
        Some(trained) if trained.hash == found.hash => Some(trained),
        _ => {
            damaged("its weights are not those that it describes");
            None
        }
    }
}

/// Puts it into the cache.
pub(super) fn keep(cache: &Path, origin: Origin, trained: &Trained) -> Result<(), EvaluateError> {
    let (weights, description) = files(cache, &origin);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| EvaluateError::Io {
            operation: "keep the feature extractor",
            path,
            source,
        }
    };
    let folder = cache.join(FOLDER);
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let put = |path: &Path, write: &dyn Fn(&Path) -> io::Result<()>| {
        // Others may be at it as well, with the same content.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".tmp-{}-{number}", std::process::id()));
        write(&temporary)
            .and_then(|()| File::open(&temporary)?.sync_all())
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(|error| {
                let _ = fs::remove_file(&temporary);
                failed(path)(error)
            })
    };
    let flat = trained.classifier.weights();
    put(&weights, &|path| {
        Tensor::write_safetensors(&[("weights", flat.shallow_clone())], path)
            .map_err(|error| io::Error::other(error.to_string()))
    })?;
    let text = serde_json::to_string_pretty(&Description {
        origin,
        hash: trained.hash.clone(),
        accuracy: trained.accuracy,
    })
    .map_err(|error| failed(&description)(error.into()))?;
    put(&description, &|path| {
        File::create(path)?.write_all(text.as_bytes())
    })
}

fn files(cache: &Path, origin: &Origin) -> (PathBuf, PathBuf) {
    let folder = cache.join(FOLDER);
    let key = origin.key();
    (
        folder.join(format!("{key}.safetensors")),
        folder.join(format!("{key}.json")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape {
            channels: 1,
            side: 32,
            classes: 3,
            stacked: false,
        };
        let origin = || Origin::of("digest", shape).unwrap();
        assert!(find(dir.path(), &origin()).is_none());
        let weights = 4800 + 18_496 + 160 + 4640 + 131_200 + 387;
        let length = |n: i64| Classifier::over(shape, Tensor::zeros([n], tch::kind::FLOAT_CPU));
        assert!(length(weights).is_none(), "of another length");
        let classifier = (1..200_000).find_map(length).unwrap();
        let trained = Trained::new(classifier, 0.5).unwrap();
        keep(dir.path(), origin(), &trained).unwrap();
        let found = find(dir.path(), &origin()).unwrap();
        assert_eq!((found.hash, found.accuracy), (trained.hash.clone(), 0.5));
        let other = Origin::of("another", shape).unwrap();
        assert!(find(dir.path(), &other).is_none());

        let (weights, _) = files(dir.path(), &origin());
        let mut bytes = fs::read(&weights).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&weights, bytes).unwrap();
        assert!(find(dir.path(), &origin()).is_none());
        keep(dir.path(), origin(), &trained).unwrap();
        assert!(find(dir.path(), &origin()).is_some());
    }
}
