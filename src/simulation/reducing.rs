//! What the ranks of a generation do together: connect, find the newest state and copy it, reduce;
//! and how that breaks.

use super::checks::Agreed;
use super::collective::Part;
use super::job::State;
use super::training::{Place, Wake};
use super::worker::ProcessId;
use super::world::World;
use crate::collective::Flags;
use crate::ids::{Rank, Step};
use crate::membership::{Breakage, Close, Finish, Forming, Now};
use crate::session::{Event, Newest, newest, oldest};
use std::time::Duration;

impl World {
    /// Has the other ranks look at what has changed.
    pub(super) fn tell_peers(&mut self, process: ProcessId) {
        for peer in self.group(process).processes.clone() {
            if peer != process && !self.workers[peer].is_gone() {
                let delay = self.chance.ms(0, 3);
                self.wake_after(peer, Wake::Look, delay);
            }
        }
    }

    /// The rank that this one can't hear, and until when.
    pub(super) fn unheard(&mut self, process: ProcessId) -> Option<(usize, Now)> {
        let now = self.now;
        let peers = self.group(process).processes.clone();
        let mut peers = peers.into_iter().enumerate();
        peers.find_map(|(rank, peer)| Some((rank, self.network.apart(process, peer, now)?.1)))
    }

    pub(super) fn connecting(&mut self, process: ProcessId) {
        let group = self.group(process);
        let joined = |rank: usize| group.joined[rank];
        let gone = (0..group.left.len()).find(|rank| group.left[*rank].is_some());
        if let Some(gone) = gone.filter(|rank| joined(*rank)) {
            self.broken(process, Some(gone), "a peer left while connecting");
        } else if (0..group.joined.len()).all(joined) {
            match self.unheard(process) {
                Some((_, until)) => {
                    let wait = until - self.now + Duration::from_millis(1);
                    self.wake_after(process, Wake::Look, wait);
                }
                None => self.enter(process, 0, Flags::default()),
            }
        }
    }

    pub(super) fn enter(&mut self, process: ProcessId, gradient: u64, flags: Flags) {
        let (now, collective) = (self.now, self.job.collective);
        let state = self.thread(process).state;
        let run = self.workers[process].thread.run();
        let (number, rank) = (run.next, run.rank);
        run.next += 1;
        let part = Part {
            state,
            gradient,
            flags,
        };
        let id = (run.assignment.generation, run.life);
        self.wait(
            process,
            Place::Collective(number),
            Wake::Deadline,
            collective,
        );
        let group = self.groups.get_mut(&id).expect("joined when the run began");
        let last = group.enter(number, rank, part, now, &mut self.chance);
        if last {
            for (rank, peer) in group.processes.clone().into_iter().enumerate() {
                let operation = self.groups.get_mut(&id).and_then(|g| g.operation(number));
                let at = operation.map_or(now, |operation| operation.done_at(rank));
                self.wake_after(peer, Wake::Look, at - now);
            }
        }
        self.look(process);
    }

    pub(super) fn reducing(&mut self, process: ProcessId, number: u64) {
        let now = self.now;
        let run = self.thread(process).run();
        let rank = run.rank;
        let group = self.group(process);
        let gone = (0..group.left.len()).find(|rank| group.left[*rank].is_some());
        let (processes, left) = (group.processes.clone(), group.left.clone());
        let Some(operation) = group.operation(number).cloned() else {
            return;
        };
        if !operation.is_full() {
            if let Some(gone) = gone {
                self.broken(process, Some(gone), "a peer is gone");
            }
            return;
        }
        let done_at = operation.done_at(rank);
        if now < done_at {
            self.wake_after(process, Wake::Look, done_at - now);
            return;
        }
        for (other, peer) in processes.iter().enumerate() {
            if other == rank || operation.done[other] {
                continue;
            }
            let sent_at = operation.sent_at(other, rank);
            if left[other].is_some_and(|at| sent_at > at) {
                self.broken(process, Some(other), "a peer is gone");
                return;
            }
            if self.workers[*peer].halted_at.is_some_and(|at| sent_at > at) {
                return; // It is stopped; when it goes on it says so.
            }
            if let Some((since, until)) = self.network.apart(process, *peer, now)
                && sent_at > since
            {
                let wait = until - now + Duration::from_millis(1);
                self.wake_after(process, Wake::Look, wait);
                return;
            }
        }
        if let Some(operation) = self.group(process).operation(number) {
            operation.done[rank] = true;
        }
        let parts: Vec<Part> = operation.parts.into_iter().flatten().collect();
        match number {
            0 => self.agree(process, &parts),
            1 => self.copy(process, &parts),
            2 => self.formed(process),
            _ => self.stepped(process, &parts),
        }
    }

