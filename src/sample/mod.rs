//! Pictures of what the generator makes: grids, sheets with captions, films; and where latents
//! lie between which one goes.
//!
//! This room turns pixels into files. It knows nothing of tensors or of where the pixels come
//! from. The same pixels give the same file, byte for byte.

mod canvas;
mod error;
mod files;
mod film;
mod font;
pub mod geometry;
mod grid;
mod nearest;

pub use canvas::{Canvas, GAP, INK, PAPER, Sheet, magnification, text_height, text_width};
pub use error::SampleError;
pub use files::{Format, write_picture, write_whole};
pub use film::{FILMS, Timing, write_film};
pub use grid::{Images, PADDING, grid, write_png};
pub use nearest::{Nearest, Neighbour, median, squared_distance};
