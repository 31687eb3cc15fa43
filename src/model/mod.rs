//! The two networks of DCGAN (Radford et al. 2015), as PyTorch's example lays them out.
//!
//! [`architecture`] is pure: layers, names, shapes, counts; so is [`cost`], what a step takes. The
//! rest needs libtorch: networks are flat parameter vectors, and a forward pass is a function of
//! such a vector. This room knows nothing of games, optimizers or replicas.

pub mod architecture;
pub mod cost;
#[cfg(all(test, feature = "torch"))]
mod goldens;
#[cfg(feature = "torch")]
mod initial;
#[cfg(feature = "torch")]
mod latents;
#[cfg(feature = "torch")]
mod network;
#[cfg(feature = "torch")]
mod spectral;

pub use architecture::{Architecture, Player};
#[cfg(feature = "torch")]
pub use initial::{initial_parameters, initial_running};
#[cfg(feature = "torch")]
pub use latents::Latents;
#[cfg(feature = "torch")]
pub use network::{Input, Network, Statistics, Values, reduced, view};
#[cfg(feature = "torch")]
pub use spectral::iterate;
