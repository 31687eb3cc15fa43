//! Owns a job: its run directory, its membership, its ledger.
//!
//! [`Coordinator::open`] checks everything that can be checked before a worker is bothered: the
//! data, the plan, the ledger, the newest checkpoint. [`Coordinator::serve`] then drives the
//! machine of [`crate::membership`] until the job is over. Computes nothing, and knows no tensors.

mod audit;
pub mod cli;
mod driver;
mod following;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gate;
mod guarding;
pub mod ledger;
mod local;
mod page;
mod plans;
mod preview;
mod recording;
mod service;
mod sessions;
mod status;
mod verify;
mod wanted;
mod wire;

pub use driver::DriverError;
pub use status::{json as status_json, text as status_text};

use crate::certificate::CertificateError;
use crate::checkpoint::{CheckpointError, Manifest, Store, Stored};
use crate::config::{self, Job, Score};
use crate::data::{DataError, Dataset};
use crate::ids::{Generation, Step};
use crate::locks::{self, Locks};
use crate::membership::{CheckpointRecord, Event, Membership, Outcome, Past, Rules};
use crate::plan::{Plan, PlanError};
use crate::proto;
use crate::proto::coordinator_server::CoordinatorServer;
use crate::telemetry::progress::Packing;
use crate::telemetry::records::{RecordError, RecordLog};
use driver::{Beats, Driver, End, Input, Reached, Secrets, Shown, Waiting};
use following::Following;
use gate::Gate;
use ledger::{JobRecord, Ledger, LedgerError, LedgerReader};
use page::Live;
use plans::Plans;
use prost::bytes::Bytes;
use service::Service;
use sessions::Sessions;
use status::{Identity, Progress};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use wanted::Wanted;

/// For workers to take their last message before the server ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// What can go wrong before or while a job is served.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The data can't be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data doesn't fill one global batch.
    #[error("data.uri = {uri}: {source}")]
    Plan {
        /// The data.
        uri: String,
        /// What is missing.
        source: PlanError,
    },
    /// There is nothing to train the evaluations' feature extractor on.
    #[error(
        "data.uri = {uri} has no labels, on which evaluations train their feature extractor: name one \
         that needs none in evaluate.extractor, or set evaluate.every_steps = 0"
    )]
    Unlabelled {
        /// The data.
        uri: String,
    },
    /// The run directory's ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A checkpoint can't be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `metrics.jsonl` can't be used.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The job's certificate can't be written.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is a job already.
    #[error(
        "{run_dir}: the run directory holds job {name:?} already; \
         pass --resume to go on with it, or --run-dir for another place"
    )]
    Occupied {
        /// The run directory.
        run_dir: PathBuf,
        /// Its job.
        name: String,
    },
    /// The run directory's job is another one.
    #[error("{run_dir}: can't resume, for the state depends on what differs: {differences}")]
    OtherJob {
        /// The run directory.
        run_dir: PathBuf,
        /// Each key with both values.
        differences: String,
    },
    /// There are checkpoints, but none is whole.
    #[error(
        "{dir}: none of the {count} checkpoints can be read (the log says why); \
         restore one, or begin anew with another --run-dir"
    )]
    NoWholeCheckpoint {
        /// Their folder.
        dir: PathBuf,
        /// How many there should be.
        count: usize,
    },
    /// The job can't be told to workers.
    #[error("the job can't be written as TOML: {0}")]
    Job(#[from] toml::ser::Error),
    /// The job file's length lies behind what is done.
    #[error(
        "train.steps = {wanted}: the run directory's newest checkpoint is of step {have}; \
         expected at least that"
    )]
    Behind {
        /// Steps of the job file.
        wanted: u64,
        /// Step of the checkpoint.
        have: Step,
    },
    /// The driver ended.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The server ended.
    #[error("the gRPC server on {address} failed: {source}")]
    Server {
        /// Where it listened.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A thread can't be started, or the like.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl CoordinatorError {
    /// Whether the job file, the data or the command is wrong: trying again won't help.
    pub fn is_users(&self) -> bool {
        matches!(
            self,
            CoordinatorError::Data(_)
                | CoordinatorError::Plan { .. }
                | CoordinatorError::Unlabelled { .. }
                | CoordinatorError::Occupied { .. }
                | CoordinatorError::OtherJob { .. }
                | CoordinatorError::NoWholeCheckpoint { .. }
                | CoordinatorError::Behind { .. }
        )
    }
}

