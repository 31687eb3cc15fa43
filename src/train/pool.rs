//! The threads that replicas run on.
//!
//! A replica stays on one thread for both halves of a step, for the graph of its fakes lives there.
//! Every thread computes with the job's number of intra-op threads, so that how many replicas run
//! side by side changes no bit.

use super::TrainError;
use super::step::{Fakes, Game, Vectors, Weights};
use crate::config::Update;
use crate::data::Batch;
use crate::ids::ReplicaId;
use crate::torch::{self, TorchError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tch::Tensor;

/// What a replica is to do.
enum Task {
    /// The first half of an alternating step, or all of a simultaneous one.
    Begin {
        weights: Weights,
        batch: Batch,
        vectors: Vectors,
    },
    /// The second half, against this D.
    Finish { discriminator: Tensor },
}

/// A task, for the replica in `slot` of its thread.
struct Order {
    slot: usize,
    replica: ReplicaId,
    task: Task,
    reply: Sender<Reply>,
}

/// How it ended. What the task lent has been dropped by then.
struct Reply {
    replica: ReplicaId,
    result: Result<(), TorchError>,
}

/// The hosted replicas on their threads.
#[derive(Debug)]
pub(super) struct Pool {
    threads: Vec<Thread>,
    replicas: Range<u32>,
}

#[derive(Debug)]
struct Thread {
    /// None once the pool is being dropped, which ends the thread.
    orders: Option<Sender<Order>>,
    handle: Option<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads of `intra_op` intra-op threads each for `replicas`.
    pub(super) fn start(
        game: &Arc<Game>,
        replicas: Range<u32>,
        threads: usize,
        intra_op: u32,
    ) -> Result<Self, TrainError> {
        let slots = replicas.len().div_ceil(threads.max(1));
        let threads = (0..threads.max(1))
            .map(|index| {
                let (orders, inbox) = channel();
                let game = Arc::clone(game);
                let handle = std::thread::Builder::new()
                    .name(format!("replicas-{index}"))
                    .spawn(move || serve(&game, &inbox, slots, intra_op))
                    .map_err(TrainError::Thread)?;
                Ok(Thread {
                    orders: Some(orders),
                    handle: Some(handle),
                })
            })
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { threads, replicas })
    }

    /// Has every replica do what `work` has for it, in their order, and waits for all of them.
    /// Kernels have no deadline; a thread that dies is noticed.
    fn run(&self, work: impl Iterator<Item = Task>) -> Result<(), TrainError> {
        let (reply, replies) = channel();
        let mut lost = false;
        for ((index, replica), task) in self.replicas.clone().enumerate().zip(work) {
            let order = Order {
                slot: index / self.threads.len(),
                replica: ReplicaId(replica),
                task,
                reply: reply.clone(),
            };
            let thread = &self.threads[index % self.threads.len()];
            lost |= thread
                .orders
                .as_ref()
                .is_none_or(|orders| orders.send(order).is_err());
        }
        // Each order holds a sender: once all are gone, everybody has answered or died.
        drop(reply);
        let mut answered = 0;
        let mut failure: Option<(ReplicaId, TorchError)> = None;
        for Reply { replica, result } in replies {
            answered += 1;
            let Err(source) = result else { continue };
            // The lowest replica's, so that the message doesn't depend on the threads' speed.
            if failure.as_ref().is_none_or(|(other, _)| replica < *other) {
                failure = Some((replica, source));
            }
        }
        match failure {
            Some((replica, source)) => Err(TrainError::Replica { replica, source }),
            None if lost || answered < self.replicas.len() => Err(TrainError::ThreadLost),
            None => Ok(()),
        }
    }

    /// The first half of an alternating step, or a whole simultaneous one.
    pub(super) fn begin(
        &self,
        weights: &Weights,
        work: Vec<(Batch, Vectors)>,
    ) -> Result<(), TrainError> {
        self.run(work.into_iter().map(|(batch, vectors)| Task::Begin {
            weights: weights.share(),
            batch,
            vectors,
        }))
    }

    /// The second half of an alternating step.
    pub(super) fn finish(&self, discriminator: &Tensor) -> Result<(), TrainError> {
        self.run(self.replicas.clone().map(|_| Task::Finish {
            discriminator: discriminator.shallow_clone(),
        }))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.orders = None;
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // A thread that panicked has been reported as lost.
                let _ = handle.join();
            }
        }
    }
}

/// A replica thread's life.
fn serve(game: &Game, inbox: &Receiver<Order>, slots: usize, intra_op: u32) {
    torch::set_threads(intra_op);
    let mut kept: Vec<Option<Fakes>> = (0..slots).map(|_| None).collect();
    while let Ok(order) = inbox.recv() {
        let Order {
            slot,
            replica,
            task,
            reply,
        } = order;
        let kept = &mut kept[slot];
        // All that was lent is in `task` or in `kept`: what a panic leaves of it is dropped here.
        let result = torch::catch("compute a step", || perform(game, kept, task));
        // Nobody waits any more only if the trainer is gone.
        let _ = reply.send(Reply { replica, result });
    }
}

fn perform(game: &Game, kept: &mut Option<Fakes>, task: Task) -> Result<(), TorchError> {
    // What a step left behind whose second half never came is dropped here.
    let fakes = kept.take();
    match task {
        Task::Begin {
            weights,
            batch,
            vectors,
        } => match game.update {
            Update::Alternating => {
                *kept = Some(game.discriminate(&weights, &batch, vectors)?);
                Ok(())
            }
            Update::Simultaneous => game.both(&weights, &batch, &vectors),
        },
        Task::Finish { discriminator } => match fakes {
            Some(fakes) => game.deceive(fakes, &discriminator),
            None => Err(TorchError::Panic {
                doing: "finish a step",
                message: "its first half has not been computed".to_owned(),
            }),
        },
    }
}
