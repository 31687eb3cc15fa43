//! Owns one device: a session with the coordinator, and a thread that trains.
//!
//! Tokio carries the session, the signals and the metrics; the tensors belong to one OS thread
//! (`training`), which never waits for this one between two steps. What is done when is decided
//! by [`crate::session`].

pub mod cli;
mod client;
mod saving;
mod training;
mod wire;

use crate::collective::{CollectiveError, Listener};
use crate::config::{self, Job};
use crate::data::Dataset;
use crate::membership::DeviceKind;
use crate::proto;
use crate::session::{Action, Event, Exit, Session};
use client::FromSession;
use proto::coordinator_message::Kind as FromCoordinator;
use proto::worker_message::Kind as ToCoordinator;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use training::{Command, Orders, Report, Training};

/// For the training thread to end once it is told to.
const FAREWELL: Duration = Duration::from_secs(10);

/// What can keep a worker from even beginning.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator's address can't be used.
    #[error(transparent)]
    Url(#[from] proto::UrlError),
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
}

/// Takes part in a job until it is over.
///
/// # Errors
/// [`WorkerError`], before anything has begun; all that happens later is an [`Exit`].
pub async fn run(options: Options) -> Result<Exit, WorkerError> {
    let url = &options.coordinator;
    let endpoint = proto::endpoint(url)?;
    let host = match &options.advertise {
        Some(host) => host.clone(),
        None => facing(&endpoint),
    };
    let listener = Listener::bind(&join_host_port(&bind_address(&host).to_string(), 0))?;
    let port = listener.local_addr().port();
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
    let hello = proto::Hello {
        protocol: "ganglion.v1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: incarnation(),
        host: host_name(),
        pid: std::process::id(),
        collective: join_host_port(&host, port),
        device: Some(wire::device(&kind)),
        cores: options.cores,
    };
    let worker = Worker {
        endpoint,
        hello,
        listener: Arc::new(listener),
        device: options.device,
        device_kind: kind,
        cores: options.cores as usize,
        join: options.join,
        orders: Arc::default(),
        outbox: None,
        job: None,
        training: None,
    };
    Ok(worker.run().await)
}

/// A job, as the coordinator's Welcome told it.
#[derive(Clone)]
struct Enrolment {
    job_id: String,
    job: Arc<Job>,
    run_dir: PathBuf,
}

struct Worker {
    endpoint: Endpoint,
    hello: proto::Hello,
    listener: Arc<Listener>,
    device: tch::Device,
    device_kind: DeviceKind,
    cores: usize,
    join: Duration,
    orders: Arc<Orders>,
    outbox: Option<mpsc::Sender<proto::WorkerMessage>>,
    job: Option<Enrolment>,
    training: Option<TrainingThread>,
}

struct TrainingThread {
    commands: std::sync::mpsc::Sender<Command>,
    handle: std::thread::JoinHandle<()>,
}

/// What reaches the worker's loop.
enum Input {
    Session(FromSession),
    Prepared(Result<Arc<Dataset>, String>),
    Training(Report),
    Terminate,
    Timeout,
}

/// What a message carries for the action that it leads to.
#[derive(Default)]
struct Carried {
    command: Option<Command>,
}

