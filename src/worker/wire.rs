//! Between the protocol's messages and what the worker does with them.

use crate::collective::{Group, GroupPeer};
use crate::guard::Verdict;
use crate::ids::{Epoch, Generation, Rank, ReplicaId, Step};
use crate::membership::{Breakage, CheckpointRecord, Close, DeviceKind, Finish, Forming, Standing};
use crate::plan::Span;
use crate::proto;
use prost::Message;
use proto::worker_message::Kind;
use std::ops::Range;
use std::time::Duration;

/// Why a message of the coordinator can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("the coordinator's message is empty")]
    Empty,
    #[error("the coordinator's message lacks `{0}`")]
    Lacks(&'static str),
    #[error("the coordinator's secret has {0} bytes; expected 32")]
    Secret(usize),
    #[error("the coordinator sent a part of a list that nobody put together")]
    Part,
    #[error("the coordinator's list of members can't be read: {0}")]
    Members(prost::DecodeError),
    #[error("the coordinator's replica ranges don't fit 32 bits")]
    Replicas,
    #[error("the coordinator wants a generation to close in a way that has no name here: {0}")]
    Closing(i32),
    #[error("the coordinator's heartbeat_seconds is {0}; expected a positive number")]
    Heartbeat(String),
}

/// One generation, as this worker is to take part in it.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    pub(super) group: Group,
    /// What to start from if nobody holds a newer state.
    pub(super) checkpoint: Option<CheckpointRecord>,
    pub(super) total: Step,
    /// Do no step: save the newest state, and finish like this.
    pub(super) close: Option<Close>,
    /// The newest step whose record the coordinator has.
    pub(super) recorded: Step,
    pub(super) work: Vec<EpochWork>,
}

impl Assignment {
    pub(super) fn generation(&self) -> Generation {
        self.group.generation
    }

    /// The replicas that this worker hosts.
    pub(super) fn hosted(&self) -> Range<u32> {
        let peer = self.group.peers.get(self.group.rank.0 as usize);
        peer.map_or(0..0, |peer| peer.replicas.clone())
    }
}

/// The spans of one epoch that this worker's replicas read.
pub(super) type EpochWork = (Epoch, Vec<(ReplicaId, Vec<Span>)>);

