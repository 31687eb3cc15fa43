//! The exact all-reduce in host memory, over any [`Links`].
//!
//! The vector is cut into one slice a rank. Every worker adds up its largest subtrees and sends
//! those of slice *s* to rank *s*; rank *s* finishes the tree over its slice and sends the mean to
//! everybody. What is added to what is [`tree`]'s business; this is how it is done without waiting
//! and without memory traffic that could be saved:
//!
//! - Slices travel in chunks of [`CHUNK`] elements, which are summed, sent, received and finished
//!   while they are in the cache.
//! - At tick *t* a rank sends the sums of chunk *t* of every slice, finishes chunk
//!   *t* − [`LOOKAHEAD`] of its own, and receives the mean of chunk *t* − 2·[`LOOKAHEAD`] of every
//!   other. So what it needs was sent some ticks ago, while links and peers had other work.
//! - No two ranks wait for each other: a rank never waits for what a peer sends at a later tick
//!   than its own, so the rank that is furthest behind can always go on.
//!
//! This room knows nothing of sockets and threads. `copying` has what is done with vectors that are
//! not added up, `announcing` what ranks say of those that lie on devices.

#[cfg(feature = "torch")]
mod announcing;
mod copying;

#[cfg(feature = "torch")]
pub(super) use announcing::Announcement;

use super::error::{CollectiveError, Operation, VectorFault};
use super::tree::{self, Add};
use super::wire::{Kind, Label};
use crate::faults::{self, Point};
use crate::ids::{Generation, Rank};
use std::ops::Range;

/// Elements that travel in one frame: 64 KiB, so that the dozen of buffers that a chunk passes
/// through fit in a core's L2 cache.
pub(super) const CHUNK: usize = 16 * 1024;

/// Elements that go through the additions of a subtree together: 16 KiB, in the L1 cache.
const BLOCK: usize = 4 * 1024;

/// Ticks from sending sums to needing those of the peers.
const LOOKAHEAD: usize = 4;

/// What connects the ranks of one group: numbers arrive as they were sent, in order, or there is an
/// error.
pub(super) trait Links: Send {
    /// The deadline of everything until the next `begin` starts to run. An error if the group was
    /// aborted.
    fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError>;
    /// Sends to one peer. Does not wait for it to receive.
    fn send(&mut self, to: Rank, label: Label, values: &[f32]) -> Result<(), CollectiveError>;
    /// Sends the same to every peer.
    fn send_all(&mut self, label: Label, values: &[f32]) -> Result<(), CollectiveError>;
    /// Receives what a peer sent next, which must be `label` and as long as `into`.
    fn receive(
        &mut self,
        from: Rank,
        label: Label,
        into: &mut [f32],
    ) -> Result<(), CollectiveError>;
    /// Cuts every peer off at once, so that it doesn't wait for what will not come.
    fn cut(&mut self);
}

/// How many frames may be under way to one peer, for a worker of so many subtrees: what a rank
/// sends before it needs an answer.
pub(super) const fn frames_under_way(subtrees: usize) -> usize {
    (subtrees + 1) * (3 * LOOKAHEAD + 4)
}

/// The all-reduce of one rank.
pub(super) struct Exact<L> {
    links: L,
    generation: Generation,
    rank: Rank,
    world_size: u32,
    replicas: u32,
    hosted: Range<u32>,
    /// Every subtree, with its rank, in the order of the replicas.
    parts: Vec<(Rank, Range<u32>)>,
    /// This rank's subtrees, and how each is added up.
    own: Vec<(Range<u32>, Vec<Add>)>,
    /// How the tree is finished, in indices of `parts`.
    finish: Vec<(usize, usize)>,
    /// A chunk for each part but the first, whose place is the mean itself.
    slots: Vec<Vec<f32>>,
    /// A chunk on its way out.
    outgoing: Vec<f32>,
    /// Collectives begun.
    sequence: u64,
    /// Bytes of numbers that peers were sent.
    sent: u64,
    broken: Option<String>,
}

