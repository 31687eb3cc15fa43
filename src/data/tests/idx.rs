use super::super::idx::{read_images, read_labels};
use super::{assert_says, idx};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use tempfile::TempDir;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn refused(bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("some.idx3-ubyte");
    std::fs::write(&path, bytes).unwrap();
    let message = read_images(&path)
        .err()
        .expect("must be refused")
        .to_string();
    assert_says(&message, &["some.idx3-ubyte", "expected"]);
    message
}

#[test]
fn raw_and_gzipped_files_read_the_same() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x");
    let raw = idx(&[2, 2, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for bytes in [raw.clone(), gzip(&raw)] {
        std::fs::write(&path, bytes).unwrap();
        let images = read_images(&path).unwrap();
        assert_eq!((images.count, images.rows, images.columns), (2, 2, 3));
        assert_eq!(images.pixels(1), [7, 8, 9, 10, 11, 12]);
    }
    std::fs::write(&path, idx(&[3], &[4, 5, 6])).unwrap();
    assert_eq!(read_labels(&path).unwrap(), [4, 5, 6]);
}

#[test]
fn an_idx_file_of_another_length_is_refused() {
    let whole = idx(&[2, 2, 2], &[9; 8]);
    for len in 0..whole.len() {
        refused(&whole[..len]);
    }
    assert_says(&refused(&whole[..whole.len() - 1]), &["7 bytes", "8 after"]);
    let mut longer = whole.clone();
    longer.push(0);
    assert_says(&refused(&longer), &["more bytes", "8 after"]);
    refused(&gzip(&longer));
    refused(&gzip(&whole[..20]));
    let zipped = gzip(&whole);
    for len in 2..zipped.len() {
        refused(&zipped[..len]);
    }
    let mut trailing = zipped;
    trailing.extend(b"junk");
    refused(&trailing);
}

#[test]
fn a_header_is_not_trusted() {
    assert_says(
        &refused(b"\x89PNG\r\n\x1a\n12345678"),
        &["89504e47", "00000803"],
    );
    assert_says(&refused(&idx(&[4], &[0; 4])), &["00000801", "00000803"]);
    // Products that overflow, or that nobody can hold: no memory is taken for them.
    assert_says(&refused(&idx(&[u32::MAX; 3], &[0; 8])), &["memory"]);
    refused(&idx(&[u32::MAX, u32::MAX, 1], &[0; 8]));
    refused(&idx(&[1 << 31, 1 << 30, 1], &[0; 8]));
    assert_says(&refused(&idx(&[5, 0, 3], &[])), &["3×0"]);
}

#[test]
fn a_gzip_bomb_unpacks_to_no_more_than_its_header_claims() {
    let bomb = gzip(&idx(&[1, 2, 2], &vec![0; 64 << 20]));
    assert_says(&refused(&bomb), &["more bytes", "4 after"]);
}
