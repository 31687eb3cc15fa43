//! What a checkpoint was trained on.

use super::EvaluateError;
use crate::certificate::{self, Certificate};
use crate::checkpoint::Manifest;
use crate::config::{self, Data, Job};
use std::path::Path;

/// A job with the data and model of a checkpoint: enough to open the data set that it was trained on.
/// The checkpoint says where that is, or the certificate of its run; `uri`, if it is given, is taken
/// instead.
///
/// # Errors
/// [`EvaluateError::NoData`], if nobody says where the data is.
pub fn job_of(
    checkpoint: &Path,
    manifest: &Manifest,
    uri: Option<&str>,
) -> Result<Job, EvaluateError> {
    let data = match (&manifest.data, uri) {
        (Some(data), _) => data.clone(),
        (None, None) => certified(checkpoint).ok_or_else(|| EvaluateError::NoData {
            path: checkpoint.to_owned(),
        })?,
        (None, Some(_)) => certified(checkpoint).unwrap_or_else(|| from_keys(manifest)),
    };
    let mut job = blank();
    job.data = data;
    if let Some(uri) = uri {
        let path = uri.strip_prefix("file://").unwrap_or(uri);
        job.data.uri = std::path::absolute(path)
            .map_or_else(|_| uri.to_owned(), |path| path.display().to_string());
    }
    job.model = manifest.model.clone();
    Ok(job)
}

/// Of checkpoints from before they said it: `RUN_DIR/result.json`, two folders up.
fn certified(checkpoint: &Path) -> Option<Data> {
    let folder = checkpoint.canonicalize().ok()?;
    let run_dir = folder.parent()?.parent()?;
    let certificate = Certificate::read(&run_dir.join(certificate::FILE)).ok()?;
    let origin = "the certificate's job";
    let job = config::parse(&certificate.job, origin, run_dir, &[]).ok()?;
    Some(job.data)
}

/// All of `[data]` that the state depends on.
fn from_keys(manifest: &Manifest) -> Data {
    let mut data = serde_json::Map::new();
    data.insert("uri".to_owned(), "".into());
    for (key, value) in &manifest.state_keys {
        if let Some(key) = key.strip_prefix("data.") {
            data.insert(key.to_owned(), value.clone());
        }
    }
    serde_json::from_value(data.into()).unwrap_or_else(|_| blank().data)
}

fn blank() -> Job {
    let text = "[job]\nname = \"evaluation\"\n[data]\nuri = \"\"\n[train]\nsteps = 1\n";
    toml::from_str(text).expect("a job file with what has no default")
}
