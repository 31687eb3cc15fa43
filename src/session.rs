//! PURE. A worker's machine: what it does with what it hears.
//!
//! `Joining → Preparing → Waiting → Forming → Training → Finishing → Stopped`, and `Rejoining`
//! when its generation broke. It hears the
//! coordinator, its own training thread and the operating system; it answers with actions. This
//! room knows no sockets, no tensors and no clock; `worker` drives it.
//!
//! Invariant 5 lives here: once it trains, a broken session with the coordinator changes nothing
//! until the work that was handed out is done.

#[cfg(test)]
mod tests;

use crate::ids::{Generation, Step};
use crate::membership::{Finish, Now};
use std::time::Duration;

/// First wait between two attempts to reach the coordinator; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// For the coordinator to acknowledge that the worker has finished.
const FAREWELL: Duration = Duration::from_secs(10);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open.
    Connected,
    /// The coordinator can't be reached.
    Unreachable(String),
    /// The session broke.
    Disconnected(String),
    /// The coordinator admits this worker.
    Welcome {
        /// Send a sign of life at least this often.
        heartbeat: Duration,
        /// For its word after a collective broke.
        patience: Duration,
    },
    /// The coordinator doesn't.
    Refused {
        /// Why.
        reason: String,
        /// Coming back won't help.
        permanent: bool,
    },
    /// A seat in a generation.
    Assignment(Generation),
    /// More shards for it.
    Work(Generation),
    /// The job is to stop; to `drain` it is to stop and go on later.
    Stop {
        /// Whoever is told to go comes back.
        drain: bool,
    },
    /// The job is over without this worker.
    Ended {
        /// How.
        outcome: String,
        /// Complete, or stopped by a person.
        good: bool,
    },
    /// The coordinator knows that this worker has finished.
    Acknowledged,
    /// The data is there, with this digest.
    Prepared(String),
    /// The training thread is connected to its peers and holds the state.
    Formed(Generation, Step),
    /// The training thread has nothing more to do.
    TrainingEnded(Generation, Step, Finish),
    /// A reduction broke off; the training thread keeps the newest whole state.
    CollectiveFailed(Generation, Step, String),
    /// The worker can't go on.
    Failed(String),
    /// SIGTERM or SIGINT.
    Terminate,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a session and say Hello.
    Connect,
    /// Get the data ready.
    Prepare,
    /// Tell the coordinator of the data.
    SayReady(String),
    /// Hand the assignment that just came to the training thread.
    Form,
    /// Hand the work that just came to the training thread.
    GiveWork,
    /// Tell the coordinator that the generation stands.
    SayFormed(Generation, Step),
    /// Raise the stop flag.
    RaiseStop,
    /// Raise the leaving flag.
    RaiseLeaving,
    /// Tell the coordinator that this worker was told to go.
    SayLeaving(Generation),
    /// Tell the coordinator that the generation is broken.
    SayCollectiveFailed(Generation, Step, String),
    /// Tell the coordinator that nothing more will come.
    SayFinished(Generation, Step, Finish),
    /// Send a sign of life.
    Beat,
    /// End the process.
    Exit(Exit),
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The job is complete or was stopped by a person.
    Done,
    /// Somebody was told to go, and the job stopped in good order, to go on later.
    Left,
    /// It can never take part in this job.
    Unfit(String),
    /// Something broke; another attempt may succeed.
    Failed(String),
}

impl Exit {
    /// The exit code: Kubernetes decides by it whether to start the worker again.
    pub fn code(&self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Left => 75,
            Exit::Unfit(_) => 78,
            Exit::Failed(_) => 1,
        }
    }
}

/// What the worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Trying to reach the coordinator.
    Joining {
        since: Now,
        retry_at: Option<Now>,
        backoff: Duration,
    },
    /// Said Hello; waiting for Welcome.
    Greeting { since: Now },
    /// Getting its data.
    Preparing,
    /// Ready; waiting for a seat.
    Waiting,
    /// Connecting to its peers.
    Forming(Generation),
    /// Doing steps.
    Training(Generation),
    /// Its generation is broken; waiting for the coordinator's word.
    Rejoining { since: Now, reason: String },
    /// Said Finished; waiting for the acknowledgement.
    Finishing { since: Now, exit: Exit },
    /// Over.
    Stopped,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    /// For the coordinator to be reachable at the start.
    join: Duration,
    connected: bool,
    heartbeat: Duration,
    patience: Duration,
    beat_at: Option<Now>,
}

