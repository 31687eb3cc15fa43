//! What goes wrong in a schedule, and who puts it right: whoever started the processes starts them
//! again.

use super::chance::Chance;
use super::job::Job;
use super::worker::ProcessId;
use super::world::{Happening, World};
use crate::membership::{Event, Now};
use std::time::Duration;

/// For a job to be complete once nothing goes wrong any more. What takes longest: a worker's
/// patience with a coordinator, then a wait for each of the deadlines, and all steps anew.
const CALM: Duration = Duration::from_secs(400);

/// Generations that it may take: one a worker that comes, some for what the faults have left.
const CALM_GENERATIONS: u64 = 25;

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kill,
    KillTwo,
    KillAll,
    Terminate,
    TerminateAll,
    Stop,
    KillCoordinator,
    KillCoordinatorAtAnAction,
    StopCoordinator,
    KillEverything,
    BreakConnection,
    CutOff,
    Part,
    Slow,
    Newcomer,
    PersonStops,
    Drain,
    DiskFull,
}

const KINDS: [Kind; 18] = [
    Kind::Kill,
    Kind::KillTwo,
    Kind::KillAll,
    Kind::Terminate,
    Kind::TerminateAll,
    Kind::Stop,
    Kind::KillCoordinator,
    Kind::KillCoordinatorAtAnAction,
    Kind::StopCoordinator,
    Kind::KillEverything,
    Kind::BreakConnection,
    Kind::CutOff,
    Kind::Part,
    Kind::Slow,
    Kind::Newcomer,
    Kind::PersonStops,
    Kind::Drain,
    Kind::DiskFull,
];

impl Kind {
    fn is_sweeping(self) -> bool {
        matches!(
            self,
            Kind::KillAll
                | Kind::KillEverything
                | Kind::TerminateAll
                | Kind::PersonStops
                | Kind::Drain
        )
    }
}

#[derive(Clone, Debug)]
pub(super) struct Faults {
    /// Those of this schedule.
    kinds: Vec<Kind>,
    /// The longest time between two.
    gap: u64,
    peace_at: Now,
    /// Generations at that time.
    generations: Option<u64>,
    /// Workers beyond those that the job expects.
    spares: u32,
    pub(super) count: u64,
    pub(super) stopped: bool,
    pub(super) drained: bool,
}

impl Faults {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        // Few kinds at a time meet each other more often.
        let share = chance.pick(&[60, 150, 300, 600]).unwrap_or(300);
        let kinds = KINDS.into_iter().filter(|kind| {
            // What ends everything leaves little for others to go wrong with.
            let share = if kind.is_sweeping() { share / 4 } else { share };
            chance.in_thousand(share)
        });
        let kinds = kinds.collect();
        Self {
            kinds,
            gap: chance.pick(&[2500, 6000, 15_000]).unwrap_or(6000),
            peace_at: chance.ms(5000, 90_000),
            generations: None,
            spares: chance.pick(&[0, 0, 1, 2]).unwrap_or(0),
            count: 0,
            stopped: false,
            drained: false,
        }
    }

    /// Workers that whoever starts them keeps alive.
    pub(super) fn crew(&self, job: &Job) -> usize {
        (job.expected + self.spares) as usize
    }

    /// How long nothing has gone wrong any more.
    pub(super) fn calm(&self, now: Now) -> Duration {
        now.saturating_sub(self.peace_at)
    }

    pub(super) fn calm_generations(&self, generations: u64) -> u64 {
        self.generations.map_or(0, |before| generations - before)
    }

    /// Until a process that has ended is started again.
    pub(super) fn absence(&self, chance: &mut Chance, now: Now) -> Duration {
        if now >= self.peace_at || chance.in_thousand(850) {
            chance.ms(100, 3000)
        } else {
            chance.ms(5000, 25_000)
        }
    }

    pub(super) fn overdue(&self, now: Now, generations: u64) -> Option<String> {
        let calm = self.calm(now);
        if calm > CALM {
            return Some(format!("the job is not complete after {CALM:?} of calm"));
        }
        let formed = self.calm_generations(generations);
        (formed > CALM_GENERATIONS).then(|| format!("{formed} generations in {calm:?} of calm"))
    }
}

impl World {
    pub(super) fn open(&mut self) {
        let late = self.chance.ms(0, 2000);
        self.after(late, Happening::StartCoordinator);
        for _ in 0..self.faults.crew(&self.job) {
            let late = self.chance.ms(0, 4000);
            self.after(late, Happening::StartWorker);
        }
        let peace_at = self.faults.peace_at;
        self.schedule(peace_at, Happening::Peace);
        self.next_fault();
    }

    fn next_fault(&mut self) {
        let gap = self.faults.gap;
        let wait = self.chance.ms(1, gap);
        if !self.faults.kinds.is_empty() && self.now + wait < self.faults.peace_at {
            self.after(wait, Happening::Fault);
        }
    }

