//! Body for [`crate::fuzzing`]: a checkpoint's files, which others may have sent.

use super::manifest::seal;
use super::{Manifest, encode, state};
use std::path::Path;

/// The bytes are a manifest, with zeros for its checksum, and a safetensors file: as if they had been
/// sealed like that, for with a wrong checksum nothing is read at all.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let path = Path::new("fuzz");
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(manifest) = Manifest::parse(path, seal(text.to_owned()).as_bytes())
    {
        let _ = manifest.total_bytes();
    }
    let _ = Manifest::parse(path, bytes);
    if let Ok(tensors) = state::decode(path, bytes) {
        for tensor in &tensors {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(elements * tensor.kind.size(), tensor.bytes.len());
        }
        let again = encode("fuzz", &tensors).expect("what was read can be written");
        let again = state::decode(path, &again).expect("what was written can be read");
        assert_eq!(again, tensors);
    }
}
