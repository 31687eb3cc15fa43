//! The tonic service: sessions, status and control, in front of the driver.

use super::driver::{Beats, Input};
use super::gate::Gate;
use super::sessions::{OUTBOX, SessionId};
use super::status::{self, Identity, Progress};
use super::wire;
use crate::locks::Part;
use crate::membership::{Event, Word};
use crate::proto::coordinator_server::Coordinator;
use crate::proto::{
    ControlReply, ControlRequest, CoordinatorMessage, JobStatus, StatusRequest, WatchRequest,
    WorkerMessage, control_request,
};
use std::pin::Pin;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// For the first message of a session.
const HELLO: Duration = Duration::from_secs(10);

/// The service.
pub(super) struct Service {
    pub(super) gate: Gate,
    pub(super) inbox: Sender<Input>,
    pub(super) beats: Beats,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) identity: Identity,
    pub(super) next_session: AtomicU64,
}

/// Who may look, and who may give orders.
const LOOKS: [Part; 3] = Part::ALL;
const ORDERS: [Part; 2] = [Part::Operator, Part::Coordinator];

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;
    type WatchStream = Reply<JobStatus>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.gate.join(&request)?;
        let messages = request.into_inner();
        let session = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (outbox, replies) = mpsc::channel(OUTBOX);
        self.tell(Input::Opened(session, outbox))?;
        let (inbox, beats) = (self.inbox.clone(), self.beats.clone());
        tokio::spawn(async move {
            let why = listen(session, messages, &inbox, &beats).await;
            // If the driver is gone, nobody needs the notice.
            let _ = inbox.send(Input::Closed(session, why));
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<JobStatus>, Status> {
        self.gate.admit(&request, &LOOKS)?;
        let progress = self.progress.borrow();
        Ok(Response::new(status::message(&self.identity, &progress)))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.gate.admit(&request, &LOOKS)?;
        let wanted = request.into_inner().interval_seconds;
        let interval = match wanted {
            0.0 => Duration::from_secs(1),
            seconds if (0.05..=3600.0).contains(&seconds) => Duration::from_secs_f64(seconds),
            other => {
                return Err(Status::invalid_argument(format!(
                    "interval_seconds = {other}: expected 0.05 to 3600, or 0 for one second"
                )));
            }
        };
        let identity = self.identity.clone();
        let changes = tokio_stream::wrappers::WatchStream::new(self.progress.clone())
            .throttle(interval)
            .map(move |progress| Ok(status::message(&identity, &progress)));
        Ok(Response::new(Box::pin(changes)))
    }

    async fn control(
        &self,
        request: Request<ControlRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.gate.admit(&request, &ORDERS)?;
        match request.into_inner().order {
            Some(control_request::Order::Stop(stop)) => {
                wire::check_words([("reason", stop.reason.as_str())])
                    .map_err(|malformed| Status::invalid_argument(malformed.to_string()))?;
                let reason = if stop.reason.is_empty() {
                    "a stop was asked for".to_owned()
                } else {
                    stop.reason
                };
                self.tell(Input::Event(Event::Stop(reason)))?;
                let step = self.progress.borrow().step.0;
                Ok(Response::new(ControlReply { step }))
            }
            None => Err(Status::invalid_argument("the request holds no order")),
        }
    }
}

impl Service {
    fn tell(&self, input: Input) -> Result<(), Status> {
        self.inbox
            .send(input)
            .map_err(|_| Status::unavailable("the coordinator is ending"))
    }
}

/// Hears one worker to its end, and says why it ended.
async fn listen(
    session: SessionId,
    mut messages: Streaming<WorkerMessage>,
    inbox: &Sender<Input>,
    beats: &Beats,
) -> String {
    let mut first = true;
    loop {
        let message = if first {
            match tokio::time::timeout(HELLO, messages.message()).await {
                Ok(message) => message,
                Err(_) => return format!("it has not said Hello within {HELLO:?}"),
            }
        } else {
            messages.message().await
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return "its stream ended".to_owned(),
            Err(status) => return format!("its stream broke: {}", status.message()),
        };
        let heard = match wire::hear(message) {
            Ok(heard) => heard,
            Err(malformed) => {
                tracing::warn!("a message can't be taken: {malformed}");
                return format!("it sent a message that can't be taken: {malformed}");
            }
        };
        if first != matches!(heard.word, Word::Hello(..)) {
            return "it said Hello late, or twice".to_owned();
        }
        first = false;
        if let Word::Heartbeat(..) = heard.word {
            let mut beats = beats.lock().unwrap_or_else(PoisonError::into_inner);
            beats.push((session, heard.word));
            continue;
        }
        let said = Input::Said(session, heard.word, heard.records);
        if inbox.send(said).is_err() {
            return "the coordinator is ending".to_owned();
        }
    }
}
