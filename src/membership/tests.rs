//! The machine's transitions, with invented instants.

mod arriving;
mod breaking;
mod ending;
mod forming;
mod random;
mod recovering;
mod running;
mod stale;

use super::balance::Pace;
use super::*;
use crate::ids::Rank;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn rules(expected: u32) -> Rules {
    Rules {
        job_id: "job".to_owned(),
        expected,
        min: expected,
        max: expected,
        replicas: 8,
        total_steps: 5000,
        steps_per_epoch: 100,
        data_digest: "data".to_owned(),
        device: None,
        join: at(60),
        heartbeat: at(10),
        form: at(20),
        pause: at(15),
        finish: at(30),
    }
}

/// Between one and so many, started with so many.
fn elastic(expected: u32, max: u32) -> Rules {
    Rules {
        min: 1,
        max,
        ..rules(expected)
    }
}

fn device(kind: &str) -> DeviceKind {
    DeviceKind {
        kind: kind.to_owned(),
        model: "m".to_owned(),
        libtorch: "2.11.0".to_owned(),
    }
}

fn facts(id: u64) -> Facts {
    Facts {
        incarnation: format!("incarnation {id}"),
        job_id: String::new(),
        host: format!("host {id}"),
        pid: 7,
        collective: format!("10.0.0.{id}:1"),
        device: device("cpu"),
        cores: 1,
    }
}

fn checkpoint(step: u64) -> CheckpointRecord {
    CheckpointRecord {
        step: Step(step),
        path: format!("checkpoints/{step}"),
        digest: "d".to_owned(),
    }
}

fn broken(suspect: Option<u32>) -> Breakage {
    Breakage {
        reason: "a peer is out of reach".to_owned(),
        suspect: suspect.map(Rank),
    }
}

/// A machine and the time. Whatever it decides is checked: what is spoken is durable, and no
/// generation is spoken twice.
#[derive(Debug)]
struct Job {
    machine: Membership,
    now: Now,
    spoken: Generation,
}

impl Deref for Job {
    type Target = Membership;

    fn deref(&self) -> &Membership {
        &self.machine
    }
}

impl DerefMut for Job {
    fn deref_mut(&mut self) -> &mut Membership {
        &mut self.machine
    }
}

impl Job {
    fn new(rules: Rules) -> Self {
        Self::with(rules, Past::default())
    }

    fn with(rules: Rules, past: Past) -> Self {
        let spoken = past.generation;
        Self {
            machine: Membership::new(rules, past, at(100)),
            now: at(100),
            spoken,
        }
    }

    /// A job whose workers 1..=n are ready, and form.
    fn forming(rules: Rules, workers: u64) -> Self {
        let mut job = Self::new(rules);
        for id in 1..=workers {
            job.hello(id);
        }
        for id in 1..=workers {
            job.ready(id, 0);
        }
        assert_eq!(*job.phase(), Phase::Forming);
        job
    }

    /// A job whose workers 1..=n train, and have reached step 10.
    fn running(rules: Rules, workers: u64) -> Self {
        let mut job = Self::forming(rules, workers);
        job.formed(&(1..=workers).collect::<Vec<_>>(), 0);
        job.progress(1, 10);
        assert_eq!(*job.phase(), Phase::Running);
        job
    }

