//! TensorBoard's event files, in `tensorboard/` of the run directory: the figures of every step,
//! sample grids, scores.
//!
//! They follow from `metrics.jsonl`, `samples/` and `evaluations.jsonl`, which a [`Board`] reads as
//! they grow. Each life of a coordinator adds a file of its own, which begins by saying from which step
//! on it is the one that counts, so that nothing stands twice after a crash. Nothing reads these files
//! but TensorBoard, and a [`Board`] that goes on.

mod board;
mod event;
mod frame;

pub use board::{Board, BoardError, FOLDER};
