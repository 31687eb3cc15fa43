//! Between the protocol's messages and the machine's events and orders.

use crate::ids::{Generation, Rank, Step, WorkerId};
use crate::membership::balance::Pace;
use crate::membership::{
    Assignment, Breakage, CheckpointRecord, Close, DeviceKind, Facts, Finish, Forming, Halt, Order,
    Outcome, Seat, Standing, Word,
};
use crate::plan::{EpochPlan, Span};
use crate::proto;
use prost::Message;
use prost::bytes::Bytes;
use proto::coordinator_message::Kind as ToWorker;
use proto::worker_message::Kind as FromWorker;
use std::ops::Range;
use std::time::Duration;

/// The protocol that this program speaks.
pub(super) const PROTOCOL: &str = "ganglion.v1";

/// What a worker said, for the machine; and the records of its steps, for the log.
pub(super) struct Heard {
    pub(super) word: Word,
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
    #[error("`{0}` has {1} bytes, and at most {WORDS} are taken")]
    Long(&'static str, usize),
    #[error("it holds records of {0} steps, and at most {RECORDS} are taken")]
    Records(usize),
}

/// The longest text of a message, bytes: the end of a log, or a chain of causes.
const WORDS: usize = 16 << 10;

/// Records that one message may hold: twice what a worker remembers.
pub(super) const RECORDS: usize = 1024;

/// Refuses text that nobody would write.
pub(super) fn check_words<'a>(
    words: impl IntoIterator<Item = (&'static str, &'a str)>,
) -> Result<(), Malformed> {
    let mut long = words.into_iter().filter(|(_, text)| text.len() > WORDS);
    match long.next() {
        Some((field, text)) => Err(Malformed::Long(field, text.len())),
        None => Ok(()),
    }
}

/// What a message says in words.
fn words(message: &FromWorker) -> Vec<(&'static str, &str)> {
    match message {
        FromWorker::Hello(hello) => {
            let mut words = vec![
                ("protocol", hello.protocol.as_str()),
                ("version", &hello.version),
                ("incarnation", &hello.incarnation),
                ("host", &hello.host),
                ("collective", &hello.collective),
                ("job_id", &hello.job_id),
            ];
            if let Some(device) = &hello.device {
                words.extend([
                    ("kind", device.kind.as_str()),
                    ("model", &device.model),
                    ("libtorch", &device.libtorch),
                ]);
            }
            words
        }
        FromWorker::Ready(ready) => vec![("data_digest", ready.data_digest.as_str())],
        FromWorker::CheckpointWritten(written) => vec![
            ("path", written.path.as_str()),
            ("digest", &written.digest),
            ("error", &written.error),
        ],
        FromWorker::Evaluated(evaluated) => vec![("summary", evaluated.summary.as_str())],
        FromWorker::CollectiveFailed(failed) => vec![("reason", failed.reason.as_str())],
        FromWorker::Finished(finished) => vec![("detail", finished.detail.as_str())],
        FromWorker::Formed(_)
        | FromWorker::Progress(_)
        | FromWorker::Paused(_)
        | FromWorker::Leaving(_)
        | FromWorker::Heartbeat(_) => Vec::new(),
    }
}

pub(super) fn hear(message: proto::WorkerMessage) -> Result<Heard, Malformed> {
    let mut records = Vec::new();
    if let Some(kind) = &message.kind {
        check_words(words(kind))?;
    }
    let word = match message.kind.ok_or(Malformed::Empty)? {
        FromWorker::Hello(hello) => {
            let standing = Standing {
                generation: Generation(hello.generation),
                within: hello.within,
                step: Step(hello.step),
            };
            Word::Hello(facts(hello)?, standing)
        }
        FromWorker::Ready(ready) => Word::Ready(ready.data_digest, Step(ready.step)),
        FromWorker::Formed(formed) => {
            let forming = Forming {
                abort: seconds(formed.abort_seconds),
                connect: seconds(formed.connect_seconds),
                heal: seconds(formed.heal_seconds),
            };
            Word::Formed(Generation(formed.generation), Step(formed.step), forming)
        }
        FromWorker::Progress(progress) => {
            if progress.records.len() > RECORDS {
                return Err(Malformed::Records(progress.records.len()));
            }
            records = progress.records;
            Word::Progress(Generation(progress.generation), Step(progress.step))
        }
        FromWorker::CheckpointWritten(written) => {
            let (generation, step) = (Generation(written.generation), Step(written.step));
            if written.error.is_empty() {
                let checkpoint = CheckpointRecord {
                    step,
                    path: written.path,
                    digest: written.digest,
                };
                Word::CheckpointWritten(generation, checkpoint)
            } else {
                Word::CheckpointFailed(generation, step, written.error)
            }
        }
        FromWorker::Evaluated(evaluated) => Word::Evaluated(
            Generation(evaluated.generation),
            Step(evaluated.step),
            evaluated.summary,
        ),
        FromWorker::Paused(paused) => {
            Word::Paused(Generation(paused.generation), Step(paused.step))
        }
        FromWorker::CollectiveFailed(failed) => Word::CollectiveFailed(
            Generation(failed.generation),
            Step(failed.step),
            Breakage {
                reason: failed.reason,
                suspect: failed.suspect.map(Rank),
            },
        ),
        FromWorker::Leaving(leaving) => Word::Leaving(Generation(leaving.generation)),
        FromWorker::Finished(finished) => {
            let finish = match finished.cause() {
                proto::FinishCause::Complete => Finish::Complete,
                proto::FinishCause::Stopped => Finish::Stopped,
                proto::FinishCause::Left => Finish::Left,
                proto::FinishCause::Halted => Finish::Halted(Halt {
                    reason: finished.detail,
                    sound: Step(finished.sound),
                }),
                proto::FinishCause::Failed | proto::FinishCause::Unspecified => {
                    Finish::Failed(finished.detail)
                }
            };
            Word::Finished(Generation(finished.generation), Step(finished.step), finish)
        }
        FromWorker::Heartbeat(beat) => {
            let pace = (beat.compute_seconds > 0.0 && beat.hosted > 0).then(|| Pace {
                compute: seconds(beat.compute_seconds),
                hosted: beat.hosted,
            });
            Word::Heartbeat(Generation(beat.generation), Step(beat.step), pace)
        }
    };
    Ok(Heard { word, records })
}

