//! Places where a test can have a process die, as if it were killed right there; and where it can have
//! a replica compute what is not finite.
//!
//! `GAN_DIE_AT=before-reduction:3` ends the process at the third passage of the point
//! `before-reduction`: no destructor runs, no buffer is flushed, and the kernel closes its
//! sockets, as with `kill -9`. `GAN_NAN_AT=20..23:2` puts a NaN in replica 2's gradients in the steps
//! from State(20), (21) and (22), whoever hosts it and however often they are done. Only builds with
//! debug assertions have these points.

/// A point that a process may die at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "a worker's points need a worker")
)]
pub(crate) enum Point {
    /// The step's batches are there; nothing is sent.
    BeforeReduction,
    /// Some of the vector is sent, not all.
    InReduction,
    /// The new state is there; nobody was told.
    AfterReduction,
    /// Some of a checkpoint's files are on the disk.
    CheckpointWrite,
    /// A peer has some of the state that this worker sends it.
    HealSource,
    /// Some of the state has arrived.
    HealTarget,
    /// The ledger is about to be written.
    LedgerWrite,
    /// The ledger was written; what follows from that was not said.
    LedgerWritten,
}

#[cfg(debug_assertions)]
mod armed {
    use super::Point;
    #[cfg(feature = "torch")]
    use crate::ids::Step;
    #[cfg(feature = "torch")]
    use std::ops::Range;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The point and the passage that end this process.
    static FATE: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSAGES: AtomicU64 = AtomicU64::new(0);

    fn name(point: Point) -> &'static str {
        match point {
            Point::BeforeReduction => "before-reduction",
            Point::InReduction => "in-reduction",
            Point::AfterReduction => "after-reduction",
            Point::CheckpointWrite => "checkpoint-write",
            Point::HealSource => "heal-source",
            Point::HealTarget => "heal-target",
            Point::LedgerWrite => "ledger-write",
            Point::LedgerWritten => "ledger-written",
        }
    }

    /// Steps and the replica whose gradients are poisoned.
    #[cfg(feature = "torch")]
    static POISON: OnceLock<Option<(Range<u64>, u32)>> = OnceLock::new();

    #[cfg(feature = "torch")]
    pub(super) fn poison(step: Step, first: u32, hosted: &mut [&mut [f32]]) {
        let poison = POISON.get_or_init(|| {
            let text = std::env::var("GAN_NAN_AT").ok()?;
            let (steps, replica) = text.split_once(':')?;
            let (from, to) = steps.split_once("..")?;
            Some((from.parse().ok()?..to.parse().ok()?, replica.parse().ok()?))
        });
        if let Some((steps, replica)) = poison
            && steps.contains(&step.0)
            && let Some(place) = replica.checked_sub(first)
            && let Some(vector) = hosted.get_mut(place as usize)
        {
            vector[0] = f32::NAN;
        }
    }

    pub(super) fn pass(point: Point) {
        let fate = FATE.get_or_init(|| {
            let text = std::env::var("GAN_DIE_AT").ok()?;
            let (name, passage) = text.split_once(':')?;
            Some((name.to_owned(), passage.parse().ok()?))
        });
        if let Some((chosen, passage)) = fate
            && chosen == name(point)
            && PASSAGES.fetch_add(1, Ordering::Relaxed) + 1 == *passage
        {
            std::process::abort();
        }
    }
}

/// Passes a point, if it is let to.
#[inline]
pub(crate) fn pass(point: Point) {
    #[cfg(debug_assertions)]
    armed::pass(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// Poisons the vector of a replica, hosted from `first` on, in the step from State(`step`), if it is
/// to be.
#[cfg(feature = "torch")]
#[inline]
pub(crate) fn poison(step: crate::ids::Step, first: u32, hosted: &mut [&mut [f32]]) {
    #[cfg(debug_assertions)]
    armed::poison(step, first, hosted);
    #[cfg(not(debug_assertions))]
    let _ = (step, first, hosted);
}
