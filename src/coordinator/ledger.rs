//! The coordinator's durable record, in SQLite.
//!
//! Write-ahead log with `synchronous = FULL`: what a call has returned from is on the disk. One
//! coordinator owns a run directory, by a lock on a file beside the ledger; anybody may read.

#[cfg(test)]
mod tests;

use crate::config::StateKeys;
use crate::data::Manifest;
use crate::ids::{Epoch, Generation, Step, WorkerId};
use crate::membership::{Cause, CheckpointRecord, DeviceKind, EventKind, Seat};
use crate::plan::{EpochPlan, Span};
use rusqlite::{Connection, OptionalExtension, params};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Version of the tables.
const FORMAT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE generations (
        generation INTEGER PRIMARY KEY,
        unix_seconds REAL NOT NULL,
        cause TEXT NOT NULL,
        members TEXT NOT NULL);
    -- A run of samples within a shard, that one replica reads in one epoch; its generation and
    -- worker are those that finish it.
    CREATE TABLE spans (
        epoch INTEGER NOT NULL,
        replica INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        start INTEGER NOT NULL,
        len INTEGER NOT NULL,
        end_step INTEGER NOT NULL,      -- State(end_step) has used all its samples
        generation INTEGER NOT NULL,
        worker INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (epoch, replica, shard, start)) WITHOUT ROWID;
    CREATE INDEX spans_open ON spans (end_step) WHERE done = 0;
    -- The samples that an epoch leaves out: fewer than a global batch.
    CREATE TABLE tails (
        epoch INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        start INTEGER NOT NULL,
        len INTEGER NOT NULL,
        PRIMARY KEY (epoch, shard, start)) WITHOUT ROWID;
    CREATE TABLE checkpoints (
        step INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        digest TEXT NOT NULL,
        unix_seconds REAL NOT NULL);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        unix_seconds REAL NOT NULL,
        generation INTEGER NOT NULL,
        kind TEXT NOT NULL,
        detail TEXT NOT NULL);
";

/// What can be wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite's account.
    #[error("{path}: {source}")]
    Sqlite {
        /// The ledger's file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The run directory can't be used.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another coordinator owns the run directory.
    #[error(
        "{path}: another gan-coord is using this run directory; stop it first, or choose another --run-dir"
    )]
    Owned {
        /// The lock's file.
        path: PathBuf,
    },
    /// The ledger is of another version of the program.
    #[error(
        "{path}: the ledger has format {found}, this program writes {FORMAT}; use the program that made it, or another --run-dir"
    )]
    Format {
        /// The ledger's file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// The ledger lacks something that it always has.
    #[error("{path}: the ledger is damaged: {what}")]
    Damaged {
        /// The ledger's file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What a ledger says of its job.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct JobRecord {
    /// Random, made when the job began.
    pub job_id: String,
    /// Its name.
    pub name: String,
    /// What its state depends on.
    pub state_keys: StateKeys,
    /// The data's.
    pub data_digest: String,
    /// When it began.
    pub started_unix_seconds: f64,
}

/// A line of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// When.
    pub unix_seconds: f64,
    /// What.
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// A span as the ledger knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRecord {
    /// By which replica it is read.
    pub replica: u32,
    /// Its samples.
    pub span: Span,
    /// The generation that it was last dealt in.
    pub generation: Generation,
    /// The worker that it was last dealt to.
    pub worker: WorkerId,
    /// Whether a committed state has used it.
    pub done: bool,
}

/// The ledger of one run directory, owned.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    connection: Connection,
    /// Held as long as the ledger is open.
    _lock: File,
}