/// A duration from the network: what is none counts as nothing.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn facts(hello: proto::Hello) -> Result<Facts, Malformed> {
    if hello.protocol != PROTOCOL {
        return Err(Malformed::Protocol(hello.protocol));
    }
    let device = hello.device.ok_or(Malformed::Lacks("device"))?;
    if hello.collective.is_empty() {
        return Err(Malformed::Lacks("collective"));
    }
    if hello.incarnation.is_empty() {
        return Err(Malformed::Lacks("incarnation"));
    }
    Ok(Facts {
        incarnation: hello.incarnation,
        job_id: hello.job_id,
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
    pub(super) total_steps: u64,
    /// The newest step whose record has arrived.
    pub(super) recorded: Step,
}

/// A generation's seats as all its workers are told them: encoded once, shared by every message.
pub(super) fn members(seats: &[Seat]) -> Bytes {
    let peers = seats.iter().map(peer).collect();
    Bytes::from(proto::Members { peers }.encode_to_vec())
}

/// The longest part of a list of members that one message carries, bytes: what a stream's buffers
/// hold anyway.
const PART: usize = 16 << 10;

/// The messages that go before an assignment whose list of members is long, and what is left of the
/// list for the assignment itself.
pub(super) fn members_parts(
    generation: Generation,
    mut members: Bytes,
) -> (Vec<proto::CoordinatorMessage>, Bytes) {
    let mut parts = Vec::new();
    while members.len() > PART {
        parts.push(message(ToWorker::MembersPart(proto::MembersPart {
            generation: generation.0,
            part: members.split_to(PART),
        })));
    }
    (parts, members)
}

/// The message for a seat in a generation.
pub(super) fn assignment(
    assignment: &Assignment,
    members: Bytes,
    secret: [u8; 32],
    work: proto::Work,
    context: &Context<'_>,
) -> proto::CoordinatorMessage {
    let closing = match assignment.close {
        None => proto::Closing::Unspecified,
        Some(Close::Stopped) => proto::Closing::Stopped,
        Some(Close::Left) => proto::Closing::Left,
    };
    message(ToWorker::Assignment(proto::Assignment {
        generation: assignment.generation.0,
        rank: assignment.rank.0,
        members,
        secret: secret.to_vec(),
        checkpoint: assignment.checkpoint.clone().map(from_checkpoint),
        total_steps: context.total_steps,
        work: Some(work),
        closing: closing.into(),
        recorded: context.recorded.0,
    }))
}

/// The message for an order that needs nothing but itself.
pub(super) fn tell(
    worker: WorkerId,
    order: Order,
    context: &Context<'_>,
) -> Option<proto::CoordinatorMessage> {
    let kind = match order {
        Order::Welcome { resumed } => ToWorker::Welcome(proto::Welcome {
            worker: worker.0,
            resumed,
            ..context.welcome.clone()
        }),
        Order::Refused { reason, permanent } => {
            ToWorker::Refused(proto::Refused { reason, permanent })
        }
        Order::Assignment(_) | Order::Work { .. } => return None,
        Order::Pause(generation) => ToWorker::Pause(proto::Pause {
            generation: generation.0,
        }),
        Order::Hold(generation, reason) => ToWorker::Hold(proto::Hold {
            generation: generation.0,
            reason,
        }),
        Order::Release => ToWorker::Release(proto::Release {}),
        Order::Stop { reason, drain } => ToWorker::Stop(proto::Stop { reason, drain }),
        Order::Acknowledged => ToWorker::Acknowledged(proto::Acknowledged {}),
        Order::Ended(outcome) => ToWorker::Ended(proto::Ended {
            // Coming back won't help.
            good: matches!(
                outcome,
                Outcome::Complete(_) | Outcome::Stopped(_) | Outcome::Halted(..)
            ),
            outcome: outcome.to_string(),
        }),
    };
    Some(message(kind))
}

pub(super) fn message(kind: ToWorker) -> proto::CoordinatorMessage {
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

fn from_checkpoint(checkpoint: CheckpointRecord) -> proto::FromCheckpoint {
    proto::FromCheckpoint {
        path: checkpoint.path,
        step: checkpoint.step.0,
        digest: checkpoint.digest,
    }
}

/// The spans of the replicas that one worker hosts.
pub(super) fn work<'a>(
    generation: Generation,
    plans: impl Iterator<Item = &'a EpochPlan>,
    hosted: &Range<u32>,
) -> proto::Work {
    let epochs = plans.map(|plan| proto::EpochWork {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_members_goes_in_parts_and_nothing_of_it_is_lost() {
        for length in [0, 1, PART, PART + 1, 3 * PART] {
            let list: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let (parts, rest) = members_parts(Generation(7), Bytes::from(list.clone()));
            let mut joined = Vec::new();
            for part in parts {
                let Some(ToWorker::MembersPart(part)) = part.kind else {
                    panic!("{part:?}");
                };
                assert_eq!((part.generation, part.part.len()), (7, PART));
                joined.extend_from_slice(&part.part);
            }
            assert!(rest.len() <= PART);
            joined.extend_from_slice(&rest);
            assert_eq!(joined, list);
        }
    }
}
