//! What is at which address, and how browsers are told to treat it.

use super::curves::Cursor;
use super::{Page, events};
use crate::telemetry::pictures;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;

/// The page's own files, and nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

macro_rules! assets {
    ($($path:literal: $kind:ident = $file:literal,)+) => {
        /// The page's files: address, media type, content.
        const ASSETS: &[(&str, &str, &str)] = &[
            $(($path, $kind, include_str!(concat!("assets/", $file)))),+
        ];
    };
}

assets! {
    "/": HTML = "index.html",
    "/style.css": CSS = "style.css",
    "/main.js": SCRIPT = "main.js",
    "/chart.js": SCRIPT = "chart.js",
    "/curves.js": SCRIPT = "curves.js",
    "/film.js": SCRIPT = "film.js",
    "/tables.js": SCRIPT = "tables.js",
    "/timeline.js": SCRIPT = "timeline.js",
    "/text.js": SCRIPT = "text.js",
    "/icon.svg": ICON = "icon.svg",
}

const ICON: &str = "image/svg+xml";

/// Everything that a browser, and Prometheus, can ask for.
pub(super) fn router(page: Arc<Page>) -> Router {
    let mut router = Router::new()
        .route("/state", get(state))
        .route("/curves", get(curves))
        .route("/events", get(stream))
        .route("/samples/{name}", get(sample))
        .route(
            "/health",
            get(async || ([(header::CONTENT_TYPE, "text/plain")], "OK")),
        )
        .route("/metrics", get(metrics));
    for &(path, kind, content) in ASSETS {
        let answer = async move || ([(header::CONTENT_TYPE, kind)], content);
        router = router.route(path, get(answer));
    }
    let router = router.fallback(async || (StatusCode::NOT_FOUND, "not found\n"));
    router.layer(map_response(guarded)).with_state(page)
}

/// Adds what makes a browser careful.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

type Answer = Result<Response, (StatusCode, String)>;

fn failed(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

/// Does what reads files where it may take its time.
async fn read<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, (StatusCode, String)> {
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn json(value: &impl serde::Serialize) -> Answer {
    let text = serde_json::to_string(value).map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, JSON)], text).into_response())
}

async fn state(State(page): State<Arc<Page>>) -> Answer {
    let read = read(move || page.view().news(&mut Cursor::default()).state);
    json(&read.await?)
}

async fn curves(State(page): State<Arc<Page>>) -> Answer {
    let read = read(move || {
        loop {
            let mut cursor = Cursor::default();
            let news = page.view().news(&mut cursor);
            if !news.more {
                return news.curves;
            }
        }
    });
    json(&read.await?)
}

async fn stream(State(page): State<Arc<Page>>) -> Response {
    match events::stream(page) {
        Some(stream) => stream.into_response(),
        None => {
            let why = "too many are listening; try again later\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn sample(State(page): State<Arc<Page>>, Path(name): Path<String>) -> Answer {
    let found = read(move || {
        let picture = pictures::find(&page.run_dir, &name)?;
        picture
            .map(|picture| picture.read(&page.run_dir))
            .transpose()
    });
    let Some(bytes) = found.await?.map_err(failed)? else {
        return Err((StatusCode::NOT_FOUND, "no such sample\n".to_owned()));
    };
    // A step's grid never changes, and pages ask for it with their job's id.
    let headers = [
        (header::CONTENT_TYPE, "image/png"),
        (header::CACHE_CONTROL, "private, max-age=86400"),
    ];
    Ok((headers, bytes).into_response())
}

async fn metrics(State(page): State<Arc<Page>>) -> Answer {
    if page.metrics.is_none() {
        let why = "a page of files has no metrics; a running gan-coord has\n";
        return Err((StatusCode::NOT_FOUND, why.to_owned()));
    }
    let text = read(move || {
        page.metrics
            .as_ref()
            .map_or_else(String::new, |m| m.render())
    });
    Ok(([(header::CONTENT_TYPE, "text/plain")], text.await?).into_response())
}
