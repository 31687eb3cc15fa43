//! PURE. Whether each sample of an epoch stands exactly once in what the ledger says of it.
//!
//! Every row claims samples: a whole span, or those at some places in the span's order. So does the
//! tail. A sweep over each shard then counts how often every sample is claimed. This room knows no
//! SQLite and no time.

use super::ledger::SpanRecord;
use crate::ids::Epoch;
use crate::plan::{Span, order};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// What the ledger says of an epoch, and what it is to be held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Books<'a> {
    /// The epoch.
    pub(super) epoch: Epoch,
    /// The job's seed, on which the order in a span depends.
    pub(super) seed: u64,
    /// Samples of each shard.
    pub(super) shards: &'a [u64],
    /// What is booked on workers.
    pub(super) rows: &'a [SpanRecord],
    /// What the epoch leaves out.
    pub(super) tail: &'a [Span],
}

/// How often the samples of an epoch stand in the ledger. The numbers add up to `samples`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Samples in the data set.
    pub(super) samples: u64,
    /// Those that stand once, as done.
    pub(super) done: u64,
    /// Those that stand once, as assigned.
    pub(super) assigned: u64,
    /// Those that stand once, in the tail.
    pub(super) tail: u64,
    /// Those that stand nowhere.
    pub(super) never: u64,
    /// Those that stand more than once.
    pub(super) twice: u64,
    /// Where samples stand nowhere, by shard.
    pub(super) holes: Vec<Hole>,
    /// What can't be, by shard.
    pub(super) faults: Vec<Fault>,
}

/// Samples of a shard that stand nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    /// The shard.
    pub(super) shard: u32,
    /// The samples.
    pub(super) samples: Range<u64>,
}

/// What can't be, whether or not the epoch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Samples that stand more than once.
    Twice {
        /// The shard.
        shard: u32,
        /// The samples.
        samples: Range<u64>,
        /// How often.
        times: u64,
    },
    /// Samples that the shard doesn't have.
    Beyond {
        /// The shard.
        shard: u32,
        /// The samples.
        samples: Range<u64>,
        /// How many it has.
        have: u64,
    },
    /// A shard that the data set doesn't have.
    UnknownShard {
        /// The shard.
        shard: u32,
        /// The samples.
        samples: Range<u64>,
    },
    /// A row that reads more of its span than there is.
    Overread {
        /// The span.
        span: Span,
        /// What is read of it.
        part: Range<u64>,
    },
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.samples;
        write!(f, "shard {} [{start}..{end}] stands nowhere", self.shard)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |shard: &u32, samples: &Range<u64>| {
            format!("shard {shard} [{}..{}]", samples.start, samples.end)
        };
        match self {
            Fault::Twice {
                shard,
                samples,
                times,
            } => write!(f, "{} stands {times} times", place(shard, samples)),
            Fault::Beyond {
                shard,
                samples,
                have,
            } => write!(
                f,
                "{} is claimed, but the shard has {have} samples",
                place(shard, samples)
            ),
            Fault::UnknownShard { shard, samples } => write!(
                f,
                "{} is claimed, but the data set has no such shard",
                place(shard, samples)
            ),
            Fault::Overread { span, part } => write!(
                f,
                "shard {} [{}..{}]: its samples number {} to {} are claimed, but it has {}",
                span.shard,
                span.start,
                span.start.saturating_add(span.len),
                part.start,
                part.end,
                span.len
            ),
        }
    }
}

impl Audit {
    /// Whether nothing stands where it can't. Holes are for whoever knows if the epoch is over.
    pub(super) fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether each sample stands exactly once, done or left out.
    pub(super) fn is_exact(&self) -> bool {
        self.is_sound() && self.done + self.tail == self.samples
    }

