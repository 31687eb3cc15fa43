//! Words from everybody to everybody, and a vector from those who hold it to those who don't.
//!
//! A copy begins with a frame from every rank to every other, which says what it is about to copy
//! and from whom: ranks that don't agree find out before a number is sent. The vector is cut into
//! one slice a holder, and holder *i* sends slice *i* to every rank that needs it. Nobody forwards,
//! so no rank waits for a chain of others:
//!
//! - At tick *t* a holder sends chunk *t* of its slice, and waits until every needy rank has taken
//!   chunk *t* − [`WINDOW`] from *all* holders. So what is under way is bounded, sending never
//!   waits, and the holders stay as close together as the window is wide: when one is lost, all
//!   ranks learn of it.
//! - A needy rank takes chunk *t* of every slice and tells all holders so. It waits for holders
//!   only, and a holder for needy ranks only, each for what the other does without it: the one that
//!   is furthest behind can always go on.
//! - The clock is set back at every tick. A tick moves 64 KiB a holder, so a rank that is given up
//!   moved less than that in a whole deadline; that a state is large is no reason to fail.

use super::{CHUNK, Exact, Links, chunk_of, frames_under_way};
use crate::collective::error::{CollectiveError, HolderFault, Operation};
use crate::collective::tree;
use crate::collective::wire::{Kind, Label};
use crate::faults::{self, Point};
use crate::ids::Rank;

/// Ticks that a holder may be ahead of the slowest needy rank: 1 MiB, which keeps 10 Gbit/s busy
/// over a round trip of 0.8 ms.
const WINDOW: usize = 16;

// A holder's frames to a peer fit into any queue, with those of the gather before it and of the
// beginning.
const _: () = assert!(WINDOW + 1 + 2 <= frames_under_way(1));

/// A word travels as four numbers, each 16 of its bits: small integers, which f32 holds exactly.
const DIGITS: usize = 4;

impl<L: Links> Exact<L> {
    pub(in crate::collective) fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.run(Operation::Gather, |exact| {
            let label = exact.label(Kind::Word, 0, 0, 0);
            if exact.world_size > 1 {
                exact.links.send_all(label, &to_digits(word))?;
            }
            let mut words = vec![word; exact.world_size as usize];
            for peer in exact.peers() {
                let mut digits = [0.0; DIGITS];
                exact.links.receive(peer, label, &mut digits)?;
                words[peer.0 as usize] = from_digits(digits);
            }
            Ok(words)
        })
    }

    pub(in crate::collective) fn copy(
        &mut self,
        holders: &[Rank],
        vector: &mut [f32],
    ) -> Result<(), CollectiveError> {
        check(holders, self.world_size).map_err(|fault| CollectiveError::Holders {
            rank: self.rank,
            fault,
        })?;
        self.run(Operation::Copy, |exact| {
            exact.agree(holders, vector.len())?;
            match holders.iter().position(|holder| *holder == exact.rank) {
                Some(own) => exact.give(holders, own, vector),
                None => exact.take(holders, vector),
            }
        })
    }

    /// Waits until every rank is here, and about to copy the same.
    fn agree(&mut self, holders: &[Rank], length: usize) -> Result<(), CollectiveError> {
        let label = self.label(Kind::Copying, 0, checksum(holders), length);
        if self.world_size > 1 {
            self.links.send_all(label, &[])?;
        }
        for peer in self.peers() {
            self.links.receive(peer, label, &mut [])?;
        }
        Ok(())
    }

    /// Sends slice `own` to every rank that needs it.
    fn give(
        &mut self,
        holders: &[Rank],
        own: usize,
        vector: &[f32],
    ) -> Result<(), CollectiveError> {
        let length = vector.len();
        let needy: Vec<Rank> = self
            .peers()
            .filter(|peer| !holders.contains(peer))
            .collect();
        if needy.is_empty() {
            return Ok(());
        }
        let slice = tree::slice(length, holders.len() as u32, own as u32);
        for tick in 0..ticks(length, holders) + WINDOW {
            self.links.begin(Operation::Copy)?;
            if let Some(chunk) = chunk_of(slice.clone(), tick) {
                let label = self.label(Kind::Copy, tick, 0, length);
                for &peer in &needy {
                    self.links.send(peer, label, &vector[chunk.clone()])?;
                }
                faults::pass(Point::HealSource);
            }
            if let Some(taken) = tick.checked_sub(WINDOW) {
                let label = self.label(Kind::Taken, taken, 0, length);
                for &peer in &needy {
                    self.links.receive(peer, label, &mut [])?;
                }
            }
        }
        Ok(())
    }

    /// Receives every holder's slice.
    fn take(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        let length = vector.len();
        for tick in 0..ticks(length, holders) {
            self.links.begin(Operation::Copy)?;
            let label = self.label(Kind::Copy, tick, 0, length);
            for (index, &holder) in holders.iter().enumerate() {
                let slice = tree::slice(length, holders.len() as u32, index as u32);
                if let Some(chunk) = chunk_of(slice, tick) {
                    self.links.receive(holder, label, &mut vector[chunk])?;
                }
            }
            faults::pass(Point::HealTarget);
            let kind = Kind::Taken;
            for &holder in holders {
                self.links.send(holder, Label { kind, ..label }, &[])?;
            }
        }
        Ok(())
    }
}

pub(super) fn check(holders: &[Rank], world_size: u32) -> Result<(), HolderFault> {
    let Some(&last) = holders.last() else {
        return Err(HolderFault::Empty);
    };
    if let Some(pair) = holders.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(HolderFault::Order {
            first: pair[0],
            second: pair[1],
        });
    }
    if last.0 >= world_size {
        return Err(HolderFault::NoSuchRank {
            rank: last,
            world_size,
        });
    }
    Ok(())
}

/// Chunks of the longest slice, which is the first.
fn ticks(length: usize, holders: &[Rank]) -> usize {
    tree::slice(length, holders.len() as u32, 0)
        .len()
        .div_ceil(CHUNK)
}

/// What stands for a list of holders where ranks compare theirs: FNV-1a, 32 bits. By mistake, two
/// lists are as good as never taken for one.
pub(super) fn checksum(holders: &[Rank]) -> u32 {
    let bytes = holders.iter().flat_map(|holder| holder.0.to_le_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn to_digits(word: u64) -> [f32; DIGITS] {
    std::array::from_fn(|digit| f32::from((word >> (16 * digit)) as u16))
}

fn from_digits(digits: [f32; DIGITS]) -> u64 {
    let digits = digits.iter().enumerate();
    digits.fold(0, |word, (digit, value)| {
        word | u64::from(*value as u16) << (16 * digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_survives_its_digits() {
        for word in [0, 1, 65_535, 65_536, 16_777_217, u64::MAX / 3, u64::MAX] {
            let digits = to_digits(word);
            assert!(digits.iter().all(|digit| digit.is_finite()));
            assert_eq!(from_digits(digits), word);
        }
    }

    #[test]
    fn lists_of_holders_have_checksums_of_their_own() {
        let mut seen = std::collections::BTreeSet::new();
        for bits in 1..1024u32 {
            let holders: Vec<Rank> = (0..10)
                .filter(|rank| bits >> rank & 1 == 1)
                .map(Rank)
                .collect();
            assert!(seen.insert(checksum(&holders)), "{holders:?}");
        }
    }
}