/// A word from outside that ends a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Finish the step, checkpoint, end.
    Stop(String),
    /// The same, but the job is to go on later.
    Drain(String),
    /// It can't go on.
    Fail(String),
    /// The coordinator goes, and its workers go on until it is back.
    Leave,
}

/// How a coordinator ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// With its job.
    Over(Outcome),
    /// Before its job, which had reached this step.
    Left(Step),
}

/// What a coordinator is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job.
    pub job: Job,
    /// Where its files go.
    pub run_dir: PathBuf,
    /// Go on with what the run directory holds.
    pub resume: bool,
    /// The job starts when this many workers are ready.
    pub expected: u32,
    /// How its connections are locked.
    pub locks: Locks,
}

/// A job that is ready to be served.
pub struct Coordinator {
    options: Options,
    plan: Plan,
    data_digest: String,
    ledger: Ledger,
    records: RecordLog,
    record: JobRecord,
    past: Past,
    total_steps: u64,
    ignored: u64,
    /// Where its driver shows the world how far the job is.
    shown: watch::Sender<Progress>,
}

/// The data of a job and who reads it when: what `check`, `plan` and `run` begin with.
pub(crate) struct Foundations {
    pub(crate) dataset: Dataset,
    pub(crate) plan: Plan,
}

impl Foundations {
    pub(crate) fn lay(job: &Job) -> Result<Self, CoordinatorError> {
        let mut packing = Packing::new();
        let dataset = Dataset::open(job, &mut |done, total| packing.update(done, total))?;
        let evaluate = &job.evaluate;
        let has_features = evaluate.extractor.is_some() || job.model.has_points();
        let needs_labels = evaluate.every_steps > 0 && !has_features;
        if needs_labels && !dataset.manifest().labels {
            let uri = job.data.uri.clone();
            return Err(CoordinatorError::Unlabelled { uri });
        }
        let (replicas, batch) = (job.train.replicas, job.replica_samples());
        let plan = Plan::new(&dataset.shard_sizes(), job.job.seed, replicas, batch);
        let plan = plan.map_err(|source| CoordinatorError::Plan {
            uri: job.data.uri.clone(),
            source,
        })?;
        Ok(Self { dataset, plan })
    }
}

impl Coordinator {
    /// Reads the data, takes the run directory, and finds where to go on.
    ///
    /// # Errors
    /// [`CoordinatorError`]; [`CoordinatorError::is_users`] tells whose fault it is.
    pub fn open(options: Options) -> Result<Self, CoordinatorError> {
        let job = &options.job;
        let Foundations { dataset, plan } = Foundations::lay(job)?;
        let data_digest = dataset.digest().to_owned();
        let total_steps = job.total_steps(plan.steps_per_epoch());
        let run_dir = &options.run_dir;
        let mut ledger = Ledger::open(run_dir)?;
        let (record, checkpoint) = match ledger.job()? {
            None => {
                let record = JobRecord {
                    job_id: random_id().map_err(DriverError::from)?,
                    name: job.job.name.clone(),
                    state_keys: job.state_keys(),
                    data_digest: data_digest.clone(),
                    started_unix_seconds: recording::unix_seconds(),
                };
                ledger.begin(&record, dataset.manifest())?;
                (record, None)
            }
            Some(record) if !options.resume => {
                return Err(CoordinatorError::Occupied {
                    run_dir: run_dir.clone(),
                    name: record.name,
                });
            }
            Some(record) => {
                same_job(&options, &record, &data_digest)?;
                let recorded = ledger.checkpoints()?.len();
                let checkpoint = newest_checkpoint(&options, &record, recorded)?;
                (record, checkpoint)
            }
        };
        let have = checkpoint.as_ref().map_or(Step(0), |c| c.step);
        if have.0 > total_steps {
            let wanted = total_steps;
            return Err(CoordinatorError::Behind { wanted, have });
        }
        if have.0 >= total_steps {
            // Nobody will say it again.
            ledger.reached(have)?;
        }
        if let Some(checkpoint) = &checkpoint {
            // A crash may have come between the checkpoint and its record.
            ledger.checkpoint(checkpoint, recording::unix_seconds())?;
        }
        let past = Past {
            generation: ledger.newest_generation()?,
            // Those who may still be training.
            seats: ledger
                .live_generation()?
                .map_or_else(Vec::new, |live| live.1),
            reached: ledger.reached_step()?,
            checkpoint,
        };
        let records = RecordLog::open(&run_dir.join("metrics.jsonl"))?;
        Ok(Self {
            plan,
            data_digest,
            ledger,
            records,
            record,
            past,
            total_steps,
            ignored: dataset.ignored(),
            shown: watch::Sender::new(Progress::default()),
            options,
        })
    }

