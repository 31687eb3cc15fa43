//! PURE. A worker's machine: what it does with what it hears.
//!
//! Two things go on side by side. The *link* to the coordinator is down, greeting, or up; it is
//! made again whenever it breaks. The *work* is
//!
//! ```text
//! Unprepared ─▶ Preparing ─▶ Idle ◀─▶ Forming ─▶ Training ─▶ Finishing ─▶ Stopped
//!                              ▲─────────┴──────────┘
//!                 a pause, a broken collective: the state stays in memory
//! ```
//!
//! The machine hears the coordinator, its own training thread and the operating system; it answers
//! with actions. This room knows no sockets, no tensors and no clock; `worker` drives it.
//!
//! Invariant 5 lives here: once it trains, a broken link changes nothing until the work that was
//! handed out is done. Invariant 3 has its worker's side here: what belongs to another generation
//! than the present one has no effect.

mod agreement;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use agreement::oldest;
pub use agreement::{Newest, newest};

use crate::ids::{Generation, Step};
use crate::membership::{Breakage, Close, Finish, Forming, Now, Standing};
use std::time::Duration;

/// First wait between two attempts to reach the coordinator; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between two attempts: a coordinator that is back is to be found soon.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// For the coordinator to let a worker go that was told to.
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
    Welcome(Terms),
    /// The coordinator doesn't.
    Refused {
        /// Why.
        reason: String,
        /// Coming back won't help.
        permanent: bool,
    },
    /// A seat in a generation; with a way to close it, if it is to do no step.
    Assignment(Generation, Option<Close>),
    /// More shards for it.
    Work(Generation),
    /// Raise the pause flag.
    Pause(Generation),
    /// The generation is over, and there is no other yet.
    Hold(Generation, String),
    /// This worker was told to go, and may.
    Release,
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
    /// The coordinator knows that this worker has finished, and that its work is safe.
    Acknowledged,
    /// The data is there, with this digest.
    Prepared(String),
    /// The training thread is connected to its peers, and all hold this state.
    Formed(Generation, Step, Forming),
    /// The training thread saw a pause flag, and rests at this state.
    Paused(Generation, Step),
    /// The training thread has nothing more to do.
    TrainingEnded(Generation, Step, Finish),
    /// A reduction broke off; the training thread keeps the newest whole state.
    CollectiveFailed(Generation, Step, Breakage),
    /// The worker can't go on.
    Failed(String),
    /// SIGTERM or SIGINT.
    Terminate,
}

/// What comes with a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The coordinator knows this worker, and its generation goes on.
    pub resumed: bool,
    /// Send a sign of life at least this often.
    pub heartbeat: Duration,
    /// For the coordinator to be back, once it is lost (`deadlines.coordinator`).
    pub patience: Duration,
    /// For the last word, once this worker has finished: its peers may still be saving.
    pub farewell: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a session.
    Connect,
    /// Say who this is and where it stands.
    SayHello(Standing),
    /// Get the data ready.
    Prepare,
    /// Tell the coordinator of the data, and of the state that is held.
    SayReady(String),
    /// Hand the assignment that just came to the training thread.
    Form,
    /// Hand the work that just came to the training thread.
    GiveWork,
    /// Call off every collective of generations before this one.
    Abort(Generation, String),
    /// Tell the coordinator that the generation stands.
    SayFormed(Generation, Step, Forming),
    /// Raise the pause flag of this generation.
    RaisePause(Generation),
    /// Raise the stop flag of this generation: whoever comes late from a job that was stopped must
    /// not stop it again, once it goes on.
    RaiseStop(Generation),
    /// Raise the leaving flag of this generation: the job is drained.
    RaiseDrain(Generation),
    /// Raise the leaving flag, for good: this worker was told to go.
    RaiseLeaving,
    /// Tell the coordinator that this worker was told to go.
    SayLeaving(Generation),
    /// Tell the coordinator that training rests.
    SayPaused(Generation, Step),
    /// Tell the coordinator that the generation is broken.
    SayCollectiveFailed(Generation, Step, Breakage),
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
    /// It was told to go, or the job is to go on later.
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

/// The link to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    /// Trying to reach it.
    Down {
        since: Now,
        retry_at: Option<Now>,
        backoff: Duration,
        why: String,
    },
    /// Said Hello; waiting for Welcome.
    Greeting { since: Now, lost: Now },
    /// Admitted.
    Up,
}

