//! PURE. Who knocks too often.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Addresses that are kept apart; more share what is left.
const KNOWN: usize = 4096;

/// A bucket of knocks for each address, which time fills: one that knocks too often costs nobody
/// else theirs.
#[derive(Debug)]
pub struct Rates {
    burst: f64,
    per_second: f64,
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Duration,
}

impl Rates {
    /// So many knocks at once, and as many again in the time `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            burst,
            per_second: burst / refill.as_secs_f64().max(1e-3),
            buckets: HashMap::new(),
        }
    }

    /// Counts a knock, and says whether it is one too many.
    pub fn take(&mut self, from: IpAddr, now: Duration) -> bool {
        let from = from.to_canonical();
        let full = Bucket {
            left: self.burst,
            at: now,
        };
        if self.buckets.len() >= KNOWN && !self.buckets.contains_key(&from) {
            let (burst, per_second) = (self.burst, self.per_second);
            self.buckets
                .retain(|_, bucket| bucket.at(now, burst, per_second) < burst);
        }
        let place = match self.buckets.len() < KNOWN || self.buckets.contains_key(&from) {
            true => from,
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let bucket = self.buckets.entry(place).or_insert(full);
        bucket.left = bucket.at(now, self.burst, self.per_second);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

impl Bucket {
    fn at(&self, now: Duration, burst: f64, per_second: f64) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        (self.left + passed * per_second).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + last))
    }

    #[test]
    fn who_knocks_too_often_waits_and_others_do_not() {
        let mut rates = Rates::new(3, Duration::from_secs(6));
        let second = Duration::from_secs(1);
        for _ in 0..3 {
            assert!(rates.take(address(1), second));
        }
        assert!(!rates.take(address(1), second));
        assert!(rates.take(address(2), second), "another one");
        assert!(!rates.take(address(1), 2 * second), "half a knock");
        assert!(rates.take(address(1), 3 * second));
        assert!(!rates.take(address(1), 3 * second));
        for _ in 0..3 {
            assert!(
                rates.take(address(1), 60 * second),
                "never more than a burst"
            );
        }
        assert!(!rates.take(address(1), 60 * second));
    }

    #[test]
    fn a_million_addresses_take_no_more_memory_and_not_the_known_ones_share() {
        let mut rates = Rates::new(2, Duration::from_secs(10));
        let known = address(0);
        assert!(rates.take(known, Duration::ZERO));
        let admitted = (1..20_000).filter(|n| rates.take(address(*n), Duration::ZERO));
        assert!(admitted.count() <= KNOWN + 2);
        assert!(rates.buckets.len() <= KNOWN + 1, "{}", rates.buckets.len());
        assert!(rates.take(known, Duration::ZERO));
        // Those who have kept quiet are forgotten.
        assert!(rates.take(address(30_000), Duration::from_secs(10)));
        assert_eq!(rates.buckets.len(), 1);
    }
}
