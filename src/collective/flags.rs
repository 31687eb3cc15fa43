//! PURE. In-band control: orders that travel with the gradients.
//!
//! The last scalars of a reduced vector are flags. A worker that learns of a membership change, a
//! SIGTERM or a stop raises its own; after the reduction every worker sees every flag at the same
//! step, and all act at the same place, without a message and without a race.

/// A set of orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A new generation is coming: pause after this step.
    pub pause: bool,
    /// This worker (before the reduction) or some worker (after it) is leaving.
    pub leaving: bool,
    /// The job is to end after this step, with a checkpoint.
    pub stop: bool,
    /// After the reduction: every worker is leaving, and nobody stays who would hold the state.
    /// Nobody raises this by itself.
    pub everybody_leaves: bool,
}

impl Flags {
    /// How many scalars the flags take.
    pub const LEN: usize = 3;

    /// The scalars that a replica contributes.
    pub fn encode(self) -> [f32; Self::LEN] {
        [self.pause, self.leaving, self.stop].map(|raised| if raised { 1.0 } else { 0.0 })
    }

    /// What the mean over all replicas says: a flag is up if any replica raised it. A sum of ones
    /// and its mean are exact for any number of replicas that there can be, so a share of one is
    /// everybody's.
    pub fn decode(mean: [f32; Self::LEN]) -> Self {
        let [pause, leaving, stop] = mean.map(|share| share > 0.0);
        let [_, share, _] = mean;
        Self {
            pause,
            leaving,
            stop,
            everybody_leaves: share >= 1.0,
        }
    }

    /// Whether any order is given.
    pub fn any(self) -> bool {
        self.pause || self.leaving || self.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What all see when the replicas raise these.
    fn seen(raised: &[Flags]) -> Flags {
        let mut sum = [0.0; Flags::LEN];
        for flags in raised {
            for (sum, flag) in sum.iter_mut().zip(flags.encode()) {
                *sum += flag;
            }
        }
        Flags::decode(sum.map(|sum| sum / raised.len() as f32))
    }

    #[test]
    fn a_flag_is_up_if_one_replica_raised_it() {
        let mut raised = vec![Flags::default(); 1000];
        assert!(!seen(&raised).any());
        raised[999].leaving = true;
        raised[3].pause = true;
        let all = seen(&raised);
        assert!(all.pause && all.leaving && !all.stop);
    }

    #[test]
    fn everybody_leaves_only_if_nobody_stays() {
        let leaving = Flags {
            leaving: true,
            ..Flags::default()
        };
        for replicas in [1, 3, 7, 999, 65_537] {
            let mut raised = vec![leaving; replicas];
            assert!(seen(&raised).everybody_leaves, "{replicas}");
            raised[replicas / 2].leaving = false;
            assert!(!seen(&raised).everybody_leaves, "{replicas}");
        }
    }
}
