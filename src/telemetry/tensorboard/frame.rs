//! TFRecord's framing: length, its checksum, bytes, their checksum, all little-endian.

use crc::{CRC_32_ISCSI, Crc};
use std::io::{self, Read, Write};

const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// No event of ours is larger: a picture, at most.
const LARGEST: u64 = 80 << 20;

/// A checksum as it stands in a file: turned and shifted, so that bytes which hold checksums
/// themselves have good ones too.
fn masked(bytes: &[u8]) -> u32 {
    CASTAGNOLI
        .checksum(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Appends a frame.
pub(super) fn write(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let len = (payload.len() as u64).to_le_bytes();
    out.write_all(&len)?;
    out.write_all(&masked(&len).to_le_bytes())?;
    out.write_all(payload)?;
    out.write_all(&masked(payload).to_le_bytes())
}

/// The next frame's bytes; none where the whole frames end, be it at a torn one.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 12];
    if !fill(from, &mut head)? {
        return Ok(None);
    }
    let [len, check] = [&head[..8], &head[8..]];
    let is_whole = masked(len).to_le_bytes() == check;
    let len = len.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    if !is_whole || len > LARGEST {
        return Ok(None);
    }
    let (mut payload, mut check) = (vec![0; len as usize], [0; 4]);
    let is_there = fill(from, &mut payload)? && fill(from, &mut check)?;
    Ok(Some(payload).filter(|payload| is_there && masked(payload).to_le_bytes() == check))
}

/// Fills `bytes`, if there are as many.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros, and 0 to 31.
        assert_eq!(CASTAGNOLI.checksum(&[0; 32]), 0x8a91_36aa);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(CASTAGNOLI.checksum(&ascending), 0x46dd_794e);
    }

    #[test]
    fn frames_are_read_to_the_first_torn_or_damaged_one() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"first").unwrap();
        let whole = bytes.len();
        write(&mut bytes, b"second").unwrap();
        let read_all = |bytes: &[u8]| {
            let (mut from, mut found) = (bytes, Vec::new());
            while let Some(payload) = read(&mut from).unwrap() {
                found.push(payload);
            }
            found
        };
        assert_eq!(read_all(&bytes), [b"first".to_vec(), b"second".to_vec()]);
        for len in whole..bytes.len() {
            assert_eq!(read_all(&bytes[..len]), [b"first"], "{len} bytes");
        }
        for place in whole..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert_eq!(read_all(&damaged), [b"first"], "byte {place}");
        }
    }
}
