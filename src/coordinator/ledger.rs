//! The coordinator's durable record, in SQLite.
//!
//! Write-ahead log with `synchronous = FULL`: what a call has returned from is on the disk, and
//! what is written together ([`Ledger::batch`]) is there together or not at all. One coordinator
//! owns a run directory, by a lock on a file beside the ledger; anybody may read
//! ([`LedgerReader`]).
//!
//! Whether a row of the spans is done is not written down: it follows from the newest state that
//! the job has reached, so the two can't disagree.

mod batch;
mod booking;
mod reader;
mod recent;
mod report;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use reader::LedgerReader;
pub(super) use recent::{GenerationBrief, RecoveryRecord, WorkerBrief};
pub(super) use report::{EpochReport, History, time};

use crate::config::StateKeys;
use crate::data::Manifest;
use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{Cause, CheckpointRecord, DeviceKind, EventKind, Facts, Seat};
use crate::plan::{EpochPlan, Span};
use rusqlite::Connection;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

/// Version of the tables.
const FORMAT: i64 = 2;

const TABLES: &str = "
    -- JSON: the job, its data, its device, how fast it reads, and the step that it has reached.
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE workers (
        worker INTEGER PRIMARY KEY,
        incarnation TEXT NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        device TEXT NOT NULL,
        unix_seconds REAL NOT NULL);
    CREATE TABLE generations (
        generation INTEGER PRIMARY KEY,
        unix_seconds REAL NOT NULL,
        cause TEXT NOT NULL,
        members TEXT NOT NULL,
        from_step INTEGER,              -- it began with State(from_step); NULL until it has formed
        until_step INTEGER,             -- the newest state that is known to be its work
        vacated INTEGER NOT NULL DEFAULT 0);
    -- What a replica reads in an epoch, in order. A span that two generations share is two rows.
    CREATE TABLE spans (
        epoch INTEGER NOT NULL,
        replica INTEGER NOT NULL,
        first INTEGER NOT NULL,         -- samples that the replica reads before, in this epoch
        len INTEGER NOT NULL,           -- samples that it reads in this row:
        shard INTEGER NOT NULL,         -- of the span [start, start + samples) of this shard,
        start INTEGER NOT NULL,
        samples INTEGER NOT NULL,
        skip INTEGER NOT NULL,          -- those that stand at skip.. in the span's order
        generation INTEGER NOT NULL,
        worker INTEGER NOT NULL,
        PRIMARY KEY (epoch, replica, first)) WITHOUT ROWID;
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

/// What was added to the tables since: whoever owns a ledger adds it, and a reader may not find it.
const ADDED: &str = "
    -- What each change of membership took, seconds.
    CREATE TABLE IF NOT EXISTS recoveries (
        generation INTEGER PRIMARY KEY,
        unix_seconds REAL NOT NULL,
        detect REAL NOT NULL,
        abort REAL NOT NULL,
        connect REAL NOT NULL,
        heal REAL NOT NULL,
        first_step REAL NOT NULL,
        whole REAL NOT NULL);
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
    /// There is nothing to read.
    #[error("{path}: no ledger is there; expected the run directory of a job")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The ledger is of another version of the program.
    #[error(
        "{path}: the ledger has format {found}, this program has {FORMAT}; use the program that made it, or another --run-dir"
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

impl LedgerError {
    /// Whether another path would do: the command is wrong, not the world.
    pub fn is_users(&self) -> bool {
        matches!(
            self,
            LedgerError::Missing { .. } | LedgerError::Format { .. }
        )
    }

    /// Whether the same write may succeed later: the disk is full, or can't be written.
    pub fn is_transient(&self) -> bool {
        use rusqlite::ErrorCode;
        let LedgerError::Sqlite { source, .. } = self else {
            return false;
        };
        matches!(
            source.sqlite_error_code(),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::ReadOnly
            )
        )
    }
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
    /// The generation at that time.
    pub generation: Generation,
    /// What.
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// A generation as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: Generation,
    /// When it was spoken.
    pub unix_seconds: f64,
    /// Why there is one.
    pub cause: String,
    /// Who takes part, by rank.
    pub seats: Vec<Seat>,
    /// The state that it began with, if it has formed.
    pub from: Option<Step>,
    /// The newest state that is known to be its work.
    pub until: Option<Step>,
    /// None of its members can come back.
    pub vacated: bool,
}

