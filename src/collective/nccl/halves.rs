//! The two halves of a reduction: sums to whoever finishes them, means to everybody.

use super::watch::{launch, wait};
use super::{Nccl, Pending, failed};
use crate::collective::error::CollectiveError;
use crate::collective::limit::Limit;
use crate::config::Reduction;
use crate::faults::{self, Point};
use crate::ids::Rank;
use crate::torch::{Event, TorchError};
use std::ops::Range;
use tch::{Kind, Tensor};

impl Nccl {
    /// Begins a reduction, and queues as much of it as can be queued.
    pub(super) fn begin(
        &mut self,
        hosted: &[Tensor],
        mean: &Tensor,
    ) -> Result<(), CollectiveError> {
        let limit = Limit::start(self.deadline);
        self.queue_rest(&limit)?;
        let announcement = match self.watch {
            Some(_) => Some(
                self.control
                    .announce_reduction(self.reduction, mean.numel())?,
            ),
            None => None,
        };
        self.flies();
        self.follow()?;
        let done = match self.events.pop() {
            Some(event) => event,
            None => Event::new(self.device, false).map_err(|e| failed(self.generation, e))?,
        };
        let mut pending = Pending {
            announcement,
            hosted: hosted.iter().map(Tensor::shallow_clone).collect(),
            mean: mean.shallow_clone(),
            is_queued: false,
            is_joined: false,
            done,
        };
        self.first_half(&pending, &limit)?;
        if self.watch.is_some() {
            faults::pass(Point::InReduction);
        }
        if self.is_ordered() {
            self.second_half(&mut pending, &limit)?;
        }
        self.pending.push_back(pending);
        Ok(())
    }

    /// Queues what could not be queued at the start, for want of a stream that orders it: the second
    /// halves, which then wait for the first ones here.
    pub(super) fn queue_rest(&mut self, limit: &Limit) -> Result<(), CollectiveError> {
        for index in 0..self.pending.len() {
            if self.pending[index].is_queued {
                continue;
            }
            self.hear(index)?;
            if let Some(watch) = &self.watch {
                wait(watch, limit, || watch.communicator.is_idle())?;
            }
            // Taken out and put back in its place: it is there again whatever happens.
            let Some(mut pending) = self.pending.remove(index) else {
                continue;
            };
            let queued = self.second_half(&mut pending, limit);
            self.pending.insert(index, pending);
            queued?;
        }
        Ok(())
    }

    /// Waits until all ranks have begun this reduction.
    pub(super) fn hear(&mut self, index: usize) -> Result<(), CollectiveError> {
        match self.pending[index].announcement.take() {
            Some(announcement) => self.control.hear(announcement),
            None => Ok(()),
        }
    }

    /// Adds up what this rank hosts, and exchanges the sums.
    fn first_half(&mut self, pending: &Pending, limit: &Limit) -> Result<(), CollectiveError> {
        let Pending { hosted, mean, .. } = pending;
        let guard = self.stream.guard();
        let _guard = guard.map_err(|source| failed(self.generation, source))?;
        let reduction = self.reduction;
        self.arithmetic("add up the hosted vectors", || {
            for add in self.own.iter().flatten() {
                add_to(&hosted[add.into as usize], &hosted[add.from as usize])?;
            }
            if reduction == Reduction::Fast && self.watch.is_some() {
                for index in self.own_places().into_iter().skip(1) {
                    add_to(&hosted[0], &hosted[index])?;
                }
            }
            Ok(())
        })?;
        let Some(watch) = self.watch.clone() else {
            return Ok(());
        };
        let length = mean.numel();
        let mut calls = watch.communicator.group();
        let refuse = |error| watch.device(error);
        if reduction == Reduction::Fast {
            calls.all_reduce(&hosted[0], mean).map_err(refuse)?;
            let world_size = u64::from(self.control.world_size());
            // A ring's, which is the least there can be; NCCL may have other ways.
            self.sent += 4 * length as u64 * 2 * (world_size - 1) / world_size;
            return launch(&watch, calls, limit);
        }
        for peer in self.peers() {
            let slice = self.control.slice(length, peer);
            for place in self.own_places() {
                let sum = self.piece(&hosted[place], slice.clone())?;
                calls.send(&sum, peer.0).map_err(refuse)?;
                self.sent += 4 * slice.len() as u64;
            }
        }
        self.make_room(length)?;
        let others = self.received_from();
        for (slot, owner) in others.into_iter().enumerate() {
            let sum = self.slot(slot, length)?;
            calls.receive(&sum, owner.0).map_err(refuse)?;
        }
        launch(&watch, calls, limit)
    }

