//! The gRPC side of a worker: one session with the coordinator.

use super::parts::Parts;
use crate::command::innermost;
use crate::locks::{self, Locks};
use crate::proto::coordinator_client::CoordinatorClient;
use crate::proto::{CoordinatorMessage, WorkerMessage};
use std::error::Error;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// For one attempt to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Pings on an idle connection, so that a dead coordinator is noticed.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Messages that may wait for the network.
const OUTBOX: usize = 256;
/// The longest message that is taken, bytes: a large job's spans, with room to spare.
const LONGEST: usize = 64 << 20;

/// What comes of an attempt to have a session; whoever gave it up may still hear of it.
pub(super) struct Report {
    /// Which attempt it was, as its beginner counts them.
    pub(super) attempt: u64,
    pub(super) came: FromSession,
}

/// What comes of a session.
pub(super) enum FromSession {
    /// It is open; messages go here.
    Opened(mpsc::Sender<WorkerMessage>),
    /// It can't be opened.
    Unreachable(String),
    /// The coordinator said something.
    Said(CoordinatorMessage),
    /// It is over.
    Closed(String),
}

/// Opens one session and reports all that comes of it.
pub(super) async fn session(
    coordinator: Endpoint,
    locks: Locks,
    attempt: u64,
    reports: mpsc::UnboundedSender<Report>,
) {
    let report = |came| reports.send(Report { attempt, came }).is_ok();
    let endpoint = coordinator
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(2 * KEEPALIVE)
        .keep_alive_while_idle(true);
    let last = match open(endpoint, &locks).await {
        Err(error) => FromSession::Unreachable(error),
        Ok((outbox, mut inbox)) => {
            report(FromSession::Opened(outbox));
            let mut parts = Parts::default();
            loop {
                match inbox.message().await {
                    Ok(Some(message)) => {
                        if let Some(message) = parts.join(message)
                            && !report(FromSession::Said(message))
                        {
                            return;
                        }
                    }
                    Ok(None) => {
                        break FromSession::Closed("the coordinator ended the session".to_owned());
                    }
                    Err(status) => {
                        break FromSession::Closed(format!(
                            "the session with the coordinator broke: {}",
                            account(&status)
                        ));
                    }
                }
            }
        }
    };
    report(last);
}

type Session = (
    mpsc::Sender<WorkerMessage>,
    tonic::Streaming<CoordinatorMessage>,
);

async fn open(endpoint: Endpoint, locks: &Locks) -> Result<Session, String> {
    let uri = endpoint.uri().clone();
    let channel = locks::dial(endpoint, locks, CONNECT)
        .await
        .map_err(|error| format!("{uri}: {}", innermost(&error)))?;
    let mut client = CoordinatorClient::new(channel).max_decoding_message_size(LONGEST);
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let request = locks.sign(ReceiverStream::new(messages));
    let request = request.map_err(|status| status.message().to_owned())?;
    let reply = tokio::time::timeout(CONNECT, client.session(request))
        .await
        .map_err(|_| format!("{uri}: no answer within {CONNECT:?}"))?
        .map_err(|status| format!("{uri}: {}", account(&status)))?;
    Ok((outbox, reply.into_inner()))
}

/// What a broken session says of itself.
fn account(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => innermost(source),
        None => status.message().to_owned(),
    }
}
