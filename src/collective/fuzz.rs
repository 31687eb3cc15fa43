//! Body for [`crate::fuzzing`]: what peers and strangers send between workers.

use super::wire::{self, Answer, HEADER, Hello, Kind, Label};
use crate::ids::Generation;

/// The bytes are a hello, an answer, and frames.
pub(crate) fn framing(bytes: &[u8]) {
    let (hello, rest) = first::<{ Hello::LEN }>(bytes);
    if let Some(hello) = Hello::decode(&hello) {
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    }
    let (answer, mut rest) = first::<{ Answer::LEN }>(rest);
    if let Some(answer) = Answer::decode(&answer) {
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }
    while !rest.is_empty() {
        let (header, after) = first::<HEADER>(rest);
        let field = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[8 * index..8 * (index + 1)]);
            u64::from_le_bytes(word)
        };
        // What is expected has come only if it is that to the last bit.
        let label = Label {
            generation: Generation(field(0)),
            sequence: field(1),
            kind: Kind::Sum,
            node: field(3) as u32,
            chunk: field(4),
            elements: field(5),
        };
        let values = (field(6) / 4 % 64) as usize;
        let is_it = label.header(values) == header;
        assert_eq!(label.check(values, &header).is_ok(), is_it);
        #[cfg(feature = "torch")]
        {
            let (_, length) = wire::outline(&header);
            assert_eq!(length, field(6));
        }
        let payload = &after[..after.len().min(values * 4) / 4 * 4];
        let mut numbers = vec![0.0; payload.len() / 4];
        wire::decode(payload, &mut numbers);
        let mut again = vec![0; payload.len()];
        wire::encode(&numbers, &mut again);
        assert_eq!(again, payload, "bit for bit");
        rest = &after[payload.len()..];
    }
}

/// The first `N` bytes, filled up with zeros, and the others.
fn first<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let count = bytes.len().min(N);
    let mut array = [0; N];
    array[..count].copy_from_slice(&bytes[..count]);
    (array, &bytes[count..])
}
