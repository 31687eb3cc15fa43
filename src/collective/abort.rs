//! Calling a collective off from another thread.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Calls off the collective that it belongs to: what is in flight there returns
/// [`Aborted`](super::CollectiveError::Aborted) at once, and so does every later call.
///
/// One generation has one of these. It can be made before the group connects, so that connecting
/// can be called off too. Clones are the same handle.
#[derive(Clone, Default)]
pub struct Abort(Arc<Inner>);

type Hook = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    reason: OnceLock<String>,
    hooks: Mutex<Vec<Hook>>,
}

impl Abort {
    /// A handle that nothing listens to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls it off, for good. Only the first reason counts.
    pub fn abort(&self, reason: impl Into<String>) {
        // The reason stands before any wait ends, so whoever wakes up finds it.
        if self.0.reason.set(reason.into()).is_err() {
            return;
        }
        let hooks = std::mem::take(&mut *self.hooks());
        for hook in hooks {
            hook();
        }
    }

    /// Why it was called off, if it was.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// Has `hook` called when it is called off: at once if it was already.
    pub(super) fn on_abort(&self, hook: impl Fn() + Send + Sync + 'static) {
        let mut hooks = self.hooks();
        // Under the lock: either `abort` finds the hook in the list, or we find its reason.
        if self.reason().is_none() {
            hooks.push(Box::new(hook));
        } else {
            drop(hooks);
            hook();
        }
    }

    fn hooks(&self) -> std::sync::MutexGuard<'_, Vec<Hook>> {
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Abort")
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_abort_is_sticky_and_reaches_early_and_late_listeners_once() {
        let (abort, calls) = (Abort::new(), Arc::new(AtomicUsize::new(0)));
        let listen = || {
            let calls = Arc::clone(&calls);
            abort.on_abort(move || {
                calls.fetch_add(1, Ordering::SeqCst);
            });
        };
        listen();
        assert_eq!((abort.reason(), calls.load(Ordering::SeqCst)), (None, 0));
        abort.clone().abort("first");
        abort.abort("second");
        assert_eq!(abort.reason(), Some("first"));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        listen();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
