//! PURE. The canonical tree: in which order the replicas' vectors are added.
//!
//! Floating-point addition is not associative, so the order is part of the result. It is fixed by
//! the number of replicas alone:
//!
//! ```text
//! reduce(lo, hi) = g[lo]                               if hi - lo = 1
//!                = reduce(lo, mid) + reduce(mid, hi)   mid = lo + largest power of two < hi - lo
//! ```
//!
//! A node of the tree is a range of replicas, and its sum lives where its first replica's vector
//! was. So the whole order can be written down as a list of [`Add`]s, which an executor on any
//! device follows: first each worker [adds up](adds) the [largest subtrees](subtrees) that it
//! hosts whole, then whoever has all of those finishes the tree. This room knows nothing of memory,
//! devices or peers.

use std::ops::Range;

/// One addition: `sum[into] = sum[into] + sum[from]`, in this order of the operands.
///
/// `into` and `from` are the first replicas of two neighbouring nodes, and `into` that of their
/// parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    /// First replica of the left child, and of the sum.
    pub into: u32,
    /// First replica of the right child.
    pub from: u32,
}

/// Where the node over `lo..hi` divides.
///
/// # Panics
/// If it holds fewer than two replicas.
pub fn split(lo: u32, hi: u32) -> u32 {
    assert!(
        hi > lo && hi - lo >= 2,
        "{lo}..{hi} is a leaf: it has no halves"
    );
    lo + (1 << (hi - lo - 1).ilog2())
}

/// The largest nodes of the tree over `0..replicas` that lie inside `hosted`, in order. They
/// partition it.
pub fn subtrees(replicas: u32, hosted: Range<u32>) -> Vec<Range<u32>> {
    fn collect(node: Range<u32>, hosted: &Range<u32>, found: &mut Vec<Range<u32>>) {
        if node.start >= hosted.end || node.end <= hosted.start {
            return;
        }
        if hosted.start <= node.start && node.end <= hosted.end {
            found.push(node);
            return;
        }
        let mid = split(node.start, node.end);
        collect(node.start..mid, hosted, found);
        collect(mid..node.end, hosted, found);
    }
    let mut found = Vec::new();
    if replicas > 0 {
        collect(0..replicas, &hosted, &mut found);
    }
    found
}

/// The additions, in order, that make the sum of the node `root` out of the sums of the nodes
/// `leaves`, which partition it.
///
/// With single replicas as leaves it adds up a worker's subtree; with all workers' subtrees as
/// leaves it finishes the tree. The last addition is the root's.
///
/// # Panics
/// If the leaves are not nodes that partition the root, in order.
pub fn adds(root: Range<u32>, leaves: &[Range<u32>]) -> Vec<Add> {
    fn collect(node: Range<u32>, leaves: &mut &[Range<u32>], order: &mut Vec<Add>) {
        if leaves.first() == Some(&node) {
            *leaves = &leaves[1..];
            return;
        }
        assert!(
            node.end - node.start >= 2,
            "replica {} is in no leaf: the next is {:?}",
            node.start,
            leaves.first()
        );
        let mid = split(node.start, node.end);
        collect(node.start..mid, leaves, order);
        collect(mid..node.end, leaves, order);
        order.push(Add {
            into: node.start,
            from: mid,
        });
    }
    let mut order = Vec::with_capacity(leaves.len().saturating_sub(1));
    let mut left = leaves;
    collect(root.clone(), &mut left, &mut order);
    assert!(left.is_empty(), "{left:?} lie outside the root {root:?}");
    order
}

/// The additions that make the sum of the node `root` out of single replicas.
pub fn adds_of_replicas(root: Range<u32>) -> Vec<Add> {
    let leaves: Vec<Range<u32>> = root.clone().map(|replica| replica..replica + 1).collect();
    adds(root, &leaves)
}

