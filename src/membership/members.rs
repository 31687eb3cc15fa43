//! PURE. What the machine is told of its job and knows of its workers, and how replicas are dealt.

use super::words::{DeviceKind, Facts, Seat};
use crate::ids::Step;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// A time on the driver's clock, since an origin of its choice.
pub type Now = Duration;

/// What a job demands of its membership.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The job starts when this many workers are ready.
    pub expected: u32,
    /// No more than this many take part.
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
    /// For the expected workers to be ready.
    pub join: Duration,
    /// For a sign of life.
    pub heartbeat: Duration,
    /// For a generation to form.
    pub form: Duration,
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
    /// The newest state it has reported.
    pub step: Step,
    /// When it was last heard of.
    pub seen_at: Now,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Getting its data.
    Preparing,
    /// Waiting for a seat.
    Ready,
    /// Connecting to its peers.
    Forming,
    /// Doing steps.
    Training,
    /// Done.
    Finished,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Preparing => "preparing",
            MemberState::Ready => "ready",
            MemberState::Forming => "forming",
            MemberState::Training => "training",
            MemberState::Finished => "finished",
        })
    }
}

/// Deals `replicas` to `workers` in contiguous ranges whose sizes differ by at most one.
pub fn deal(replicas: u32, workers: u32) -> Vec<Range<u32>> {
    let edge = |rank: u32| (u64::from(replicas) * u64::from(rank) / u64::from(workers)) as u32;
    (0..workers)
        .map(|rank| edge(rank)..edge(rank + 1))
        .collect()
}
