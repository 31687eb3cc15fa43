//! The bytes between two workers: frames and the messages of the handshake.
//!
//! Everything is little-endian and of a length that both sides know beforehand, so nothing is ever
//! allocated because a peer said so. This room knows nothing of sockets.

use crate::ids::{Generation, Rank};

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// A subtree's sum, for the rank that finishes the slice.
    Sum = 1,
    /// A finished mean.
    Mean = 2,
    /// "I am here."
    Barrier = 3,
    /// A rank's word.
    Word = 4,
    /// "I am here, to copy a vector of this length from these holders."
    Copying = 5,
    /// A part of a holder's vector.
    Copy = 6,
    /// "I have taken this chunk from every holder."
    Taken = 7,
    /// "A reduction of a vector of this length begins on my device."
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "no devices without torch")
    )]
    Reducing = 8,
    /// "I am about to copy a vector of this length from these holders, from device to device."
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "no devices without torch")
    )]
    CopyingOnDevice = 9,
    /// "Nothing more will come from me, and I need nothing more."
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "no devices without torch")
    )]
    Goodbye = 10,
}

/// What identifies a frame. The receiver knows which must come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) generation: Generation,
    /// Collectives of this generation, from 1.
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    /// First replica of the subtree, for a sum; what stands for the list of holders, for
    /// [`Kind::Copying`] and [`Kind::CopyingOnDevice`]; how it is summed, for [`Kind::Reducing`].
    pub(super) node: u32,
    /// Chunk of the slice.
    pub(super) chunk: u64,
    /// Length of the whole vector.
    pub(super) elements: u64,
}

/// A field of a label that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) field: &'static str,
    pub(super) expected: u64,
    pub(super) found: u64,
}

/// Fields of a header, in order. `length` is that of the payload, in bytes.
const FIELDS: [&str; 7] = [
    "generation",
    "sequence",
    "kind",
    "subtree",
    "chunk",
    "vector length",
    "length",
];

/// Bytes of a header.
pub(super) const HEADER: usize = FIELDS.len() * 8;

impl Label {
    fn fields(&self, values: usize) -> [u64; FIELDS.len()] {
        [
            self.generation.0,
            self.sequence,
            self.kind as u64,
            u64::from(self.node),
            self.chunk,
            self.elements,
            values as u64 * 4,
        ]
    }

    /// The header of a frame of `values` numbers.
    pub(super) fn header(&self, values: usize) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (place, field) in bytes.as_chunks_mut().0.iter_mut().zip(self.fields(values)) {
            *place = field.to_le_bytes();
        }
        bytes
    }

    /// Compares a header with the one that must come now.
    pub(super) fn check(&self, values: usize, header: &[u8; HEADER]) -> Result<(), Mismatch> {
        let found = header
            .as_chunks()
            .0
            .iter()
            .map(|field| u64::from_le_bytes(*field));
        for ((field, expected), found) in FIELDS.into_iter().zip(self.fields(values)).zip(found) {
            if expected != found {
                let field = match (field, self.kind) {
                    ("subtree", Kind::Reducing) => "reduction (0 exact, 1 fast)",
                    ("subtree", Kind::Copying | Kind::CopyingOnDevice) => {
                        "list of holders (its checksum)"
                    }
                    _ => field,
                };
                return Err(Mismatch {
                    field,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

/// What a header says of a frame whatever it is for: whether it is the last one, and how many bytes
/// follow.
#[cfg(feature = "torch")]
pub(super) fn outline(header: &[u8; HEADER]) -> (bool, u64) {
    let field = |index: usize| u64::from_le_bytes(array(&header[8 * index..]));
    (field(2) == Kind::Goodbye as u64, field(6))
}

/// Writes numbers as bytes. The loops of this and [`decode`] compile to copies.
///
/// # Panics
/// If `bytes` is not four times as long.
pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), values.len() * 4, "four bytes a number");
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Reads numbers from bytes.
///
/// # Panics
/// If `bytes` is not four times as long.
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len(), values.len() * 4, "four bytes a number");
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// First bytes of a connection; the last one is the version of this protocol.
const MAGIC: [u8; 8] = *b"gngl-co\x02";

/// A random number that is used once.
pub(super) type Nonce = [u8; 32];

/// HMAC-SHA256 of what both sides have said.
pub(super) type Proof = [u8; 32];

/// What a caller says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) generation: Generation,
    /// Who calls.
    pub(super) from: Rank,
    /// Whom.
    pub(super) to: Rank,
    pub(super) nonce: Nonce,
}

impl Hello {
    pub(super) const LEN: usize = 8 + 8 + 4 + 4 + 32;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[24..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Nothing, if the bytes are not of this protocol.
    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        if bytes[..8] != MAGIC {
            return None;
        }
        Some(Self {
            generation: Generation(u64::from_le_bytes(array(&bytes[8..]))),
            from: Rank(u32::from_le_bytes(array(&bytes[16..]))),
            to: Rank(u32::from_le_bytes(array(&bytes[20..]))),
            nonce: array(&bytes[24..]),
        })
    }
}

/// What the one who was called answers: a verdict, its own nonce and its proof. Of a refusal only
/// the verdict means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) nonce: Nonce,
    pub(super) proof: Proof,
}

