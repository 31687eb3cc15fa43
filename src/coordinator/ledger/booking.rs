//! PURE. On whom the samples that a replica reads in an epoch are booked, as a list of rows.
//!
//! A replica reads its spans in the plan's order, and each span in an order of its own
//! ([`crate::plan::order`]), a batch of samples a step. So "how many samples it has read" says
//! which: all that follows is arithmetic on that count.

use crate::ids::{Epoch, Generation, Step, WorkerId};
use crate::plan::Span;
use serde::{Deserialize, Serialize};

/// How fast a job reads. It never changes: its state depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pace {
    /// Steps of a pass over the data.
    pub(super) steps_per_epoch: u64,
    /// Samples of a replica and step.
    pub(super) batch: u32,
}

impl Pace {
    /// Samples that `State(step)` has used of each replica's in an epoch.
    pub(super) fn used(self, epoch: Epoch, step: Step) -> u64 {
        let before = epoch.0.saturating_mul(self.steps_per_epoch);
        let steps = step.0.saturating_sub(before).min(self.steps_per_epoch);
        steps * u64::from(self.batch)
    }

    /// The epoch that the step from `State(step)` belongs to.
    pub(super) fn epoch(self, step: Step) -> Epoch {
        Epoch(step.0 / self.steps_per_epoch.max(1))
    }
}

/// Who reads something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Booking {
    pub(super) generation: Generation,
    pub(super) worker: WorkerId,
}

/// A span, or a part of one, and on whom it is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Samples that the replica reads before, in this epoch.
    pub(super) first: u64,
    /// Samples that it reads here.
    pub(super) len: u64,
    /// The span that they belong to.
    pub(super) span: Span,
    /// Samples of the span that stand before them in its order.
    pub(super) skip: u64,
    pub(super) booking: Booking,
}

impl Row {
    /// Samples that the replica has read when it has read these.
    fn end(&self) -> u64 {
        self.first + self.len
    }
}

/// The rows of a replica that reads `spans`: the first `used` samples as `old` has them, as far as
/// it has them, and all others booked on `new`. A span's neighbouring parts that are booked on the
/// same worker are one row, so the answer doesn't depend on how it was come by.
pub(super) fn rebook(old: &[Row], spans: &[Span], used: u64, new: Booking) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::with_capacity(spans.len() + 1);
    let mut old = old.iter().peekable();
    let mut start = 0;
    for span in spans {
        let end = start + span.len;
        let mut at = start;
        while at < end {
            while old.next_if(|row| row.end() <= at).is_some() {}
            let (booking, until) = match old.peek() {
                _ if at >= used => (new, end),
                Some(row) if row.first <= at => (row.booking, row.end().min(used)),
                Some(row) => (new, row.first.min(used)),
                None => (new, used),
            };
            let until = until.min(end);
            match rows.last_mut() {
                Some(last) if last.booking == booking && at > start => last.len += until - at,
                _ => rows.push(Row {
                    first: at,
                    len: until - at,
                    span: *span,
                    skip: at - start,
                    booking,
                }),
            }
            at = until;
        }
        start = end;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPANS: [Span; 2] = [
        Span {
            shard: 4,
            start: 10,
            len: 6,
        },
        Span {
            shard: 2,
            start: 0,
            len: 4,
        },
    ];

    fn on(generation: u64) -> Booking {
        Booking {
            generation: Generation(generation),
            worker: WorkerId(10 * generation),
        }
    }

    /// (first, len, shard, skip, generation)
    fn seen(rows: &[Row]) -> Vec<(u64, u64, u32, u64, u64)> {
        let each = rows.iter().map(|row| {
            assert_eq!(row.booking.worker.0, 10 * row.booking.generation.0);
            let generation = row.booking.generation.0;
            (row.first, row.len, row.span.shard, row.skip, generation)
        });
        each.collect()
    }

    #[test]
    fn a_span_that_two_generations_share_is_two_rows() {
        let first = rebook(&[], &SPANS, 0, on(1));
        assert_eq!(seen(&first), [(0, 6, 4, 0, 1), (6, 4, 2, 0, 1)]);
        let second = rebook(&first, &SPANS, 4, on(2));
        assert_eq!(
            seen(&second),
            [(0, 4, 4, 0, 1), (4, 2, 4, 4, 2), (6, 4, 2, 0, 2)]
        );
        assert_eq!(rebook(&second, &SPANS, 4, on(2)), second);
        // Back in time: what generation 2 had is taken from it again.
        let third = rebook(&second, &SPANS, 5, on(3));
        assert_eq!(
            seen(&third),
            [
                (0, 4, 4, 0, 1),
                (4, 1, 4, 4, 2),
                (5, 1, 4, 5, 3),
                (6, 4, 2, 0, 3)
            ]
        );
    }

    #[test]
    fn what_nobody_is_known_to_have_read_is_booked_on_who_goes_on() {
        let holes = [
            Row {
                len: 2,
                ..rebook(&[], &SPANS, 0, on(1))[0]
            },
            Row {
                first: 7,
                len: 1,
                skip: 1,
                ..rebook(&[], &SPANS, 0, on(1))[1]
            },
        ];
        assert_eq!(
            seen(&rebook(&holes, &SPANS, 9, on(5))),
            [
                (0, 2, 4, 0, 1),
                (2, 4, 4, 2, 5),
                (6, 1, 2, 0, 5),
                (7, 1, 2, 1, 1),
                (8, 2, 2, 2, 5)
            ]
        );
    }

    #[test]
    fn a_state_has_used_a_batch_a_step_within_its_epoch() {
        let pace = Pace {
            steps_per_epoch: 5,
            batch: 3,
        };
        let used = |epoch, step| pace.used(Epoch(epoch), Step(step));
        assert_eq!(
            [used(1, 0), used(1, 5), used(1, 7), used(1, 10), used(1, 99)],
            [0, 0, 6, 15, 15]
        );
        assert_eq!(used(u64::MAX, u64::MAX), 0);
    }
}