    /// Time passes.
    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += at(seconds);
        self
    }

    fn check(&mut self, actions: Vec<Action>) -> Vec<Action> {
        for (index, action) in actions.iter().enumerate() {
            let Action::Send(worker, Order::Assignment(assignment)) = action else {
                continue;
            };
            let generation = assignment.generation;
            let durable = actions[..index].iter().any(
                |a| matches!(a, Action::Persist(Record::Generation { generation: g, .. }) if *g == generation),
            );
            assert!(durable, "spoken before it was durable: {actions:?}");
            assert!(generation > self.spoken, "{generation} again: {actions:?}");
            let seat = &assignment.seats[assignment.rank.0 as usize];
            assert_eq!((seat.worker, seat.rank), (*worker, assignment.rank));
            let covered = assignment.seats.iter().fold(0, |next, seat| {
                assert!(seat.replicas.start == next && !seat.replicas.is_empty());
                seat.replicas.end
            });
            assert_eq!(covered, self.machine.rules.replicas, "all replicas, once");
        }
        self.spoken = self.machine.generation();
        actions
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.machine.handle(event, self.now);
        self.check(actions)
    }

    fn say(&mut self, id: u64, word: Word) -> Vec<Action> {
        self.event(Event::Said(WorkerId(id), word))
    }

    fn timeout(&mut self) -> Vec<Action> {
        let actions = self.machine.handle_timeout(self.now);
        let next = self.machine.next_deadline();
        assert!(next.is_none_or(|at| at > self.now), "it would spin");
        self.check(actions)
    }

    /// Jumps to the next deadline.
    fn due(&mut self) -> Vec<Action> {
        self.now = self.machine.next_deadline().expect("a deadline");
        self.timeout()
    }

    fn hello(&mut self, id: u64) -> Vec<Action> {
        self.say(id, Word::Hello(facts(id), Standing::default()))
    }

    /// A Hello from a worker that has taken part in a generation.
    fn back(&mut self, id: u64, generation: u64, within: bool, step: u64) -> Vec<Action> {
        let standing = Standing {
            generation: Generation(generation),
            within,
            step: Step(step),
        };
        self.say(id, Word::Hello(facts(id), standing))
    }

    fn ready(&mut self, id: u64, step: u64) -> Vec<Action> {
        self.say(id, Word::Ready("data".to_owned(), Step(step)))
    }

    fn formed(&mut self, ids: &[u64], step: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for id in ids {
            let formed = Word::Formed(self.generation(), Step(step), Forming::default());
            actions.extend(self.say(*id, formed));
        }
        actions
    }

    fn progress(&mut self, id: u64, step: u64) -> Vec<Action> {
        self.say(id, Word::Progress(self.generation(), Step(step)))
    }

    fn beat(&mut self, ids: &[u64]) {
        for id in ids {
            let beat = Word::Heartbeat(self.generation(), Step(0), None);
            self.say(*id, beat);
        }
    }

    fn saved(&mut self, id: u64, step: u64) -> Vec<Action> {
        let word = Word::CheckpointWritten(self.generation(), checkpoint(step));
        self.say(id, word)
    }

    fn paused(&mut self, ids: &[u64], step: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for id in ids {
            let paused = Word::Paused(self.generation(), Step(step));
            actions.extend(self.say(*id, paused));
        }
        actions
    }

    fn fails(&mut self, id: u64, step: u64, suspect: Option<u32>) -> Vec<Action> {
        let word = Word::CollectiveFailed(self.generation(), Step(step), broken(suspect));
        self.say(id, word)
    }

    fn leaves(&mut self, id: u64) -> Vec<Action> {
        self.say(id, Word::Leaving(self.generation()))
    }

    fn finished(&mut self, id: u64, step: u64, finish: Finish) -> Vec<Action> {
        self.say(id, Word::Finished(self.generation(), Step(step), finish))
    }

    fn lost(&mut self, id: u64) -> Vec<Action> {
        self.event(Event::Lost(WorkerId(id), "its stream broke".to_owned()))
    }

    /// Who sits in the present generation, by rank.
    fn seated(&self) -> Vec<u64> {
        self.machine
            .seats
            .iter()
            .map(|seat| seat.worker.0)
            .collect()
    }
}

fn orders(actions: &[Action]) -> Vec<(u64, &Order)> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send(worker, order) => Some((worker.0, order)),
        _ => None,
    });
    sent.collect()
}

/// Who is told what, without the details.
fn told(actions: &[Action]) -> Vec<(u64, &'static str)> {
    let orders = orders(actions).into_iter();
    let names = orders.map(|(worker, order)| {
        let name = match order {
            Order::Welcome { resumed: true } => "resume",
            Order::Welcome { resumed: false } => "welcome",
            Order::Refused { .. } => "refused",
            Order::Assignment(assignment) if assignment.close.is_some() => "close",
            Order::Assignment(_) => "form",
            Order::Work { .. } => "work",
            Order::Pause(_) => "pause",
            Order::Hold(..) => "hold",
            Order::Release => "release",
            Order::Stop { drain: false, .. } => "stop",
            Order::Stop { drain: true, .. } => "drain",
            Order::Acknowledged => "acknowledged",
            Order::Ended(_) => "ended",
        };
        (worker, name)
    });
    names.collect()
}

/// The assignments, by rank.
fn assignments(actions: &[Action]) -> Vec<&Assignment> {
    let orders = orders(actions).into_iter();
    let assigned = orders.filter_map(|(_, order)| match order {
        Order::Assignment(assignment) => Some(assignment),
        _ => None,
    });
    assigned.collect()
}

fn records(actions: &[Action]) -> Vec<&Record> {
    let records = actions.iter().filter_map(|action| match action {
        Action::Persist(record) => Some(record),
        _ => None,
    });
    records.collect()
}

/// The cause of the generation that was written down.
fn cause(actions: &[Action]) -> Option<Cause> {
    records(actions)
        .into_iter()
        .find_map(|record| match record {
            Record::Generation { cause, .. } => Some(*cause),
            _ => None,
        })
}

/// What an event of this kind says.
fn event(actions: &[Action], kind: EventKind) -> Option<&str> {
    records(actions)
        .into_iter()
        .find_map(|record| match record {
            Record::Event(of, detail) if *of == kind => Some(detail.as_str()),
            _ => None,
        })
}

fn persists(actions: &[Action], record: &Record) -> bool {
    records(actions).contains(&record)
}

fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(outcome),
        _ => None,
    })
}

fn failure(actions: &[Action]) -> &str {
    match outcome(actions) {
        Some(Outcome::Failed(reason)) => reason,
        other => panic!("{other:?} in {actions:?}"),
    }
}

fn refusal(actions: &[Action]) -> (&str, bool) {
    match orders(actions)[..] {
        [(_, Order::Refused { reason, permanent })] => (reason, *permanent),
        ref other => panic!("no refusal in {other:?}"),
    }
}
