//! Body for [`crate::fuzzing`]: the job file, which a person writes and the coordinator hands on.

use super::{Override, parse};
use std::path::Path;

/// The text is a job file; its first line an override besides.
pub(crate) fn job_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let read = |text: &str, overrides: &[Override]| parse(text, "fuzz", Path::new("/"), overrides);
    if let Ok(job) = read(&text, &[]) {
        // As workers are told it.
        let told = toml::to_string(&job).expect("a job that was read can be written");
        let heard = read(&told, &[]).unwrap_or_else(|error| panic!("{error}\n{told}"));
        assert_eq!(heard, job, "as it was told");
        assert_eq!(heard.state_keys(), job.state_keys());
        assert!(job.max_workers() >= 1);
    }
    let first = text.lines().next().unwrap_or_default();
    if let Ok(change) = first.parse::<Override>() {
        let _ = read(&text, &[change]);
    }
}