    /// The step to go on from.
    pub fn start(&self) -> Step {
        let checkpoint = self.past.checkpoint.as_ref();
        checkpoint.map_or(Step(0), |checkpoint| checkpoint.step)
    }

    /// Whether the run directory held the job already.
    pub fn is_resumed(&self) -> bool {
        self.past.generation.0 > 0
    }

    /// How many workers of a coordinator before this one may still be training.
    pub fn expected_back(&self) -> usize {
        self.past.seats.len()
    }

    /// Files of the data's folder that look like images, but of formats that aren't read.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The step to end at.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// What a page shows of this job while it is served, and after.
    fn live(&self) -> Live {
        Live {
            identity: self.identity(),
            progress: self.shown.subscribe(),
        }
    }

    /// Serves the job on `listener` until it is over, or `stop` says so.
    ///
    /// # Errors
    /// [`CoordinatorError`]
    ///
    /// # Cancel safety
    /// None: once begun, it is to be driven to its end.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = Ending> + Send + 'static,
    ) -> Result<Served, CoordinatorError> {
        self.serve_shown(listener, stop).await
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the machine's clock starts"
    )]
    async fn serve_shown(
        self,
        listener: TcpListener,
        stop: impl Future<Output = Ending> + Send + 'static,
    ) -> Result<Served, CoordinatorError> {
        crate::signals::survive_file_limits();
        let address = listener
            .local_addr()
            .map_or_else(|_| "?".to_owned(), |address| address.to_string());
        if let Some(outcome) = self.over()? {
            return Ok(Served::Over(outcome));
        }
        let options = self.options.clone();
        let identity = self.identity();
        let (inbox, events) = std::sync::mpsc::channel();
        let beats = Beats::default();
        let progress = self.shown.subscribe();
        let following = self.follow();
        let driver = self.driver(Instant::now(), Beats::clone(&beats))?;
        let (ended, outcome) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || ended.send(driver.run(&events)))
            .map_err(|source| CoordinatorError::Io {
                what: "can't start the driver's thread".to_owned(),
                source,
            })?;
        let stopper = inbox.clone();
        let stop = tokio::spawn(async move {
            let input = match stop.await {
                Ending::Stop(reason) => Input::Event(Event::Stop(reason)),
                Ending::Drain(reason) => Input::Event(Event::Drain(reason)),
                Ending::Fail(reason) => Input::Event(Event::Fail(reason)),
                Ending::Leave => Input::Leave,
            };
            let _ = stopper.send(input);
        });
        let job = &options.job;
        let (name, workers) = (&job.job.name, job.max_workers());
        let service = Service {
            gate: Gate::new(options.locks.clone(), name, workers),
            inbox,
            beats,
            progress,
            identity,
            next_session: AtomicU64::new(1),
        };
        let limits = locks::Limits {
            connections: Gate::connections(workers),
            handshake: gate::HANDSHAKE,
        };
        tracing::info!("listening on {address}");
        let incoming = locks::receive(listener, options.locks.clone(), name, limits);
        let (end, server) = server(service, incoming, options.locks.token.is_none()).await;
        let outcome = outcome.await.map_err(|_| CoordinatorError::Io {
            what: "the driver's thread died".to_owned(),
            source: std::io::Error::other("it panicked; see the log"),
        });
        stop.abort();
        // Workers take their last word; those that don't are cut off.
        let _ = end.send(());
        match tokio::time::timeout(FAREWELL, server).await {
            Ok(Ok(Err(source))) => return Err(CoordinatorError::Server { address, source }),
            Ok(_) => {}
            Err(_) => tracing::warn!("some connections did not end in time and were cut"),
        }
        if let Some(following) = following {
            // If the wait for it fails, its last events are missing, and nothing else.
            let _ = tokio::task::spawn_blocking(|| following.finish()).await;
        }
        let outcome = match outcome?? {
            End::Over(outcome) => outcome,
            End::Left(step) => return Ok(Served::Left(step)),
        };
        if let Outcome::Complete(step) = outcome {
            let ledger = LedgerReader::open(&options.run_dir)?;
            verify::certify(&options, &ledger, step)?;
        }
        Ok(Served::Over(outcome))
    }

    /// How the job has ended, if it was complete before. It then has a certificate. Workers that
    /// have not heard of it yet are to be told first.
    fn over(&self) -> Result<Option<Outcome>, CoordinatorError> {
        let step = self.start();
        if step.0 < self.total_steps || self.expected_back() > 0 {
            return Ok(None);
        }
        if !verify::is_certified(&self.options.run_dir, &self.record.job_id, step) {
            verify::certify(&self.options, &self.ledger, step)?;
        }
        Ok(Some(Outcome::Complete(step)))
    }

    /// Has what the job says of itself written for TensorBoard, if that is wanted.
    fn follow(&self) -> Option<Following> {
        let Options { job, run_dir, .. } = &self.options;
        let recorded = self.records.last_step();
        let wanted = job.telemetry.tensorboard;
        wanted
            .then(|| Following::start(run_dir, recorded))
            .flatten()
    }

    fn identity(&self) -> Identity {
        Identity {
            job: self.options.job.job.name.clone(),
            job_id: self.record.job_id.clone(),
            total_steps: self.total_steps,
            steps_per_epoch: self.plan.steps_per_epoch(),
        }
    }

    fn driver(self, origin: Instant, beats: Beats) -> Result<Driver, CoordinatorError> {
        let job = &self.options.job;
        let deadlines = job.deadlines;
        let rules = Rules {
            job_id: self.record.job_id.clone(),
            expected: self.options.expected,
            min: job.workers.min.min(self.options.expected),
            max: job.max_workers(),
            replicas: job.train.replicas,
            total_steps: self.total_steps,
            steps_per_epoch: self.plan.steps_per_epoch(),
            data_digest: self.data_digest.clone(),
            device: self.ledger.device()?,
            join: deadlines.join,
            heartbeat: deadlines.heartbeat,
            form: deadlines.form,
            pause: 2 * deadlines.collective,
            // The step in flight, the checkpoint before and the last one.
            finish: deadlines.collective + 2 * deadlines.checkpoint,
        };
        let run_dir = std::path::absolute(&self.options.run_dir)
            .unwrap_or_else(|_| self.options.run_dir.clone());
        let welcome = proto::Welcome {
            worker: 0,
            job_id: self.record.job_id.clone(),
            job: toml::to_string(job)?,
            run_dir: run_dir.display().to_string(),
            heartbeat_seconds: deadlines.heartbeat.as_secs_f64() / 4.0,
            resumed: false,
        };
        let next = self.ledger.newest_worker()?.next();
        let reached = Reached::at(self.past.reached);
        Ok(Driver {
            machine: Membership::new(rules, self.past, Duration::ZERO),
            batch: job.replica_samples(),
            samples_per_step: job.global_batch(),
            guard: job.guard,
            seconds_before: self.records.last_time().unwrap_or(0.0),
            ledger: self.ledger,
            records: self.records,
            plans: Plans::new(self.plan),
            total_steps: self.total_steps,
            heartbeat: deadlines.heartbeat,
            welcome,
            origin,
            progress: self.shown,
            secrets: Secrets::new().map_err(DriverError::from)?,
            sessions: Sessions::new(next),
            beats,
            reached,
            waiting: Waiting::default(),
            members: (Generation(0), Bytes::new()),
            shown: Shown::everything(),
            compute: 0.0,
            wanted: Wanted::new(self.options.expected),
            judged_by: job.checkpoint.keep_best.unwrap_or(Score::Fid),
        })
    }
}

