//! PURE. Every draw of a schedule, from its seed.

use std::time::Duration;

/// A fast generator (Steele, Lea and Flood 2014, SplitMix64): a schedule makes thousands of draws,
/// and nothing but its replay hangs on their values.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..bound`; the bias does not matter here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number in `least..=most`.
    pub(super) fn from(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True so many times in a thousand.
    pub(super) fn in_thousand(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// A time between two.
    pub(super) fn time(&mut self, least: Duration, most: Duration) -> Duration {
        least + Duration::from_nanos(self.below((most - least).as_nanos() as u64 + 1))
    }

    /// A time between two, in milliseconds.
    pub(super) fn ms(&mut self, least: u64, most: u64) -> Duration {
        self.time(Duration::from_millis(least), Duration::from_millis(most))
    }

    /// One of these, if there is one.
    pub(super) fn pick<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        let index = self.below(among.len() as u64) as usize;
        among.get(index).copied()
    }
}

/// Scatters the bits of a number.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
