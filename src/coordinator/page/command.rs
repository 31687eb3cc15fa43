//! How a page is asked for: `--metrics-listen` of a job, and `gan-coord view`.

use super::{Page, Server};
use crate::command::{Failure, print};
use crate::coordinator::Coordinator;
use crate::coordinator::ledger::LedgerReader;
use crate::signals;
use crate::telemetry::catalog::Role;
use crate::telemetry::exporter;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Reads files, and changes nothing: it can be used while the job runs.
#[derive(Debug, Args)]
pub(in crate::coordinator) struct View {
    /// The job's run directory.
    run_dir: PathBuf,
    /// Address of the page; with port 0, a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

impl View {
    pub(in crate::coordinator) async fn run(self) -> Result<ExitCode, Failure> {
        // A folder that is none gets one clear message, and no page.
        drop(LedgerReader::open(&self.run_dir)?);
        let server = start(self.listen, Page::of_files(&self.run_dir)).await?;
        print(&format!("http://{}/\n", server.address()))?;
        signals::termination(1).await;
        server.finish().await;
        Ok(ExitCode::SUCCESS)
    }
}

/// The page and the metrics of a job, if they are wanted.
pub(in crate::coordinator) async fn of(
    coordinator: &Coordinator,
    listen: Option<SocketAddr>,
) -> Result<Option<Server>, Failure> {
    let Some(listen) = listen else {
        return Ok(None);
    };
    let metrics = exporter::record(Role::Coordinator).map_err(Failure::failed)?;
    let page = Page::live(&coordinator.options.run_dir, coordinator.live(), metrics);
    let server = start(listen, page).await?;
    let address = server.address();
    tracing::info!("metrics on http://{address}/metrics");
    tracing::info!("page on http://{address}/");
    Ok(Some(server))
}

async fn start(listen: SocketAddr, page: Page) -> Result<Server, Failure> {
    let started = Server::start(listen, page).await;
    started.map_err(|error| {
        Failure::failed(format!(
            "can't serve a page on {listen}: {error}; choose another address or port"
        ))
    })
}

/// Tells browsers how the job ended.
pub(in crate::coordinator) async fn finish(server: Option<Server>) {
    if let Some(server) = server {
        server.finish().await;
    }
}
