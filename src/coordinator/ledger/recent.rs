//! The newest of a ledger's history, in bounded portions, for those who look often.

use super::{LedgerError, LedgerReader};
use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{CheckpointRecord, DeviceKind, Recovery, Seat};
use rusqlite::OptionalExtension;
use std::time::Duration;

/// What a change of membership took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(in crate::coordinator) struct RecoveryRecord {
    /// From the last sign of life to the death notice; 0 if nobody died.
    pub(in crate::coordinator) detect: f64,
    /// Until every survivor had left its step.
    pub(in crate::coordinator) abort: f64,
    /// Until all were connected.
    pub(in crate::coordinator) connect: f64,
    /// Until all held the newest state.
    pub(in crate::coordinator) heal: f64,
    /// From the generation's being formed to its first step's end.
    pub(in crate::coordinator) first_step: f64,
    /// From the notice to the first step's end.
    pub(in crate::coordinator) whole: f64,
}

impl From<&Recovery> for RecoveryRecord {
    fn from(recovery: &Recovery) -> Self {
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            detect: seconds(recovery.detect),
            abort: seconds(recovery.forming.abort),
            connect: seconds(recovery.forming.connect),
            heal: seconds(recovery.forming.heal),
            first_step: seconds(recovery.first_step),
            whole: seconds(recovery.whole),
        }
    }
}

/// A generation in brief.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::coordinator) struct GenerationBrief {
    /// Its number.
    pub(in crate::coordinator) generation: Generation,
    /// When it was spoken.
    pub(in crate::coordinator) unix_seconds: f64,
    /// Why there is one.
    pub(in crate::coordinator) cause: String,
    /// How many take part.
    pub(in crate::coordinator) workers: u64,
    /// The state that it began with, if it has formed.
    pub(in crate::coordinator) from: Option<Step>,
    /// The newest state that is known to be its work.
    pub(in crate::coordinator) until: Option<Step>,
    /// What it took to go on, if that is known.
    pub(in crate::coordinator) recovery: Option<RecoveryRecord>,
}

/// Which process a worker was.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::coordinator) struct WorkerBrief {
    /// Its host's name.
    pub(in crate::coordinator) host: String,
    /// Its process's number there.
    pub(in crate::coordinator) pid: u32,
    /// What it computes on.
    pub(in crate::coordinator) device: Option<DeviceKind>,
}

impl LedgerReader {
    /// The newest `count` generations, oldest first.
    pub(in crate::coordinator) fn recent_generations(
        &self,
        count: u32,
    ) -> Result<Vec<GenerationBrief>, LedgerError> {
        let query = if self.keeps_recoveries()? {
            "SELECT g.generation, g.unix_seconds, cause, json_array_length(members), from_step,
                    until_step, detect, abort, connect, heal, first_step, whole
             FROM generations g LEFT JOIN recoveries USING (generation)
             ORDER BY g.generation DESC LIMIT ?"
        } else {
            "SELECT generation, unix_seconds, cause, json_array_length(members), from_step,
                    until_step, NULL, NULL, NULL, NULL, NULL, NULL
             FROM generations ORDER BY generation DESC LIMIT ?"
        };
        let mut found = self.rows(query, [count], |row| {
            let whole: Option<f64> = row.get(11)?;
            let recovery = match whole {
                None => None,
                Some(whole) => Some(RecoveryRecord {
                    detect: row.get(6)?,
                    abort: row.get(7)?,
                    connect: row.get(8)?,
                    heal: row.get(9)?,
                    first_step: row.get(10)?,
                    whole,
                }),
            };
            Ok(GenerationBrief {
                generation: Generation(row.get(0)?),
                unix_seconds: row.get(1)?,
                cause: row.get(2)?,
                workers: row.get(3)?,
                from: row.get::<_, Option<u64>>(4)?.map(Step),
                until: row.get::<_, Option<u64>>(5)?.map(Step),
                recovery,
            })
        })?;
        found.reverse();
        Ok(found)
    }

    /// Ledgers of earlier versions have no table of them.
    fn keeps_recoveries(&self) -> Result<bool, LedgerError> {
        let query =
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'recoveries'";
        self.newest(query).map(|tables| tables > 0)
    }

    /// Who takes part in the newest generation, by rank.
    pub(in crate::coordinator) fn newest_seats(&self) -> Result<Vec<Seat>, LedgerError> {
        let newest = "WHERE generation = (SELECT max(generation) FROM generations)";
        let found = self.generations_where(newest)?.into_iter().next();
        Ok(found.map_or_else(Vec::new, |generation| generation.seats))
    }

    /// The newest `count` checkpoints on record, oldest first, each with the time of its record.
    pub(in crate::coordinator) fn recent_checkpoints(
        &self,
        count: u32,
    ) -> Result<Vec<(CheckpointRecord, f64)>, LedgerError> {
        let mut found = self.checkpoints_where("ORDER BY step DESC LIMIT ?", [count])?;
        found.reverse();
        Ok(found)
    }

    /// How many generations, checkpoints and events there are.
    pub(in crate::coordinator) fn counts(&self) -> Result<[u64; 3], LedgerError> {
        Ok([
            self.newest("SELECT count(*) FROM generations")?,
            self.newest("SELECT count(*) FROM checkpoints")?,
            self.newest("SELECT count(*) FROM events")?,
        ])
    }

    /// Which process a worker was, if the number was ever given out.
    pub(in crate::coordinator) fn worker(
        &self,
        worker: WorkerId,
    ) -> Result<Option<WorkerBrief>, LedgerError> {
        let query = "SELECT host, pid, device FROM workers WHERE worker = ?";
        let found = self.connection.query_row(query, [worker.0], |row| {
            let device: String = row.get(2)?;
            Ok(WorkerBrief {
                host: row.get(0)?,
                pid: row.get(1)?,
                device: serde_json::from_str(&device).ok(),
            })
        });
        found.optional().map_err(|source| self.fault(source))
    }
}