    /// The wait for peers has lasted too long.
    pub(super) fn late(&mut self, process: ProcessId) {
        let run = self.thread(process).run();
        let place = run.place;
        let group = self.group(process);
        let missing = match place {
            Place::Connecting => group.joined.iter().position(|joined| !joined),
            Place::Collective(number) => group
                .operation(number)
                .and_then(|operation| operation.parts.iter().position(Option::is_none)),
            Place::Waiting => {
                let why = "no work from the coordinator".to_owned();
                self.finish(process, Finish::Failed(why));
                return;
            }
            _ => return,
        };
        let halted = group.processes.clone();
        let halted = halted
            .iter()
            .position(|peer| self.workers[*peer].halted_at.is_some());
        let unheard = self.unheard(process).map(|(rank, _)| rank);
        self.broken(process, missing.or(unheard).or(halted), "too late");
    }

    pub(super) fn broken(&mut self, process: ProcessId, suspect: Option<usize>, reason: &str) {
        let step = self.thread(process).state.step;
        let generation = self.thread(process).run().assignment.generation;
        let breakage = Breakage {
            reason: reason.to_owned(),
            suspect: suspect.map(|rank| Rank(rank as u32)),
        };
        self.end_run(process, Event::CollectiveFailed(generation, step, breakage));
    }

    /// Its connections to its peers are closed.
    pub(super) fn leave_group(&mut self, process: ProcessId) {
        let worker = &self.workers[process];
        let at = worker.halted_at.unwrap_or(self.now);
        let Some(run) = &worker.thread.run else {
            return;
        };
        let rank = run.rank;
        self.group(process).left[rank].get_or_insert(at);
        self.tell_peers(process);
    }

    /// A process that was stopped goes on with what it was sending.
    pub(super) fn resume_sending(&mut self, process: ProcessId) {
        let now = self.now;
        let Some(run) = &self.workers[process].thread.run else {
            return;
        };
        let (rank, id) = (run.rank, (run.assignment.generation, run.life));
        if let Some(group) = self.groups.get_mut(&id) {
            group.resume(rank, now, &mut self.chance);
        }
        self.tell_peers(process);
    }

    /// Who holds what is known: the newest is right.
    pub(super) fn agree(&mut self, process: ProcessId, parts: &[Part]) {
        let held: Vec<Step> = parts.iter().map(|part| part.state.step).collect();
        let run = self.thread(process).run();
        let saved = run.assignment.checkpoint.as_ref().map(|c| c.step);
        let first = run.rank == 0;
        let choose = if self.mistakes.oldest_state_taken {
            oldest
        } else {
            newest
        };
        let agreed = choose(&held, saved);
        self.agreement(process, agreed.step(), parts, saved);
        self.thread(process).run().agreed = Some(agreed.clone());
        if first && matches!(agreed, Newest::Saved(_)) {
            let length = self.chance.ms(20, 800);
            self.wait(process, Place::Reading, Wake::Read, length);
        } else {
            self.enter(process, 0, Flags::default());
        }
    }

    /// Tells the checks, once a generation.
    pub(super) fn agreement(
        &mut self,
        process: ProcessId,
        from: Step,
        parts: &[Part],
        saved: Option<Step>,
    ) {
        let group = self.group(process);
        if std::mem::replace(&mut group.agreed, true) {
            return;
        }
        let (processes, spoken_at) = (group.processes.clone(), group.spoken_at);
        let assignment = &self.thread(process).run().assignment;
        // What does no step leaves nobody behind.
        let (generation, closing) = (assignment.generation, assignment.close.is_some());
        let held = parts.iter().map(|part| part.state.step);
        self.checks.agreed(generation, from, held.chain(saved));
        let agreed = Agreed {
            generation,
            from,
            processes,
            spoken_at,
        };
        if !closing {
            let ledger = &self.coordinator.ledger;
            self.checks.followed(agreed, &self.workers, ledger);
        }
    }

    pub(super) fn read(&mut self, process: ProcessId) {
        let Some(step) = self.thread(process).run().agreed.as_ref().map(Newest::step) else {
            return;
        };
        let Some(bits) = self.store.get(&step).copied() else {
            self.checks.fail(format!(
                "a checkpoint of {step} is spoken of, and isn't there"
            ));
            return;
        };
        self.thread(process).state = State { step, bits };
        self.enter(process, 0, Flags::default());
    }

    pub(super) fn copy(&mut self, process: ProcessId, parts: &[Part]) {
        let agreed = self.thread(process).run().agreed.clone();
        let Some(agreed) = agreed else { return };
        for holder in agreed.holders() {
            let held = parts[holder.0 as usize].state;
            self.checks.state(&held, "a holder's");
            if held.step != agreed.step() {
                self.checks
                    .fail(format!("rank {holder} holds {held:?}, not {agreed:?}"));
            }
            if self.thread(process).state.step != agreed.step() {
                self.checks.healed += 1;
                self.thread(process).state = held;
            }
        }
        self.enter(process, 0, Flags::default());
    }

    pub(super) fn formed(&mut self, process: ProcessId) {
        let step = self.thread(process).state.step;
        let run = self.thread(process).run();
        let (generation, close) = (run.assignment.generation, run.assignment.close);
        let formed = Event::Formed(generation, step, Forming::default());
        self.report_event(process, formed);
        match close {
            Some(Close::Stopped) => self.finish(process, Finish::Stopped),
            Some(Close::Left) => self.finish(process, Finish::Left),
            None => self.step(process),
        }
    }
}