/// A span, or the part of one that a worker reads, as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanRecord {
    /// By which replica it is read.
    pub replica: u32,
    /// The whole span.
    pub span: Span,
    /// Which of its samples, counted in the order in which they are read
    /// ([`crate::plan::order`]); `0..span.len` is all of them.
    pub part: Range<u64>,
    /// The generation that it is booked on.
    pub generation: Generation,
    /// The worker that it is booked on.
    pub worker: WorkerId,
    /// Whether the newest state has used all of it.
    pub done: bool,
}

/// The ledger of one run directory, owned. What it reads, a [`LedgerReader`] reads too.
#[derive(Debug)]
pub struct Ledger {
    reader: LedgerReader,
    /// Held as long as the ledger is open.
    _lock: File,
}

impl Deref for Ledger {
    type Target = LedgerReader;

    fn deref(&self) -> &LedgerReader {
        &self.reader
    }
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
            reader: LedgerReader { path, connection },
            _lock: lock,
        };
        ledger.prepare()?;
        Ok(ledger)
    }

    fn prepare(&self) -> Result<(), LedgerError> {
        let connection = &self.reader.connection;
        let setup = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let format: i64 =
                connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if format == 0 {
                connection.execute_batch(&format!(
                    "BEGIN; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT;"
                ))?;
            }
            Ok(())
        };
        setup().map_err(|source| self.fault(source))?;
        self.check_format()?;
        let added = connection.execute_batch(ADDED);
        added.map_err(|source| self.fault(source))
    }

    /// Writes several things together: when it returns, all of them are on the disk; if it fails,
    /// none is, and the same can be tried again.
    ///
    /// # Errors
    /// [`LedgerError`], the first of `work`'s or of the disk.
    pub fn batch<T>(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let LedgerReader { path, connection } = &mut self.reader;
        let fault = |source| LedgerError::Sqlite {
            path: path.clone(),
            source,
        };
        // Dropped before it is committed, it is rolled back.
        let transaction = connection.transaction().map_err(fault)?;
        let value = work(&mut Batch::new(path, &transaction))?;
        transaction.commit().map_err(fault)?;
        Ok(value)
    }

    /// [`Batch::begin`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn begin(&mut self, job: &JobRecord, data: &Manifest) -> Result<(), LedgerError> {
        self.batch(|batch| batch.begin(job, data))
    }

    /// [`Batch::set_device`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn set_device(&mut self, device: &DeviceKind) -> Result<(), LedgerError> {
        self.batch(|batch| batch.set_device(device))
    }

    /// [`Batch::admit`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn admit(
        &mut self,
        worker: WorkerId,
        facts: &Facts,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.batch(|batch| batch.admit(worker, facts, unix_seconds))
    }

    /// [`Batch::generation`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn generation(
        &mut self,
        generation: Generation,
        cause: Cause,
        seats: &[Seat],
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.batch(|batch| batch.generation(generation, cause, seats, unix_seconds))
    }

    /// [`Batch::vacate`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn vacate(&mut self) -> Result<(), LedgerError> {
        self.batch(|batch| batch.vacate())
    }

    /// [`Batch::assign`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn assign(
        &mut self,
        generation: Generation,
        seats: &[Seat],
        plans: &[EpochPlan],
        from: Step,
        steps_per_epoch: u64,
        batch: u32,
    ) -> Result<(), LedgerError> {
        self.batch(|b| b.assign(generation, seats, plans, from, steps_per_epoch, batch))
    }

    /// [`Batch::reached`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn reached(&mut self, step: Step) -> Result<(), LedgerError> {
        self.batch(|batch| batch.reached(step))
    }

    /// [`Batch::rewind`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn rewind(&mut self, step: Step) -> Result<(), LedgerError> {
        self.batch(|batch| batch.rewind(step))
    }

    /// [`Batch::checkpoint`], by itself.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn checkpoint(
        &mut self,
        checkpoint: &CheckpointRecord,
        unix_seconds: f64,
    ) -> Result<(), LedgerError> {
        self.batch(|batch| batch.checkpoint(checkpoint, unix_seconds))
    }

    /// [`Batch::event`], by itself.
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
        self.batch(|batch| batch.event(generation, kind, detail, unix_seconds))
    }
}
