//! Owns one device: a session with the coordinator, and a thread that trains.
//!
//! Tokio carries the session, the signals and the metrics; the tensors belong to one OS thread
//! (`training`), which never waits for this one between two steps. What is done when is decided
//! by [`crate::session`]; this loop tells it what happened, and does what it says. `inbox` and
//! `orders` lead to the training thread, its reports and its `pulse` come from there; `outbox`
//! leads to the coordinator; `hearing` makes events of what comes in; `saving` writes checkpoints and
//! pictures, and `evaluating` scores them, on threads of their own. `transport` chooses what carries
//! the sums, and `rejoin` is for when that can't be stopped. `crew` starts several such processes and
//! looks after them. `devices` and `bench`, which measures steps, are commands of their own; so are
//! `pictures` and `export`, for what was trained.

mod bench;
pub mod cli;
mod client;
mod crew;
mod devices;
mod evaluating;
mod export;
mod failure;
mod figures;
mod hearing;
mod history;
mod identity;
mod inbox;
mod orders;
mod outbox;
mod parts;
mod pictures;
mod pulse;
mod rejoin;
mod run;
mod saving;
mod training;
mod transport;
mod wire;

use crate::collective::{CollectiveError, Listener, Lock};
use crate::config::Job;
use crate::data::Dataset;
use crate::ids::{Generation, Step};
use crate::locks::{LockError, Locks};
use crate::membership::DeviceKind;
use crate::proto;
use crate::session::{Action, Event, Exit, Session};
use hearing::Heard;
use inbox::{Command, Inbox};
use orders::Orders;
use outbox::Outbox;
use proto::worker_message::Kind as ToCoordinator;
use pulse::Pulse;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::transport::Endpoint;
use training::{Report, Tools, Training};

/// For the training thread to end once it is told to, beyond what it may have to save.
const FAREWELL: Duration = Duration::from_secs(10);

/// What can keep a worker from even beginning.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator's address, or the locks, can't be used.
    #[error(transparent)]
    Locks(#[from] LockError),
    /// Peers couldn't connect.
    #[error("can't listen for peers: {0}")]
    Listen(#[from] CollectiveError),
    /// The device isn't there.
    #[error("--device {device}: {what}")]
    Device {
        /// As typed.
        device: String,
        /// What is wrong.
        what: String,
    },
}

/// What a worker is asked to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The coordinator's URL.
    pub coordinator: String,
    /// What to compute on.
    pub device: tch::Device,
    /// Replicas to compute side by side.
    pub cores: u32,
    /// Host name or address by which peers reach this worker; by default the one that faces the
    /// coordinator.
    pub advertise: Option<String>,
    /// For the coordinator to be reachable at the start.
    pub join: Duration,
    /// How its connections are locked, to the coordinator and to other workers.
    pub locks: Locks,
    /// Listen for peers where others can reach it though there is neither TLS nor a token.
    pub insecure: bool,
}

/// Takes part in a job until it is over.
///
/// # Errors
/// [`WorkerError`], before anything has begun; all that happens later is an [`Exit`].
#[expect(
    clippy::disallowed_methods,
    reason = "this is where the machine's clock starts"
)]
pub async fn run(options: Options) -> Result<Exit, WorkerError> {
    let origin = Instant::now();
    let locks = options.locks;
    let endpoint = locks.endpoint(&options.coordinator)?;
    let host = match &options.advertise {
        Some(host) => host.clone(),
        None => identity::facing(&endpoint),
    };
    let bind = identity::bind_address(&host);
    locks.check_listening(bind, "for other workers", options.insecure)?;
    let lock = locks.keys.clone().map(Lock);
    let bind = identity::join_host_port(&bind.to_string(), 0);
    let listener = Listener::bind_locked(&bind, lock)?;
    let collective = identity::join_host_port(&host, listener.local_addr().port());
    let device = crate::torch::device_description(options.device);
    let device = device.map_err(|error| WorkerError::Device {
        device: format!("{:?}", options.device),
        what: error.to_string(),
    })?;
    let kind = DeviceKind {
        kind: device.kind.to_owned(),
        model: device.model,
        libtorch: device.libtorch,
    };
    tracing::info!("{kind}, {} replicas side by side", options.cores);
    let (session, actions) = Session::new(options.join, origin.elapsed());
    let (channels, inputs) = channels();
    let mut worker = Worker {
        endpoint,
        locks,
        hello: identity::introduction(collective, &kind, options.cores),
        listener: Arc::new(listener),
        device: options.device,
        device_kind: kind,
        cores: options.cores as usize,
        session,
        channels,
        attempt: 0,
        dialling: None,
        unreachable: None,
        outbox: Outbox::default(),
        orders: Arc::default(),
        pulse: Arc::default(),
        enrolment: None,
        checkpoint: None,
        training: None,
    };
    let exit = match worker.carry_out(actions, None) {
        Some(exit) => exit,
        None => worker.attend(inputs, origin).await,
    };
    worker.end(&exit).await;
    Ok(exit)
}

