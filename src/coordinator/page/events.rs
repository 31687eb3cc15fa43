//! Server-sent events: a browser is told everything once, and then what is new.

use super::Page;
use super::curves::Cursor;
use axum::response::sse::{Event, Sse};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

/// How often files are looked at for a browser.
const EVERY: Duration = Duration::from_secs(1);
/// A job's changes are told no more often.
const PAUSE: Duration = Duration::from_millis(250);
/// For a browser to take a message, before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Without news something is said all the same, so that a connection that is gone is noticed.
const SILENCE: u32 = 15;

type State = serde_json::Map<String, Value>;
type Message = Result<Event, Infallible>;

/// The events for one browser; none, if there are too many browsers.
pub(super) fn stream(page: Arc<Page>) -> Option<Sse<ReceiverStream<Message>>> {
    let room = Arc::clone(&page.listeners).try_acquire_owned().ok()?;
    let (outbox, messages) = channel(4);
    tokio::spawn(tell(page, outbox, room));
    Some(Sse::new(ReceiverStream::new(messages)))
}

/// The parts of `state` that are not as they were `told`, as JSON; none if all are.
fn changes(told: &mut State, state: State) -> Option<String> {
    let mut news = state.clone();
    news.retain(|name, part| told.get(name) != Some(part));
    *told = state;
    (!news.is_empty()).then(|| Value::Object(news).to_string())
}

/// Tells one browser until it goes, or the page ends.
async fn tell(page: Arc<Page>, outbox: Sender<Message>, _room: OwnedSemaphorePermit) {
    let mut closing = page.closing.subscribe();
    let mut progress = page.progress.clone();
    let (mut cursor, mut told, mut silent) = (Cursor::default(), State::new(), 0);
    loop {
        let last = *closing.borrow_and_update();
        if let Some(progress) = &mut progress {
            progress.borrow_and_update();
        }
        let viewed = Arc::clone(&page);
        let news = tokio::task::spawn_blocking(move || {
            let mut view = viewed.view();
            if last {
                view.look_again();
            }
            let news = view.news(&mut cursor);
            // Numbers and names, which can always be written.
            let curves = news.curves.and_then(|new| serde_json::to_string(&new).ok());
            (curves, news.state, news.more, cursor)
        });
        // The process is ending, or a bug is in the log.
        let Ok((curves, state, more, now)) = news.await else {
            return;
        };
        cursor = now;
        let mut messages = Vec::new();
        if let Some(curves) = curves {
            messages.push(Event::default().event("curves").data(curves));
        }
        if let Some(news) = changes(&mut told, state) {
            messages.push(Event::default().event("state").data(news));
        }
        silent = if messages.is_empty() { silent + 1 } else { 0 };
        if silent >= SILENCE {
            silent = 0;
            messages.push(Event::default().comment(""));
        }
        if last && !more {
            messages.push(Event::default().event("end").data("over"));
        }
        for message in messages {
            if outbox.send_timeout(Ok(message), PATIENCE).await.is_err() {
                return;
            }
        }
        if last && !more {
            return;
        }
        if more {
            continue;
        }
        let change = async {
            tokio::time::sleep(PAUSE).await;
            let changed = match &mut progress {
                Some(progress) => progress.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                // Nobody will say it: the clock does.
                std::future::pending().await
            }
        };
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = change => {}
            _ = closing.changed() => {}
            () = outbox.closed() => return,
        }
    }
}