impl<L: Links> Exact<L> {
    /// The ranges are those of all ranks, and partition the replicas in order.
    pub(super) fn new(links: L, generation: Generation, rank: Rank, ranges: &[Range<u32>]) -> Self {
        let replicas = ranges.last().map_or(0, |range| range.end);
        let mut parts = Vec::new();
        for (owner, range) in ranges.iter().enumerate() {
            for part in tree::subtrees(replicas, range.clone()) {
                parts.push((Rank(owner as u32), part));
            }
        }
        let leaves: Vec<_> = parts.iter().map(|(_, part)| part.clone()).collect();
        let place = |first: u32| leaves.partition_point(|part| part.start < first);
        let finish = tree::adds(0..replicas, &leaves)
            .iter()
            .map(|add| (place(add.into), place(add.from)))
            .collect();
        let own = parts
            .iter()
            .filter(|(owner, _)| *owner == rank)
            .map(|(_, part)| (part.clone(), tree::adds_of_replicas(part.clone())))
            .collect();
        Self {
            links,
            generation,
            rank,
            world_size: ranges.len() as u32,
            replicas,
            hosted: ranges[rank.0 as usize].clone(),
            slots: vec![Vec::new(); parts.len() - 1],
            parts,
            own,
            finish,
            outgoing: Vec::new(),
            sequence: 0,
            sent: 0,
            broken: None,
        }
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    pub(super) fn world_size(&self) -> u32 {
        self.world_size
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent
    }

    pub(super) fn links(&self) -> &L {
        &self.links
    }

    pub(super) fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.check(hosted, mean)
            .map_err(|fault| CollectiveError::Vectors {
                rank: self.rank,
                fault,
            })?;
        self.run(Operation::Reduce, |exact| exact.reduce(hosted, mean))
    }

