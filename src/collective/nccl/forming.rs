//! Making the communicator of a group.

use super::ears::Ears;
use super::watch::{Watch, launch, wait};
use super::{Nccl, failed};
use crate::collective::abort::Abort;
use crate::collective::error::CollectiveError;
use crate::collective::exact::Exact;
use crate::collective::group::Group;
use crate::collective::limit::Limit;
use crate::collective::tcp::Deadlines;
use crate::ids::Rank;
use crate::nccl::{Communicator, Library, NcclError, UniqueId};
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// How long NCCL may take to end a communicator: no more than a collective, within these.
const SHORTEST_END: Duration = Duration::from_secs(1);
const LONGEST_END: Duration = Duration::from_secs(10);

impl Nccl {
    /// NCCL makes its connections when they are first used: here, and not in the first step.
    pub(super) fn warm_up(&mut self) -> Result<(), CollectiveError> {
        let Some(watch) = self.watch.clone() else {
            return Ok(());
        };
        let outcome = self.greet(&watch);
        let outcome = self.conclude(outcome);
        watch.has_landed();
        outcome
    }

    fn greet(&mut self, watch: &Watch) -> Result<(), CollectiveError> {
        let announcement = self.control.announce_reduction(self.reduction, 0)?;
        self.flies();
        let limit = Limit::start(self.deadline);
        let device = self.device;
        let world_size = i64::from(self.control.world_size());
        let (own, others) = self.arithmetic("allocate", || {
            let own = Tensor::f_zeros([1], (Kind::Float, device))?;
            Ok((own, Tensor::f_zeros([world_size], (Kind::Float, device))?))
        })?;
        // What was just made may not be there yet for another stream.
        self.follow()?;
        let mut calls = watch.communicator.group();
        for peer in self.peers() {
            let place = peer.0 as usize;
            let place = self.piece(&others, place..place + 1)?;
            let added = calls.send(&own, peer.0);
            let added = added.and_then(|calls| calls.receive(&place, peer.0));
            added.map_err(|error| watch.device(error))?;
        }
        launch(watch, calls, &limit)?;
        self.control.hear(announcement)?;
        wait(watch, &limit, || watch.communicator.release())
    }
}

/// Makes the communicator of a group, and whoever watches it.
pub(super) fn initialise(
    control: &mut Exact<Ears>,
    group: &Group,
    library: &Arc<Library>,
    device: Device,
    deadlines: Deadlines,
    abort: &Abort,
) -> Result<Arc<Watch>, CollectiveError> {
    let generation = group.generation;
    let refuse = |error: NcclError| failed(generation, error);
    // Its 128 bytes travel as numbers, whose bits nothing changes.
    let mut words = [0.0; 32];
    if group.rank == Rank(0) {
        let id = library.unique_id().map_err(refuse)?;
        for (word, bytes) in words.iter_mut().zip(id.0.as_chunks().0) {
            *word = f32::from_le_bytes(*bytes);
        }
    }
    control.copy(&[Rank(0)], &mut words)?;
    let mut id = UniqueId([0; 128]);
    for (bytes, word) in id.0.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    let limit = Limit::start(deadlines.connect);
    let (rank, world_size) = (group.rank.0, control.world_size());
    let communicator =
        Communicator::begin(library, &id, rank, world_size, device).map_err(refuse)?;
    let bound = deadlines.collective.clamp(SHORTEST_END, LONGEST_END);
    let (heard, addresses) = (control.links().heard(), control.links().addresses());
    let watch = Watch::keep(generation, abort, heard, addresses, communicator, bound)?;
    watch.takes_off(deadlines.connect.saturating_mul(2));
    let outcome = wait(&watch, &limit, || watch.communicator.launched());
    watch.has_landed();
    let Err(error) = outcome else {
        return Ok(watch);
    };
    let error = match (error, limit.left()) {
        (CollectiveError::Device { .. }, None) => watch.device(NcclError::Deadline {
            waited: limit.waited(),
        }),
        (error, _) => error,
    };
    watch.poison(error);
    let error = watch.verdict();
    control.break_off(&error);
    watch.is_over();
    Err(error)
}