    pub(super) fn fault(&mut self) {
        if self.is_over() {
            return;
        }
        let kinds = self.faults.kinds.clone();
        if let Some(kind) = self.chance.pick(&kinds) {
            self.note(format!("FAULT: {kind:?}"));
            self.faults.count += 1;
            self.strike(kind);
        }
        self.next_fault();
    }

    /// Any process that is there.
    fn victim(&mut self) -> Option<ProcessId> {
        let workers = self.workers.iter().enumerate();
        let there = workers.filter(|(_, worker)| !worker.is_gone());
        let there: Vec<ProcessId> = there.map(|(process, _)| process).collect();
        let victim = self.chance.pick(&there)?;
        self.note(format!("process {victim} is struck"));
        self.workers[victim].disturbed_at = Some(self.now);
        Some(victim)
    }

    fn strike(&mut self, kind: Kind) {
        let life = self.coordinator.life;
        match kind {
            Kind::Kill => self.kill_workers(1),
            Kind::KillTwo => self.kill_workers(2),
            Kind::KillAll => self.kill_workers(self.workers.len()),
            Kind::KillEverything => {
                self.kill_workers(self.workers.len());
                self.kill_coordinator(life);
            }
            Kind::Terminate => {
                if let Some(victim) = self.victim() {
                    self.terminate_worker(victim);
                }
            }
            Kind::TerminateAll => {
                for process in 0..self.workers.len() {
                    self.workers[process].disturbed_at = Some(self.now);
                    let late = self.chance.ms(0, 30);
                    let input = super::worker::Input::Terminate;
                    self.after(late, Happening::Worker(process, input));
                    self.after(late + Duration::from_secs(30), Happening::Grace(process));
                }
            }
            Kind::Stop => {
                if let Some(victim) = self.victim() {
                    let length = self.length();
                    self.stop_worker(victim, length);
                }
            }
            Kind::KillCoordinator => self.kill_coordinator(life),
            Kind::KillCoordinatorAtAnAction => {
                let actions = self.chance.below(40);
                if let Some(up) = &mut self.coordinator.up {
                    up.dies_after = Some(actions);
                }
            }
            Kind::StopCoordinator => {
                let length = self.length();
                self.stop_coordinator(length);
            }
            Kind::BreakConnection => {
                if let Some(victim) = self.victim()
                    && let Some(connection) = self.workers[victim].connection
                {
                    self.break_connection(connection);
                    // It is noticed within two seconds.
                    self.workers[victim].disturbed_at = Some(self.now + Duration::from_secs(2));
                }
            }
            Kind::CutOff => {
                if let Some(victim) = self.victim() {
                    let length = self.length();
                    self.cut_off(victim, length);
                }
            }
            Kind::Part => {
                if let (Some(a), Some(b)) = (self.victim(), self.victim())
                    && a != b
                {
                    let until = self.now + self.length();
                    self.network.part(a, b, self.now, until);
                }
            }
            Kind::Slow => {
                if let Some(victim) = self.victim() {
                    self.workers[victim].slow = self.chance.from(100, 800) as u32;
                }
            }
            Kind::Newcomer => {
                self.faults.spares += u32::from(self.faults.spares < 4);
                self.start_worker();
            }
            Kind::PersonStops => {
                self.faults.stopped = true;
                self.ask(Event::Stop("a person".to_owned()));
            }
            Kind::Drain => {
                self.faults.drained = true;
                self.ask(Event::Drain("a person".to_owned()));
            }
            Kind::DiskFull => {
                let length = self.length();
                self.coordinator.full_until = self.now + length;
            }
        }
    }

    /// How long something is out of order: shorter or longer than the lease.
    fn length(&mut self) -> Duration {
        if self.chance.in_thousand(600) {
            self.chance.ms(50, 6000)
        } else {
            self.chance.ms(6000, 45_000)
        }
    }

    fn ask(&mut self, event: Event) {
        if !self.coordinator.is_stopped() {
            self.decide(event);
        }
    }

    fn kill_workers(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(victim) = self.victim() {
                self.end_worker(victim, None);
            }
        }
    }

    /// From here on nothing goes wrong: what is out of order is put right, and who is missing is
    /// started again.
    pub(super) fn peace(&mut self) {
        self.note("PEACE".to_owned());
        self.faults.generations = Some(self.coordinator.generations());
        self.network.heal();
        self.coordinator.full_until = self.now;
        if let Some(up) = &mut self.coordinator.up {
            up.dies_after = None;
        }
        let life = self.coordinator.life;
        self.continue_coordinator(life);
        self.after(Duration::from_secs(1), Happening::StartCoordinator);
        for process in 0..self.workers.len() {
            self.workers[process].slow = 100;
            self.workers[process].cut_off_until = self.now;
            self.continue_worker(process);
        }
        for _ in 0..self.faults.crew(&self.job) {
            let late = self.chance.ms(0, 5000);
            self.after(late, Happening::StartWorker);
        }
    }
}
