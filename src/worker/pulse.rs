//! What the training thread shows of itself, for a sign of life at any time.

use crate::ids::{Generation, Step};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// t of the State(t) that the thread holds.
    step: AtomicU64,
    lately: Mutex<Lately>,
}

/// The steps since the last sign of life.
#[derive(Debug, Default)]
struct Lately {
    generation: Generation,
    hosted: u32,
    compute: Duration,
    steps: u32,
}

/// How fast the worker was lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    /// What a step's computation took, on average; zero if there was none.
    pub(super) compute: Duration,
    /// Replicas that it hosted then.
    pub(super) hosted: u32,
}

impl Pulse {
    pub(super) fn step(&self) -> Step {
        Step(self.step.load(Ordering::Acquire))
    }

    /// The thread holds this state.
    pub(super) fn holds(&self, step: Step) {
        self.step.store(step.0, Ordering::Release);
    }

    /// A generation begins, in which it hosts so many replicas.
    pub(super) fn begin(&self, generation: Generation, hosted: u32) {
        *self.lately() = Lately {
            generation,
            hosted,
            ..Lately::default()
        };
    }

    /// It has computed a step.
    pub(super) fn computed(&self, step: Step, compute: Duration) {
        self.holds(step);
        let mut lately = self.lately();
        lately.compute += compute;
        lately.steps += 1;
    }

    /// How fast it was in `generation` since this was last asked.
    pub(super) fn take(&self, generation: Generation) -> Pace {
        let mut lately = self.lately();
        if lately.generation != generation {
            return Pace::default();
        }
        let steps = std::mem::take(&mut lately.steps);
        let compute = std::mem::take(&mut lately.compute);
        Pace {
            compute: compute.checked_div(steps).unwrap_or_default(),
            hosted: lately.hosted,
        }
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_the_mean_since_the_last_one_in_this_generation_alone() {
        let pulse = Pulse::default();
        pulse.begin(Generation(1), 3);
        pulse.computed(Step(1), Duration::from_millis(10));
        pulse.computed(Step(2), Duration::from_millis(30));
        assert_eq!(pulse.step(), Step(2));
        let pace = pulse.take(Generation(1));
        assert_eq!((pace.compute, pace.hosted), (Duration::from_millis(20), 3));
        assert_eq!(pulse.take(Generation(1)).compute, Duration::ZERO);

        pulse.computed(Step(3), Duration::from_secs(1));
        pulse.begin(Generation(2), 1);
        pulse.computed(Step(4), Duration::from_millis(5));
        assert_eq!(pulse.take(Generation(1)), Pace::default());
        assert_eq!(pulse.take(Generation(2)).compute, Duration::from_millis(5));
    }
}
