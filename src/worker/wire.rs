//! Between the protocol's messages and what the worker does with them.

use crate::collective::{Group, GroupPeer};
use crate::ids::{Epoch, Generation, Rank, ReplicaId, Step};
use crate::membership::{DeviceKind, Finish};
use crate::plan::Span;
use crate::proto;
use proto::worker_message::Kind;
use std::ops::Range;

/// Why a message of the coordinator can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("the coordinator's message is empty")]
    Empty,
    #[error("the coordinator's message lacks `{0}`")]
    Lacks(&'static str),
    #[error("the coordinator's secret has {0} bytes; expected 32")]
    Secret(usize),
    #[error("the coordinator's replica ranges don't fit 32 bits")]
    Replicas,
}

/// One generation, as this worker is to take part in it.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    pub(super) group: Group,
    pub(super) source: Source,
    pub(super) total_steps: u64,
    pub(super) work: Vec<EpochWork>,
}

impl Assignment {
    /// The replicas that this worker hosts.
    pub(super) fn hosted(&self) -> Range<u32> {
        let peer = self.group.peers.get(self.group.rank.0 as usize);
        peer.map_or(0..0, |peer| peer.replicas.clone())
    }
}

/// Where the state comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Fresh,
    Checkpoint {
        path: String,
        step: Step,
        digest: String,
    },
}

/// The spans of one epoch that this worker's replicas read.
pub(super) type EpochWork = (Epoch, Vec<(ReplicaId, Vec<Span>)>);

pub(super) fn assignment(message: proto::Assignment) -> Result<Assignment, Malformed> {
    let secret: [u8; 32] = message
        .secret
        .as_slice()
        .try_into()
        .map_err(|_| Malformed::Secret(message.secret.len()))?;
    let mut peers = Vec::with_capacity(message.peers.len());
    for peer in message.peers {
        let end = peer.first_replica.checked_add(peer.replicas);
        peers.push(GroupPeer {
            address: peer.address,
            replicas: peer.first_replica..end.ok_or(Malformed::Replicas)?,
        });
    }
    let source = message.source.and_then(|source| source.kind);
    let source = match source.ok_or(Malformed::Lacks("source"))? {
        proto::state_source::Kind::Fresh(_) => Source::Fresh,
        proto::state_source::Kind::Checkpoint(checkpoint) => Source::Checkpoint {
            path: checkpoint.path,
            step: Step(checkpoint.step),
            digest: checkpoint.digest,
        },
    };
    Ok(Assignment {
        group: Group {
            generation: Generation(message.generation),
            rank: Rank(message.rank),
            replicas: peers.last().map_or(0, |peer: &GroupPeer| peer.replicas.end),
            peers,
            secret,
        },
        source,
        total_steps: message.total_steps,
        work: work(message.work.ok_or(Malformed::Lacks("work"))?),
    })
}

pub(super) fn work(message: proto::Work) -> Vec<EpochWork> {
    let spans = |spans: Vec<proto::Span>| {
        let each = spans.into_iter().map(|span| Span {
            shard: span.shard,
            start: span.start,
            len: span.len,
        });
        each.collect()
    };
    let epochs = message.epochs.into_iter().map(|epoch| {
        let replicas = epoch
            .replicas
            .into_iter()
            .map(|replica| (ReplicaId(replica.replica), spans(replica.spans)));
        (Epoch(epoch.epoch), replicas.collect())
    });
    epochs.collect()
}

pub(super) fn message(kind: Kind) -> proto::WorkerMessage {
    proto::WorkerMessage { kind: Some(kind) }
}

pub(super) fn device(device: &DeviceKind) -> proto::Device {
    proto::Device {
        kind: device.kind.clone(),
        model: device.model.clone(),
        libtorch: device.libtorch.clone(),
    }
}

pub(super) fn finished(generation: Generation, step: Step, finish: Finish) -> proto::WorkerMessage {
    let (cause, detail) = match finish {
        Finish::Complete => (proto::FinishCause::Complete, String::new()),
        Finish::Stopped => (proto::FinishCause::Stopped, String::new()),
        Finish::Left => (proto::FinishCause::Left, String::new()),
        Finish::Failed(detail) => (proto::FinishCause::Failed, detail),
    };
    message(Kind::Finished(proto::Finished {
        generation: generation.0,
        step: step.0,
        cause: cause.into(),
        detail,
    }))
}

pub(super) fn checkpoint_failed(generation: Generation, step: Step, error: &str) -> Kind {
    Kind::CheckpointWritten(proto::CheckpointWritten {
        generation: generation.0,
        step: step.0,
        error: error.to_owned(),
        ..Default::default()
    })
}
