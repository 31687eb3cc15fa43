//! What depends on the replicas that a trainer hosts: their threads, and the vectors that they
//! fill.
//!
//! Workers come and go while a job runs, so what a trainer hosts changes, and its peers wait for
//! it: threads and vectors that still fit are kept.

use super::TrainError;
use super::pool::Pool;
use super::step::Game;
use super::vectors::Vectors;
use crate::collective::tree;
use crate::config::Job;
use crate::data::Batch;
use crate::torch::{HostVector, TorchError};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The hosted replicas, maybe none.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) replicas: Range<u32>,
    pub(super) pool: Pool,
    /// One a replica.
    pub(super) discriminator_vectors: Vec<Traveller>,
    pub(super) generator_vectors: Vec<Traveller>,
}

impl Hosted {
    /// No replicas: no threads and no vectors.
    pub(super) fn nothing() -> Self {
        Self {
            replicas: 0..0,
            pool: Pool::idle(),
            discriminator_vectors: Vec::new(),
            generator_vectors: Vec::new(),
        }
    }

    /// Hosts `replicas` from now on. After an error it hosts what it hosted before.
    pub(super) fn host(
        &mut self,
        game: &Arc<Game>,
        job: &Job,
        replicas: Range<u32>,
        cores: usize,
    ) -> Result<(), TrainError> {
        if replicas.start > replicas.end || replicas.end > job.train.replicas {
            return Err(TrainError::Replicas {
                start: replicas.start,
                end: replicas.end,
                replicas: job.train.replicas,
            });
        }
        let count = replicas.len();
        let intra_op = job.workers.threads;
        let threads = match game.device {
            Device::Cpu => (cores / intra_op.max(1) as usize).clamp(1, count.max(1)),
            _ => 1,
        };
        // What can fail comes first.
        let more = count.saturating_sub(self.discriminator_vectors.len());
        let (discriminator, generator): (Vec<_>, Vec<_>) =
            pairs(game, more, threads)?.into_iter().unzip();
        let threads = threads.min(count);
        self.pool.host(game, replicas.clone(), threads, intra_op)?;
        self.discriminator_vectors.truncate(count);
        self.discriminator_vectors.extend(discriminator);
        self.generator_vectors.truncate(count);
        self.generator_vectors.extend(generator);
        self.replicas = replicas;
        Ok(())
    }

    /// Each replica's batch, and its vectors to be filled.
    pub(super) fn lend(&mut self, batches: &[Arc<Batch>]) -> Vec<(Arc<Batch>, Vectors)> {
        batches.iter().cloned().zip(self.vectors()).collect()
    }

    /// Each replica's vectors, to be filled.
    pub(super) fn vectors(&mut self) -> Vec<Vectors> {
        self.discriminator_vectors
            .iter_mut()
            .zip(&mut self.generator_vectors)
            .map(|(discriminator, generator)| Vectors {
                discriminator: discriminator.lend(),
                generator: generator.lend(),
            })
            .collect()
    }
}

/// A vector of the device's that travels from host memory, or arrives there; on a CPU these are
/// one.
#[derive(Debug)]
pub(super) struct Traveller {
    host: HostVector,
    /// None on a CPU.
    device: Option<Tensor>,
}

impl Traveller {
    pub(super) fn new(len: usize, device: Device) -> Result<Self, TorchError> {
        let mut host = HostVector::zeros(len)?;
        let device = match device {
            Device::Cpu => None,
            device => Some(host.lend().f_to_device(device)?),
        };
        Ok(Self { host, device })
    }

    /// The vector as the device reads and writes it.
    pub(super) fn lend(&mut self) -> Tensor {
        match &self.device {
            Some(tensor) => tensor.shallow_clone(),
            None => self.host.lend(),
        }
    }

    /// The vector in host memory, where it may be anything if the device has another.
    pub(super) fn host(&mut self) -> &mut HostVector {
        &mut self.host
    }

    /// Brings what arrived in host memory to the device.
    pub(super) fn arrive(&mut self) -> Result<(), TorchError> {
        if let Some(tensor) = &mut self.device {
            tensor.f_copy_(&self.host.lend())?;
        }
        Ok(())
    }

    /// The vector, brought to host memory.
    fn depart(&mut self) -> Result<&mut [f32], TorchError> {
        if let Some(tensor) = &self.device {
            self.host.lend().f_copy_(tensor)?;
        }
        self.host.as_mut_slice()
    }
}

/// A replica's vectors: D's and G's.
type Pair = (Traveller, Traveller);

/// The vectors of so many replicas, made by so many threads: peers wait meanwhile, and the system
/// takes its time to hand out that much memory.
fn pairs(game: &Game, replicas: usize, threads: usize) -> Result<Vec<Pair>, TrainError> {
    let share = |index: usize| -> Result<Vec<Pair>, TorchError> {
        let pair = |_| {
            let discriminator = Traveller::new(game.discriminator_layout.len, game.device)?;
            let generator = Traveller::new(game.generator_layout.len, game.device)?;
            Ok((discriminator, generator))
        };
        tree::slice(replicas, threads as u32, index as u32)
            .map(pair)
            .collect()
    };
    std::thread::scope(|scope| {
        let share = &share;
        let others = (1..threads.min(replicas))
            .map(|index| std::thread::Builder::new().spawn_scoped(scope, move || share(index)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(TrainError::Thread)?;
        let mut pairs = share(0)?;
        for other in others {
            // A panic goes on where it would have been, were there no threads.
            pairs.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(pairs)
    })
}

/// The vectors, brought to host memory.
pub(super) fn slices(vectors: &mut [Traveller]) -> Result<Vec<&mut [f32]>, TorchError> {
    vectors.iter_mut().map(Traveller::depart).collect()
}
