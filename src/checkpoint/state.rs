//! The training state as named tensors, its digest, and its encoding as safetensors.

use super::CheckpointError;
use crate::ids::Step;
use safetensors::tensor::{Dtype, SafeTensors, View};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE single precision.
    F32,
    /// Signed 64-bit integers, such as batch norm's `num_batches_tracked`.
    I64,
}

impl Kind {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::I64 => 8,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Kind::F32 => "F32",
            Kind::I64 => "I64",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Kind::F32 => Dtype::F32,
            Kind::I64 => Dtype::I64,
        }
    }
}

/// A named tensor on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// Its name in PyTorch's `state_dict`, such as `main.0.weight`.
    pub name: String,
    /// The type of its elements.
    pub kind: Kind,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    /// Its elements: little endian, contiguous, row-major.
    pub bytes: Vec<u8>,
}

impl View for &TensorData {
    fn dtype(&self) -> Dtype {
        self.kind.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The training state after a step, as named tensors a file.
///
/// What is read back has the tensors of each file ordered by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The step that the state is after.
    pub step: Step,
    /// `generator`, `discriminator`, `optimizer`, and `generator_ema` when the job keeps one.
    pub files: BTreeMap<String, Vec<TensorData>>,
}

/// The identity of a training state: SHA-256, in hex, of its step, then its files by name, then
/// their tensors by name (name, element type, shape, bytes), each with its length before it.
///
/// It doesn't depend on the order of the tensors, nor on how files encode them.
pub fn digest(snapshot: &Snapshot) -> String {
    let mut hash = Sha256::new();
    hash.update(b"ganglion state 1\0");
    number(&mut hash, snapshot.step.0);
    number(&mut hash, snapshot.files.len() as u64);
    for (name, tensors) in &snapshot.files {
        bytes(&mut hash, name.as_bytes());
        number(&mut hash, tensors.len() as u64);
        for tensor in by_name(tensors) {
            bytes(&mut hash, tensor.name.as_bytes());
            bytes(&mut hash, tensor.kind.label().as_bytes());
            number(&mut hash, tensor.shape.len() as u64);
            for &size in &tensor.shape {
                number(&mut hash, size as u64);
            }
            bytes(&mut hash, &tensor.bytes);
        }
    }
    hex(&hash.finalize())
}

fn number(hash: &mut Sha256, number: u64) {
    hash.update(number.to_le_bytes());
}

fn bytes(hash: &mut Sha256, bytes: &[u8]) {
    number(hash, bytes.len() as u64);
    hash.update(bytes);
}

fn by_name(tensors: &[TensorData]) -> Vec<&TensorData> {
    let mut ordered: Vec<&TensorData> = tensors.iter().collect();
    ordered.sort_by(|a, b| a.name.cmp(&b.name));
    ordered
}

/// SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `name` can name a file of a checkpoint.
pub(super) fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(plain)
}