type ServerTask = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

/// Starts the gRPC server: sessions, health, and reflection if nobody has to prove anything by a token.
async fn server(
    service: Service,
    incoming: ReceiverStream<std::io::Result<locks::Connection>>,
    reflects: bool,
) -> (tokio::sync::oneshot::Sender<()>, ServerTask) {
    let (end, ended) = tokio::sync::oneshot::channel();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1();
    let mut builder = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(gate::STREAMS)
        .http2_max_header_list_size(gate::HEADERS)
        .max_frame_size(gate::FRAME)
        .http2_max_pending_accept_reset_streams(Some(gate::RESETS));
    let coordinator = CoordinatorServer::new(service).max_decoding_message_size(gate::LONGEST);
    let router = builder
        .add_service(coordinator)
        .add_service(health_service)
        .add_optional_service(
            reflection
                .inspect_err(|error| tracing::warn!("no gRPC reflection: {error}"))
                .ok()
                .filter(|_| reflects),
        );
    let task = tokio::spawn(async move {
        router
            .serve_with_incoming_shutdown(incoming, async {
                let _ = ended.await;
            })
            .await
    });
    (end, task)
}

fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Refuses to go on with a job whose state would depend on something else.
fn same_job(
    options: &Options,
    record: &JobRecord,
    data_digest: &str,
) -> Result<(), CoordinatorError> {
    let differences = config::differences(&record.state_keys, &options.job.state_keys());
    let mut differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
    if data_digest != record.data_digest {
        let then = &record.data_digest;
        differences.push(format!("the data's digest is {data_digest}, was {then}"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(CoordinatorError::OtherJob {
        run_dir: options.run_dir.clone(),
        differences: differences.join("; "),
    })
}

/// The newest whole checkpoint of the run directory's job.
fn newest_checkpoint(
    options: &Options,
    record: &JobRecord,
    recorded: usize,
) -> Result<Option<CheckpointRecord>, CoordinatorError> {
    let store = Store::new(options.run_dir.join("checkpoints"));
    let Some(Stored { path, manifest }) = store.newest()? else {
        // A job that has lost all its checkpoints must not silently begin anew.
        let count = store.list()?.len().max(recorded);
        return match count {
            0 => Ok(None),
            count => Err(CoordinatorError::NoWholeCheckpoint {
                dir: store.dir().to_owned(),
                count,
            }),
        };
    };
    if manifest.job_id != record.job_id {
        return Err(CoordinatorError::OtherJob {
            run_dir: options.run_dir.clone(),
            differences: format!(
                "{} belongs to job id {}, the ledger to {}",
                path.display(),
                manifest.job_id,
                record.job_id
            ),
        });
    }
    Ok(Some(checkpoint_record(&options.run_dir, &path, &manifest)))
}

fn checkpoint_record(run_dir: &Path, path: &Path, manifest: &Manifest) -> CheckpointRecord {
    let relative = path.strip_prefix(run_dir).unwrap_or(path);
    CheckpointRecord {
        step: manifest.step,
        path: relative.display().to_string(),
        digest: manifest.digest.clone(),
    }
}
