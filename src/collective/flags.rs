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
}

impl Flags {
    /// How many scalars the flags take.
    pub const LEN: usize = 3;

    /// The scalars that a replica contributes.
    pub fn encode(self) -> [f32; Self::LEN] {
        [self.pause, self.leaving, self.stop].map(|raised| if raised { 1.0 } else { 0.0 })
    }

    /// What the mean over all replicas says: a flag is up if any replica raised it.
    pub fn decode(mean: [f32; Self::LEN]) -> Self {
        let [pause, leaving, stop] = mean.map(|share| share > 0.0);
        Self {
            pause,
            leaving,
            stop,
        }
    }

    /// Whether any order is given.
    pub fn any(self) -> bool {
        self.pause || self.leaving || self.stop
    }
}
