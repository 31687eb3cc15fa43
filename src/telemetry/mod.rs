//! What a job tells people and machines about itself while it runs: logs, metrics, a progress bar,
//! the records of every step and every evaluation, and TensorBoard's event files.
//!
//! This room owns every metric's name and every line's format. It measures nothing and decides
//! nothing: figures and times come in as arguments.

pub mod catalog;
pub mod evaluations;
pub mod exporter;
pub mod logging;
pub mod metrics;
pub mod pictures;
pub mod port;
pub mod progress;
pub mod records;
pub mod tail;
pub mod tensorboard;