impl Ledger {
    /// Opens the ledger of `run_dir`, which is made if it isn't there, and takes the directory's
    /// lock.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn open(run_dir: &Path) -> Result<Self, LedgerError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Io { path, source }
        };
        std::fs::create_dir_all(run_dir).map_err(io(run_dir))?;
        let lock_path = run_dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(LedgerError::Owned { path: lock_path });
            }
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(LedgerError::Io {
                    path: lock_path,
                    source,
                });
            }
        }
        let path = run_dir.join("ledger.sqlite");
        let connection = Connection::open(&path).map_err(|source| LedgerError::Sqlite {
            path: path.clone(),
            source,
        })?;
        let ledger = Self {
            path,
            connection,
            _lock: lock,
        };
        ledger.prepare()?;
        Ok(ledger)
    }

    fn prepare(&self) -> Result<(), LedgerError> {
        let setup = || -> rusqlite::Result<i64> {
            self.connection.pragma_update(None, "journal_mode", "WAL")?;
            self.connection.pragma_update(None, "synchronous", "FULL")?;
            let format = |c: &Connection| c.pragma_query_value(None, "user_version", |r| r.get(0));
            if format(&self.connection)? == 0 {
                self.connection.execute_batch(&format!(
                    "BEGIN; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT;"
                ))?;
            }
            format(&self.connection)
        };
        let found = setup().map_err(|source| self.fault(source))?;
        if found != FORMAT {
            return Err(LedgerError::Format {
                path: self.path.clone(),
                found,
            });
        }
        Ok(())
    }

    fn fault(&self, source: rusqlite::Error) -> LedgerError {
        LedgerError::Sqlite {
            path: self.path.clone(),
            source,
        }
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let path = self.path.clone();
        let run = || {
            let transaction = self.connection.transaction()?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|source| LedgerError::Sqlite { path, source })
    }

    /// The job whose ledger this is; none in a new run directory.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn job(&self) -> Result<Option<JobRecord>, LedgerError> {
        self.meta("job")
    }

    fn meta<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, LedgerError> {
        let query = "SELECT value FROM meta WHERE key = ?";
        let text = self
            .connection
            .query_row(query, [key], |row| row.get::<_, String>(0))
            .optional()
            .map_err(|source| self.fault(source))?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.damaged(&error)))
            .transpose()
    }

    fn damaged(&self, error: &serde_json::Error) -> LedgerError {
        LedgerError::Damaged {
            path: self.path.clone(),
            what: error.to_string(),
        }
    }

    /// Records the job of a new run directory.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn begin(&mut self, job: &JobRecord, data: &Manifest) -> Result<(), LedgerError> {
        let job = serde_json::to_string(job).map_err(|error| self.damaged(&error))?;
        let data = serde_json::to_string(data).map_err(|error| self.damaged(&error))?;
        self.with(|t| {
            t.execute("INSERT INTO meta VALUES ('job', ?)", [job])?;
            t.execute("INSERT INTO meta VALUES ('data', ?)", [data])?;
            Ok(())
        })
    }

    /// What the job has been computed on, if it has begun.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn device(&self) -> Result<Option<DeviceKind>, LedgerError> {
        self.meta("device")
    }

    /// Records what the job is computed on, for good.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn set_device(&mut self, device: &DeviceKind) -> Result<(), LedgerError> {
        let device = serde_json::to_string(device).map_err(|error| self.damaged(&error))?;
        self.with(|t| {
            t.execute("INSERT INTO meta VALUES ('device', ?)", [device])
                .map(drop)
        })
    }

    /// The newest generation that was ever recorded; 0 if none was.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn newest_generation(&self) -> Result<Generation, LedgerError> {
        self.connection
            .query_row("SELECT max(generation) FROM generations", [], |row| {
                row.get::<_, Option<u64>>(0)
            })
            .map(|newest| Generation(newest.unwrap_or(0)))
            .map_err(|source| self.fault(source))
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
        let members: Vec<serde_json::Value> = seats
            .iter()
            .map(|seat| {
                serde_json::json!({
                    "worker": seat.worker,
                    "rank": seat.rank,
                    "first_replica": seat.replicas.start,
                    "replicas": seat.replicas.len(),
                    "address": seat.address,
                })
            })
            .collect();
        let members = serde_json::Value::from(members).to_string();
        self.with(|t| {
            t.execute(
                "INSERT INTO generations VALUES (?, ?, ?, ?)",
                params![generation.0, unix_seconds, cause.to_string(), members],
            )
            .map(drop)
        })
    }

    /// Records the spans and the tail of an epoch as dealt to a generation's workers. Spans that
    /// are done stay as they are.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn assign(
        &mut self,
        generation: Generation,
        seats: &[Seat],
        plans: &[EpochPlan],
        steps_per_epoch: u64,
        batch: u32,
    ) -> Result<(), LedgerError> {
        self.with(|t| {
            let mut insert = t.prepare(
                "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)
                 ON CONFLICT DO UPDATE SET generation = excluded.generation, worker = excluded.worker
                 WHERE done = 0",
            )?;
            let mut tail = t.prepare("INSERT OR IGNORE INTO tails VALUES (?, ?, ?, ?)")?;
            for plan in plans {
                let epoch = plan.epoch.0;
                for seat in seats {
                    for replica in seat.replicas.clone() {
                        let mut used = 0;
                        for span in &plan.replicas[replica as usize] {
                            used += span.len;
                            let end = epoch * steps_per_epoch + used.div_ceil(u64::from(batch));
                            insert.execute(params![
                                epoch,
                                replica,
                                span.shard,
                                span.start,
                                span.len,
                                end,
                                generation.0,
                                seat.worker.0
                            ])?;
                        }
                    }
                }
                for span in &plan.tail {
                    tail.execute(params![epoch, span.shard, span.start, span.len])?;
                }
            }
            Ok(())
        })
    }

    /// Marks the spans that `State(step)` has used as done.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn reached(&mut self, step: Step) -> Result<(), LedgerError> {
        self.with(|t| {
            t.execute(
                "UPDATE spans SET done = 1 WHERE done = 0 AND end_step <= ?",
                [step.0],
            )
            .map(drop)
        })
    }

    /// How many spans of an epoch are dealt but not done, and how many are done.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn span_counts(&self, epoch: Epoch) -> Result<(u64, u64), LedgerError> {
        let query = "SELECT count(*), ifnull(sum(done), 0) FROM spans WHERE epoch = ?";
        let counts = self.connection.query_row(query, [epoch.0], |row| {
            let (all, done): (u64, u64) = (row.get(0)?, row.get(1)?);
            Ok((all - done, done))
        });
        counts.map_err(|source| self.fault(source))
    }

    /// Makes the ledger say what `State(step)`, from which the job goes on, has used: no less, and
    /// no more.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn rewind(&mut self, step: Step) -> Result<(), LedgerError> {
        self.with(|t| {
            t.execute("DELETE FROM spans WHERE end_step > ?", [step.0])?;
            // The last steps before a crash may not be marked; the state has used them.
            t.execute("UPDATE spans SET done = 1 WHERE done = 0", [])?;
            t.execute("DELETE FROM checkpoints WHERE step > ?", [step.0])?;
            Ok(())
        })
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
        self.with(|t| {
            t.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)",
                params![
                    checkpoint.step.0,
                    checkpoint.path,
                    checkpoint.digest,
                    unix_seconds
                ],
            )
            .map(drop)
        })
    }

    /// The checkpoints on record, oldest first. Retention may have removed their files since.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRecord>, LedgerError> {
        self.rows(
            "SELECT step, path, digest FROM checkpoints ORDER BY step",
            [],
            |row| {
                Ok(CheckpointRecord {
                    step: Step(row.get(0)?),
                    path: row.get(1)?,
                    digest: row.get(2)?,
                })
            },
        )
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
        self.with(|t| {
            t.execute(
                "INSERT INTO events (unix_seconds, generation, kind, detail) VALUES (?, ?, ?, ?)",
                params![unix_seconds, generation.0, kind.to_string(), detail],
            )
            .map(drop)
        })
    }

    /// The newest `count` events, oldest first.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn events(&self, count: u32) -> Result<Vec<EventRecord>, LedgerError> {
        let mut events = self.rows(
            "SELECT unix_seconds, kind, detail FROM events ORDER BY id DESC LIMIT ?",
            [count],
            |row| {
                Ok(EventRecord {
                    unix_seconds: row.get(0)?,
                    kind: row.get(1)?,
                    detail: row.get(2)?,
                })
            },
        )?;
        events.reverse();
        Ok(events)
    }

    /// The spans of an epoch, by replica, and its tail.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn epoch(&self, epoch: Epoch) -> Result<(Vec<SpanRecord>, Vec<Span>), LedgerError> {
        let spans = self.rows(
            "SELECT replica, shard, start, len, generation, worker, done FROM spans
             WHERE epoch = ? ORDER BY replica, end_step",
            [epoch.0],
            |row| {
                Ok(SpanRecord {
                    replica: row.get(0)?,
                    span: Span {
                        shard: row.get(1)?,
                        start: row.get(2)?,
                        len: row.get(3)?,
                    },
                    generation: Generation(row.get(4)?),
                    worker: WorkerId(row.get(5)?),
                    done: row.get(6)?,
                })
            },
        )?;
        let tail = self.rows(
            "SELECT shard, start, len FROM tails WHERE epoch = ?",
            [epoch.0],
            |row| {
                Ok(Span {
                    shard: row.get(0)?,
                    start: row.get(1)?,
                    len: row.get(2)?,
                })
            },
        )?;
        Ok((spans, tail))
    }

    fn rows<T, P: rusqlite::Params>(
        &self,
        query: &str,
        params: P,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let collect = || -> rusqlite::Result<Vec<T>> {
            self.connection
                .prepare_cached(query)?
                .query_map(params, read)?
                .collect()
        };
        collect().map_err(|source| self.fault(source))
    }
}

/// The epochs of a range, planned.
pub(super) fn plans(plan: &crate::plan::Plan, epochs: &Range<u64>) -> Vec<EpochPlan> {
    epochs
        .clone()
        .map(|epoch| plan.epoch(Epoch(epoch)))
        .collect()
}
