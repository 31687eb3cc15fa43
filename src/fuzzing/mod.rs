//! What reads bytes that strangers have written, and what must hold of it whatever they wrote.
//!
//! Each body takes any bytes and panics if something doesn't hold; that nothing panics by itself, runs
//! for ever or takes memory without bound is asked of all. Bodies lie in the rooms that they feed.
//! `tests/fuzz` has cargo-fuzz run them for as long as one likes; `harness` does so in every test run,
//! for a moment, with mutations of the same corpora.

#[cfg(test)]
mod harness;

use crate::{checkpoint, collective, config, coordinator, data};

/// A body, and what it is called in `tests/fuzz`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("job_file", job_file),
    ("shard", shard),
    ("idx", idx),
    ("checkpoint", checkpoint),
    ("framing", framing),
    ("message", message),
];

/// A job file.
pub fn job_file(bytes: &[u8]) {
    config::fuzz::job_file(bytes);
}

/// A packed shard, and the manifest beside it.
pub fn shard(bytes: &[u8]) {
    data::fuzz::shard(bytes);
}

/// An IDX file of images or labels.
pub fn idx(bytes: &[u8]) {
    data::fuzz::idx(bytes);
}

/// A checkpoint's manifest, or one of its safetensors files.
pub fn checkpoint(bytes: &[u8]) {
    checkpoint::fuzz::checkpoint(bytes);
}

/// What comes through a connection between two workers.
pub fn framing(bytes: &[u8]) {
    collective::fuzz::framing(bytes);
}

/// What a worker says to the coordinator.
pub fn message(bytes: &[u8]) {
    coordinator::fuzz::message(bytes);
}
