//! A short run of every body, the same on every machine: mutations of its corpus, from a fixed seed.

use super::TARGETS;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutations of each corpus: a second's worth, where one is slow.
const MUTATIONS: u64 = 3_000;

/// No input is longer.
const LONGEST: usize = 16 << 10;

/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX - 3,
    u64::MAX,
];

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = place().join("corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Less than `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Chance) {
    for _ in 0..=chance.below(6) {
        let at = chance.below(bytes.len());
        let end = at + chance.below((bytes.len() - at).min(64) + 1);
        match chance.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 if at < bytes.len() => bytes[at] = chance.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => bytes.truncate(at),
            5 => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            kind => {
                let number = EDGES[chance.below(EDGES.len())];
                let width = [1, 4, 8][kind % 3];
                let mut number = number.to_le_bytes()[..width].to_vec();
                if chance.below(2) == 0 {
                    number.reverse();
                }
                for (place, byte) in bytes[at..].iter_mut().zip(number) {
                    *place = byte;
                }
            }
        }
    }
    bytes.truncate(LONGEST);
}

/// The first input that the body does not bear, if there is one.
fn torment(corpus: &[Vec<u8>], mutations: u64, body: fn(&[u8])) -> Option<Vec<u8>> {
    let mut chance = Chance(0x6761_6e67_6c69_6f6e);
    let as_they_are = corpus.iter().cloned();
    let mutated = (0..mutations).map(|_| {
        let mut bytes = corpus[chance.below(corpus.len())].clone();
        mutate(&mut bytes, corpus, &mut chance);
        bytes
    });
    let mut inputs = as_they_are.chain(mutated);
    inputs.find(|bytes| catch_unwind(AssertUnwindSafe(|| body(bytes))).is_err())
}

fn run(target: &str) {
    let body = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = body.expect("it is in the list");
    if let Some(bytes) = torment(&corpus(target), MUTATIONS, *body) {
        panic!(
            "{target} does not bear {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn any_job_file_is_a_job_or_an_error() {
    run("job_file");
}

#[test]
fn any_shard_is_samples_or_an_error() {
    run("shard");
}

#[test]
fn any_idx_file_is_images_or_an_error() {
    run("idx");
}

#[test]
fn any_checkpoint_is_a_state_or_an_error() {
    run("checkpoint");
}

#[test]
fn any_bytes_between_workers_are_frames_or_an_error() {
    run("framing");
}

#[test]
fn any_message_of_a_worker_is_a_word_or_an_error() {
    run("message");
}

#[test]
fn the_harness_finds_what_a_body_does_not_bear() {
    let corpus = [b"size=0007".to_vec(), b"other".to_vec()];
    let found = torment(&corpus, 10_000, |bytes| assert!(!bytes.contains(&0x80)));
    assert!(found.is_some_and(|bytes| bytes.contains(&0x80)));
    assert_eq!(torment(&corpus, 1_000, |_| ()), None);
}

#[test]
fn cargo_fuzz_has_every_body() {
    let manifest = fs::read_to_string(place().join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let source = place().join(format!("fuzz_targets/{name}.rs"));
        let source = fs::read_to_string(source).unwrap();
        assert!(
            source.contains(&format!("ganglion::fuzzing::{name}")),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