/// The part of a vector of `length` elements that rank `rank` of `world_size` finishes. Parts
/// differ by one element at most, and those of all ranks partition the vector in order.
pub fn slice(length: usize, world_size: u32, rank: u32) -> Range<usize> {
    let (world_size, rank) = (world_size as usize, rank as usize);
    let (least, over) = (length / world_size, length % world_size);
    let start = rank * least + rank.min(over);
    start..start + least + usize::from(rank < over)
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "a worker that hosts one range is meant"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The definition, word for word.
    fn naive(values: &[f32], lo: u32, hi: u32) -> f32 {
        if hi - lo == 1 {
            return values[lo as usize];
        }
        let mut half = 1;
        while half * 2 < hi - lo {
            half *= 2;
        }
        naive(values, lo, lo + half) + naive(values, lo + half, hi)
    }

    fn nodes(lo: u32, hi: u32) -> Vec<Range<u32>> {
        let mut all = vec![lo..hi];
        if hi - lo > 1 {
            let mid = split(lo, hi);
            all.extend(nodes(lo, mid));
            all.extend(nodes(mid, hi));
        }
        all
    }

    fn run(order: &[Add], sums: &mut BTreeMap<u32, f32>) {
        for add in order {
            let from = sums.remove(&add.from).expect("each sum is used once");
            *sums.get_mut(&add.into).expect("the left child is there") += from;
        }
    }

    /// Contiguous, non-empty ranges that partition `0..replicas`.
    fn partitions() -> impl Strategy<Value = (u32, Vec<Range<u32>>)> {
        (1u32..70)
            .prop_flat_map(|replicas| {
                let cuts = proptest::collection::btree_set(1..replicas.max(2), 0..10);
                (Just(replicas), cuts)
            })
            .prop_map(|(replicas, cuts)| {
                let mut ranges = Vec::new();
                let mut start = 0;
                for cut in cuts.into_iter().filter(|&cut| cut < replicas) {
                    ranges.push(start..cut);
                    start = cut;
                }
                ranges.push(start..replicas);
                (replicas, ranges)
            })
    }

    #[test]
    fn a_node_divides_at_the_largest_power_of_two_below_its_size() {
        let mids: Vec<u32> = (2..=9).map(|hi| split(0, hi)).collect();
        assert_eq!(mids, [1, 2, 2, 4, 4, 4, 4, 8]);
        assert_eq!(split(8, 11), 10);
    }

    #[test]
    fn eight_replicas_on_three_workers() {
        assert_eq!(subtrees(8, 0..3), [0..2, 2..3]);
        assert_eq!(subtrees(8, 3..6), [3..4, 4..6]);
        assert_eq!(subtrees(8, 6..8), [6..8]);
        let parts = [0..2, 2..3, 3..4, 4..6, 6..8];
        let order: Vec<_> = adds(0..8, &parts)
            .iter()
            .map(|a| (a.into, a.from))
            .collect();
        assert_eq!(order, [(2, 3), (0, 2), (4, 6), (0, 4)]);
    }

    #[test]
    #[should_panic(expected = "replica 1 is in no leaf")]
    fn a_leaf_that_is_no_node_is_refused() {
        adds(0..4, &[0..1, 1..3, 3..4]);
    }

    proptest! {
        #[test]
        fn the_subtrees_partition_what_a_worker_hosts((replicas, ranges) in partitions()) {
            for hosted in ranges {
                let found = subtrees(replicas, hosted.clone());
                prop_assert_eq!(found[0].start, hosted.start);
                prop_assert_eq!(found[found.len() - 1].end, hosted.end);
                for pair in found.windows(2) {
                    prop_assert_eq!(pair[0].end, pair[1].start);
                }
            }
        }

        #[test]
        fn the_subtrees_are_nodes_and_none_could_be_larger((replicas, ranges) in partitions()) {
            let all = nodes(0, replicas);
            for hosted in ranges {
                let inside = |node: &&Range<u32>| {
                    hosted.start <= node.start && node.end <= hosted.end
                };
                for found in subtrees(replicas, hosted.clone()) {
                    prop_assert!(all.contains(&found));
                    let larger = all.iter().filter(inside).find(|node| {
                        node.start <= found.start && found.end <= node.end && **node != found
                    });
                    prop_assert_eq!(larger, None);
                }
            }
        }

        #[test]
        fn any_partition_gives_the_bits_of_the_whole_tree(
            (replicas, ranges) in partitions(),
            values in proptest::collection::vec(-1e6f32..1e6, 70),
        ) {
            let mut sums = BTreeMap::new();
            let mut parts = Vec::new();
            for hosted in ranges {
                for part in subtrees(replicas, hosted) {
                    let mut local: BTreeMap<u32, f32> =
                        part.clone().map(|r| (r, values[r as usize])).collect();
                    run(&adds_of_replicas(part.clone()), &mut local);
                    prop_assert_eq!(local.len(), 1);
                    sums.extend(local);
                    parts.push(part);
                }
            }
            run(&adds(0..replicas, &parts), &mut sums);
            prop_assert_eq!(sums.len(), 1);
            prop_assert_eq!(sums[&0].to_bits(), naive(&values, 0, replicas).to_bits());
        }

        #[test]
        fn the_slices_partition_a_vector(length in 0usize..1000, world_size in 1u32..40) {
            let mut end = 0;
            for rank in 0..world_size {
                let part = slice(length, world_size, rank);
                prop_assert_eq!(part.start, end);
                prop_assert!(part.len().abs_diff(length / world_size as usize) <= 1);
                end = part.end;
            }
            prop_assert_eq!(end, length);
        }
    }
}
