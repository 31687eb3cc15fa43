//! PURE. Keys for every random draw.
//!
//! No generator's state is carried from one step to the next: each draw has a key made of a
//! domain and numbers (job seed, step, replica, …) and starts a fresh generator from it. So there
//! is no state to lose, and a draw is the same whoever makes it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// What a draw is for. Two draws never share a key, for their domains differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Initial weights: seed, network, layer.
    Weights,
    /// Latents of a training step: seed, step, replica.
    Latents,
    /// Latents of sample grids: seed.
    Samples,
    /// Small moves around a latent: seed.
    Moves,
    /// Training images that others are compared with: seed.
    References,
    /// The order of the samples when a data set is packed.
    Packing,
    /// The order of the shards and the tail of an epoch: seed, epoch.
    Epoch,
    /// The order of the samples in a span: seed, epoch, shard.
    Span,
    /// Whatever an evaluation draws: seed, what for, and numbers of its own.
    Evaluation,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Domain::Weights => b"weights",
            Domain::Latents => b"latents",
            Domain::Samples => b"samples",
            Domain::Moves => b"moves",
            Domain::References => b"references",
            Domain::Packing => b"packing",
            Domain::Epoch => b"epoch",
            Domain::Span => b"span",
            Domain::Evaluation => b"evaluation",
        }
    }
}

/// A key: SHA-256 of the domain and its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of `domain` and `numbers`.
    pub fn new(domain: Domain, numbers: &[u64]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"ganglion key 1\0");
        hash.update(domain.label());
        hash.update([0]);
        for number in numbers {
            hash.update(number.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// A seed for a generator that takes 64 bits, libtorch's among them.
    pub fn seed(self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }

    /// A generator that starts at this key. ChaCha8's output is fixed by its definition.
    pub fn stream(self) -> Stream {
        Stream(ChaCha8Rng::from_seed(self.0))
    }
}

/// Uniform numbers from one key.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// A uniform number in `0..bound`, without bias.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a uniform draw needs at least one value");
        // Lemire 2019, "Fast random integer generation in an interval", algorithm 5.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if (product as u64) >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Shuffles `items` uniformly (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_domain_and_by_number() {
        let key = Key::new(Domain::Latents, &[1, 2]);
        assert_eq!(key, Key::new(Domain::Latents, &[1, 2]));
        assert_ne!(key, Key::new(Domain::Latents, &[2, 1]));
        assert_ne!(key, Key::new(Domain::Epoch, &[1, 2]));
        assert_ne!(key.seed(), Key::new(Domain::Latents, &[1, 3]).seed());
    }

    /// The bits of a job hang on these values: they must never change.
    #[test]
    fn a_stream_is_fixed_for_ever() {
        let mut stream = Key::new(Domain::Epoch, &[7, 0]).stream();
        let draws: Vec<u64> = (0..5).map(|_| stream.below(1000)).collect();
        assert_eq!(draws, [140, 321, 611, 509, 984]);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..1000).collect();
        Key::new(Domain::Span, &[0]).stream().shuffle(&mut items);
        assert_ne!(items[..10], (0..10).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
