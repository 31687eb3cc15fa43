//! PURE. What `coordinator::ledger` keeps, as far as the machines depend on it: it outlives the
//! coordinator.

use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{CheckpointRecord, DeviceKind, Past, Record, Seat};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A generation, as it was recorded.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    /// By which life of the coordinator.
    pub(super) life: u64,
    pub(super) seats: Arc<[Seat]>,
    pub(super) from: Option<Step>,
    /// The life that spoke it heard that it had formed.
    pub(super) heard: bool,
    vacated: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) generations: BTreeMap<Generation, Recorded>,
    pub(super) worker: WorkerId,
    pub(super) device: Option<DeviceKind>,
    pub(super) reached: Step,
    pub(super) checkpoints: BTreeMap<Step, CheckpointRecord>,
    /// On which generation each replica's part of each step is booked.
    pub(super) booked: BTreeMap<u64, Vec<Option<Generation>>>,
    pub(super) rewinds: u64,
}

impl Ledger {
    /// Writes one record, as the driver does. What the real one refuses is an error here.
    pub(super) fn write(
        &mut self,
        record: &Record,
        life: u64,
        newest: Step,
        (epoch, replicas): (u64, u32),
    ) -> Result<(), String> {
        match record {
            Record::Generation {
                generation, seats, ..
            } => {
                let recorded = Recorded {
                    life,
                    seats: Arc::clone(seats),
                    from: None,
                    heard: false,
                    vacated: false,
                };
                if self.generations.insert(*generation, recorded).is_some() {
                    return Err(format!(
                        "monotonic generations: {generation} is recorded a second time"
                    ));
                }
            }
            Record::Assigned {
                generation,
                seats,
                epochs,
                from,
            } => {
                let steps = epochs.start * epoch..epochs.end * epoch;
                self.assign(*generation, seats, steps, *from, replicas)?;
                if let Some(recorded) = self.generations.get_mut(generation) {
                    recorded.heard |= recorded.life == life;
                }
            }
            Record::Admitted(worker, _) => {
                if *worker <= self.worker {
                    return Err(format!("worker number {worker} is given a second time"));
                }
                self.worker = *worker;
            }
            Record::Vacated => {
                if let Some(mut newest) = self.generations.last_entry() {
                    newest.get_mut().vacated = true;
                }
            }
            Record::Device(device) => self.device = Some(device.clone()),
            Record::Reached(_) | Record::Recovered(_) | Record::Event(..) => {}
            Record::Rewound(step) => {
                self.rewinds += 1;
                self.unbook(*step);
                self.checkpoints.retain(|at, _| at <= step);
                self.reached = *step;
            }
            Record::Checkpoint(checkpoint) => {
                self.reach(newest.max(checkpoint.step));
                let step = checkpoint.step;
                self.checkpoints.insert(step, checkpoint.clone());
            }
        }
        Ok(())
    }

    fn assign(
        &mut self,
        generation: Generation,
        seats: &[Seat],
        steps: Range<u64>,
        from: Step,
        replicas: u32,
    ) -> Result<(), String> {
        let Some(recorded) = self.generations.get_mut(&generation) else {
            return Err(format!("generation {generation} was never recorded"));
        };
        if recorded.from.is_none() {
            recorded.from = Some(from);
            self.unbook(from);
            self.reached = from;
        }
        for step in steps {
            let empty = || vec![None; replicas as usize];
            let row = self.booked.entry(step).or_insert_with(empty);
            for seat in seats {
                for replica in seat.replicas.clone() {
                    let place = &mut row[replica as usize];
                    if step >= from.0 || place.is_none() {
                        *place = Some(generation);
                    }
                }
            }
        }
        Ok(())
    }

    fn unbook(&mut self, step: Step) {
        self.booked.split_off(&step.0);
    }

    pub(super) fn reach(&mut self, step: Step) {
        self.reached = self.reached.max(step);
    }

    pub(super) fn past(&self, checkpoint: Option<CheckpointRecord>) -> Past {
        let newest = self.generations.last_key_value();
        let live = newest.filter(|(_, recorded)| !recorded.vacated);
        Past {
            generation: newest.map_or(Generation(0), |(generation, _)| *generation),
            seats: live.map_or_else(Vec::new, |(_, recorded)| recorded.seats.to_vec()),
            reached: self.reached,
            checkpoint,
        }
    }
}