impl Worker {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the machine's clock starts"
    )]
    async fn run(mut self) -> Exit {
        let origin = Instant::now();
        let (mut session, actions) = Session::new(self.join, origin.elapsed());
        let (to_session, mut from_session) = mpsc::unbounded_channel();
        let (to_prepare, mut from_prepare) = mpsc::unbounded_channel();
        let (to_training, mut from_training) = mpsc::unbounded_channel();
        let channels = Channels {
            session: to_session,
            prepared: to_prepare,
            reports: to_training,
        };
        if let Some(exit) = self.carry_out(actions, Carried::default(), &channels) {
            return exit;
        }
        let mut terminated = Box::pin(crate::signals::termination(1));
        loop {
            let wait = session
                .next_deadline()
                .map_or(Duration::from_secs(3600), |at| {
                    at.saturating_sub(origin.elapsed())
                });
            let input = tokio::select! {
                Some(from) = from_session.recv() => Input::Session(from),
                Some(prepared) = from_prepare.recv() => Input::Prepared(prepared),
                Some(report) = from_training.recv() => Input::Training(report),
                signal = &mut terminated => {
                    tracing::info!("{signal}");
                    terminated = Box::pin(crate::signals::termination(1));
                    Input::Terminate
                }
                () = tokio::time::sleep(wait) => Input::Timeout,
            };
            let now = origin.elapsed();
            let mut carried = Carried::default();
            let actions = match self.event(input, &mut carried, &channels) {
                Some(Heard::Event(event)) => session.handle(event, now),
                Some(Heard::Timeout) => session.handle_timeout(now),
                None => Vec::new(),
            };
            if let Some(exit) = self.carry_out(actions, carried, &channels) {
                self.end().await;
                return exit;
            }
        }
    }

    /// Turns what came in into an event, or passes it on if no decision is needed.
    fn event(&mut self, input: Input, carried: &mut Carried, channels: &Channels) -> Option<Heard> {
        let event = match input {
            Input::Timeout => return Some(Heard::Timeout),
            Input::Terminate => Event::Terminate,
            Input::Session(FromSession::Opened(outbox)) => {
                self.outbox = Some(outbox);
                self.say(ToCoordinator::Hello(self.hello.clone()));
                Event::Connected
            }
            Input::Session(FromSession::Unreachable(error)) => {
                tracing::info!("can't reach the coordinator yet: {error}");
                Event::Unreachable(error)
            }
            Input::Session(FromSession::Closed(why)) => {
                self.outbox = None;
                tracing::warn!("{why}");
                Event::Disconnected(why)
            }
            Input::Session(FromSession::Said(message)) => {
                self.hear(message, carried).unwrap_or_else(|malformed| {
                    Event::Failed(format!(
                        "{malformed}; use the same version of both programs"
                    ))
                })
            }
            Input::Prepared(Err(reason)) => Event::Failed(reason),
            Input::Prepared(Ok(dataset)) => {
                let digest = dataset.digest().to_owned();
                match self.start_training(dataset, channels) {
                    Ok(()) => Event::Prepared(digest),
                    Err(reason) => Event::Failed(reason),
                }
            }
            Input::Training(Report::Say(kind)) => {
                self.say(*kind);
                return None;
            }
            Input::Training(Report::Formed(generation, step)) => Event::Formed(generation, step),
            Input::Training(Report::Ended(generation, step, finish)) => {
                Event::TrainingEnded(generation, step, finish)
            }
            Input::Training(Report::CollectiveFailed(generation, step, reason)) => {
                tracing::warn!("{reason}");
                Event::CollectiveFailed(generation, step, reason)
            }
        };
        Some(Heard::Event(event))
    }

    fn hear(
        &mut self,
        message: proto::CoordinatorMessage,
        carried: &mut Carried,
    ) -> Result<Event, wire::Malformed> {
        use crate::ids::Generation;
        let event = match message.kind.ok_or(wire::Malformed::Empty)? {
            FromCoordinator::Welcome(welcome) => match enrolment(&welcome) {
                Ok(job) => {
                    let heartbeat = Duration::try_from_secs_f64(welcome.heartbeat_seconds)
                        .unwrap_or_default()
                        .clamp(Duration::from_millis(10), Duration::from_secs(60));
                    let patience = job.job.deadlines.coordinator;
                    self.job = Some(job);
                    Event::Welcome {
                        heartbeat,
                        patience,
                    }
                }
                Err(reason) => Event::Failed(reason),
            },
            FromCoordinator::Refused(refused) => Event::Refused {
                reason: refused.reason,
                permanent: refused.permanent,
            },
            FromCoordinator::Assignment(message) => {
                let assignment = wire::assignment(message)?;
                let generation = assignment.group.generation;
                carried.command = Some(Command::Form(Box::new(assignment)));
                Event::Assignment(generation)
            }
            FromCoordinator::Work(message) => {
                let generation = Generation(message.generation);
                carried.command = Some(Command::Work(generation, wire::work(message)));
                Event::Work(generation)
            }
            FromCoordinator::Stop(stop) => {
                tracing::info!("told to stop: {}", stop.reason);
                Event::Stop { drain: stop.drain }
            }
            FromCoordinator::Ended(ended) => Event::Ended {
                outcome: ended.outcome,
                good: ended.good,
            },
            FromCoordinator::Acknowledged(_) => Event::Acknowledged,
        };
        Ok(event)
    }

    fn carry_out(
        &mut self,
        actions: Vec<Action>,
        mut carried: Carried,
        channels: &Channels,
    ) -> Option<Exit> {
        for action in actions {
            match action {
                Action::Connect => {
                    let session = client::session(self.endpoint.clone(), channels.session.clone());
                    tokio::spawn(session);
                }
                Action::Prepare => self.prepare(channels),
                Action::SayReady(data_digest) => {
                    self.say(ToCoordinator::Ready(proto::Ready { data_digest }));
                }
                Action::Form | Action::GiveWork => {
                    if let (Some(command), Some(training)) =
                        (carried.command.take(), &self.training)
                    {
                        // If the thread is gone, its last report says why.
                        let _ = training.commands.send(command);
                    }
                }
                Action::SayFormed(generation, step) => {
                    self.say(ToCoordinator::Formed(proto::Formed {
                        generation: generation.0,
                        step: step.0,
                    }));
                }
                Action::RaiseStop => self.orders.raise_stop(),
                Action::RaiseLeaving => self.orders.raise_leaving(),
                Action::SayLeaving(generation) => {
                    self.say(ToCoordinator::Leaving(proto::Leaving {
                        generation: generation.0,
                    }));
                }
                Action::SayCollectiveFailed(generation, step, reason) => {
                    self.say(ToCoordinator::CollectiveFailed(proto::CollectiveFailed {
                        generation: generation.0,
                        step: step.0,
                        reason,
                    }));
                }
                Action::SayFinished(generation, step, finish) => {
                    self.send(wire::finished(generation, step, finish));
                }
                Action::Beat => self.say(ToCoordinator::Heartbeat(proto::Heartbeat {})),
                Action::Exit(exit) => return Some(exit),
            }
        }
        None
    }

    fn say(&mut self, kind: ToCoordinator) {
        self.send(wire::message(kind));
    }

    /// What can't be delivered is dropped: nothing waits for the coordinator (invariant 5).
    fn send(&mut self, message: proto::WorkerMessage) {
        if let Some(outbox) = &self.outbox
            && let Err(error) = outbox.try_send(message)
        {
            tracing::warn!("a message for the coordinator is lost: {error}");
        }
    }

    /// Gets the data ready, off the loop.
    fn prepare(&self, channels: &Channels) {
        let Some(enrolment) = &self.job else {
            return;
        };
        let job = Arc::clone(&enrolment.job);
        let prepared = channels.prepared.clone();
        tokio::task::spawn_blocking(move || {
            let opened = Dataset::open(&job, &mut |_, _| {});
            let opened = opened.map(Arc::new).map_err(|error| error.to_string());
            let _ = prepared.send(opened);
        });
    }

    fn start_training(&mut self, dataset: Arc<Dataset>, channels: &Channels) -> Result<(), String> {
        let Some(enrolment) = &self.job else {
            return Err("the data came before the job".to_owned());
        };
        let (commands, inbox) = std::sync::mpsc::channel();
        let training = Training {
            enrolment: enrolment.clone(),
            dataset,
            device: self.device,
            device_kind: self.device_kind.clone(),
            cores: self.cores,
            listener: Arc::clone(&self.listener),
            orders: Arc::clone(&self.orders),
            commands: inbox,
            reports: channels.reports.clone(),
        };
        let handle = std::thread::Builder::new()
            .name("training".to_owned())
            .spawn(move || training.run())
            .map_err(|error| format!("can't start the training thread: {error}"))?;
        self.training = Some(TrainingThread { commands, handle });
        Ok(())
    }

    /// Ends the training thread, so that nothing computes while the process is torn down.
    async fn end(self) {
        self.orders.abort("the worker is ending");
        drop(self.outbox);
        let Some(training) = self.training else {
            return;
        };
        drop(training.commands);
        let joined = tokio::task::spawn_blocking(move || training.handle.join());
        if tokio::time::timeout(FAREWELL, joined).await.is_err() {
            tracing::warn!("the training thread does not end; leaving without it");
        }
    }
}