pub(super) fn assignment(message: proto::Assignment) -> Result<Assignment, Malformed> {
    let secret: [u8; 32] = message
        .secret
        .as_slice()
        .try_into()
        .map_err(|_| Malformed::Secret(message.secret.len()))?;
    let members = proto::Members::decode(message.members).map_err(Malformed::Members)?;
    let mut peers = Vec::with_capacity(members.peers.len());
    for peer in members.peers {
        let end = peer.first_replica.checked_add(peer.replicas);
        peers.push(GroupPeer {
            address: peer.address,
            replicas: peer.first_replica..end.ok_or(Malformed::Replicas)?,
        });
    }
    let close = match proto::Closing::try_from(message.closing) {
        Ok(proto::Closing::Unspecified) => None,
        Ok(proto::Closing::Stopped) => Some(Close::Stopped),
        Ok(proto::Closing::Left) => Some(Close::Left),
        Err(_) => return Err(Malformed::Closing(message.closing)),
    };
    let checkpoint = message.checkpoint.map(|from| CheckpointRecord {
        step: Step(from.step),
        path: from.path,
        digest: from.digest,
    });
    Ok(Assignment {
        group: Group {
            generation: Generation(message.generation),
            rank: Rank(message.rank),
            replicas: peers.last().map_or(0, |peer: &GroupPeer| peer.replicas.end),
            peers,
            secret,
        },
        checkpoint,
        total: Step(message.total_steps),
        close,
        recorded: Step(message.recorded),
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

/// How often the coordinator wants a sign of life, within what makes sense.
pub(super) fn heartbeat(seconds: f64) -> Result<Duration, Malformed> {
    let length = Duration::try_from_secs_f64(seconds).ok();
    let length = length.filter(|length| !length.is_zero());
    length
        .map(|length| length.clamp(Duration::from_millis(10), Duration::from_secs(60)))
        .ok_or_else(|| Malformed::Heartbeat(seconds.to_string()))
}

pub(super) fn device(device: &DeviceKind) -> proto::Device {
    proto::Device {
        kind: device.kind.clone(),
        model: device.model.clone(),
        libtorch: device.libtorch.clone(),
    }
}

/// `hello`, with where this worker stands now.
pub(super) fn hello(hello: &proto::Hello, standing: Standing) -> Kind {
    Kind::Hello(proto::Hello {
        generation: standing.generation.0,
        within: standing.within,
        step: standing.step.0,
        ..hello.clone()
    })
}

pub(super) fn ready(data_digest: String, step: Step) -> Kind {
    Kind::Ready(proto::Ready {
        data_digest,
        step: step.0,
    })
}

pub(super) fn formed(generation: Generation, step: Step, forming: Forming) -> Kind {
    Kind::Formed(proto::Formed {
        generation: generation.0,
        step: step.0,
        abort_seconds: forming.abort.as_secs_f64(),
        connect_seconds: forming.connect.as_secs_f64(),
        heal_seconds: forming.heal.as_secs_f64(),
    })
}

pub(super) fn paused(generation: Generation, step: Step) -> Kind {
    Kind::Paused(proto::Paused {
        generation: generation.0,
        step: step.0,
    })
}

pub(super) fn leaving(generation: Generation) -> Kind {
    Kind::Leaving(proto::Leaving {
        generation: generation.0,
    })
}

pub(super) fn collective_failed(generation: Generation, step: Step, breakage: Breakage) -> Kind {
    Kind::CollectiveFailed(proto::CollectiveFailed {
        generation: generation.0,
        step: step.0,
        reason: breakage.reason,
        suspect: breakage.suspect.map(|rank| rank.0),
    })
}

/// What the guard has said of a step, if anything.
pub(super) fn guarded(verdict: &Verdict) -> Option<proto::GuardRecord> {
    let finding = verdict.finding()?;
    let mut said = proto::GuardRecord {
        trouble: u32::from(finding.trouble.number()),
        figure: finding.figure,
        ..proto::GuardRecord::default()
    };
    let kind = match *verdict {
        Verdict::Keep => return None,
        Verdict::Warn(_) => proto::GuardVerdict::Warn,
        Verdict::Skip(_) => proto::GuardVerdict::Skip,
        Verdict::RollBack { to, number, .. } => {
            said.to = to.0;
            said.rollbacks = number;
            proto::GuardVerdict::RollBack
        }
        Verdict::Stop {
            rollbacks, in_vain, ..
        } => {
            said.rollbacks = rollbacks;
            said.in_vain = in_vain;
            proto::GuardVerdict::Stop
        }
    };
    said.verdict = kind.into();
    Some(said)
}

pub(super) fn finished(generation: Generation, step: Step, finish: Finish) -> Kind {
    let mut sound = 0;
    let (cause, detail) = match finish {
        Finish::Complete => (proto::FinishCause::Complete, String::new()),
        Finish::Stopped => (proto::FinishCause::Stopped, String::new()),
        Finish::Left => (proto::FinishCause::Left, String::new()),
        Finish::Halted(halt) => {
            sound = halt.sound.0;
            (proto::FinishCause::Halted, halt.reason)
        }
        Finish::Failed(detail) => (proto::FinishCause::Failed, detail),
    };
    Kind::Finished(proto::Finished {
        generation: generation.0,
        step: step.0,
        cause: cause.into(),
        detail,
        sound,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(first_replica: u32, replicas: u32) -> proto::Peer {
        proto::Peer {
            worker: 7,
            address: format!("10.0.0.{first_replica}:1"),
            first_replica,
            replicas,
        }
    }

    fn message() -> proto::Assignment {
        let peers = vec![peer(0, 3), peer(3, 1)];
        proto::Assignment {
            generation: 5,
            rank: 1,
            members: proto::Members { peers }.encode_to_vec().into(),
            secret: vec![1; 32],
            checkpoint: None,
            total_steps: 80,
            work: Some(proto::Work::default()),
            closing: 0,
            recorded: 17,
        }
    }

    #[test]
    fn an_assignment_says_who_is_who_and_what_there_is_to_do() {
        let plain = assignment(message()).unwrap();
        assert_eq!(plain.generation(), Generation(5));
        assert_eq!((plain.hosted(), plain.group.replicas), (3..4, 4));
        assert_eq!(plain.group.check(), Ok(()));
        assert_eq!(plain.group.peers[0].address, "10.0.0.0:1");
        assert_eq!((plain.total, plain.recorded), (Step(80), Step(17)));
        assert_eq!((plain.checkpoint, plain.close), (None, None));

        let mut closing = message();
        closing.closing = proto::Closing::Left.into();
        closing.checkpoint = Some(proto::FromCheckpoint {
            path: "checkpoints/step-00000004".to_owned(),
            step: 4,
            digest: "ab".to_owned(),
        });
        let closing = assignment(closing).unwrap();
        assert_eq!(closing.close, Some(Close::Left));
        assert_eq!(closing.checkpoint.unwrap().step, Step(4));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_guess() {
        let spoilt = |spoil: fn(&mut proto::Assignment)| {
            let mut message = message();
            spoil(&mut message);
            assignment(message).unwrap_err()
        };
        assert_eq!(
            spoilt(|m| m.secret.truncate(31)),
            Malformed::Secret(31),
            "a secret that is too short"
        );
        assert_eq!(spoilt(|m| m.work = None), Malformed::Lacks("work"));
        assert_eq!(spoilt(|m| m.closing = 9), Malformed::Closing(9));
        let cut = spoilt(|m| m.members = m.members.slice(..5));
        assert!(matches!(cut, Malformed::Members(_)), "{cut:?}");
        let wide = spoilt(|m| {
            let peers = vec![peer(u32::MAX, 2)];
            m.members = proto::Members { peers }.encode_to_vec().into();
        });
        assert_eq!(wide, Malformed::Replicas);
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(heartbeat(seconds).is_err(), "{seconds}");
        }
        assert_eq!(heartbeat(1e-9), Ok(Duration::from_millis(10)));
    }
}
