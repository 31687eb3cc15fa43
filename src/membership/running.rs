//! PURE. While steps are done: progress, checkpoints, recoveries, and slow workers.

use super::balance::{self, Pace, Speed};
use super::members::{Member, MemberState, Now};
use super::words::{
    Action, Cause, CheckpointRecord, EventKind, Forming, Order, Phase, Record, Recovery,
};
use super::{Membership, name};
use crate::ids::{Step, WorkerId};
use std::time::Duration;

/// Epochs that are handed out ahead, at least.
const LOOKAHEAD_EPOCHS: u64 = 2;

/// Weight of what came before in a worker's smoothed pace.
const INERTIA: f64 = 0.7;

/// When replicas were dealt, and since when another deal would be better.
#[derive(Debug)]
pub(super) struct Balance {
    dealt_at: Now,
    better_since: Option<Now>,
    weighed_at: Now,
}

impl Balance {
    pub(super) fn new(now: Now) -> Self {
        Self {
            dealt_at: now,
            better_since: None,
            weighed_at: now,
        }
    }

    pub(super) fn dealt(&mut self, now: Now) {
        *self = Self::new(now);
    }
}

/// Times a change of membership.
#[derive(Debug)]
pub(super) struct Clock {
    cause: Cause,
    notice: Now,
    detect: Duration,
    forming: Forming,
    formed_at: Option<Now>,
}

impl Clock {
    pub(super) fn formed(&mut self, forming: Forming, now: Now) {
        self.forming.abort = self.forming.abort.max(forming.abort);
        self.forming.connect = self.forming.connect.max(forming.connect);
        self.forming.heal = self.forming.heal.max(forming.heal);
        self.formed_at = Some(now);
    }
}

impl Membership {
    /// One past the last epoch that should be handed out when `step` is reached.
    pub(super) fn horizon(&self, step: Step) -> u64 {
        let a_pass = self.rules.steps_per_epoch;
        let ahead = (LOOKAHEAD_EPOCHS * a_pass).max(self.lookahead);
        let until = step.0.saturating_add(ahead).min(self.rules.total_steps);
        until.div_ceil(a_pass)
    }

