//! What is written to a ledger, within one transaction.

use super::booking::{Booking, Pace, Row, rebook};
use super::{JobRecord, LedgerError, RecoveryRecord, reader};
use crate::data::Manifest;
use crate::ids::{Epoch, Generation, Rank, Step, WorkerId};
use crate::membership::{Cause, CheckpointRecord, DeviceKind, EventKind, Facts, Recovery, Seat};
use crate::plan::EpochPlan;
use rusqlite::{Params, Transaction, params};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Writes that become durable together. Within a batch, what was written before is seen.
#[derive(Debug)]
pub struct Batch<'a> {
    path: &'a Path,
    transaction: &'a Transaction<'a>,
}

/// A [`Seat`] as the table of generations has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeatText {
    pub(super) worker: WorkerId,
    pub(super) rank: Rank,
    pub(super) first_replica: u32,
    pub(super) replicas: u32,
    pub(super) address: String,
    pub(super) incarnation: String,
}

impl<'a> Batch<'a> {
    pub(super) fn new(path: &'a Path, transaction: &'a Transaction<'a>) -> Self {
        Self { path, transaction }
    }

    fn fault(&self, source: rusqlite::Error) -> LedgerError {
        LedgerError::Sqlite {
            path: self.path.to_owned(),
            source,
        }
    }

    fn damaged(&self, what: impl ToString) -> LedgerError {
        LedgerError::Damaged {
            path: self.path.to_owned(),
            what: what.to_string(),
        }
    }

