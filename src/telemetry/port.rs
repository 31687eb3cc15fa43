//! A port that answers HTTP to whoever can reach it, and to no more of them than it can bear.
//!
//! A caller who sends something else, or nothing, or too much, costs one connection.

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at once; one more is closed.
const CONNECTIONS: usize = 256;
/// For a request's head to come, and for a connection to be quiet between two.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head, bytes, and the most headers in it.
const LONGEST: usize = 16 << 10;
const HEADERS: usize = 64;

type Cause = Box<dyn Error + Send + Sync>;

/// Answers by `service`, for as long as the current tokio runtime lives.
pub async fn serve<S, B>(listener: TcpListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Cause>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Cause>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection; is the limit of open files too low?");
                // The reason is not gone at once, and this must not become a busy loop.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%peer, "closed a connection: there are {CONNECTIONS} others");
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(LONGEST)
                .max_headers(HEADERS);
            match http.serve_connection(TokioIo::new(stream), service).await {
                Err(error) if error.is_parse() => {
                    tracing::warn!(%peer, "closed a connection: {error}");
                }
                // It was quiet for long, or is gone.
                Err(error) => tracing::debug!(%peer, "a connection ended: {error}"),
                Ok(()) => {}
            }
            drop(place);
        });
    }
}
