//! Serves the page over HTTP/1.1, with a bound on connections and a deadline for requests.

use super::{LISTENERS, Page, routes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at a time; a browser uses up to six.
const CONNECTIONS: usize = 256;
/// For a request's head, also the next one of a connection.
const HEAD: Duration = Duration::from_secs(30);
/// The largest head.
const HEAD_BYTES: usize = 16 << 10;
/// How often observations are folded into the metrics, so that they take no more room.
const UPKEEP: Duration = Duration::from_secs(5);
/// After a failed accept: the process has too many files open.
const BREATH: Duration = Duration::from_millis(100);
/// For browsers to take the last news.
const FAREWELL: Duration = Duration::from_secs(5);

/// The page, served until this is dropped.
pub(in crate::coordinator) struct Server {
    address: SocketAddr,
    page: Arc<Page>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Server {
    /// Serves `page` on `listen`; with port 0, on a free one.
    ///
    /// # Errors
    /// [`io::Error`], if the address can't be listened on.
    pub(in crate::coordinator) async fn start(listen: SocketAddr, page: Page) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let page = Arc::new(page);
        Ok(Self {
            address: listener.local_addr()?,
            tasks: [
                tokio::spawn(serve(listener, Arc::clone(&page))),
                tokio::spawn(upkeep(Arc::clone(&page))),
            ],
            page,
        })
    }

    /// Where it is.
    pub(in crate::coordinator) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whoever looks the last news, and ends.
    pub(in crate::coordinator) async fn finish(self) {
        self.page.closing.send_replace(true);
        // A listener gives its place back when it has been told.
        let all = self.page.listeners.acquire_many(LISTENERS as u32);
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }
}

async fn upkeep(page: Arc<Page>) {
    while let Some(metrics) = &page.metrics {
        tokio::time::sleep(UPKEEP).await;
        metrics.upkeep();
    }
}

async fn serve(listener: TcpListener, page: Arc<Page>) {
    let router = routes::router(page);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return; // It is never closed.
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a connection to the page failed: {error}");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("a connection to the page broke: {error}");
            }
            drop(place);
        });
    }
}
