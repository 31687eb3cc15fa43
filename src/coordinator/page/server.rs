//! Serves the page on a [port](crate::telemetry::port) with a bound on connections and deadlines.

use super::{LISTENERS, Page, routes};
use crate::telemetry::exporter::Recorded;
use crate::telemetry::port;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

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
        let service = TowerToHyperService::new(routes::router(Arc::clone(&page)));
        Ok(Self {
            address: listener.local_addr()?,
            tasks: [
                tokio::spawn(port::serve(listener, service)),
                tokio::spawn(keep_up(page.metrics.clone())),
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

async fn keep_up(metrics: Option<Recorded>) {
    if let Some(metrics) = metrics {
        metrics.keep_up().await;
    }
}