    pub(super) fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(Operation::Barrier, |exact| {
            let label = exact.label(Kind::Barrier, 0, 0, 0);
            if exact.world_size > 1 {
                exact.links.send_all(label, &[])?;
            }
            for peer in exact.peers() {
                exact.links.receive(peer, label, &mut [])?;
            }
            Ok(())
        })
    }

    fn check(&self, hosted: &[&mut [f32]], mean: &[f32]) -> Result<(), VectorFault> {
        if hosted.len() != self.hosted.len() {
            return Err(VectorFault::Count {
                hosted: self.hosted.len(),
                given: hosted.len(),
            });
        }
        match hosted.iter().position(|vector| vector.len() != mean.len()) {
            Some(index) => Err(VectorFault::Length {
                index,
                found: hosted[index].len(),
                expected: mean.len(),
            }),
            None => Ok(()),
        }
    }

    /// Runs one collective. The first failure is the last thing that happens.
    fn run<T>(
        &mut self,
        operation: Operation,
        collective: impl FnOnce(&mut Self) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.attempt(operation, |exact| {
            exact.sequence += 1;
            collective(exact)
        })
    }

    /// Runs a part of one.
    fn attempt<T>(
        &mut self,
        operation: Operation,
        part: impl FnOnce(&mut Self) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if let Some(cause) = &self.broken {
            return Err(CollectiveError::Broken {
                generation: self.generation,
                cause: cause.clone(),
            });
        }
        let outcome = match self.links.begin(operation) {
            Ok(()) => part(self),
            Err(error) => Err(error),
        };
        if let Err(error) = &outcome {
            self.broken = Some(error.to_string());
            self.links.cut();
        }
        outcome
    }

    fn reduce(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let ticks = tree::slice(mean.len(), self.world_size, 0)
            .len()
            .div_ceil(CHUNK);
        let lag = if self.world_size > 1 { LOOKAHEAD } else { 0 };
        for tick in 0..ticks + 2 * lag {
            self.send_sums(tick, hosted, mean.len())?;
            if tick == 0 && self.world_size > 1 {
                faults::pass(Point::InReduction);
            }
            if tick >= lag {
                self.finish_own(tick - lag, hosted, mean)?;
            }
            if tick >= 2 * lag {
                self.receive_means(tick - 2 * lag, mean)?;
            }
        }
        Ok(())
    }

    /// Sends this rank's subtree sums of chunk `index` of every other slice to who finishes it.
    fn send_sums(
        &mut self,
        index: usize,
        hosted: &mut [&mut [f32]],
        length: usize,
    ) -> Result<(), CollectiveError> {
        for peer in self.peers() {
            let Some(chunk) = self.chunk(length, peer, index) else {
                continue;
            };
            for (part, adds) in &self.own {
                let label = self.label(Kind::Sum, index, part.start, length);
                let first = self.hosted.start;
                let sum = if adds.is_empty() {
                    &hosted[(part.start - first) as usize][chunk.clone()]
                } else {
                    self.outgoing.resize(chunk.len(), 0.0);
                    add_up(hosted, first, part, adds, chunk.clone(), &mut self.outgoing);
                    &self.outgoing[..]
                };
                self.links.send(peer, label, sum)?;
                self.sent += 4 * sum.len() as u64;
            }
        }
        Ok(())
    }

    /// Finishes chunk `index` of this rank's slice and sends its mean to everybody.
    fn finish_own(
        &mut self,
        index: usize,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let length = mean.len();
        let Some(chunk) = self.chunk(length, self.rank, index) else {
            return Ok(());
        };
        let mean = &mut mean[chunk.clone()];
        let label = self.label(Kind::Sum, index, 0, length);
        let mut own = self.own.iter();
        for (place, (owner, part)) in self.parts.iter().enumerate() {
            let into = match place.checked_sub(1) {
                None => &mut *mean,
                Some(slot) => {
                    self.slots[slot].resize(chunk.len(), 0.0);
                    &mut self.slots[slot][..]
                }
            };
            if *owner == self.rank {
                if let Some((part, adds)) = own.next() {
                    add_up(hosted, self.hosted.start, part, adds, chunk.clone(), into);
                }
            } else {
                let node = part.start;
                self.links.receive(*owner, Label { node, ..label }, into)?;
            }
        }
        for &(into, from) in &self.finish {
            // A left child comes before its right one, and only the first part is in the mean.
            let (left, right) = self.slots.split_at_mut(from - 1);
            match into.checked_sub(1) {
                None => add(mean, &right[0]),
                Some(slot) => add(&mut left[slot], &right[0]),
            }
        }
        divide(mean, self.replicas);
        if self.world_size > 1 {
            let label = self.label(Kind::Mean, index, 0, length);
            self.links.send_all(label, mean)?;
            self.sent += 4 * mean.len() as u64 * u64::from(self.world_size - 1);
        }
        Ok(())
    }

    /// Receives the mean of chunk `index` of every other slice.
    fn receive_means(&mut self, index: usize, mean: &mut [f32]) -> Result<(), CollectiveError> {
        let length = mean.len();
        for peer in self.peers() {
            if let Some(chunk) = self.chunk(length, peer, index) {
                let label = self.label(Kind::Mean, index, 0, length);
                self.links.receive(peer, label, &mut mean[chunk])?;
            }
        }
        Ok(())
    }

    /// The other ranks, from the next one on, so that not all ranks turn to the same one first.
    fn peers(&self) -> impl Iterator<Item = Rank> + use<L> {
        let (rank, world_size) = (self.rank.0, self.world_size);
        (1..world_size).map(move |step| Rank((rank + step) % world_size))
    }

    /// Where chunk `index` of a rank's slice lies in the vector, if the slice is that long.
    fn chunk(&self, length: usize, rank: Rank, index: usize) -> Option<Range<usize>> {
        chunk_of(tree::slice(length, self.world_size, rank.0), index)
    }

    fn label(&self, kind: Kind, chunk: usize, node: u32, elements: usize) -> Label {
        Label {
            generation: self.generation,
            sequence: self.sequence,
            kind,
            node,
            chunk: chunk as u64,
            elements: elements as u64,
        }
    }
}