    /// Runs one statement, and says how many rows it has changed.
    fn execute(&self, statement: &str, params: impl Params) -> Result<usize, LedgerError> {
        self.transaction
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|source| self.fault(source))
    }

    fn json(&self, value: &impl Serialize) -> Result<String, LedgerError> {
        serde_json::to_string(value).map_err(|error| self.damaged(error))
    }

    fn meta<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, LedgerError> {
        reader::meta(self.path, self.transaction, key)
    }

    /// Records the job of a new run directory.
    ///
    /// # Errors
    /// [`LedgerError`], also if there is one already.
    pub fn begin(&mut self, job: &JobRecord, data: &Manifest) -> Result<(), LedgerError> {
        for (key, value) in [("job", self.json(job)?), ("data", self.json(data)?)] {
            self.execute("INSERT INTO meta VALUES (?, ?)", [key, value.as_str()])?;
        }
        Ok(())
    }

    /// Records what the job is computed on, for good.
    ///
    /// # Errors
    /// [`LedgerError`], also if it stands there already.
    pub fn set_device(&mut self, device: &DeviceKind) -> Result<(), LedgerError> {
        let device = self.json(device)?;
        self.execute("INSERT INTO meta VALUES ('device', ?)", [device])?;
        Ok(())
    }

    /// Records that a worker has got its number.
    ///
    /// # Errors
    /// [`LedgerError`], also if the number was given out before, by whatever coordinator.
    pub fn admit(
        &mut self,
        worker: WorkerId,
        facts: &Facts,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?)",
            params![
                worker.0,
                facts.incarnation,
                facts.host,
                facts.pid,
                self.json(&facts.device)?,
                unix_seconds
            ],
        )?;
        Ok(())
    }

    /// Records a generation, before it is spoken.
    ///
    /// # Errors
    /// [`LedgerError`], also when the generation stands there already (invariant 3).
    pub fn generation(
        &mut self,
        generation: Generation,
        cause: Cause,
        seats: &[Seat],
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        let members = seats.iter().map(|seat| SeatText {
            worker: seat.worker,
            rank: seat.rank,
            first_replica: seat.replicas.start,
            replicas: seat.replicas.len() as u32,
            address: seat.address.clone(),
            incarnation: seat.incarnation.clone(),
        });
        let members = self.json(&members.collect::<Vec<_>>())?;
        self.execute(
            "INSERT INTO generations (generation, unix_seconds, cause, members)
             VALUES (?, ?, ?, ?)",
            params![generation.0, unix_seconds, cause.to_string(), members],
        )?;
        Ok(())
    }

    /// Records that nobody of the newest generation can come back.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn vacate(&mut self) -> Result<(), LedgerError> {
        self.execute(
            "UPDATE generations SET vacated = 1
             WHERE generation = (SELECT max(generation) FROM generations)",
            [],
        )?;
        Ok(())
    }

    /// Books what the plans' epochs hold on the workers of a generation, which goes on from
    /// `State(from)`: what that state has used stays booked as it is, everything else is booked
    /// on them. What the state has used but is booked on nobody is booked on them too: nobody
    /// knows better.
    ///
    /// The first call for a generation says that it has formed: `from` is then the newest state of
    /// the job, even if one later had been reached before, and bookings of later steps in other
    /// epochs are void. Further calls book further epochs. To repeat a call changes nothing.
    ///
    /// # Errors
    /// [`LedgerError`], also if the generation was never recorded.
    pub fn assign(
        &mut self,
        generation: Generation,
        seats: &[Seat],
        plans: &[EpochPlan],
        from: Step,
        steps_per_epoch: u64,
        batch: u32,
    ) -> Result<(), LedgerError> {
        let pace = Pace {
            steps_per_epoch,
            batch,
        };
        self.keep_pace(pace)?;
        self.formed(generation, from)?;
        for plan in plans {
            let old = reader::rows(self.path, self.transaction, plan.epoch)?;
            let used = pace.used(plan.epoch, from);
            for seat in seats {
                let booking = Booking {
                    generation,
                    worker: seat.worker,
                };
                for replica in seat.replicas.clone() {
                    let old = old.get(&replica).map_or(&[][..], Vec::as_slice);
                    let new = rebook(old, &plan.replicas[replica as usize], used, booking);
                    self.replace(plan.epoch, replica, old, &new)?;
                }
            }
            for span in &plan.tail {
                self.execute(
                    "INSERT OR IGNORE INTO tails VALUES (?, ?, ?, ?)",
                    params![plan.epoch.0, span.shard, span.start, span.len],
                )?;
            }
        }
        Ok(())
    }

    /// Makes a replica's rows `new`, where they are `old`.
    fn replace(
        &self,
        epoch: Epoch,
        replica: u32,
        old: &[Row],
        new: &[Row],
    ) -> Result<(), LedgerError> {
        let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        if same < old.len() {
            self.execute(
                "DELETE FROM spans WHERE epoch = ? AND replica = ? AND first >= ?",
                params![epoch.0, replica, old[same].first],
            )?;
        }
        for row in &new[same..] {
            self.execute(
                "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    epoch.0,
                    replica,
                    row.first,
                    row.len,
                    row.span.shard,
                    row.span.start,
                    row.span.len,
                    row.skip,
                    row.booking.generation.0,
                    row.booking.worker.0
                ],
            )?;
        }
        Ok(())
    }

    /// Remembers how fast the job reads.
    fn keep_pace(&self, pace: Pace) -> Result<(), LedgerError> {
        match self.meta::<Pace>("pace")? {
            Some(kept) if kept == pace => Ok(()),
            Some(kept) => Err(self.damaged(format!(
                "it was kept for {} steps an epoch of {} samples a replica, not {} of {}",
                kept.steps_per_epoch, kept.batch, pace.steps_per_epoch, pace.batch
            ))),
            None => {
                let pace = self.json(&pace)?;
                self.execute("INSERT INTO meta VALUES ('pace', ?)", [pace])?;
                Ok(())
            }
        }
    }

    /// A generation has formed, if it wasn't known yet.
    fn formed(&self, generation: Generation, from: Step) -> Result<(), LedgerError> {
        let news = self.execute(
            "UPDATE generations SET from_step = ?2, until_step = ?2
             WHERE generation = ?1 AND from_step IS NULL",
            [generation.0, from.0],
        )?;
        if news == 1 {
            // Somebody has made that state.
            self.execute(
                "UPDATE generations SET until_step = max(until_step, ?2) WHERE generation =
                 (SELECT max(generation) FROM generations
                  WHERE generation < ?1 AND from_step IS NOT NULL)",
                [generation.0, from.0],
            )?;
            self.unbook(from)?;
            return self.set_reached(from);
        }
        let known = "SELECT count(*) FROM generations WHERE generation = ?";
        let known = self
            .transaction
            .query_row(known, [generation.0], |row| row.get::<_, u64>(0))
            .map_err(|source| self.fault(source))?;
        if known == 0 {
            return Err(self.damaged(format!("generation {generation} was never recorded")));
        }
        Ok(())
    }

    /// Records that the job has reached a state, if it is newer than what was: rows that it has
    /// used are done.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn reached(&mut self, step: Step) -> Result<(), LedgerError> {
        if step <= reader::reached_step(self.path, self.transaction)? {
            return Ok(());
        }
        self.execute(
            "UPDATE generations SET until_step = ?1 WHERE until_step < ?1 AND generation =
             (SELECT max(generation) FROM generations WHERE from_step IS NOT NULL)",
            [step.0],
        )?;
        self.set_reached(step)
    }

    fn set_reached(&self, step: Step) -> Result<(), LedgerError> {
        let step = self.json(&step)?;
        self.execute("INSERT OR REPLACE INTO meta VALUES ('reached', ?)", [step])?;
        Ok(())
    }

    /// Makes the ledger say what `State(step)`, from which the job goes on, has used: no less, and
    /// no more. Bookings and checkpoints of later steps are void.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn rewind(&mut self, step: Step) -> Result<(), LedgerError> {
        self.unbook(step)?;
        self.execute("DELETE FROM checkpoints WHERE step > ?", [step.0])?;
        self.set_reached(step)
    }

    /// Takes back all bookings that `State(step)` has not used.
    fn unbook(&self, step: Step) -> Result<(), LedgerError> {
        let Some(pace) = self.meta::<Pace>("pace")? else {
            return Ok(()); // Nothing was ever booked.
        };
        let epoch = pace.epoch(step);
        let used = pace.used(epoch, step);
        self.execute("DELETE FROM spans WHERE epoch > ?", [epoch.0])?;
        self.execute(
            "DELETE FROM spans WHERE epoch = ? AND first >= ?",
            [epoch.0, used],
        )?;
        self.execute(
            "UPDATE spans SET len = ?2 - first WHERE epoch = ?1 AND first + len > ?2",
            [epoch.0, used],
        )?;
        // An epoch that nobody has begun is dealt anew, tail and all.
        let begun = epoch.0 + u64::from(used > 0);
        self.execute("DELETE FROM tails WHERE epoch >= ?", [begun])?;
        Ok(())
    }

    /// Records what a change of membership took.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn recovery(&mut self, recovery: &Recovery, unix_seconds: f64) -> Result<(), LedgerError> {
        let took = RecoveryRecord::from(recovery);
        self.execute(
            "INSERT OR REPLACE INTO recoveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                recovery.generation.0,
                unix_seconds,
                took.detect,
                took.abort,
                took.connect,
                took.heal,
                took.first_step,
                took.whole
            ],
        )?;
        Ok(())
    }

    /// Records a checkpoint.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn checkpoint(
        &mut self,
        checkpoint: &CheckpointRecord,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.execute(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)",
            params![
                checkpoint.step.0,
                checkpoint.path,
                checkpoint.digest,
                unix_seconds
            ],
        )?;
        Ok(())
    }

    /// Records an event.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn event(
        &mut self,
        generation: Generation,
        kind: EventKind,
        detail: &str,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO events (unix_seconds, generation, kind, detail) VALUES (?, ?, ?, ?)",
            params![unix_seconds, generation.0, kind.to_string(), detail],
        )?;
        Ok(())
    }

    /// Writes an event down, unless the same is there already: of a step that may be told twice.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn event_once(
        &mut self,
        generation: Generation,
        kind: EventKind,
        detail: &str,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO events (unix_seconds, generation, kind, detail) SELECT ?1, ?2, ?3, ?4
             WHERE NOT EXISTS (SELECT 1 FROM events WHERE kind = ?3 AND detail = ?4)",
            params![unix_seconds, generation.0, kind.to_string(), detail],
        )?;
        Ok(())
    }
}