/// A job, as the coordinator's first Welcome told it.
#[derive(Clone)]
struct Enrolment {
    job_id: String,
    job: Arc<Job>,
    run_dir: PathBuf,
}

struct Worker {
    endpoint: Endpoint,
    locks: Locks,
    hello: proto::Hello,
    listener: Arc<Listener>,
    device: tch::Device,
    device_kind: DeviceKind,
    cores: usize,
    session: Session,
    channels: Channels,
    /// Counts attempts to have a session. What an earlier one still reports is past.
    attempt: u64,
    dialling: Option<AbortHandle>,
    /// Why the coordinator could not be reached, as it was logged.
    unreachable: Option<String>,
    outbox: Outbox,
    orders: Arc<Orders>,
    pulse: Arc<Pulse>,
    enrolment: Option<Enrolment>,
    /// The newest checkpoint on record, as the newest assignment has it.
    checkpoint: Option<Step>,
    training: Option<TrainingThread>,
}

struct TrainingThread {
    commands: std::sync::mpsc::Sender<Command>,
    data_digest: String,
    handle: std::thread::JoinHandle<()>,
}

/// What reaches the worker's loop.
enum Input {
    Session(client::Report),
    Opened(Result<Arc<Dataset>, String>),
    Training(Report),
    Terminate,
    Timeout,
}

/// Where what reaches the loop comes in.
struct Inputs {
    session: mpsc::UnboundedReceiver<client::Report>,
    opened: mpsc::UnboundedReceiver<Result<Arc<Dataset>, String>>,
    training: mpsc::UnboundedReceiver<Report>,
}

/// The other ends.
struct Channels {
    session: mpsc::UnboundedSender<client::Report>,
    opened: mpsc::UnboundedSender<Result<Arc<Dataset>, String>>,
    training: mpsc::UnboundedSender<Report>,
}

fn channels() -> (Channels, Inputs) {
    let (to_session, session) = mpsc::unbounded_channel();
    let (to_opened, opened) = mpsc::unbounded_channel();
    let (to_training, training) = mpsc::unbounded_channel();
    let channels = Channels {
        session: to_session,
        opened: to_opened,
        training: to_training,
    };
    let inputs = Inputs {
        session,
        opened,
        training,
    };
    (channels, inputs)
}

