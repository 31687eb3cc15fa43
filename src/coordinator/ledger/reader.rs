//! What is read from a ledger, by its owner or by anybody else.

use super::batch::SeatText;
use super::booking::{Booking, Pace, Row};
use super::{EventRecord, FORMAT, GenerationRecord, JobRecord, LedgerError, SpanRecord};
use crate::data::Manifest;
use crate::ids::{Epoch, Generation, Step, WorkerId};
use crate::membership::{CheckpointRecord, DeviceKind, Seat};
use crate::plan::Span;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A ledger, to be read.
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
}

impl LedgerReader {
    /// Opens the ledger of `run_dir`, whether or not a coordinator is using it. All that is read
    /// through this reader is as it is now: what is written meanwhile it doesn't see.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn open(run_dir: &Path) -> Result<Self, LedgerError> {
        let path = run_dir.join("ledger.sqlite");
        if !path.is_file() {
            let missing = if run_dir.is_dir() {
                path
            } else {
                run_dir.to_owned()
            };
            return Err(LedgerError::Missing { path: missing });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&path, flags).map_err(|source| LedgerError::Sqlite {
                path: path.clone(),
                source,
            })?;
        let reader = Self { path, connection };
        reader
            .connection
            .execute_batch("BEGIN")
            .map_err(|source| reader.fault(source))?;
        reader.check_format()?;
        Ok(reader)
    }

    pub(super) fn check_format(&self) -> Result<(), LedgerError> {
        let found = self
            .connection
            .pragma_query_value(None, "user_version", |row| row.get(0));
        match found.map_err(|source| self.fault(source))? {
            FORMAT => Ok(()),
            // Its owner has just made the file.
            0 => Err(LedgerError::Missing {
                path: self.path.clone(),
            }),
            found => Err(LedgerError::Format {
                path: self.path.clone(),
                found,
            }),
        }
    }

    pub(super) fn fault(&self, source: rusqlite::Error) -> LedgerError {
        fault(&self.path, source)
    }

    /// The error that says what is wrong with it.
    pub(in crate::coordinator) fn damaged(&self, what: impl ToString) -> LedgerError {
        LedgerError::Damaged {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }

    fn meta<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, LedgerError> {
        meta(&self.path, &self.connection, key)
    }

    pub(super) fn rows<T, P: Params>(
        &self,
        query: &str,
        params: P,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        collect(&self.path, &self.connection, query, params, read)
    }

    /// The one number of a query, such as the largest in a column; 0 if there is none.
    pub(super) fn newest(&self, query: &str) -> Result<u64, LedgerError> {
        self.connection
            .query_row(query, [], |row| row.get::<_, Option<u64>>(0))
            .map(|newest| newest.unwrap_or(0))
            .map_err(|source| self.fault(source))
    }

    /// The job whose ledger this is; none in a new run directory.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn job(&self) -> Result<Option<JobRecord>, LedgerError> {
        self.meta("job")
    }

    /// The job's packed data; none in a new run directory.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn data(&self) -> Result<Option<Manifest>, LedgerError> {
        self.meta("data")
    }

    /// What the job has been computed on, if it has begun.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn device(&self) -> Result<Option<DeviceKind>, LedgerError> {
        self.meta("device")
    }

    /// Steps of a pass over the data, once something has been booked.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn steps_per_epoch(&self) -> Result<Option<u64>, LedgerError> {
        Ok(self.meta::<Pace>("pace")?.map(|pace| pace.steps_per_epoch))
    }

    /// The newest state that is known to be reached.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn reached_step(&self) -> Result<Step, LedgerError> {
        reached_step(&self.path, &self.connection)
    }

    /// The newest generation that was ever recorded; 0 if none was.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn newest_generation(&self) -> Result<Generation, LedgerError> {
        self.newest("SELECT max(generation) FROM generations")
            .map(Generation)
    }

    /// The highest number that was ever given to a worker; 0 if none was.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn newest_worker(&self) -> Result<WorkerId, LedgerError> {
        self.newest("SELECT max(worker) FROM workers").map(WorkerId)
    }

    /// The newest generation and its seats, unless its members can't come back.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn live_generation(&self) -> Result<Option<(Generation, Vec<Seat>)>, LedgerError> {
        let newest = self.generations_where(
            "WHERE generation = (SELECT max(generation) FROM generations) AND vacated = 0",
        )?;
        let mut newest = newest.into_iter();
        Ok(newest.next().map(|found| (found.generation, found.seats)))
    }

    /// All generations, oldest first.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn generations(&self) -> Result<Vec<GenerationRecord>, LedgerError> {
        self.generations_where("")
    }

    pub(super) fn generations_where(
        &self,
        which: &str,
    ) -> Result<Vec<GenerationRecord>, LedgerError> {
        let query = format!(
            "SELECT generation, unix_seconds, cause, from_step, until_step, vacated, members
             FROM generations {which} ORDER BY generation"
        );
        let found = self.rows(&query, [], |row| {
            let record = GenerationRecord {
                generation: Generation(row.get(0)?),
                unix_seconds: row.get(1)?,
                cause: row.get(2)?,
                seats: Vec::new(),
                from: row.get::<_, Option<u64>>(3)?.map(Step),
                until: row.get::<_, Option<u64>>(4)?.map(Step),
                vacated: row.get(5)?,
            };
            Ok((record, row.get::<_, String>(6)?))
        })?;
        let seated = found.into_iter().map(|(mut record, members)| {
            record.seats = seats(&members).map_err(|error| LedgerError::Damaged {
                path: self.path.clone(),
                what: format!("the members of generation {}: {error}", record.generation),
            })?;
            Ok(record)
        });
        seated.collect()
    }

    /// How many rows of an epoch are booked but not done, and how many are done.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn span_counts(&self, epoch: Epoch) -> Result<(u64, u64), LedgerError> {
        let query =
            "SELECT count(*), ifnull(sum(first + len <= ?2), 0) FROM spans WHERE epoch = ?1";
        let used = self.used(epoch)?;
        let counts = self.connection.query_row(query, [epoch.0, used], |row| {
            let (all, done): (u64, u64) = (row.get(0)?, row.get(1)?);
            Ok((all - done, done))
        });
        counts.map_err(|source| self.fault(source))
    }

    /// Samples of each replica that the newest state has used in an epoch.
    fn used(&self, epoch: Epoch) -> Result<u64, LedgerError> {
        let reached = self.reached_step()?;
        let pace = self.meta::<Pace>("pace")?;
        Ok(pace.map_or(0, |pace| pace.used(epoch, reached)))
    }

    /// The rows of an epoch, by replica and in the order in which they are read, and its tail.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn epoch(&self, epoch: Epoch) -> Result<(Vec<SpanRecord>, Vec<Span>), LedgerError> {
        let used = self.used(epoch)?;
        let mut replicas: Vec<_> = rows(&self.path, &self.connection, epoch)?
            .into_iter()
            .collect();
        replicas.sort_unstable_by_key(|(replica, _)| *replica);
        let spans = replicas.into_iter().flat_map(|(replica, rows)| {
            rows.into_iter().map(move |row| SpanRecord {
                replica,
                span: row.span,
                part: row.skip..row.skip.saturating_add(row.len),
                generation: row.booking.generation,
                worker: row.booking.worker,
                done: row.first.saturating_add(row.len) <= used,
            })
        });
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
        Ok((spans.collect(), tail))
    }

    /// The checkpoints on record, oldest first. Retention may have removed their files since.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRecord>, LedgerError> {
        let timed = self.timed_checkpoints()?.into_iter();
        Ok(timed.map(|(checkpoint, _)| checkpoint).collect())
    }

    /// [`checkpoints`](Self::checkpoints), each with the time of its record, seconds since 1970.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn timed_checkpoints(&self) -> Result<Vec<(CheckpointRecord, f64)>, LedgerError> {
        self.checkpoints_where("ORDER BY step", [])
    }

    pub(super) fn checkpoints_where(
        &self,
        which: &str,
        params: impl Params,
    ) -> Result<Vec<(CheckpointRecord, f64)>, LedgerError> {
        let query = format!("SELECT step, path, digest, unix_seconds FROM checkpoints {which}");
        self.rows(&query, params, |row| {
            let checkpoint = CheckpointRecord {
                step: Step(row.get(0)?),
                path: row.get(1)?,
                digest: row.get(2)?,
            };
            Ok((checkpoint, row.get(3)?))
        })
    }

    /// The newest `count` events, oldest first.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn events(&self, count: u32) -> Result<Vec<EventRecord>, LedgerError> {
        self.events_up_to(i64::from(count))
    }

    /// All events, oldest first.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn all_events(&self) -> Result<Vec<EventRecord>, LedgerError> {
        self.events_up_to(-1) // SQLite's word for "no limit".
    }

    fn events_up_to(&self, limit: i64) -> Result<Vec<EventRecord>, LedgerError> {
        let mut events = self.rows(
            "SELECT unix_seconds, generation, kind, detail FROM events ORDER BY id DESC LIMIT ?",
            [limit],
            |row| {
                Ok(EventRecord {
                    unix_seconds: row.get(0)?,
                    generation: Generation(row.get(1)?),
                    kind: row.get(2)?,
                    detail: row.get(3)?,
                })
            },
        )?;
        events.reverse();
        Ok(events)
    }
}