/// Refuses a state that couldn't be read back as it is.
pub(super) fn check(snapshot: &Snapshot) -> Result<(), CheckpointError> {
    for (file, tensors) in &snapshot.files {
        if !is_file_name(file) {
            return Err(CheckpointError::State {
                name: file.clone(),
                detail: "a file's name has letters, digits and _ only".to_owned(),
            });
        }
        let wrong = |tensor: &TensorData, detail: String| CheckpointError::State {
            name: format!("{file}/{}", tensor.name),
            detail,
        };
        let ordered = by_name(tensors);
        if let Some(pair) = ordered.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(wrong(pair[0], "two tensors have this name".to_owned()));
        }
        for tensor in ordered {
            if tensor.name == "__metadata__" {
                return Err(wrong(tensor, "safetensors keeps this name".to_owned()));
            }
            let expected = tensor
                .shape
                .iter()
                .try_fold(tensor.kind.size(), |size, &side| size.checked_mul(side));
            if expected != Some(tensor.bytes.len()) {
                return Err(wrong(
                    tensor,
                    format!(
                        "{} of shape {:?} has {} bytes",
                        tensor.kind.label(),
                        tensor.shape,
                        tensor.bytes.len()
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// A safetensors file of `tensors`. The same tensors give the same bytes, in any order. `file` is for
/// messages.
///
/// # Errors
/// [`CheckpointError::State`] for tensors that no such file holds.
pub fn encode(file: &str, tensors: &[TensorData]) -> Result<Vec<u8>, CheckpointError> {
    // PyTorch's tools look for this entry. It is the only one: more would come in a hash map's order.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    safetensors::serialize(named, Some(about)).map_err(|error| CheckpointError::State {
        name: file.to_owned(),
        detail: error.to_string(),
    })
}

/// The tensors of the safetensors file `bytes`, ordered by name. `path` is for messages.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Vec<TensorData>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| CheckpointError::damaged(path, error.to_string()))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::F32,
            Dtype::I64 => Kind::I64,
            other => {
                return Err(CheckpointError::damaged(
                    path,
                    format!("tensor {name} has elements of type {other}, expected F32 or I64"),
                ));
            }
        };
        tensors.push(TensorData {
            name: name.to_owned(),
            kind,
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A fixed, tiny state.
    pub(in super::super) fn tiny(step: u64) -> Snapshot {
        let weight = TensorData {
            name: "main.0.weight".to_owned(),
            kind: Kind::F32,
            shape: vec![2, 1],
            bytes: [1.5f32, -0.25].map(f32::to_le_bytes).concat(),
        };
        let tracked = TensorData {
            name: "main.1.num_batches_tracked".to_owned(),
            kind: Kind::I64,
            shape: vec![],
            bytes: 7i64.to_le_bytes().to_vec(),
        };
        let empty = TensorData {
            name: "empty".to_owned(),
            kind: Kind::F32,
            shape: vec![0, 3],
            bytes: vec![],
        };
        Snapshot {
            step: Step(step),
            files: BTreeMap::from([
                ("generator".to_owned(), vec![tracked, weight.clone()]),
                ("discriminator".to_owned(), vec![weight, empty]),
            ]),
        }
    }

    /// Any state of up to three files, zero dimensions and scalars included.
    pub(in super::super) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let tensor = (
            any::<bool>(),
            prop::collection::vec(0usize..4, 0..4),
            any::<u8>(),
        )
            .prop_map(|(float, shape, fill)| {
                let kind = if float { Kind::F32 } else { Kind::I64 };
                let len = shape.iter().product::<usize>() * kind.size();
                let bytes = (0..len).map(|i| fill.wrapping_mul(31) ^ i as u8).collect();
                (kind, shape, bytes)
            });
        let file = prop::collection::btree_map("[a-zA-Zé\"\\\\ ._0-9]{0,12}", tensor, 0..6)
            .prop_map(|tensors| {
                tensors
                    .into_iter()
                    .map(|(name, (kind, shape, bytes))| TensorData {
                        name,
                        kind,
                        shape,
                        bytes,
                    })
                    .collect::<Vec<_>>()
            });
        (
            any::<u32>(),
            prop::collection::btree_map("[a-z_0-9]{1,10}", file, 0..4),
        )
            .prop_map(|(step, files)| Snapshot {
                step: Step(u64::from(step)),
                files,
            })
    }

    /// Computed once with Python's hashlib from the definition. If it changes, no checkpoint
    /// written before can be compared with one written after.
    #[test]
    fn the_digest_of_a_state_is_fixed_for_ever() {
        assert_eq!(
            digest(&tiny(3)),
            "8eefff4ca76ba6e39001b658299690c8c8682519fb12c57f698d410d0491e676"
        );
    }

    #[test]
    fn the_digest_depends_on_every_part_but_not_on_the_order_of_tensors() {
        let base = tiny(3);
        let same = digest(&base);
        let mut reordered = base.clone();
        for tensors in reordered.files.values_mut() {
            tensors.reverse();
        }
        assert_eq!(digest(&reordered), same);

        let mut variants = vec![tiny(4)];
        let change = |edit: &dyn Fn(&mut TensorData)| {
            let mut changed = tiny(3);
            edit(&mut changed.files.get_mut("generator").unwrap()[1]);
            changed
        };
        variants.push(change(&|tensor| tensor.bytes[0] ^= 1));
        variants.push(change(&|tensor| tensor.shape = vec![1, 2]));
        variants.push(change(&|tensor| tensor.name.push('x')));
        variants.push(change(&|tensor| {
            tensor.kind = Kind::I64;
            tensor.shape = vec![1];
        }));
        let mut renamed = tiny(3);
        let tensors = renamed.files.remove("generator").unwrap();
        renamed.files.insert("generator_ema".to_owned(), tensors);
        variants.push(renamed);
        for changed in variants {
            assert_ne!(digest(&changed), same, "{changed:?}");
        }
    }

    #[test]
    fn the_same_tensors_give_the_same_file_in_any_order() {
        let mut tensors: Vec<TensorData> = (0..64)
            .map(|i| TensorData {
                name: format!("main.{i}.weight"),
                kind: if i % 3 == 0 { Kind::I64 } else { Kind::F32 },
                shape: vec![i % 4, 3],
                bytes: vec![i as u8; (i % 4) * 3 * if i % 3 == 0 { 8 } else { 4 }],
            })
            .collect();
        let first = encode("generator", &tensors).unwrap();
        tensors.reverse();
        for _ in 0..20 {
            assert_eq!(encode("generator", &tensors).unwrap(), first);
        }
    }

    #[test]
    fn a_state_that_could_not_be_read_back_is_refused() {
        let refused = |edit: &dyn Fn(&mut Vec<TensorData>)| {
            let mut snapshot = tiny(1);
            edit(snapshot.files.get_mut("generator").unwrap());
            check(&snapshot).unwrap_err().to_string()
        };
        let twice = refused(&|tensors| tensors.push(tensors[0].clone()));
        assert!(
            twice.contains("generator/main.1.num_batches_tracked"),
            "{twice}"
        );
        let short = refused(&|tensors| tensors[1].bytes.truncate(7));
        assert!(short.contains("7 bytes"), "{short}");
        let huge = refused(&|tensors| tensors[1].shape = vec![usize::MAX, 2]);
        assert!(huge.contains("main.0.weight"), "{huge}");
        refused(&|tensors| tensors[0].name = "__metadata__".to_owned());

        let mut snapshot = tiny(1);
        snapshot.files.insert("../generator".to_owned(), vec![]);
        assert!(check(&snapshot).is_err());
        assert!(check(&tiny(1)).is_ok());
    }

    proptest! {
        #[test]
        fn tensors_survive_their_encoding(snapshot in any_snapshot()) {
            check(&snapshot).unwrap();
            for (name, tensors) in &snapshot.files {
                let bytes = encode(name, tensors).unwrap();
                prop_assert_eq!(&decode(Path::new("x"), &bytes).unwrap(), tensors);
            }
        }

        /// What comes from a disk may be anything.
        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Path::new("x"), &bytes);
        }
    }
}
