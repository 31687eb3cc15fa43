//! Placeholder.
mod flags;
pub use flags::Flags;
