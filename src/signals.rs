//! The operating system's word to end.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at the next SIGTERM or SIGINT (Ctrl-C), with its name. If the process may not listen
/// for signals, it never resolves, and says so in the log.
pub async fn termination() -> String {
    let streams = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    let (Ok(mut terminate), Ok(mut interrupt)) = streams else {
        tracing::warn!("can't listen for SIGTERM and SIGINT");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM".to_owned(),
        _ = interrupt.recv() => "SIGINT".to_owned(),
    }
}