    /// Finishes the tree over this rank's slice, and exchanges the means.
    fn second_half(&mut self, pending: &mut Pending, limit: &Limit) -> Result<(), CollectiveError> {
        let guard = self.stream.guard();
        let _guard = guard.map_err(|source| failed(self.generation, source))?;
        let Pending { hosted, mean, .. } = &*pending;
        let length = mean.numel();
        match self.watch.clone() {
            None => self.divide(&hosted[0], mean)?,
            Some(_) if self.reduction == Reduction::Fast => self.divide(mean, mean)?,
            Some(watch) => {
                let own_slice = self.control.slice(length, self.control.rank());
                let sums = self.sums(hosted, length)?;
                self.arithmetic("finish the tree", || {
                    let mut finishing = self.control.finishing().iter();
                    finishing.try_for_each(|&(into, from)| add_to(&sums[into], &sums[from]))
                })?;
                let own_mean = self.piece(mean, own_slice.clone())?;
                self.divide(&sums[0], &own_mean)?;
                let mut calls = watch.communicator.group();
                for peer in self.peers() {
                    let theirs = self.piece(mean, self.control.slice(length, peer))?;
                    let added = calls.send(&own_mean, peer.0);
                    let added = added.and_then(|calls| calls.receive(&theirs, peer.0));
                    added.map_err(|error| watch.device(error))?;
                    self.sent += 4 * own_slice.len() as u64;
                }
                launch(&watch, calls, limit)?;
            }
        }
        pending.is_queued = true;
        let recorded = pending.done.record(self.stream);
        recorded.map_err(|source| failed(self.generation, source))
    }

    /// Where this rank's subtree sums are among the hosted vectors.
    fn own_places(&self) -> Vec<usize> {
        let (rank, first) = (self.control.rank(), self.control.hosted().start);
        let parts = self.control.parts().iter();
        let own = parts.filter(|(owner, _)| *owner == rank);
        own.map(|(_, part)| (part.start - first) as usize).collect()
    }

    /// Who sends the other subtrees' sums, in the order of the replicas.
    fn received_from(&self) -> Vec<Rank> {
        let rank = self.control.rank();
        let owners = self.control.parts().iter().map(|(owner, _)| *owner);
        owners.filter(|owner| *owner != rank).collect()
    }

    /// Makes `received` long enough for a vector of this length. Called with the stream current, to
    /// which libtorch then counts the memory.
    fn make_room(&mut self, length: usize) -> Result<(), CollectiveError> {
        let slice = self.control.slice(length, self.control.rank()).len();
        let needed = self.received_from().len() * slice;
        if self.received.numel() < needed {
            let (needed, device) = (needed as i64, self.device);
            self.received = self.arithmetic("allocate", || {
                Ok(Tensor::f_empty([needed], (Kind::Float, device))?)
            })?;
        }
        Ok(())
    }

    /// Where one of the other subtrees' sums comes, over this rank's slice.
    fn slot(&self, slot: usize, length: usize) -> Result<Tensor, CollectiveError> {
        let slice = self.control.slice(length, self.control.rank()).len();
        self.piece(&self.received, slot * slice..(slot + 1) * slice)
    }

    /// Every subtree's sum over this rank's slice, in the order of the replicas.
    fn sums(&self, hosted: &[Tensor], length: usize) -> Result<Vec<Tensor>, CollectiveError> {
        let own_slice = self.control.slice(length, self.control.rank());
        let (rank, first) = (self.control.rank(), self.control.hosted().start);
        let mut slots = 0..;
        let parts = self.control.parts().iter();
        let sums = parts.map(|(owner, part)| {
            if *owner == rank {
                let place = (part.start - first) as usize;
                self.piece(&hosted[place], own_slice.clone())
            } else {
                self.slot(slots.next().unwrap_or_default(), length)
            }
        });
        sums.collect()
    }

    /// The mean from the sum, with one NaN for all: see `exact`.
    fn divide(&self, sum: &Tensor, mean: &Tensor) -> Result<(), CollectiveError> {
        self.arithmetic("divide a sum", || {
            let _ = sum.f_div_out(mean, &self.divisor)?;
            let mut mean = mean.shallow_clone();
            let nan = mean.f_isnan()?;
            let _ = mean.f_masked_fill_(&nan, f64::NAN)?;
            Ok(())
        })
    }

    pub(super) fn piece(
        &self,
        tensor: &Tensor,
        range: Range<usize>,
    ) -> Result<Tensor, CollectiveError> {
        self.arithmetic("take a part of a vector", || part(tensor, range))
    }
}

fn part(tensor: &Tensor, range: Range<usize>) -> Result<Tensor, TorchError> {
    Ok(tensor.f_narrow(0, range.start as i64, range.len() as i64)?)
}

/// `into = into + from`, by element.
fn add_to(into: &Tensor, from: &Tensor) -> Result<(), TorchError> {
    let _ = into.shallow_clone().f_add_(from)?;
    Ok(())
}