/// What the worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    /// It doesn't know the job yet.
    Unprepared,
    /// Getting its data.
    Preparing,
    /// It has its data, and no seat. It may have had one.
    Idle(Option<Rest>),
    /// Connecting to its peers.
    Forming(Generation),
    /// Doing steps.
    Training(Generation),
    /// Said Finished; waiting for the last word.
    Finishing(Farewell),
    /// Over.
    Stopped,
}

/// Why a worker that has a seat does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rest {
    generation: Generation,
    breakage: Option<Breakage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Farewell {
    since: Now,
    generation: Generation,
    finish: Finish,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    link: Link,
    work: Work,
    /// For the coordinator to be reachable at the start.
    join: Duration,
    terms: Option<Terms>,
    beat_at: Option<Now>,
    /// The data's digest, once it is there.
    prepared: Option<String>,
    /// The newest generation that it took part in.
    generation: Generation,
    /// The newest state that it is known to hold.
    step: Step,
    /// It was told to go, and nobody needs to wait longer than this.
    leaving: Option<Now>,
}

impl Session {
    /// A worker that wants to join, for at most `join`. The first action is to connect.
    pub fn new(join: Duration, now: Now) -> (Self, Vec<Action>) {
        let session = Self {
            link: Link::down(now, "it was not reached yet".to_owned()),
            work: Work::Unprepared,
            join,
            terms: None,
            beat_at: None,
            prepared: None,
            generation: Generation(0),
            step: Step(0),
            leaving: None,
        };
        (session, vec![Action::Connect])
    }

