//! The threads that replicas run on.
//!
//! A replica stays on one thread for both halves of a step, for the graph of its fakes lives there.
//! Every thread computes with the job's number of intra-op threads, so that how many replicas run
//! side by side changes no bit.

use super::inputs::Weights;
use super::step::{Answer, Fakes, Game};
use super::vectors::Vectors;
use super::{TrainError, now};
use crate::config::Update;
use crate::data::Batch;
use crate::ids::ReplicaId;
use crate::torch::{self, TorchError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;
use tch::Tensor;

/// What a replica is to do.
enum Task {
    /// The first half of a step.
    Begin {
        weights: Weights,
        batch: Arc<Batch>,
        round: u32,
        /// The data set, if it lies on the device.
        cache: Option<Tensor>,
        vectors: Vectors,
    },
    /// The second half of an alternating step, against this D.
    Finish { discriminator: Tensor },
    /// The second half of a simultaneous one.
    Respond,
    /// All of a further round of G.
    Again {
        weights: Weights,
        batch: Arc<Batch>,
        round: u32,
        cache: Option<Tensor>,
        vectors: Vectors,
    },
}

/// What the first half of a step leaves for the second.
#[derive(Debug)]
pub(super) enum Half {
    Alternating(Fakes),
    Simultaneous(Answer),
}

enum Order {
    /// A task, for the replica in `slot` of its thread.
    Compute {
        slot: usize,
        replica: ReplicaId,
        task: Task,
        reply: Sender<Reply>,
    },
    /// Drop what unfinished steps left, and say so.
    Forget(Sender<()>),
}

/// How it ended. What the task lent has been dropped by then.
struct Reply {
    replica: ReplicaId,
    result: Result<(), TorchError>,
    at: Instant,
}

/// Work that has been handed out, and is to be waited for.
#[must_use = "replicas work on what they were lent until `Pool::wait` returns"]
pub(super) struct Started {
    replies: Receiver<Reply>,
    /// Whether a thread was gone already.
    lost: bool,
}

/// The hosted replicas on their threads.
#[derive(Debug)]
pub(super) struct Pool {
    threads: Vec<Thread>,
    replicas: Range<u32>,
}

#[derive(Debug)]
struct Thread {
    /// None once it is being dropped, which ends the thread.
    orders: Option<Sender<Order>>,
    handle: Option<JoinHandle<()>>,
}

impl Pool {
    /// No threads, and nothing to do.
    pub(super) fn idle() -> Self {
        Self {
            threads: Vec::new(),
            replicas: 0..0,
        }
    }

    /// Has `threads` threads of `intra_op` intra-op threads each work for `replicas` from now on.
    /// Threads that are there already stay. After an error it is as before.
    ///
    /// No vector that was lent earlier is held afterwards.
    pub(super) fn host(
        &mut self,
        game: &Arc<Game>,
        replicas: Range<u32>,
        threads: usize,
        intra_op: u32,
    ) -> Result<(), TrainError> {
        // Threads that don't answer are dead; what replaces them has no trace of them.
        let kept = if self.forget() {
            self.threads.len().min(threads)
        } else {
            0
        };
        let more = (kept..threads)
            .map(|index| Thread::start(index, game, intra_op))
            .collect::<Result<Vec<_>, _>>()?;
        self.threads.truncate(kept);
        self.threads.extend(more);
        self.replicas = replicas;
        Ok(())
    }

    /// Drops what steps have left whose second half never came: their replicas may move to other
    /// threads, and their vectors to other replicas. Says whether all threads did.
    fn forget(&self) -> bool {
        let (done, answers) = channel();
        for thread in &self.threads {
            thread.order(Order::Forget(done.clone()));
        }
        drop(done);
        answers.iter().count() == self.threads.len()
    }

    /// Has every replica do what `work` has for it, in their order, and waits for all of them.
    fn run(&self, work: impl Iterator<Item = Task>) -> Result<(), TrainError> {
        self.wait(self.start(work)).map(drop)
    }

    /// Has every replica do what `work` has for it, in their order.
    fn start(&self, work: impl Iterator<Item = Task>) -> Started {
        let (reply, replies) = channel();
        let mut lost = false;
        for ((index, replica), task) in self.replicas.clone().enumerate().zip(work) {
            let order = Order::Compute {
                slot: index / self.threads.len(),
                replica: ReplicaId(replica),
                task,
                reply: reply.clone(),
            };
            let thread = &self.threads[index % self.threads.len()];
            lost |= !thread.order(order);
        }
        // Each order holds a sender: once all are gone, everybody has answered or died.
        drop(reply);
        Started { replies, lost }
    }

    /// Waits for all replicas, and says when the last one was done. Kernels have no deadline; a
    /// thread that dies is noticed.
    pub(super) fn wait(&self, started: Started) -> Result<Option<Instant>, TrainError> {
        let Started { replies, lost } = started;
        let mut answered = 0;
        let mut last = None;
        let mut failure: Option<(ReplicaId, TorchError)> = None;
        for Reply {
            replica,
            result,
            at,
        } in replies
        {
            answered += 1;
            last = last.max(Some(at));
            let Err(source) = result else { continue };
            // The lowest replica's, so that the message doesn't depend on the threads' speed.
            if failure.as_ref().is_none_or(|(other, _)| replica < *other) {
                failure = Some((replica, source));
            }
        }
        match failure {
            Some((replica, source)) => Err(TrainError::Replica { replica, source }),
            None if lost || answered < self.replicas.len() => Err(TrainError::ThreadLost),
            None => Ok(last),
        }
    }

    /// A round of D: the first half of a step, or the whole of a round whose fakes G doesn't get.
    pub(super) fn begin(
        &self,
        weights: &Weights,
        work: Vec<(Arc<Batch>, Vectors)>,
        round: u32,
        cache: Option<&Tensor>,
    ) -> Result<(), TrainError> {
        self.run(work.into_iter().map(|(batch, vectors)| Task::Begin {
            weights: weights.share(),
            batch,
            round,
            cache: cache.map(Tensor::shallow_clone),
            vectors,
        }))
    }

    /// A further round of G, after D's.
    pub(super) fn again(
        &self,
        weights: &Weights,
        work: Vec<(Arc<Batch>, Vectors)>,
        round: u32,
        cache: Option<&Tensor>,
    ) -> Result<(), TrainError> {
        self.run(work.into_iter().map(|(batch, vectors)| Task::Again {
            weights: weights.share(),
            batch,
            round,
            cache: cache.map(Tensor::shallow_clone),
            vectors,
        }))
    }

    /// The second half of an alternating step.
    pub(super) fn finish(&self, discriminator: &Tensor) -> Result<(), TrainError> {
        self.run(self.replicas.clone().map(|_| Task::Finish {
            discriminator: discriminator.shallow_clone(),
        }))
    }

    /// The second half of a simultaneous step, begun: D's vectors are the caller's again, and G's
    /// are filled when [`wait`](Self::wait) returns.
    pub(super) fn respond(&self) -> Started {
        self.start(self.replicas.clone().map(|_| Task::Respond))
    }
}

impl Thread {
    fn start(index: usize, game: &Arc<Game>, intra_op: u32) -> Result<Self, TrainError> {
        let (orders, inbox) = channel();
        let game = Arc::clone(game);
        let handle = std::thread::Builder::new()
            .name(format!("replicas-{index}"))
            .spawn(move || serve(&game, &inbox, intra_op))
            .map_err(TrainError::Thread)?;
        Ok(Self {
            orders: Some(orders),
            handle: Some(handle),
        })
    }

    /// Gives an order; false if the thread is gone.
    fn order(&self, order: Order) -> bool {
        self.orders
            .as_ref()
            .is_some_and(|orders| orders.send(order).is_ok())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(handle) = self.handle.take() {
            // A thread that panicked has been reported as lost.
            let _ = handle.join();
        }
    }
}

/// A replica thread's life.
fn serve(game: &Game, inbox: &Receiver<Order>, intra_op: u32) {
    torch::set_threads(intra_op);
    let mut kept: Vec<Option<Half>> = Vec::new();
    while let Ok(order) = inbox.recv() {
        let (slot, replica, task, reply) = match order {
            Order::Compute {
                slot,
                replica,
                task,
                reply,
            } => (slot, replica, task, reply),
            Order::Forget(done) => {
                kept.clear();
                let _ = done.send(());
                continue;
            }
        };
        if kept.len() <= slot {
            kept.resize_with(slot + 1, || None);
        }
        let kept = &mut kept[slot];
        // All that was lent is in `task` or in `kept`: what a panic leaves of it is dropped here.
        let result = torch::catch("compute a step", || perform(game, kept, task));
        // Nobody waits any more only if the trainer is gone.
        let _ = reply.send(Reply {
            replica,
            result,
            at: now(),
        });
    }
}

fn perform(game: &Game, kept: &mut Option<Half>, task: Task) -> Result<(), TorchError> {
    // What a step left behind whose second half never came is dropped here.
    let half = kept.take();
    match (task, half) {
        (
            Task::Begin {
                weights,
                batch,
                round,
                cache,
                vectors,
            },
            _,
        ) => {
            let inputs = game.inputs(&batch, round, cache.as_ref())?;
            *kept = Some(match game.update {
                Update::Alternating => {
                    Half::Alternating(game.discriminate(&weights, &inputs, vectors)?)
                }
                Update::Simultaneous => {
                    Half::Simultaneous(game.oppose(&weights, &inputs, vectors)?)
                }
            });
            Ok(())
        }
        (
            Task::Again {
                weights,
                batch,
                round,
                cache,
                vectors,
            },
            _,
        ) => {
            let inputs = game.inputs(&batch, round, cache.as_ref())?;
            game.again(&weights, &inputs, vectors.generator)
        }
        (Task::Finish { discriminator }, Some(Half::Alternating(fakes))) => {
            game.deceive(fakes, &discriminator)
        }
        (Task::Respond, Some(Half::Simultaneous(answer))) => game.respond(answer),
        (Task::Finish { .. } | Task::Respond, _) => Err(TorchError::Panic {
            doing: "finish a step",
            message: "its first half has not been computed".to_owned(),
        }),
    }
}