fn fault(path: &Path, source: rusqlite::Error) -> LedgerError {
    LedgerError::Sqlite {
        path: path.to_owned(),
        source,
    }
}

fn collect<T, P: Params>(
    path: &Path,
    connection: &Connection,
    query: &str,
    params: P,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, LedgerError> {
    let collect = || -> rusqlite::Result<Vec<T>> {
        connection
            .prepare_cached(query)?
            .query_map(params, read)?
            .collect()
    };
    collect().map_err(|source| fault(path, source))
}

/// What stands in the table of single things.
pub(super) fn meta<T: serde::de::DeserializeOwned>(
    path: &Path,
    connection: &Connection,
    key: &str,
) -> Result<Option<T>, LedgerError> {
    let text = connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?")
        .and_then(|mut query| {
            query
                .query_row([key], |row| row.get::<_, String>(0))
                .optional()
        })
        .map_err(|source| fault(path, source))?;
    text.map(|text| {
        serde_json::from_str(&text).map_err(|error| LedgerError::Damaged {
            path: path.to_owned(),
            what: format!("{key}: {error}"),
        })
    })
    .transpose()
}

pub(super) fn reached_step(path: &Path, connection: &Connection) -> Result<Step, LedgerError> {
    Ok(meta(path, connection, "reached")?.unwrap_or_default())
}

/// The rows of an epoch, each replica's in the order in which it reads them.
pub(super) fn rows(
    path: &Path,
    connection: &Connection,
    epoch: Epoch,
) -> Result<HashMap<u32, Vec<Row>>, LedgerError> {
    let found = collect(
        path,
        connection,
        "SELECT replica, first, len, shard, start, samples, skip, generation, worker FROM spans
         WHERE epoch = ? ORDER BY replica, first",
        [epoch.0],
        |row| {
            let span = Span {
                shard: row.get(3)?,
                start: row.get(4)?,
                len: row.get(5)?,
            };
            let booking = Booking {
                generation: Generation(row.get(7)?),
                worker: WorkerId(row.get(8)?),
            };
            let read = Row {
                first: row.get(1)?,
                len: row.get(2)?,
                span,
                skip: row.get(6)?,
                booking,
            };
            Ok((row.get::<_, u32>(0)?, read))
        },
    )?;
    let mut replicas: HashMap<u32, Vec<Row>> = HashMap::new();
    for (replica, row) in found {
        replicas.entry(replica).or_default().push(row);
    }
    Ok(replicas)
}

fn seats(members: &str) -> Result<Vec<Seat>, String> {
    let seats: Vec<SeatText> = serde_json::from_str(members).map_err(|error| error.to_string())?;
    let seats = seats.into_iter().map(|seat| {
        let end = seat.first_replica.checked_add(seat.replicas);
        Ok(Seat {
            worker: seat.worker,
            rank: seat.rank,
            replicas: seat.first_replica..end.ok_or("too many replicas")?,
            address: seat.address,
            incarnation: seat.incarnation,
        })
    });
    seats.collect()
}