/// How a call is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Prove who you are.
    Welcome,
    /// A newer generation exists.
    Stale(Generation),
    /// That generation is not known here yet.
    NotYet,
    /// That generation is not being formed here any more.
    Closed,
    /// The ranks don't fit.
    NotMember,
}

impl Answer {
    pub(super) const LEN: usize = 1 + 8 + 32 + 32;

    pub(super) fn refusal(verdict: Verdict) -> Self {
        Self {
            verdict,
            nonce: [0; 32],
            proof: [0; 32],
        }
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let (code, generation) = match self.verdict {
            Verdict::Welcome => (0, 0),
            Verdict::Stale(newest) => (1, newest.0),
            Verdict::NotYet => (2, 0),
            Verdict::Closed => (3, 0),
            Verdict::NotMember => (4, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[0] = code;
        bytes[1..9].copy_from_slice(&generation.to_le_bytes());
        bytes[9..41].copy_from_slice(&self.nonce);
        bytes[41..].copy_from_slice(&self.proof);
        bytes
    }

    /// Nothing, if the bytes are not of this protocol.
    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let generation = Generation(u64::from_le_bytes(array(&bytes[1..])));
        let verdict = match bytes[0] {
            0 => Verdict::Welcome,
            1 => Verdict::Stale(generation),
            2 => Verdict::NotYet,
            3 => Verdict::Closed,
            4 => Verdict::NotMember,
            _ => return None,
        };
        Some(Self {
            verdict,
            nonce: array(&bytes[9..]),
            proof: array(&bytes[41..]),
        })
    }
}

/// The first `N` bytes.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label {
        generation: Generation(7),
        sequence: 42,
        kind: Kind::Sum,
        node: 3,
        chunk: 5,
        elements: 1000,
    };

    #[test]
    fn a_frame_out_of_place_names_its_field_and_both_values() {
        assert_eq!(LABEL.check(10, &LABEL.header(10)), Ok(()));
        let mean = Label {
            kind: Kind::Mean,
            ..LABEL
        };
        for (label, values, field, found) in [
            (
                Label {
                    generation: Generation(6),
                    ..LABEL
                },
                10,
                "generation",
                6,
            ),
            (mean, 10, "kind", 2),
            (LABEL, 11, "length", 44),
        ] {
            let mismatch = LABEL.check(10, &label.header(values)).unwrap_err();
            assert_eq!((mismatch.field, mismatch.found), (field, found));
        }
    }

    #[test]
    fn numbers_travel_bit_for_bit() {
        let values = [1.5, -0.0, f32::INFINITY, f32::from_bits(0x7fa0_0001), 1e-45];
        let mut bytes = [0; 20];
        encode(&values, &mut bytes);
        assert_eq!(bytes[..4], [0, 0, 0xc0, 0x3f], "little-endian");
        let mut back = [0.0; 5];
        decode(&bytes, &mut back);
        assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits));
    }

    #[test]
    fn the_handshake_reads_what_it_writes_and_refuses_garbage() {
        let hello = Hello {
            generation: Generation(u64::MAX),
            from: Rank(2),
            to: Rank(1),
            nonce: [9; 32],
        };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(
            Hello::decode(b"GET / HTTP/1.1\r\nHost: worker-0.example:7000\r\nAccept: */*"),
            None
        );
        for verdict in [
            Verdict::Welcome,
            Verdict::Stale(Generation(8)),
            Verdict::NotYet,
            Verdict::Closed,
            Verdict::NotMember,
        ] {
            let answer = Answer {
                verdict,
                nonce: [1; 32],
                proof: [2; 32],
            };
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        assert_eq!(Answer::decode(&[0xff; Answer::LEN]), None);
    }
}
