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
    /// Spectral norm's first vectors: seed, network, layer.
    Spectral,
    /// A point of a mixture: the data's seed, its number.
    Synthetic,
    /// Which images a stacked one is made of: the data's seed, its number.
    Stacked,
    /// Latents of a training step: seed, step, replica.
    Latents,
    /// Noise in hidden layers: seed, step, replica; of an image that is drawn, a hash of its latent.
    Noise,
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
    /// Small runs on densities in closed form: seed, use, update.
    Density,
    /// Whatever an evaluation draws: seed, what for, and numbers of its own.
    Evaluation,
    /// What regularisers do to images: seed, step, replica, round, use.
    Chance,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Domain::Weights => b"weights",
            Domain::Spectral => b"spectral",
            Domain::Synthetic => b"synthetic",
            Domain::Stacked => b"stacked",
            Domain::Latents => b"latents",
            Domain::Noise => b"noise",
            Domain::Samples => b"samples",
            Domain::Moves => b"moves",
            Domain::References => b"references",
            Domain::Packing => b"packing",
            Domain::Epoch => b"epoch",
            Domain::Span => b"span",
            Domain::Density => b"density",
            Domain::Evaluation => b"evaluation",
            Domain::Chance => b"chance",
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

    /// A uniform number in 0 … 1, without 0: a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A number from N(0, 1), by the ratio of uniforms (Kinderman and Monahan 1977): its value takes
    /// a multiplication and a division alone, so that it is the same on every machine.
    pub fn normal(&mut self) -> f64 {
        loop {
            let u = self.unit();
            // √(2/e), the largest ratio that is ever accepted, rounded up.
            let v = (2.0 * self.unit() - 1.0) * 0.857_763_884_960_706_9;
            let x = v / u;
            if x * x <= -4.0 * logarithm(u) {
                return x;
            }
        }
    }

    /// A uniform number in 0 ≤ x < 1, a multiple of 2⁻²⁴: exact in single precision.
    pub fn uniform(&mut self) -> f32 {
        const STEPS: u64 = 1 << 24;
        self.below(STEPS) as f32 / STEPS as f32
    }

    /// Shuffles `items` uniformly (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// ln x for 0 < x ≤ 1. Libraries of mathematics differ in the last bit, and this one doesn't.
fn logarithm(x: f64) -> f64 {
    let exponent = ((x.to_bits() >> 52) as i32) - 1022;
    // In ½ … 1; a uniform number is never subnormal.
    let fraction = f64::from_bits((x.to_bits() & ((1 << 52) - 1)) | (1022 << 52));
    // ln f = 2 artanh((f - 1) / (f + 1)), and |(f - 1) / (f + 1)| ≤ ⅓.
    let z = (fraction - 1.0) / (fraction + 1.0);
    let series = (0..20)
        .rev()
        .fold(0.0, |sum, k| sum * z * z + 1.0 / f64::from(2 * k + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * z * series
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
    fn logarithms_are_right() {
        for x in [1.0, 0.999, 0.75, 0.5, 0.3, 1e-3, 2f64.powi(-53)] {
            assert!(
                (logarithm(x) - f64::ln(x)).abs() < 1e-15 * (1.0 + f64::ln(x).abs()),
                "{x}"
            );
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_they_should() {
        let mut stream = Key::new(Domain::Synthetic, &[1]).stream();
        let count = 100_000;
        let mut moments = [0f64; 4];
        for _ in 0..count {
            let x = stream.normal();
            for (k, moment) in (1..).zip(&mut moments) {
                *moment += x.powi(k) / f64::from(count);
            }
        }
        for (found, expected) in moments.into_iter().zip([0.0, 1.0, 0.0, 3.0]) {
            assert!((found - expected).abs() < 0.06, "{moments:?}");
        }
    }

    #[test]
    fn uniform_numbers_are_below_one_and_everywhere() {
        let mut stream = Key::new(Domain::Chance, &[0]).stream();
        let draws: Vec<f32> = (0..10_000).map(|_| stream.uniform()).collect();
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = draws.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!(draws.iter().any(|x| *x < 0.001) && draws.iter().any(|x| *x > 0.999));
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