    /// The generation that it takes part in, or took part in last.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn patience(&self) -> Duration {
        self.terms.map_or(self.join, |terms| terms.patience)
    }

    /// Without the coordinator there is nothing that it could do.
    fn waits_for_coordinator(&self) -> bool {
        matches!(
            self.work,
            Work::Unprepared | Work::Preparing | Work::Idle(_) | Work::Finishing(_)
        )
    }

    /// When [`Session::handle_timeout`] wants to be called, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Now> {
        if self.work == Work::Stopped {
            return None;
        }
        let link = match &self.link {
            Link::Down {
                retry_at, since, ..
            } => {
                let given_up = self
                    .waits_for_coordinator()
                    .then(|| *since + self.patience());
                [*retry_at, given_up].into_iter().flatten().min()
            }
            Link::Greeting { since, .. } => Some(*since + self.join.min(self.patience())),
            Link::Up => None,
        };
        let farewell = match (&self.work, &self.terms) {
            (Work::Finishing(farewell), Some(terms)) => Some(farewell.since + terms.farewell),
            _ => None,
        };
        let leaving = self.leaving.filter(|_| matches!(self.work, Work::Idle(_)));
        let times = [link, farewell, leaving, self.beat_at];
        times.into_iter().flatten().min()
    }

    /// The time has come that [`Session::next_deadline`] named (or any other).
    pub fn handle_timeout(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.work == Work::Stopped {
            return actions;
        }
        if self.beat_at.is_some_and(|at| now >= at) {
            self.beat_at = self.terms.map(|terms| now + terms.heartbeat);
            actions.push(Action::Beat);
        }
        self.keep_link(now, &mut actions);
        match (&self.work, &self.terms) {
            (Work::Finishing(farewell), Some(terms)) if now >= farewell.since + terms.farewell => {
                let exit = exit_of(&farewell.finish);
                self.exit(exit, &mut actions);
            }
            (Work::Idle(_), _) if self.leaving.is_some_and(|at| now >= at) => {
                self.exit(Exit::Left, &mut actions);
            }
            _ => {}
        }
        actions
    }

    /// Tries again, or gives up.
    fn keep_link(&mut self, now: Now, actions: &mut Vec<Action>) {
        let patience = self.patience();
        let waits = self.waits_for_coordinator();
        match &mut self.link {
            Link::Down { since, why, .. } if waits && now >= *since + patience => {
                let (waited, why) = (humantime::format_duration(patience), why.clone());
                self.give_up(
                    format!("can't reach the coordinator, after {waited} of trying: {why}"),
                    actions,
                );
            }
            Link::Down { retry_at, .. } if retry_at.is_some_and(|at| now >= at) => {
                *retry_at = None;
                actions.push(Action::Connect);
            }
            Link::Greeting { since, lost } if now >= *since + self.join.min(patience) => {
                let waited = humantime::format_duration(self.join.min(patience));
                let why = format!("the coordinator has not answered for {waited}");
                let lost = *lost;
                if waits {
                    self.give_up(why, actions);
                } else {
                    self.unreachable(why, lost, BACKOFF_MAX, now);
                }
            }
            _ => {}
        }
    }

    /// The coordinator doesn't come back.
    fn give_up(&mut self, reason: String, actions: &mut Vec<Action>) {
        let exit = match &self.work {
            // What there was to do is done; only the last word is missing.
            Work::Finishing(farewell) => exit_of(&farewell.finish),
            _ if self.leaving.is_some() => Exit::Left,
            _ => Exit::Failed(reason),
        };
        self.exit(exit, actions);
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.work == Work::Stopped {
            return actions;
        }
        match event {
            Event::Connected => {
                let lost = match self.link {
                    Link::Down { since, .. } => since,
                    Link::Greeting { lost, .. } => lost,
                    Link::Up => now,
                };
                self.link = Link::Greeting { since: now, lost };
                actions.push(Action::SayHello(self.standing()));
            }
            Event::Unreachable(error) => {
                if let Link::Down { since, backoff, .. } = self.link {
                    self.unreachable(error, since, backoff, now);
                }
            }
            Event::Disconnected(why) => self.disconnected(why, now, &mut actions),
            Event::Welcome(terms) => self.welcome(terms, now, &mut actions),
            Event::Refused { reason, permanent } => {
                let exit = if permanent {
                    Exit::Unfit(reason)
                } else {
                    Exit::Failed(reason)
                };
                self.exit(exit, &mut actions);
            }
            Event::Assignment(generation, _) => self.assigned(generation, &mut actions),
            Event::Work(generation) if self.within() == Some(generation) => {
                actions.push(Action::GiveWork);
            }
            Event::Pause(generation) if self.within() == Some(generation) => {
                actions.push(Action::RaisePause(generation));
            }
            Event::Hold(generation, reason) => self.hold(generation, reason, now, &mut actions),
            Event::Release if self.leaving.is_some() => self.exit(Exit::Left, &mut actions),
            Event::Stop { drain } => {
                // At rest it sees no flag; the coordinator closes with another generation.
                actions.extend(self.within().map(|generation| match drain {
                    true => Action::RaiseDrain(generation),
                    false => Action::RaiseStop(generation),
                }));
            }
            Event::Ended { outcome, good } => {
                let exit = match &self.work {
                    // What it did itself counts more, unless all it did was to stop with the job.
                    Work::Finishing(farewell) if good || farewell.finish != Finish::Stopped => {
                        exit_of(&farewell.finish)
                    }
                    _ if good => Exit::Done,
                    _ => Exit::Failed(format!("the job is over: {outcome}")),
                };
                self.exit(exit, &mut actions);
            }
            Event::Acknowledged => {
                if let Work::Finishing(farewell) = &self.work {
                    let exit = exit_of(&farewell.finish);
                    self.exit(exit, &mut actions);
                }
            }
            Event::Prepared(digest) => self.prepared(digest, &mut actions),
            Event::Terminate => self.terminate(now, &mut actions),
            Event::Failed(reason) => {
                let finish = Finish::Failed(reason);
                self.finish(self.generation, self.step, finish, now, &mut actions);
            }
            Event::Formed(..)
            | Event::Paused(..)
            | Event::TrainingEnded(..)
            | Event::CollectiveFailed(..) => self.trained(event, now, &mut actions),
            // What comes late, or twice, or from another generation, has no effect.
            Event::Work(_) | Event::Pause(_) | Event::Release => {}
        }
        actions
    }

    /// What the training thread says. Of a generation that is over it says nothing new.
    fn trained(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        let (spoken, step) = match &event {
            Event::Formed(generation, step, _)
            | Event::Paused(generation, step)
            | Event::TrainingEnded(generation, step, _)
            | Event::CollectiveFailed(generation, step, _) => (*generation, *step),
            _ => return,
        };
        self.step = self.step.max(step);
        if self.within() != Some(spoken) {
            return;
        }
        match event {
            Event::Formed(generation, step, forming) => {
                // Nobody holds more, and what was more is gone.
                self.step = step;
                self.work = Work::Training(generation);
                self.say(Action::SayFormed(generation, step, forming), actions);
            }
            Event::Paused(generation, _) => self.rest(generation, None, now, actions),
            Event::CollectiveFailed(generation, _, breakage) => {
                self.rest(generation, Some(breakage), now, actions);
            }
            Event::TrainingEnded(generation, step, finish) => {
                self.finish(generation, step, finish, now, actions);
            }
            _ => {}
        }
    }

    /// The generation that it forms or trains in.
    fn within(&self) -> Option<Generation> {
        match self.work {
            Work::Forming(generation) | Work::Training(generation) => Some(generation),
            _ => None,
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            generation: self.generation,
            within: self.within().is_some()
                || matches!(self.work, Work::Idle(Some(_)) | Work::Finishing(_)),
            step: self.step,
        }
    }

    fn say(&self, word: Action, actions: &mut Vec<Action>) {
        if self.link == Link::Up {
            actions.push(word);
        }
    }

    /// There is nothing left to do without the coordinator: from now on it is waited for.
    fn begin_to_wait(&mut self, now: Now) {
        match &mut self.link {
            Link::Down { since: lost, .. } | Link::Greeting { lost, .. } => *lost = now,
            Link::Up => {}
        }
    }

    fn unreachable(&mut self, why: String, since: Now, backoff: Duration, now: Now) {
        self.link = Link::Down {
            since,
            retry_at: Some(now + backoff),
            backoff: (backoff * 2).min(BACKOFF_MAX),
            why,
        };
    }

    fn disconnected(&mut self, why: String, now: Now, actions: &mut Vec<Action>) {
        self.beat_at = None;
        let since = match self.link {
            Link::Greeting { lost, .. } => lost,
            Link::Down { since, .. } => since,
            Link::Up => now,
        };
        self.unreachable(why, since, BACKOFF_MIN, now);
        // Nobody is left to let it go, and others hold what it holds.
        match &self.work {
            Work::Idle(_) if self.leaving.is_some() => self.exit(Exit::Left, actions),
            Work::Finishing(farewell) if farewell.finish == Finish::Left => {
                self.exit(Exit::Left, actions);
            }
            _ => {}
        }
    }

    fn welcome(&mut self, terms: Terms, now: Now, actions: &mut Vec<Action>) {
        if !matches!(self.link, Link::Greeting { .. }) {
            return;
        }
        self.link = Link::Up;
        self.terms = Some(terms);
        self.beat_at = Some(now + terms.heartbeat);
        if !terms.resumed && self.within().is_some() {
            // It was taken for dead, and its peers have gone on without it. It comes back as a new
            // worker: what it holds may still be of use.
            let fenced = "this worker was given up, and its generation is over".to_owned();
            actions.push(Action::Abort(self.generation.next(), fenced));
            self.work = Work::Idle(None);
        }
        match self.work.clone() {
            Work::Unprepared => {
                self.work = Work::Preparing;
                actions.push(Action::Prepare);
            }
            Work::Idle(rest) => match rest.filter(|_| terms.resumed) {
                Some(rest) => actions.push(rest.word(self.step)),
                None => {
                    self.work = Work::Idle(None);
                    let digest = self.prepared.clone().unwrap_or_default();
                    actions.push(Action::SayReady(digest));
                }
            },
            Work::Finishing(farewell) if terms.resumed || farewell.failed() => {
                let Farewell {
                    generation, finish, ..
                } = farewell;
                actions.push(Action::SayFinished(generation, self.step, finish));
            }
            Work::Finishing(_) => {
                // The coordinator goes on without it; what it holds may still be of use.
                self.work = Work::Idle(None);
                let digest = self.prepared.clone().unwrap_or_default();
                actions.push(Action::SayReady(digest));
            }
            Work::Preparing | Work::Forming(_) | Work::Training(_) | Work::Stopped => {}
        }
        if self.leaving.is_some() {
            actions.push(Action::SayLeaving(self.generation));
        }
    }

    fn prepared(&mut self, digest: String, actions: &mut Vec<Action>) {
        if self.work != Work::Preparing {
            return;
        }
        self.prepared = Some(digest.clone());
        self.work = Work::Idle(None);
        self.say(Action::SayReady(digest), actions);
    }

    fn assigned(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        // Invariant 3: an older generation has no effect, and neither has the same one again.
        let ready = matches!(
            self.work,
            Work::Idle(_) | Work::Forming(_) | Work::Training(_) | Work::Finishing(_)
        );
        if !ready || generation <= self.generation {
            return;
        }
        if let Work::Finishing(farewell) = &mut self.work
            && farewell.failed()
        {
            // What it had said was of an older generation, and this one waits for it.
            self.generation = generation;
            farewell.generation = generation;
            let finish = farewell.finish.clone();
            self.say(Action::SayFinished(generation, self.step, finish), actions);
            return;
        }
        if self.within().is_some() {
            let superseded = format!("generation {generation} takes its place");
            actions.push(Action::Abort(generation, superseded));
        }
        self.generation = generation;
        self.work = Work::Forming(generation);
        actions.push(Action::Form);
    }

    fn hold(
        &mut self,
        generation: Generation,
        reason: String,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if generation < self.generation {
            return;
        }
        self.leaving = self.leaving.map(|_| now + FAREWELL);
        match &self.work {
            Work::Forming(_) | Work::Training(_) => {
                actions.push(Action::Abort(generation.next(), reason));
            }
            Work::Finishing(farewell) if farewell.failed() => return,
            Work::Idle(_) | Work::Finishing(_) => {}
            Work::Unprepared | Work::Preparing | Work::Stopped => return,
        }
        self.work = Work::Idle(None);
        let digest = self.prepared.clone().unwrap_or_default();
        self.say(Action::SayReady(digest), actions);
    }

    /// The training thread rests, with its state.
    fn rest(
        &mut self,
        generation: Generation,
        breakage: Option<Breakage>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let rest = Rest {
            generation,
            breakage,
        };
        self.say(rest.word(self.step), actions);
        self.begin_to_wait(now);
        self.work = Work::Idle(Some(rest));
        if self.leaving.is_some() {
            self.leaving = Some(now + FAREWELL);
            if self.link != Link::Up {
                self.exit(Exit::Left, actions);
            }
        }
    }

    fn finish(
        &mut self,
        generation: Generation,
        step: Step,
        finish: Finish,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if matches!(self.work, Work::Finishing(_)) {
            return;
        }
        // Who was told to go doesn't wait for a coordinator that isn't there: what it held is saved.
        let alone = self.link != Link::Up;
        if self.terms.is_none() || alone && matches!(finish, Finish::Failed(_) | Finish::Left) {
            self.exit(exit_of(&finish), actions);
            return;
        }
        self.say(
            Action::SayFinished(generation, step, finish.clone()),
            actions,
        );
        self.begin_to_wait(now);
        self.work = Work::Finishing(Farewell {
            since: now,
            generation,
            finish,
        });
    }

    fn terminate(&mut self, now: Now, actions: &mut Vec<Action>) {
        let first = self.leaving.is_none();
        match &self.work {
            Work::Forming(_) | Work::Training(_) => {
                self.leaving = Some(now + FAREWELL);
                actions.push(Action::RaiseLeaving);
                self.say(Action::SayLeaving(self.generation), actions);
            }
            Work::Idle(_) if self.generation.0 > 0 && self.link == Link::Up => {
                // It may be the last that holds the newest state.
                if first {
                    self.leaving = Some(now + FAREWELL);
                    self.say(Action::SayLeaving(self.generation), actions);
                }
            }
            Work::Finishing(farewell) if self.link != Link::Up => {
                let exit = exit_of(&farewell.finish);
                self.exit(exit, actions);
            }
            Work::Finishing(_) => {}
            _ => self.exit(Exit::Left, actions),
        }
    }

    fn exit(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        self.work = Work::Stopped;
        self.beat_at = None;
        actions.push(Action::Exit(exit));
    }
}

impl Link {
    fn down(since: Now, why: String) -> Self {
        Link::Down {
            since,
            retry_at: None,
            backoff: BACKOFF_MIN,
            why,
        }
    }
}

impl Farewell {
    fn failed(&self) -> bool {
        matches!(self.finish, Finish::Failed(_))
    }
}

impl Rest {
    fn word(&self, step: Step) -> Action {
        match &self.breakage {
            None => Action::SayPaused(self.generation, step),
            Some(breakage) => Action::SayCollectiveFailed(self.generation, step, breakage.clone()),
        }
    }
}

fn exit_of(finish: &Finish) -> Exit {
    match finish {
        // To a worker, a job that its guard has stopped is over like any other.
        Finish::Complete | Finish::Stopped | Finish::Halted(_) => Exit::Done,
        Finish::Left => Exit::Left,
        Finish::Failed(reason) => Exit::Failed(reason.clone()),
    }
}