    /// Counts.
    pub(super) fn of(books: Books<'_>) -> Self {
        let mut audit = Audit {
            samples: (books.shards.iter()).fold(0, |sum: u64, shard| sum.saturating_add(*shard)),
            ..Audit::default()
        };
        let mut claims: BTreeMap<u32, Vec<Claim>> = BTreeMap::new();
        let mut claim = |shard: u32, samples: Range<u64>, by: Claimant| {
            claims.entry(shard).or_default().push(Claim { samples, by });
        };
        for span in books.tail {
            claim(span.shard, range(span), Claimant::Tail);
        }
        for row in books.rows {
            let by = if row.done {
                Claimant::Done
            } else {
                Claimant::Assigned
            };
            let (span, part) = (row.span, row.part.clone());
            let known = books.shards.get(span.shard as usize);
            if part == (0..span.len) {
                claim(span.shard, range(&span), by);
            } else if part.start > part.end || part.end > span.len {
                audit.faults.push(Fault::Overread { span, part });
            } else if known.is_none_or(|have| range(&span).end > *have) {
                // Which samples it would be is nothing to be worked out.
                claim(span.shard, range(&span), by);
            } else {
                for samples in parted(&books, span, part) {
                    claim(span.shard, samples, by);
                }
            }
        }
        for (shard, claims) in &claims {
            if *shard as usize >= books.shards.len() {
                let each = claims.iter().map(|claim| Fault::UnknownShard {
                    shard: *shard,
                    samples: claim.samples.clone(),
                });
                audit.faults.extend(each);
            }
        }
        for (shard, have) in (0..).zip(books.shards) {
            let claims = claims.remove(&shard).unwrap_or_default();
            audit.sweep(shard, *have, claims);
        }
        audit
    }

    /// Counts one shard.
    fn sweep(&mut self, shard: u32, have: u64, claims: Vec<Claim>) {
        // Where a claim begins and where it ends, in the order of the shard.
        let mut edges = Vec::with_capacity(2 * claims.len());
        for claim in claims {
            let Claim { samples, by } = claim;
            if samples.end > have {
                let samples = samples.start.max(have)..samples.end;
                self.faults.push(Fault::Beyond {
                    shard,
                    samples,
                    have,
                });
            }
            let (start, end) = (samples.start.min(have), samples.end.min(have));
            if start < end {
                edges.extend([(start, by, true), (end, by, false)]);
            }
        }
        // The shard's own end, where nothing begins.
        edges.push((have, Claimant::Tail, true));
        edges.sort_unstable();
        let mut open = [0u64; 3];
        let mut at = 0;
        for (edge, by, begins) in edges {
            if edge > at {
                self.count(shard, at..edge, open);
                at = edge;
            }
            let open = &mut open[by as usize];
            // All that ends has begun before, or ends where it begins.
            *open = if begins {
                *open + 1
            } else {
                open.wrapping_sub(1)
            };
        }
    }

