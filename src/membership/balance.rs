//! PURE. How many replicas each worker hosts.
//!
//! Replicas can move without changing a bit of the result, so they go where they are computed
//! fastest. A worker computes its replicas in rounds, as many side by side as it has cores; the
//! slowest worker's rounds are everybody's step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::time::Duration;

/// A deal must make the step shorter by this share before replicas move for it.
const WORTHWHILE: f64 = 0.10;

/// How fast a worker was lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time that a step's computation took, without its reductions.
    pub compute: Duration,
    /// Replicas that it hosted.
    pub hosted: u32,
}

/// A worker, as far as dealing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Replicas that it computes side by side.
    pub cores: u32,
    /// What one round takes it; the same for all where nothing is known.
    pub round: Duration,
}

impl Speed {
    /// What a step takes with so many replicas.
    pub fn step(&self, replicas: u32) -> Duration {
        self.round * replicas.div_ceil(self.cores.max(1))
    }
}

impl Pace {
    /// What one round took.
    pub fn round(&self, cores: u32) -> Duration {
        self.compute / self.hosted.div_ceil(cores.max(1)).max(1)
    }
}

/// Deals `replicas` to workers of these speeds, at least one each, so that the slowest is done as
/// early as can be; where that leaves a choice, evenly, and the lower ranks first.
///
/// # Panics
/// If there are more workers than replicas, or none.
pub fn deal(replicas: u32, speeds: &[Speed]) -> Vec<u32> {
    let workers = speeds.len() as u32;
    assert!(
        (1..=replicas).contains(&workers),
        "{workers} workers can't share {replicas} replicas"
    );
    let mut shares = vec![1; speeds.len()];
    let next = |rank: usize, share: u32| Reverse((speeds[rank].step(share + 1), share, rank));
    let mut queue: BinaryHeap<_> = (0..speeds.len()).map(|rank| next(rank, 1)).collect();
    for _ in workers..replicas {
        let Some(Reverse((_, share, rank))) = queue.pop() else {
            break;
        };
        shares[rank] = share + 1;
        queue.push(next(rank, share + 1));
    }
    shares
}

/// The ranges of replicas that follow each other in these shares.
pub fn ranges(shares: &[u32]) -> Vec<Range<u32>> {
    let mut next = 0;
    shares
        .iter()
        .map(|share| {
            let range = next..next + share;
            next = range.end;
            range
        })
        .collect()
}

/// What a step takes when the replicas are dealt like this.
pub fn step(shares: &[u32], speeds: &[Speed]) -> Duration {
    let each = shares.iter().zip(speeds);
    each.map(|(share, speed)| speed.step(*share))
        .max()
        .unwrap_or_default()
}

/// A better deal than `shares`, if there is one that is worth a pause.
pub fn better(replicas: u32, shares: &[u32], speeds: &[Speed]) -> Option<Vec<u32>> {
    let wanted = deal(replicas, speeds);
    let (now, then) = (step(shares, speeds), step(&wanted, speeds));
    (then.as_secs_f64() < (1.0 - WORTHWHILE) * now.as_secs_f64()).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(cores: u32, milliseconds: u64) -> Speed {
        Speed {
            cores,
            round: Duration::from_millis(milliseconds),
        }
    }

    #[test]
    fn equal_workers_share_evenly_and_in_order() {
        for workers in 1..=7 {
            let shares = deal(7, &vec![speed(1, 10); workers]);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
            let ranges = ranges(&shares);
            assert_eq!((ranges[0].start, ranges.last().unwrap().end), (0, 7));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        // Cores to spare: still no reason to crowd one worker.
        assert_eq!(deal(4, &[speed(8, 10), speed(8, 10)]), [2, 2]);
    }

    #[test]
    fn more_cores_or_more_speed_get_more_replicas() {
        assert_eq!(deal(6, &[speed(2, 10), speed(1, 10)]), [4, 2]);
        assert_eq!(deal(6, &[speed(1, 10), speed(1, 50)]), [5, 1]);
    }

    /// No deal at all is faster than ours, by exhaustion.
    #[test]
    fn the_slowest_worker_is_done_as_early_as_can_be() {
        for (a, b, c) in [(10, 10, 10), (10, 23, 7), (5, 50, 9), (31, 8, 8)] {
            let speeds = [speed(1, a), speed(2, b), speed(3, c)];
            let ours = step(&deal(9, &speeds), &speeds);
            for first in 1..=7 {
                for second in 1..=8 - first {
                    let shares = [first, second, 9 - first - second];
                    assert!(ours <= step(&shares, &speeds), "{shares:?} {speeds:?}");
                }
            }
        }
    }

    #[test]
    fn replicas_move_only_for_a_gain_that_is_worth_it() {
        let even = [4, 4];
        assert_eq!(better(8, &even, &[speed(1, 10), speed(1, 10)]), None);
        assert_eq!(better(8, &even, &[speed(1, 10), speed(1, 11)]), None);
        let slow = [speed(1, 10), speed(1, 25)];
        let dealt = better(8, &even, &slow).unwrap();
        assert_eq!(dealt, [6, 2]);
        assert_eq!(better(8, &dealt, &slow), None, "and then it stays");
    }
}
