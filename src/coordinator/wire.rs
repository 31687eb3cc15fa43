//! Between the protocol's messages and the machine's events and orders.

use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{
    CheckpointRecord, DeviceKind, Event, Facts, Finish, Order, Outcome, Seat, Source,
};
use crate::plan::{EpochPlan, Span};
use crate::proto;
use proto::coordinator_message::Kind as ToWorker;
use proto::worker_message::Kind as FromWorker;
use std::ops::Range;

/// The protocol that this program speaks.
pub(super) const PROTOCOL: &str = "ganglion.v1";

/// What a worker said, for the machine; and the records of its steps, for the log.
pub(super) struct Heard {
    pub(super) event: Event,
    pub(super) records: Vec<proto::StepRecord>,
}

/// Why a message can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("the message is empty")]
    Empty,
    #[error("it lacks `{0}`")]
    Lacks(&'static str),
    #[error(
        "it speaks protocol {0:?}, this coordinator {PROTOCOL:?}; use the same version of both programs"
    )]
    Protocol(String),
}

pub(super) fn hear(worker: WorkerId, message: proto::WorkerMessage) -> Result<Heard, Malformed> {
    let mut records = Vec::new();
    let event = match message.kind.ok_or(Malformed::Empty)? {
        FromWorker::Hello(hello) => Event::Hello(worker, facts(hello)?),
        FromWorker::Ready(ready) => Event::Ready(worker, ready.data_digest),
        FromWorker::Formed(formed) => {
            Event::Formed(worker, Generation(formed.generation), Step(formed.step))
        }
        FromWorker::Progress(progress) => {
            records = progress.records;
            Event::Progress(worker, Generation(progress.generation), Step(progress.step))
        }
        FromWorker::CheckpointWritten(written) => {
            let (generation, step) = (Generation(written.generation), Step(written.step));
            if written.error.is_empty() {
                let checkpoint = CheckpointRecord {
                    step,
                    path: written.path,
                    digest: written.digest,
                };
                Event::CheckpointWritten(worker, generation, checkpoint)
            } else {
                Event::CheckpointFailed(worker, generation, step, written.error)
            }
        }
        FromWorker::CollectiveFailed(failed) => Event::CollectiveFailed(
            worker,
            Generation(failed.generation),
            Step(failed.step),
            failed.reason,
        ),
        FromWorker::Leaving(leaving) => Event::Leaving(worker, Generation(leaving.generation)),
        FromWorker::Finished(finished) => {
            let finish = match finished.cause() {
                proto::FinishCause::Complete => Finish::Complete,
                proto::FinishCause::Stopped => Finish::Stopped,
                proto::FinishCause::Left => Finish::Left,
                proto::FinishCause::Failed | proto::FinishCause::Unspecified => {
                    Finish::Failed(finished.detail)
                }
            };
            Event::Finished(
                worker,
                Generation(finished.generation),
                Step(finished.step),
                finish,
            )
        }
        FromWorker::Heartbeat(_) => Event::Heartbeat(worker),
    };
    Ok(Heard { event, records })
}

fn facts(hello: proto::Hello) -> Result<Facts, Malformed> {
    if hello.protocol != PROTOCOL {
        return Err(Malformed::Protocol(hello.protocol));
    }
    let device = hello.device.ok_or(Malformed::Lacks("device"))?;
    if hello.collective.is_empty() {
        return Err(Malformed::Lacks("collective"));
    }
    Ok(Facts {
        incarnation: hello.incarnation,
        host: hello.host,
        pid: hello.pid,
        collective: hello.collective,
        device: DeviceKind {
            kind: device.kind,
            model: device.model,
            libtorch: device.libtorch,
        },
        cores: hello.cores.max(1),
    })
}

/// What an order needs to become a message, beyond what the machine knows.
pub(super) struct Context<'a> {
    pub(super) welcome: &'a proto::Welcome,
    pub(super) secret: [u8; 32],
    pub(super) total_steps: u64,
    pub(super) plans: &'a [EpochPlan],
    pub(super) hosted: Range<u32>,
}

pub(super) fn tell(
    worker: WorkerId,
    order: Order,
    context: Context<'_>,
) -> proto::CoordinatorMessage {
    let kind = match order {
        Order::Welcome => ToWorker::Welcome(proto::Welcome {
            worker: worker.0,
            ..context.welcome.clone()
        }),
        Order::Refused { reason, permanent } => {
            ToWorker::Refused(proto::Refused { reason, permanent })
        }
        Order::Assignment {
            generation,
            rank,
            seats,
            source,
            epochs: _,
        } => ToWorker::Assignment(proto::Assignment {
            generation: generation.0,
            rank: rank.0,
            peers: seats.iter().map(peer).collect(),
            secret: context.secret.to_vec(),
            source: Some(state_source(source)),
            total_steps: context.total_steps,
            work: Some(work(generation, context.plans, context.hosted)),
        }),
        Order::Work {
            generation,
            epochs: _,
        } => ToWorker::Work(work(generation, context.plans, context.hosted)),
        Order::Stop { reason, drain } => ToWorker::Stop(proto::Stop { reason, drain }),
        Order::Acknowledged => ToWorker::Acknowledged(proto::Acknowledged {}),
        Order::Ended(outcome) => ToWorker::Ended(proto::Ended {
            good: matches!(outcome, Outcome::Complete(_) | Outcome::Stopped(_)),
            outcome: outcome.to_string(),
        }),
    };
    proto::CoordinatorMessage { kind: Some(kind) }
}

fn peer(seat: &Seat) -> proto::Peer {
    proto::Peer {
        worker: seat.worker.0,
        address: seat.address.clone(),
        first_replica: seat.replicas.start,
        replicas: seat.replicas.len() as u32,
    }
}

fn state_source(source: Source) -> proto::StateSource {
    use proto::state_source::Kind;
    let kind = match source {
        Source::Fresh => Kind::Fresh(proto::Fresh {}),
        Source::Checkpoint(checkpoint) => Kind::Checkpoint(proto::FromCheckpoint {
            path: checkpoint.path,
            step: checkpoint.step.0,
            digest: checkpoint.digest,
        }),
    };
    proto::StateSource { kind: Some(kind) }
}

/// The spans of the replicas that one worker hosts.
fn work(generation: Generation, plans: &[EpochPlan], hosted: Range<u32>) -> proto::Work {
    let epochs = plans.iter().map(|plan| proto::EpochWork {
        epoch: plan.epoch.0,
        replicas: hosted
            .clone()
            .filter_map(|replica| {
                let spans = plan.replicas.get(replica as usize)?;
                Some(proto::ReplicaSpans {
                    replica,
                    spans: spans.iter().map(span).collect(),
                })
            })
            .collect(),
    });
    proto::Work {
        generation: generation.0,
        epochs: epochs.collect(),
    }
}

fn span(span: &Span) -> proto::Span {
    proto::Span {
        shard: span.shard,
        start: span.start,
        len: span.len,
    }
}
