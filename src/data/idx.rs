//! IDX, the format of MNIST (LeCun, Cortes and Burges): a magic number that gives the type of the
//! elements and the number of dimensions, the dimensions as big-endian u32, and the elements.
//!
//! A header is a claim by a stranger: all arithmetic on it is checked, no memory is taken because
//! of it, and what follows must be exactly as long as it says. A gzipped file is known by its
//! first bytes, not by its name; what it may unpack to is bounded by its header's claim.

use super::error::{DataError, io};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// A file of grey images of one size, in memory.
pub(super) struct Images {
    pub(super) count: u64,
    pub(super) rows: u32,
    pub(super) columns: u32,
    pixels: Vec<u8>,
}

impl Images {
    /// The pixels of one image, row by row.
    ///
    /// # Panics
    /// If there is no such image.
    pub(super) fn pixels(&self, index: u64) -> &[u8] {
        let len = self.rows as usize * self.columns as usize;
        &self.pixels[index as usize * len..][..len]
    }
}

/// Reads a file of images (u8, three dimensions).
pub(super) fn read_images(path: &Path) -> Result<Images, DataError> {
    let ([count, rows, columns], pixels) = read(path, "images")?;
    if count > 0 && (rows == 0 || columns == 0) {
        return Err(DataError::Idx {
            path: path.to_owned(),
            found: format!("its header says images of {columns}×{rows} pixels"),
            expected: "at least one pixel".to_owned(),
        });
    }
    Ok(Images {
        count: u64::from(count),
        rows,
        columns,
        pixels,
    })
}

/// Reads a file of labels (u8, one dimension).
pub(super) fn read_labels(path: &Path) -> Result<Vec<u8>, DataError> {
    let ([_], labels) = read(path, "labels")?;
    Ok(labels)
}

fn read<const D: usize>(path: &Path, content: &str) -> Result<([u32; D], Vec<u8>), DataError> {
    let mut file = File::open(path).map_err(io("open it", path))?;
    let mut start = [0; 2];
    let gzipped = matches!(file.read_exact(&mut start), Ok(())) && start == [0x1f, 0x8b];
    file.rewind().map_err(io("read it", path))?;
    let file = BufReader::new(file);
    if gzipped {
        parse(MultiGzDecoder::new(file), path, content)
    } else {
        parse(file, path, content)
    }
}

fn parse<const D: usize>(
    mut file: impl Read,
    path: &Path,
    content: &str,
) -> Result<([u32; D], Vec<u8>), DataError> {
    let wrong = |found: String, expected: String| DataError::Idx {
        path: path.to_owned(),
        found,
        expected,
    };
    let magic = 0x0800 + D as u32; // 08: unsigned byte
    let mut header = || {
        let mut word = [0; 4];
        file.read_exact(&mut word)
            .map(|()| u32::from_be_bytes(word))
            .map_err(|error| {
                let header = format!("an IDX header of {} bytes", 4 + 4 * D);
                wrong(format!("its header can't be read ({error})"), header)
            })
    };
    let found = header()?;
    if found != magic {
        return Err(wrong(
            format!("it begins with {found:08x}"),
            format!("{magic:08x}, the start of an IDX file of {content}"),
        ));
    }
    let mut dimensions = [0; D];
    for dimension in &mut dimensions {
        *dimension = header()?;
    }
    let claim = dimensions
        .iter()
        .try_fold(1u64, |product, &d| product.checked_mul(u64::from(d)))
        .filter(|&bytes| bytes < isize::MAX as u64)
        .ok_or_else(|| {
            let found = format!("its header says {dimensions:?} bytes");
            wrong(found, "a size that fits in memory".to_owned())
        })?;
    let expected = || format!("{claim} after the header, which says {dimensions:?}");
    let mut bytes = Vec::new();
    if let Err(error) = file.take(claim + 1).read_to_end(&mut bytes) {
        let found = format!("it breaks off after {} bytes ({error})", bytes.len());
        return Err(wrong(found, expected()));
    }
    if bytes.len() as u64 > claim {
        return Err(wrong("it has more bytes".to_owned(), expected()));
    }
    if (bytes.len() as u64) < claim {
        return Err(wrong(format!("it has {} bytes", bytes.len()), expected()));
    }
    Ok((dimensions, bytes))
}
