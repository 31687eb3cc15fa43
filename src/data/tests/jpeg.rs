use super::super::jpeg::check;
use super::{TempDirs, assert_says, job, open, refusal};
use crate::random::{Domain, Key};
use std::fs;

/// 60×44 pixels of a pattern with noise, written by libjpeg in the ways that it has.
const WAYS: [(&str, &[u8]); 5] = [
    ("plain", include_bytes!("jpeg/plain.jpg")),
    ("grey", include_bytes!("jpeg/grey.jpg")),
    ("subsampled", include_bytes!("jpeg/subsampled.jpg")),
    ("restarts", include_bytes!("jpeg/restarts.jpg")),
    ("progressive", include_bytes!("jpeg/progressive.jpg")),
];

/// Where the coded data of the first scan begins, and where the file ends without its end marker.
fn coded(bytes: &[u8]) -> (usize, usize) {
    let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    let header = u16::from_be_bytes([bytes[scan + 2], bytes[scan + 3]]);
    (scan + 2 + usize::from(header), bytes.len() - 2)
}

#[test]
fn whole_jpegs_of_every_way_pass() {
    for (name, bytes) in WAYS {
        check(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut longer = bytes.to_vec();
        longer.extend(b"trailer");
        check(&longer).unwrap();
    }
}

#[test]
fn a_jpeg_that_breaks_off_is_refused_at_every_length() {
    for (name, bytes) in WAYS {
        for len in 2..bytes.len() {
            assert!(check(&bytes[..len]).is_err(), "{name}: {len} bytes");
            // Somebody put an end there, as repair tools do.
            let ended = [&bytes[..len], &[0xff, 0xd9]].concat();
            let between_scans = name == "progressive" && check(&bytes[..len]).is_err();
            if len < bytes.len() - 2 && !between_scans {
                assert!(check(&ended).is_err(), "{name}: {len} bytes and an end");
            }
        }
    }
}

#[test]
fn a_stretch_zeroed_or_cut_out_is_refused() {
    for (name, bytes) in WAYS {
        let (start, end) = coded(bytes);
        let (mut zeroed, mut cut, mut tried) = (0, 0, 0);
        for from in start..end - 100 {
            let to = from + 100;
            let mut hole = bytes.to_vec();
            hole[from..to].fill(0);
            zeroed += u32::from(check(&hole).is_ok());
            cut += u32::from(check(&[&bytes[..from], &bytes[to..]].concat()).is_ok());
            tried += 1;
        }
        eprintln!("{name}: of {tried}, {zeroed} zeroed and {cut} cut were taken");
        // Zeros are known as such where they can't mean a flat stretch.
        if matches!(name, "plain" | "grey" | "restarts") {
            assert_eq!(zeroed, 0, "{name}: of {tried}");
        }
        assert!(zeroed * 100 <= tried * 10, "{name}: {zeroed} of {tried}");
        assert!(cut * 100 <= tried * 10, "{name}: {cut} of {tried}");
    }
}

#[test]
fn scrambled_data_is_refused_but_for_what_no_reader_can_know() {
    let mut stream = Key::new(Domain::Packing, &[7]).stream();
    for (name, bytes) in WAYS {
        let (start, end) = coded(bytes);
        let mut taken = 0;
        for _ in 0..500 {
            let mut scrambled = bytes.to_vec();
            let from = start + stream.below((end - start - 64) as u64) as usize;
            for byte in &mut scrambled[from..from + 64] {
                *byte = stream.below(255) as u8; // never FF, which would make it easy
            }
            taken += u32::from(check(&scrambled).is_ok());
        }
        eprintln!("{name}: of 500, {taken} scrambled were taken");
        assert!(taken <= 40, "{name}: {taken} of 500 were taken");
    }
}

/// No file makes it panic or run away.
#[test]
fn any_bytes_are_read_or_refused() {
    let mut stream = Key::new(Domain::Packing, &[8]).stream();
    for (_, bytes) in WAYS {
        for _ in 0..2000 {
            let mut broken = bytes.to_vec();
            for _ in 0..1 + stream.below(4) {
                let at = stream.below(bytes.len() as u64 - 2) as usize + 2;
                broken[at] = stream.below(256) as u8;
            }
            // Its size is the decoder's to limit: keep it.
            let frame = bytes
                .windows(2)
                .position(|w| matches!(w, [0xff, 0xc0 | 0xc2]));
            let frame = frame.unwrap();
            broken[frame..frame + 10].copy_from_slice(&bytes[frame..frame + 10]);
            let _ = check(&broken);
        }
    }
}

#[test]
fn a_jpeg_with_a_hole_is_named_and_refused() {
    let sets = ["data.fit=cover"];
    for (name, bytes) in WAYS {
        let dirs = TempDirs::new();
        let path = dirs.source.path().join("x.jpg");
        fs::write(&path, bytes).unwrap();
        let job = job(dirs.source.path(), dirs.cache.path(), &sets);
        assert_eq!(open(&job).unwrap().manifest().samples, 1, "{name}");
        let (start, end) = coded(bytes);
        let mut holed = bytes.to_vec();
        holed[start + (end - start) / 3..start + (end - start) / 2].fill(0);
        fs::write(&path, holed).unwrap();
        assert_says(&refusal(&job), &["x.jpg", "JPEG", "repair or remove"]);
    }
}
