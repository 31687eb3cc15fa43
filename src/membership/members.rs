//! PURE. What the machine is told of its job, and what it knows of its workers.

use super::balance::Speed;
use super::words::{DeviceKind, Facts, Seat};
use crate::ids::Step;
use std::fmt;
use std::time::Duration;

/// A time on the driver's clock, since an origin of its choice.
pub type Now = Duration;

/// What a job demands of its membership.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The job's id: who belongs to another one is refused.
    pub job_id: String,
    /// The job starts when this many workers are ready.
    pub expected: u32,
    /// Once it has begun it goes on with no fewer than this.
    pub min: u32,
    /// No more than this many take part; further ones stand by.
    pub max: u32,
    /// R.
    pub replicas: u32,
    /// `State(total_steps)` ends the job.
    pub total_steps: u64,
    /// Steps of a pass over the data.
    pub steps_per_epoch: u64,
    /// What every worker's data must be.
    pub data_digest: String,
    /// What the job has been computed on, if it has begun.
    pub device: Option<DeviceKind>,
    /// For enough workers to be ready.
    pub join: Duration,
    /// For a sign of life; and for the workers of before to come back to a new coordinator.
    pub heartbeat: Duration,
    /// For a generation to form.
    pub form: Duration,
    /// For all workers to end the step in flight.
    pub pause: Duration,
    /// For all workers to finish, once they were told to.
    pub finish: Duration,
}

/// A worker, as the machine sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it says of itself.
    pub facts: Facts,
    /// What it is doing.
    pub state: MemberState,
    /// Its place in the present generation.
    pub seat: Option<Seat>,
    /// The newest state that it is known to hold.
    pub step: Step,
    /// When it was last heard of.
    pub seen_at: Now,
    /// It was told to go.
    pub leaving: bool,
    /// What a round of its replicas takes it, lately.
    pub round: Option<Duration>,
    /// It gets no seat before: its peers could not reach it.
    pub barred_until: Now,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It was there before the coordinator was started again, and has not come back yet.
    Absent,
    /// Getting its data.
    Preparing,
    /// Waiting for a seat.
    Ready,
    /// Told that its generation is over, and to wait for a seat.
    Holding,
    /// Connecting to its peers, and sharing the newest state.
    Forming,
    /// Doing steps.
    Training,
    /// At rest: it saw the flag of a membership change.
    Paused,
    /// At rest: its collective broke.
    Broken,
    /// Done.
    Finished,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Absent => "absent",
            MemberState::Preparing => "preparing",
            MemberState::Ready => "ready",
            MemberState::Holding => "holding",
            MemberState::Forming => "forming",
            MemberState::Training => "training",
            MemberState::Paused => "paused",
            MemberState::Broken => "broken",
            MemberState::Finished => "finished",
        })
    }
}

impl Member {
    pub(super) fn new(facts: Facts, state: MemberState, step: Step, now: Now) -> Self {
        Self {
            facts,
            state,
            seat: None,
            step,
            seen_at: now,
            leaving: false,
            round: None,
            barred_until: Now::ZERO,
        }
    }

    /// Whether it could take a seat in a generation that is formed now. Who is in the middle of
    /// something leaves it: an assignment calls it off.
    pub(super) fn is_able(&self, now: Now) -> bool {
        !matches!(self.state, MemberState::Absent | MemberState::Preparing)
            && self.barred_until <= now
    }

    /// At rest, with whatever state it holds.
    pub(super) fn rests(&self) -> bool {
        matches!(
            self.state,
            MemberState::Paused | MemberState::Broken | MemberState::Finished
        )
    }

    /// How fast it is; where nothing is known, as fast as `typical`.
    pub(super) fn speed(&self, typical: Duration) -> Speed {
        Speed {
            cores: self.facts.cores,
            round: self.round.unwrap_or(typical),
        }
    }
}
