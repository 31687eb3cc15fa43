//! The exporter of Prometheus metrics: what they are described as, and the port where they are read.

use super::catalog::{self, Kind, Role};
use super::metrics::{count, histogram, set};
use super::port;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http;
use hyper::service::service_fn;
use hyper::{Request, Response};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use prost::bytes::Bytes;
use std::future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// How often observations are folded together: until then each one takes room.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why metrics can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The address can't be listened on.
    #[error("can't export metrics on {address}: {detail}; choose another address or port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's account.
        detail: String,
    },
    /// Metrics are exported by this process already.
    #[error("metrics are set up already in this process: set them up once, in main")]
    AlreadyInstalled,
    /// There is no tokio runtime for the exporter to live on.
    #[error("metrics were set up outside a tokio runtime, which the exporter needs")]
    NoRuntime,
    /// The exporter refuses its settings.
    #[error("can't set up the metric {metric}: {detail}")]
    Settings {
        /// The metric.
        metric: &'static str,
        /// The exporter's account.
        detail: String,
    },
}

/// The metrics of this process, served.
#[derive(Clone, Debug)]
pub struct Handle {
    address: SocketAddr,
    recorded: Recorded,
}

impl Handle {
    /// Where metrics are served: `http://<address>/metrics`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The metrics as Prometheus would scrape them now.
    pub fn render(&self) -> String {
        self.recorded.render()
    }
}

/// Serves the metrics of `role` over HTTP on `listen`, for as long as the current tokio runtime
/// lives. With port 0, a free one is chosen: [`Handle::address`] tells which.
///
/// # Errors
/// [`TelemetryError`]; [`TelemetryError::AlreadyInstalled`] the second time in a process.
pub fn install(listen: SocketAddr, role: Role) -> Result<Handle, TelemetryError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| TelemetryError::NoRuntime)?;
    let failed = |error: io::Error| TelemetryError::Bind {
        address: listen,
        detail: error.to_string(),
    };
    let (address, listener) = bind(listen).map_err(failed)?;
    let recorded = record(role)?;
    let page = recorded.clone();
    let answer = service_fn(move |request| future::ready(answer(&request, &page)));
    runtime.spawn(port::serve(listener, answer));
    runtime.spawn(recorded.clone().keep_up());
    Ok(Handle { address, recorded })
}

/// The metrics of this process, for somebody else to serve.
#[derive(Clone, Debug)]
pub struct Recorded(PrometheusHandle);

impl Recorded {
    /// The metrics as Prometheus would scrape them now.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds observations together every few seconds, for ever.
    pub async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.0.run_upkeep();
        }
    }
}

/// Records the metrics of `role`, which are served by whoever is given them.
///
/// # Errors
/// [`TelemetryError`]; [`TelemetryError::AlreadyInstalled`] the second time in a process.
pub fn record(role: Role) -> Result<Recorded, TelemetryError> {
    let (recorder, recorded) = recorder(role)?;
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::AlreadyInstalled)?;
    Ok(recorded)
}

/// A recorder that is nobody's yet, with the metrics of `role`.
pub(crate) fn recorder(role: Role) -> Result<(PrometheusRecorder, Recorded), TelemetryError> {
    let recorder = builder()?.build_recorder();
    let recorded = Recorded(recorder.handle());
    metrics::with_local_recorder(&recorder, || introduce(role));
    Ok((recorder, recorded))
}

/// A sign of life at `/health`, and the metrics elsewhere.
fn answer(
    request: &Request<Incoming>,
    recorded: &Recorded,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (kind, text) = match request.uri().path() {
        "/health" => ("text/plain; charset=utf-8", "OK".to_owned()),
        _ => (
            "text/plain; version=0.0.4; charset=utf-8",
            recorded.render(),
        ),
    };
    Response::builder()
        .header("content-type", kind)
        .body(Full::new(Bytes::from(text)))
}

fn bind(listen: SocketAddr) -> io::Result<(SocketAddr, tokio::net::TcpListener)> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((address, tokio::net::TcpListener::from_std(listener)?))
}

/// Settings of the exporter: without buckets, a histogram would become a summary.
fn builder() -> Result<PrometheusBuilder, TelemetryError> {
    let mut builder = PrometheusBuilder::new();
    for metric in catalog::ALL {
        if let Kind::Histogram { buckets } = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .map_err(|error| TelemetryError::Settings {
                    metric: metric.name,
                    detail: error.to_string(),
                })?;
        }
    }
    Ok(builder)
}

/// Describes the metrics of `role` and creates their series, so that a rate is right from the
/// first event on.
fn introduce(role: Role) {
    for metric in catalog::of(role) {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge { .. } => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram { .. } => metrics::describe_histogram!(metric.name, metric.help),
        }
        let values: Vec<Option<&'static str>> = match metric.label {
            Some(label) => label.values.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        for value in values {
            match metric.kind {
                Kind::Counter => count(metric, value, 0),
                Kind::Gauge { from: Some(from) } => set(metric, value, from),
                Kind::Gauge { from: None } => {}
                // To ask for it is to create it, with no observation.
                Kind::Histogram { .. } => drop(histogram(metric, value)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::worker;
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn outside_a_runtime_is_an_error_and_no_panic() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(matches!(
            install(any, Role::Worker),
            Err(TelemetryError::NoRuntime)
        ));
    }

    fn scrape(address: SocketAddr) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// One test for all that is global to a process.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn metrics_are_served_where_the_handle_says() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let message = install(address, Role::Worker).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("can't export metrics on {address}: ")),
            "{message}"
        );

        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let handle = install(any, Role::Worker).unwrap();
        assert_ne!(handle.address().port(), 0);
        worker::images(5);
        let scraped = tokio::task::spawn_blocking({
            let address = handle.address();
            move || scrape(address)
        });
        let text = scraped.await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        assert!(text.contains("gan_worker_images_total 5"), "{text}");
        assert!(handle.render().contains("gan_worker_images_total 5"));

        assert!(matches!(
            install(any, Role::Worker),
            Err(TelemetryError::AlreadyInstalled)
        ));
    }
}