    pub(super) fn progress(
        &mut self,
        worker: WorkerId,
        step: Step,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.step = member.step.max(step);
        }
        self.reach(step, now, actions);
    }

    /// Some worker holds `State(step)`.
    pub(super) fn reach(&mut self, step: Step, now: Now, actions: &mut Vec<Action>) {
        if self.from.is_some_and(|from| step > from) {
            self.trouble.over();
            self.first_step(now, actions);
        }
        if step > self.reached {
            self.reached = step;
            actions.push(Action::Persist(Record::Reached(step)));
            self.hand_out(actions);
        }
    }

    /// Hands out more work if there is less than there should be ahead of what is reached.
    pub(super) fn hand_out(&mut self, actions: &mut Vec<Action>) {
        let step = self.reached;
        if self.booked < self.assigned.end {
            // It is the first that is heard of this generation.
            actions.push(self.book(self.from.unwrap_or(step), self.assigned.start));
        }
        let horizon = self.horizon(step);
        if horizon <= self.assigned.end {
            return;
        }
        let epochs = self.assigned.end..horizon;
        self.assigned.end = horizon;
        let generation = self.generation;
        actions.push(self.book(step, epochs.start));
        for seat in self.seats.iter() {
            let work = Order::Work {
                generation,
                replicas: seat.replicas.clone(),
                epochs: epochs.clone(),
            };
            actions.push(Action::Send(seat.worker, work));
        }
    }

    pub(super) fn start_clock(&mut self, cause: Cause, notice: Now, detect: Duration) {
        // A death during a change makes it longer; it is still one.
        let clock = self.clock.get_or_insert(Clock {
            cause,
            notice,
            detect,
            forming: Forming::default(),
            formed_at: None,
        });
        clock.formed_at = None;
    }

    fn first_step(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(clock) = self.clock.take() else {
            return;
        };
        actions.push(Action::Persist(Record::Recovered(Recovery {
            cause: clock.cause,
            generation: self.generation,
            detect: clock.detect,
            forming: clock.forming,
            first_step: now.saturating_sub(clock.formed_at.unwrap_or(now)),
            whole: now.saturating_sub(clock.notice),
        })));
    }

    pub(super) fn checkpoint(
        &mut self,
        checkpoint: CheckpointRecord,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.checkpoint.as_ref() == Some(&checkpoint) {
            return; // Told again, by a worker that had lost its session.
        }
        // It may come before the progress that led to it.
        self.reach(checkpoint.step, now, actions);
        let told = format!("step {} in {}", checkpoint.step, checkpoint.path);
        actions.extend([
            Action::Persist(Record::Checkpoint(checkpoint.clone())),
            Action::Persist(Record::Event(EventKind::Checkpoint, told)),
        ]);
        if checkpoint.step >= self.durable() {
            self.checkpoint = Some(checkpoint);
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        worker: WorkerId,
        step: Step,
        pace: Option<Pace>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.progress(worker, step, now, actions);
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        let Some(pace) = pace else { return };
        let round = pace.round(member.facts.cores);
        member.round = Some(match member.round {
            None => round,
            Some(before) => before.mul_f64(INERTIA) + round.mul_f64(1.0 - INERTIA),
        });
        self.weigh(now);
    }

    /// What each member should host: an even deal, unless another is worth it.
    pub(super) fn shares(&self, members: &[&Member]) -> Vec<u32> {
        let replicas = self.rules.replicas;
        let speeds = speeds(members);
        let even: Vec<Speed> = speeds
            .iter()
            .map(|speed| Speed {
                round: Duration::from_secs(1),
                ..*speed
            })
            .collect();
        let even = balance::deal(replicas, &even);
        balance::better(replicas, &even, &speeds).unwrap_or(even)
    }

    /// Looks whether another deal would be better, and since when it has been.
    fn weigh(&mut self, now: Now) {
        if now < self.balance.weighed_at + self.rules.heartbeat / 8 {
            return;
        }
        self.balance.weighed_at = now;
        let members: Vec<&Member> = self.seated().map(|(_, member)| member).collect();
        let known = members.iter().all(|member| member.round.is_some());
        let better = known && self.phase == Phase::Running && {
            let shares: Vec<u32> = self.seats.iter().map(|s| s.replicas.len() as u32).collect();
            let speeds = speeds(&members);
            shares.len() == speeds.len()
                && balance::better(self.rules.replicas, &shares, &speeds).is_some()
        };
        if better {
            self.balance.better_since.get_or_insert(now);
        } else {
            self.balance.better_since = None;
        }
    }

    /// Whether the generation should be followed by another although nothing is wrong with it.
    pub(super) fn look_for_change(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self
            .seated()
            .any(|(_, member)| member.state == MemberState::Paused)
        {
            // Another one's flag; or a pause that the coordinator of before asked for.
            self.enter(Phase::Pausing(Cause::CoordinatorRestart), now);
        } else if self.seated().any(|(_, member)| member.leaving) {
            self.pause(Cause::Leave, now, actions);
        } else if self.has_spare(now) {
            self.pause(Cause::Join, now, actions);
        } else if self.is_unbalanced(now) {
            let told = self.imbalance();
            actions.push(Action::Persist(Record::Event(EventKind::Rebalanced, told)));
            self.pause(Cause::Rebalance, now, actions);
        }
    }

    fn has_spare(&self, now: Now) -> bool {
        let seats = self.rules.max.min(self.rules.replicas) as usize;
        let spare = |member: &Member| {
            member.state == MemberState::Ready && !member.leaving && member.is_able(now)
        };
        self.seats.len() < seats && self.members.values().any(spare)
    }

    /// A better deal has been in sight for as long as a death would take to be noticed, and the
    /// last one is not too fresh: replicas don't move for a hiccup.
    pub(super) fn is_unbalanced(&self, now: Now) -> bool {
        let heartbeat = self.rules.heartbeat;
        let sustained = self
            .balance
            .better_since
            .is_some_and(|at| now >= at + heartbeat);
        self.phase == Phase::Running && sustained && now >= self.balance.dealt_at + 2 * heartbeat
    }

    /// Why replicas move, in words.
    fn imbalance(&self) -> String {
        let members: Vec<&Member> = self.seated().map(|(_, member)| member).collect();
        let speeds = speeds(&members);
        let shares: Vec<u32> = self.seats.iter().map(|s| s.replicas.len() as u32).collect();
        let wanted = self.shares(&members);
        let moved: Vec<String> = self
            .seated()
            .zip(shares.iter().zip(&wanted))
            .filter(|(_, (now, then))| now != then)
            .map(|((worker, member), (now, then))| {
                let round = member.round.unwrap_or_default();
                let (name, ms) = (name(worker, member), round.as_secs_f64() * 1e3);
                format!("{name} takes {ms:.1} ms a round: {now} -> {then} replicas")
            })
            .collect();
        format!(
            "{}; a step's computation {:.1} -> {:.1} ms",
            moved.join(", "),
            balance::step(&shares, &speeds).as_secs_f64() * 1e3,
            balance::step(&wanted, &speeds).as_secs_f64() * 1e3,
        )
    }
}

/// How fast the members are; whoever is new is taken to be as fast as the middle one.
fn speeds(members: &[&Member]) -> Vec<Speed> {
    let mut known: Vec<Duration> = members.iter().filter_map(|member| member.round).collect();
    known.sort();
    let typical = known.get(known.len() / 2).copied();
    let typical = typical.unwrap_or(Duration::from_secs(1));
    members.iter().map(|member| member.speed(typical)).collect()
}