    /// Counts samples that are claimed by so many.
    fn count(&mut self, shard: u32, samples: Range<u64>, by: [u64; 3]) {
        let len = samples.end - samples.start;
        match by {
            [1, 0, 0] => self.done += len,
            [0, 1, 0] => self.assigned += len,
            [0, 0, 1] => self.tail += len,
            [0, 0, 0] => {
                self.never += len;
                match self.holes.last_mut() {
                    Some(last) if last.shard == shard && last.samples.end == samples.start => {
                        last.samples.end = samples.end;
                    }
                    _ => self.holes.push(Hole { shard, samples }),
                }
            }
            _ => {
                self.twice += len;
                let times = by.iter().sum();
                match self.faults.last_mut() {
                    Some(Fault::Twice {
                        shard: last,
                        samples: before,
                        times: often,
                    }) if *last == shard && before.end == samples.start && *often == times => {
                        before.end = samples.end;
                    }
                    _ => self.faults.push(Fault::Twice {
                        shard,
                        samples,
                        times,
                    }),
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claimant {
    Done,
    Assigned,
    Tail,
}

struct Claim {
    samples: Range<u64>,
    by: Claimant,
}

fn range(span: &Span) -> Range<u64> {
    span.start..span.start.saturating_add(span.len)
}

/// The samples that stand at the places `part` of a span's order, as runs.
fn parted(books: &Books<'_>, span: Span, part: Range<u64>) -> Vec<Range<u64>> {
    let order = order(books.seed, books.epoch, span);
    let mut samples = order[part.start as usize..part.end as usize].to_vec();
    samples.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for sample in samples {
        match runs.last_mut() {
            Some(last) if last.end == sample => last.end += 1,
            _ => runs.push(sample..sample + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, WorkerId};
    use crate::plan::Plan;
    use proptest::prelude::*;

    const SEED: u64 = 5;

    fn span(shard: u32, start: u64, len: u64) -> Span {
        Span { shard, start, len }
    }

    fn part(span: Span, part: Range<u64>, done: bool) -> SpanRecord {
        SpanRecord {
            replica: 0,
            span,
            part,
            generation: Generation(1),
            worker: WorkerId(1),
            done,
        }
    }

    fn done(shard: u32, start: u64, len: u64) -> SpanRecord {
        part(span(shard, start, len), 0..len, true)
    }

    fn audit(shards: &[u64], rows: &[SpanRecord], tail: &[Span]) -> Audit {
        let audit = Audit::of(Books {
            epoch: Epoch(3),
            seed: SEED,
            shards,
            rows,
            tail,
        });
        let sum = audit.done + audit.assigned + audit.tail + audit.never + audit.twice;
        assert_eq!(sum, audit.samples);
        audit
    }

    fn told(audit: &Audit) -> Vec<String> {
        let holes = audit.holes.iter().map(ToString::to_string);
        holes
            .chain(audit.faults.iter().map(ToString::to_string))
            .collect()
    }

    #[test]
    fn each_sample_once_is_exact() {
        let rows = [done(1, 0, 5), done(0, 3, 7), done(0, 0, 2)];
        let found = audit(&[10, 5, 0], &rows, &[span(0, 2, 1)]);
        assert!(found.is_exact() && told(&found).is_empty(), "{found:?}");
        assert_eq!((found.samples, found.done, found.tail), (15, 14, 1));
    }

    #[test]
    fn what_is_assigned_is_not_yet_exact_but_sound() {
        let rows = [done(0, 0, 5), part(span(0, 5, 5), 0..5, false)];
        let found = audit(&[10], &rows, &[]);
        assert_eq!((found.done, found.assigned, found.never), (5, 5, 0));
        assert!(found.is_sound() && !found.is_exact());
    }

    #[test]
    fn a_hole_is_found_with_its_shard_and_range() {
        let found = audit(&[10, 4], &[done(0, 0, 3), done(0, 5, 5)], &[]);
        assert_eq!(
            told(&found),
            [
                "shard 0 [3..5] stands nowhere",
                "shard 1 [0..4] stands nowhere"
            ]
        );
        assert_eq!((found.never, found.is_exact()), (6, false));
    }

    #[test]
    fn an_overlap_is_found_with_its_shard_and_range() {
        let rows = [
            done(0, 0, 6),
            done(0, 4, 6),
            part(span(0, 5, 5), 0..5, false),
        ];
        let found = audit(&[10], &rows, &[]);
        assert_eq!(
            told(&found),
            [
                "shard 0 [4..5] stands 2 times",
                "shard 0 [5..6] stands 3 times",
                "shard 0 [6..10] stands 2 times"
            ]
        );
        assert_eq!((found.done, found.twice), (4, 6));
        assert!(!found.is_sound());
    }

    #[test]
    fn a_tail_that_was_used_is_an_overlap() {
        let found = audit(&[10], &[done(0, 0, 10)], &[span(0, 8, 2)]);
        assert_eq!(told(&found), ["shard 0 [8..10] stands 2 times"]);
    }

    #[test]
    fn what_the_data_set_does_not_have_is_a_fault() {
        let rows = [
            done(0, 0, 12),
            done(7, 1, 2),
            part(span(0, 0, 2), 1..3, true),
            part(span(8, 0, u64::MAX), 1..3, true),
        ];
        let found = audit(&[10], &rows, &[span(0, u64::MAX, u64::MAX)]);
        assert!(!found.is_exact());
        let told = told(&found);
        for fault in [
            "shard 0 [10..12] is claimed, but the shard has 10 samples",
            "shard 7 [1..3] is claimed, but the data set has no such shard",
            "shard 0 [0..2]: its samples number 1 to 3 are claimed, but it has 2",
        ] {
            assert!(told.iter().any(|told| told == fault), "{fault} in {told:?}");
        }
    }

    #[test]
    fn the_parts_of_a_span_are_its_samples_in_their_order() {
        let whole = span(0, 2, 8);
        let both = [part(whole, 0..3, true), part(whole, 3..8, true)];
        let found = audit(&[10], &both, &[span(0, 0, 2)]);
        assert!(found.is_exact(), "{found:?}");
        let first = audit(&[10], &both[..1], &[span(0, 0, 2)]);
        let mut missing: Vec<u64> = order(SEED, Epoch(3), whole)[3..].to_vec();
        missing.sort_unstable();
        let holes = first.holes.iter().flat_map(|hole| hole.samples.clone());
        assert_eq!(holes.collect::<Vec<_>>(), missing);
        // The same place in the order, claimed by two.
        let third = [part(whole, 0..4, true), part(whole, 3..8, true)];
        let found = audit(&[10], &third, &[span(0, 0, 2)]);
        let twice = order(SEED, Epoch(3), whole)[3];
        assert_eq!(
            told(&found),
            [format!("shard 0 [{twice}..{}] stands 2 times", twice + 1)]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a count of every single sample.
        #[test]
        fn the_count_is_that_of_the_samples(
            shards in prop::collection::vec(0u64..20, 1..4),
            rows in prop::collection::vec((0u32..4, 0u64..20, 1u64..9, 0u64..9, 0u64..9, any::<bool>()), 0..9),
            tail in prop::collection::vec((0u32..4, 0u64..20, 0u64..5), 0..3),
        ) {
            let rows: Vec<SpanRecord> = rows.into_iter().map(|(shard, start, len, a, b, done)| {
                let (from, until) = (a.min(b).min(len), a.max(b).min(len));
                part(span(shard, start, len), from..until, done)
            }).filter(|row| {
                // What goes beyond the data has a test of its own.
                let have = shards.get(row.span.shard as usize);
                have.is_some_and(|have| row.span.start + row.span.len <= *have)
            }).collect();
            let tail: Vec<Span> = tail.into_iter().map(|(shard, start, len)| span(shard, start, len))
                .filter(|span| shards.get(span.shard as usize)
                    .is_some_and(|have| span.start + span.len <= *have))
                .collect();
            let found = audit(&shards, &rows, &tail);
            let mut expected = Audit { samples: shards.iter().sum(), ..Audit::default() };
            for (shard, have) in (0u32..).zip(&shards) {
                for sample in 0..*have {
                    let mut by = [0; 3];
                    for row in rows.iter().filter(|row| row.span.shard == shard) {
                        let order = order(SEED, Epoch(3), row.span);
                        let read = &order[row.part.start as usize..row.part.end as usize];
                        by[usize::from(!row.done)] += u64::from(read.contains(&sample));
                    }
                    by[2] += tail.iter().filter(|span| {
                        span.shard == shard && range(span).contains(&sample)
                    }).count() as u64;
                    expected.count(shard, sample..sample + 1, by);
                }
            }
            prop_assert_eq!(found, expected);
        }

        /// Invariant 2: what a plan deals is exact once it is done.
        #[test]
        fn a_plan_that_is_done_is_exact(
            shards in prop::collection::vec(0u64..40, 1..9), epoch in 0u64..9, cut in 0u64..9,
        ) {
            let Ok(plan) = Plan::new(&shards, SEED, 3, 2) else { return Ok(()) };
            let planned = plan.epoch(Epoch(epoch));
            let spans = planned.replicas.iter().flatten();
            let rows: Vec<SpanRecord> = spans.flat_map(|span| {
                let cut = cut.min(span.len);
                [part(*span, 0..cut, true), part(*span, cut..span.len, true)]
            }).collect();
            let audit = Audit::of(Books {
                epoch: Epoch(epoch), seed: SEED, shards: &shards, rows: &rows, tail: &planned.tail,
            });
            prop_assert!(audit.is_exact(), "{:?}", audit);
        }
    }
}