impl Session {
    /// A worker that wants to join, for at most `join`. The first action is to connect.
    pub fn new(join: Duration, now: Now) -> (Self, Vec<Action>) {
        let session = Self {
            phase: Phase::Joining {
                since: now,
                retry_at: None,
                backoff: BACKOFF_MIN,
            },
            join,
            connected: false,
            heartbeat: Duration::from_secs(1),
            patience: join,
            beat_at: None,
        };
        (session, vec![Action::Connect])
    }

    /// When [`Session::handle_timeout`] wants to be called, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Now> {
        let phase = match &self.phase {
            Phase::Joining { retry_at, .. } => *retry_at,
            Phase::Greeting { since } => Some(*since + self.join),
            Phase::Rejoining { since, .. } => Some(*since + self.patience),
            Phase::Finishing { since, .. } => Some(*since + FAREWELL),
            _ => None,
        };
        [phase, self.beat_at].into_iter().flatten().min()
    }

    /// The time has come that [`Session::next_deadline`] named (or any other).
    pub fn handle_timeout(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.beat_at.is_some_and(|at| now >= at) {
            self.beat_at = Some(now + self.heartbeat);
            actions.push(Action::Beat);
        }
        match &mut self.phase {
            Phase::Joining { retry_at, .. } if retry_at.is_some_and(|at| now >= at) => {
                *retry_at = None;
                actions.push(Action::Connect);
            }
            Phase::Greeting { since } if now >= *since + self.join => {
                let waited = humantime::format_duration(self.join);
                let reason = format!("the coordinator has not answered for {waited}");
                self.exit(Exit::Failed(reason), &mut actions);
            }
            Phase::Rejoining { since, reason } if now >= *since + self.patience => {
                let waited = humantime::format_duration(self.patience);
                let reason = format!("{reason}; no word from the coordinator for {waited}");
                self.exit(Exit::Failed(reason), &mut actions);
            }
            Phase::Finishing { since, exit } if now >= *since + FAREWELL => {
                let exit = exit.clone();
                self.exit(exit, &mut actions);
            }
            _ => {}
        }
        actions
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match (event, self.phase.clone()) {
            (_, Phase::Stopped) => {}
            (Event::Connected, _) => {
                self.connected = true;
                if let Phase::Joining { .. } = self.phase {
                    self.phase = Phase::Greeting { since: now };
                }
            }
            (Event::Unreachable(error), Phase::Joining { since, backoff, .. }) => {
                self.unreachable(error, since, backoff, now, &mut actions);
            }
            (Event::Disconnected(why), phase) => {
                self.disconnected(&why, phase, now, &mut actions);
            }
            (
                Event::Welcome {
                    heartbeat,
                    patience,
                },
                Phase::Greeting { .. },
            ) => {
                self.heartbeat = heartbeat;
                self.patience = patience;
                self.beat_at = Some(now + heartbeat);
                self.phase = Phase::Preparing;
                actions.push(Action::Prepare);
            }
            (Event::Refused { reason, permanent }, _) => {
                let exit = if permanent {
                    Exit::Unfit(reason)
                } else {
                    Exit::Failed(reason)
                };
                self.exit(exit, &mut actions);
            }
            (Event::Prepared(digest), Phase::Preparing) => {
                self.phase = Phase::Waiting;
                actions.push(Action::SayReady(digest));
            }
            (Event::Assignment(generation), Phase::Waiting) => {
                self.phase = Phase::Forming(generation);
                actions.push(Action::Form);
            }
            (Event::Formed(formed, step), Phase::Forming(generation)) if formed == generation => {
                self.phase = Phase::Training(generation);
                actions.push(Action::SayFormed(generation, step));
            }
            // Invariant 3: only the present generation's work counts.
            (Event::Work(given), Phase::Forming(now) | Phase::Training(now)) if given == now => {
                actions.push(Action::GiveWork);
            }
            (Event::Stop { drain }, Phase::Forming(_) | Phase::Training(_)) => {
                actions.push(if drain {
                    Action::RaiseLeaving
                } else {
                    Action::RaiseStop
                });
            }
            (Event::Ended { outcome, good }, phase) => {
                let exit = match phase {
                    Phase::Finishing { exit, .. } => exit,
                    _ if good => Exit::Done,
                    _ => Exit::Failed(format!("the job is over: {outcome}")),
                };
                self.exit(exit, &mut actions);
            }
            (Event::TrainingEnded(ended, step, finish), Phase::Forming(generation))
            | (Event::TrainingEnded(ended, step, finish), Phase::Training(generation))
                if ended == generation =>
            {
                self.finish(generation, step, finish, now, &mut actions);
            }
            (
                Event::CollectiveFailed(failed, step, reason),
                Phase::Forming(generation) | Phase::Training(generation),
            ) if failed == generation => {
                self.collective_failed(generation, step, reason, now, &mut actions);
            }
            (Event::Failed(reason), Phase::Forming(generation) | Phase::Training(generation)) => {
                self.finish(
                    generation,
                    Step(0),
                    Finish::Failed(reason),
                    now,
                    &mut actions,
                );
            }
            (Event::Failed(_), Phase::Finishing { .. }) => {}
            (Event::Failed(reason), _) => {
                let none = Generation(0);
                self.finish(none, Step(0), Finish::Failed(reason), now, &mut actions);
            }
            (Event::Acknowledged, Phase::Finishing { exit, .. }) => self.exit(exit, &mut actions),
            (Event::Terminate, phase) => self.terminate(phase, &mut actions),
            // What comes late, or twice, or from another generation, has no effect.
            _ => {}
        }
        actions
    }

    fn unreachable(
        &mut self,
        error: String,
        since: Now,
        backoff: Duration,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if now >= since + self.join {
            let waited = humantime::format_duration(self.join);
            let reason = format!("can't reach the coordinator, after {waited} of trying: {error}");
            self.exit(Exit::Failed(reason), actions);
            return;
        }
        self.phase = Phase::Joining {
            since,
            retry_at: Some(now + backoff),
            backoff: (backoff * 2).min(BACKOFF_MAX),
        };
    }

    fn disconnected(&mut self, why: &str, phase: Phase, now: Now, actions: &mut Vec<Action>) {
        self.connected = false;
        self.beat_at = None;
        match phase {
            Phase::Greeting { since } => {
                self.unreachable(why.to_owned(), since, BACKOFF_MIN, now, actions);
            }
            Phase::Preparing | Phase::Waiting => {
                let reason = format!("lost the coordinator before the job began: {why}");
                self.exit(Exit::Failed(reason), actions);
            }
            Phase::Finishing { exit, .. } => self.exit(exit, actions),
            // Invariant 5: nothing fails while there is work.
            Phase::Joining { .. } | Phase::Forming(_) | Phase::Training(_) | Phase::Stopped => {}
            Phase::Rejoining { reason, .. } => {
                self.exit(Exit::Failed(format!("{reason}; {why}")), actions);
            }
        }
    }

    fn collective_failed(
        &mut self,
        generation: Generation,
        step: Step,
        reason: String,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if !self.connected {
            self.exit(Exit::Failed(reason), actions);
            return;
        }
        actions.push(Action::SayCollectiveFailed(
            generation,
            step,
            reason.clone(),
        ));
        self.phase = Phase::Rejoining { since: now, reason };
    }

    fn finish(
        &mut self,
        generation: Generation,
        step: Step,
        finish: Finish,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let exit = match &finish {
            Finish::Complete | Finish::Stopped => Exit::Done,
            Finish::Left => Exit::Left,
            Finish::Failed(reason) => Exit::Failed(reason.clone()),
        };
        if !self.connected {
            self.exit(exit, actions);
            return;
        }
        self.phase = Phase::Finishing { since: now, exit };
        actions.push(Action::SayFinished(generation, step, finish));
    }

    fn terminate(&mut self, phase: Phase, actions: &mut Vec<Action>) {
        match phase {
            Phase::Forming(generation) | Phase::Training(generation) => {
                actions.push(Action::RaiseLeaving);
                actions.push(Action::SayLeaving(generation));
            }
            Phase::Finishing { .. } => {}
            _ => self.exit(Exit::Left, actions),
        }
    }

    fn exit(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        self.phase = Phase::Stopped;
        self.beat_at = None;
        actions.push(Action::Exit(exit));
    }
}