/// Chunk `index` of a slice, if the slice is that long.
fn chunk_of(slice: Range<usize>, index: usize) -> Option<Range<usize>> {
    let start = slice.start + index * CHUNK;
    (start < slice.end).then(|| start..slice.end.min(start + CHUNK))
}

/// Adds up `part`, a subtree of the hosted replicas, over the elements `range`, into `sum`. The
/// hosted vectors hold partial sums afterwards.
fn add_up(
    hosted: &mut [&mut [f32]],
    first_hosted: u32,
    part: &Range<u32>,
    adds: &[Add],
    range: Range<usize>,
    sum: &mut [f32],
) {
    let place = |replica: u32| (replica - first_hosted) as usize;
    for start in (0..sum.len()).step_by(BLOCK) {
        let sum_block = start..sum.len().min(start + BLOCK);
        let block = range.start + sum_block.start..range.start + sum_block.end;
        let sum = &mut sum[sum_block];
        let Some((root, inner)) = adds.split_last() else {
            sum.copy_from_slice(&hosted[place(part.start)][block]);
            continue;
        };
        for inner in inner {
            let (left, right) = hosted.split_at_mut(place(inner.from));
            add(
                &mut left[place(inner.into)][block.clone()],
                &right[0][block.clone()],
            );
        }
        let (left, right) = (&hosted[place(root.into)], &hosted[place(root.from)]);
        for ((sum, left), right) in sum.iter_mut().zip(&left[block.clone()]).zip(&right[block]) {
            *sum = left + right;
        }
    }
}

/// `into = into + from`, by element.
fn add(into: &mut [f32], from: &[f32]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

/// The mean of `replicas` from their sum. A power of two divides exactly.
///
/// IEEE 754 leaves open which bits a NaN has that comes from two others, and compilers make use of
/// that. So all NaNs become the same one: even a run that has diverged does so to the bit.
fn divide(sums: &mut [f32], replicas: u32) {
    let replicas = replicas as f32;
    for sum in sums {
        let mean = *sum / replicas;
        *sum = if mean.is_nan() { f32::NAN } else { mean };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_up_a_subtree_follows_the_tree_across_blocks() {
        let length = 2 * BLOCK + 17;
        let value =
            |replica: usize, i: usize| ((replica * 7919 + i * 104_729) % 1013) as f32 * 0.37;
        let mut vectors: Vec<Vec<f32>> = (4..8)
            .map(|replica| (0..length).map(|i| value(replica, i)).collect())
            .collect();
        let mut hosted: Vec<&mut [f32]> = vectors.iter_mut().map(|v| &mut v[..]).collect();
        let mut sum = vec![0.0; length - 5];
        let adds = tree::adds_of_replicas(4..8);
        add_up(&mut hosted, 4, &(4..8), &adds, 3..length - 2, &mut sum);
        for (i, sum) in sum.iter().enumerate() {
            let g = |replica| value(replica, i + 3);
            let expected = (g(4) + g(5)) + (g(6) + g(7));
            assert_eq!(sum.to_bits(), expected.to_bits(), "element {i}");
        }
    }

    #[test]
    fn every_nan_of_a_mean_has_the_same_bits() {
        let mut sums = [
            f32::from_bits(0xffc0_1234),
            f32::NAN,
            -0.0,
            6.0,
            f32::INFINITY,
        ];
        divide(&mut sums, 2);
        let bits = sums.map(f32::to_bits);
        let nan = f32::NAN.to_bits();
        assert_eq!(
            bits,
            [
                nan,
                nan,
                (-0.0f32).to_bits(),
                3.0f32.to_bits(),
                f32::INFINITY.to_bits()
            ]
        );
    }
}
