//! Sample grids: pictures of what the generator makes.
//!
//! This room turns pixels into files. It knows nothing of tensors or of where the pixels come
//! from.

mod grid;
mod scatter;

pub use grid::{Images, PADDING, SampleError, grid, write_png};
pub use scatter::{extent, scatter};