impl Worker {
    /// The loop.
    async fn attend(&mut self, mut inputs: Inputs, origin: Instant) -> Exit {
        crate::signals::survive_file_limits();
        let mut terminated = Box::pin(crate::signals::termination(1));
        loop {
            let wait = self
                .session
                .next_deadline()
                .map_or(Duration::from_secs(3600), |at| {
                    at.saturating_sub(origin.elapsed())
                });
            let input = tokio::select! {
                Some(report) = inputs.session.recv() => Input::Session(report),
                Some(opened) = inputs.opened.recv() => Input::Opened(opened),
                Some(report) = inputs.training.recv() => Input::Training(report),
                signal = &mut terminated => {
                    tracing::info!("{signal}");
                    terminated = Box::pin(crate::signals::termination(1));
                    Input::Terminate
                }
                () = tokio::time::sleep(wait) => Input::Timeout,
            };
            let now = origin.elapsed();
            let mut command = None;
            let actions = match self.event(input, &mut command) {
                Some(Heard::Event(event)) => self.session.handle(event, now),
                Some(Heard::Timeout) => self.session.handle_timeout(now),
                None => Vec::new(),
            };
            if let Some(exit) = self.carry_out(actions, command) {
                return exit;
            }
            if self.outbox.is_stuck() {
                let why = "the coordinator takes no messages any more".to_owned();
                self.hang_up();
                let actions = self.session.handle(Event::Disconnected(why), now);
                if let Some(exit) = self.carry_out(actions, None) {
                    return exit;
                }
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>, mut command: Option<Command>) -> Option<Exit> {
        for action in actions {
            match action {
                Action::Connect => self.dial(),
                Action::SayHello(mut standing) => {
                    standing.step = standing.step.max(self.pulse.step());
                    self.outbox.say(wire::hello(&self.hello, standing));
                }
                Action::Prepare => self.prepare(),
                Action::SayReady(digest) => {
                    self.outbox.say(wire::ready(digest, self.pulse.step()));
                }
                Action::Form => {
                    if let Some(Command::Form(form)) = &command {
                        let checkpoint = form.assignment.checkpoint.as_ref();
                        self.checkpoint = checkpoint.map(|checkpoint| checkpoint.step);
                    }
                    self.command(command.take());
                }
                Action::GiveWork => self.command(command.take()),
                Action::Abort(floor, reason) => {
                    self.orders.abort(floor, &reason);
                    self.command(Some(Command::Look));
                }
                Action::RaisePause(generation) => {
                    self.orders.raise_pause(generation);
                    self.command(Some(Command::Look));
                }
                Action::RaiseStop(generation) => {
                    self.orders.raise_stop(generation);
                    self.command(Some(Command::Look));
                }
                Action::RaiseDrain(generation) => {
                    self.orders.raise_drain(generation);
                    self.command(Some(Command::Look));
                }
                Action::RaiseLeaving => {
                    self.orders.raise_leaving();
                    self.command(Some(Command::Look));
                }
                Action::SayFormed(generation, step, forming) => {
                    self.outbox.say(wire::formed(generation, step, forming));
                    self.outbox.seated(self.checkpoint, generation);
                }
                Action::SayPaused(generation, step) => {
                    self.outbox.say(wire::paused(generation, step));
                }
                Action::SayLeaving(generation) => self.outbox.say(wire::leaving(generation)),
                Action::SayCollectiveFailed(generation, step, breakage) => {
                    let failed = wire::collective_failed(generation, step, breakage);
                    self.outbox.say(failed);
                }
                Action::SayFinished(generation, step, finish) => {
                    self.outbox.say(wire::finished(generation, step, finish));
                }
                Action::Beat => self.beat(),
                Action::Exit(exit) => return Some(exit),
            }
        }
        None
    }

    /// If the thread is gone, its last report says why.
    fn command(&self, command: Option<Command>) {
        if let (Some(command), Some(training)) = (command, &self.training) {
            let _ = training.commands.send(command);
        }
    }

    fn beat(&mut self) {
        let generation = self.session.generation();
        let pace = self.pulse.take(generation);
        self.outbox.say(ToCoordinator::Heartbeat(proto::Heartbeat {
            generation: generation.0,
            step: self.pulse.step().0,
            compute_seconds: pace.compute.as_secs_f64(),
            hosted: pace.hosted,
        }));
    }

    /// Tries to have a session. There is one attempt at a time.
    fn dial(&mut self) {
        self.hang_up();
        self.attempt += 1;
        let endpoint = self.endpoint.clone();
        let (locks, reports) = (self.locks.clone(), self.channels.session.clone());
        let session = client::session(endpoint, locks, self.attempt, reports);
        self.dialling = Some(tokio::spawn(session).abort_handle());
    }

    /// Ends the session, whichever way it went.
    fn hang_up(&mut self) {
        self.outbox.close();
        if let Some(dialling) = self.dialling.take() {
            dialling.abort();
        }
    }

    /// Gets the data ready, off the loop.
    fn prepare(&self) {
        let Some(enrolment) = &self.enrolment else {
            return;
        };
        let job = Arc::clone(&enrolment.job);
        let opened = self.channels.opened.clone();
        tokio::task::spawn_blocking(move || {
            let dataset = Dataset::open(&job, &mut |_, _| {});
            let dataset = dataset.map(Arc::new).map_err(|error| error.to_string());
            let _ = opened.send(dataset);
        });
    }

    fn start_training(&mut self, dataset: Arc<Dataset>) -> Result<(), String> {
        let Some(enrolment) = &self.enrolment else {
            return Err("the data came before the job".to_owned());
        };
        let data_digest = dataset.digest().to_owned();
        let (commands, inbox) = std::sync::mpsc::channel();
        let tools = Tools {
            enrolment: enrolment.clone(),
            dataset,
            device: self.device,
            device_kind: self.device_kind.clone(),
            cores: self.cores,
            listener: Arc::clone(&self.listener),
            orders: Arc::clone(&self.orders),
            pulse: Arc::clone(&self.pulse),
            reports: self.channels.training.clone(),
        };
        let training = Training::new(tools, Inbox::new(inbox));
        let handle = std::thread::Builder::new()
            .name("training".to_owned())
            .spawn(move || training.run())
            .map_err(|error| format!("can't start the training thread: {error}"))?;
        self.training = Some(TrainingThread {
            commands,
            data_digest,
            handle,
        });
        Ok(())
    }

    /// Ends the training thread, so that nothing computes while the process is torn down. Without a
    /// coordinator nobody may be left who holds what this worker does: then it is saved.
    async fn end(mut self, exit: &Exit) {
        let mut patience = FAREWELL;
        if !self.outbox.is_open() && matches!(exit, Exit::Left | Exit::Failed(_)) {
            self.orders.save_at_the_end();
            let enrolment = self.enrolment.as_ref();
            let checkpoint = enrolment.map(|enrolment| enrolment.job.deadlines.checkpoint);
            patience += 2 * checkpoint.unwrap_or_default();
        }
        self.orders
            .abort(Generation(u64::MAX), "the worker is ending");
        self.hang_up();
        let Some(training) = self.training else {
            return;
        };
        drop(training.commands);
        let joined = tokio::task::spawn_blocking(move || training.handle.join());
        if tokio::time::timeout(patience, joined).await.is_err() {
            tracing::warn!("the training thread does not end; leaving without it");
        }
    }
}
