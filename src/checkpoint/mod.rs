//! Stand-in: the types that the engine is written against.
use crate::ids::Step;
use std::collections::BTreeMap;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Single precision.
    F32,
    /// 64-bit integers.
    I64,
}

/// A named tensor on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements, little endian.
    pub bytes: Vec<u8>,
}

/// The training state after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The step.
    pub step: Step,
    /// Tensors by file.
    pub files: BTreeMap<String, Vec<TensorData>>,
}
