//! PURE. Who has the newest state.
//!
//! The workers of a new generation tell each other what they hold, and each of them comes to the
//! same answer. It needs no vote and no record: `State(t + 1)` follows from `State(t)` alone, so the
//! most advanced one is right, and who is behind copies it.

use crate::ids::{Rank, Step};

/// Where a generation's state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Newest {
    /// These ranks hold it, in order; the others copy it.
    Held(Step, Vec<Rank>),
    /// Nobody holds what the newest checkpoint does: rank 0 reads it, the others copy it.
    Saved(Step),
}

impl Newest {
    /// The step of the state.
    pub fn step(&self) -> Step {
        match self {
            Newest::Held(step, _) | Newest::Saved(step) => *step,
        }
    }

    /// Who holds it once rank 0 has read what is to be read.
    pub fn holders(&self) -> Vec<Rank> {
        match self {
            Newest::Held(_, holders) => holders.clone(),
            Newest::Saved(_) => vec![Rank(0)],
        }
    }
}

/// The newest of what the ranks hold and of what is saved. Everybody holds something: at least
/// `State(0)`, which follows from the job alone.
pub fn newest(held: &[Step], saved: Option<Step>) -> Newest {
    let most = held.iter().copied().max().unwrap_or_default();
    choose(held, saved, most)
}

/// The mistake of taking whoever comes first, for the simulation to find.
#[cfg(test)]
pub(crate) fn oldest(held: &[Step], saved: Option<Step>) -> Newest {
    let least = held.iter().copied().min().unwrap_or_default();
    choose(held, saved, least)
}

fn choose(held: &[Step], saved: Option<Step>, step: Step) -> Newest {
    match saved {
        Some(saved) if saved > step => Newest::Saved(saved),
        _ => {
            let ranks = (0..).map(Rank).zip(held);
            let holders = ranks.filter(|(_, held)| **held == step);
            Newest::Held(step, holders.map(|(rank, _)| rank).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 4.
    #[test]
    fn the_most_advanced_survivor_is_the_source_of_truth() {
        let held = [Step(7), Step(8), Step(0), Step(8)];
        let truth = newest(&held, Some(Step(4)));
        assert_eq!(truth, Newest::Held(Step(8), vec![Rank(1), Rank(3)]));
        assert_eq!((truth.step(), truth.holders().len()), (Step(8), 2));
    }

    #[test]
    fn a_checkpoint_counts_when_nobody_holds_as_much() {
        let fresh = [Step(0), Step(0)];
        assert_eq!(newest(&fresh, Some(Step(4))), Newest::Saved(Step(4)));
        assert_eq!(newest(&fresh, Some(Step(4))).holders(), [Rank(0)]);
        let all = vec![Rank(0), Rank(1)];
        assert_eq!(newest(&fresh, None), Newest::Held(Step(0), all.clone()));
        let equal = newest(&[Step(4), Step(4)], Some(Step(4)));
        assert_eq!(
            equal,
            Newest::Held(Step(4), all),
            "memory is faster than the disk"
        );
    }
}