/// An event, or the passing of time.
enum Heard {
    Event(Event),
    Timeout,
}

struct Channels {
    session: mpsc::UnboundedSender<FromSession>,
    prepared: mpsc::UnboundedSender<Result<Arc<Dataset>, String>>,
    reports: mpsc::UnboundedSender<Report>,
}

fn enrolment(welcome: &proto::Welcome) -> Result<Enrolment, String> {
    let job = config::parse(&welcome.job, "the coordinator's job", Path::new("/"), &[])
        .map_err(|error| error.to_string())?;
    tracing::info!(worker = welcome.worker, job = %job.job.name, id = %welcome.job_id, "welcome");
    Ok(Enrolment {
        job_id: welcome.job_id.clone(),
        job: Arc::new(job),
        run_dir: PathBuf::from(&welcome.run_dir),
    })
}

/// The address of this machine that faces the coordinator.
fn facing(endpoint: &Endpoint) -> String {
    let uri = endpoint.uri();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let target = (host, uri.port_u16().unwrap_or(80)).to_socket_addrs();
    let Some(target) = target.ok().and_then(|mut found| found.next()) else {
        // The name may not exist yet; the host's own name is the best guess.
        return host_name();
    };
    // No packet is sent: connecting a datagram socket only chooses the route.
    let any: SocketAddr = if target.is_ipv4() {
        (IpAddr::from([0, 0, 0, 0]), 0).into()
    } else {
        (IpAddr::from([0_u16; 8]), 0).into()
    };
    let route = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    match route {
        Ok(local) => local.ip().to_string(),
        Err(_) => host_name(),
    }
}

/// A worker that is known by a loopback address listens there alone.
fn bind_address(host: &str) -> IpAddr {
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => address,
        Ok(address) if address.is_ipv6() => IpAddr::from([0_u16; 8]),
        _ => IpAddr::from([0, 0, 0, 0]),
    }
}

fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = from_kernel.unwrap_or_default().trim().to_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// Tells this process from every other one that was or will be.
fn incarnation() -> String {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => format!("{:016x}", u64::from_le_bytes(bytes)),
        Err(_) => format!("pid-{}", std::process::id()),
    }
}
