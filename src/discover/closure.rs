//! Endpoints from a closure that is called again and again.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::{BackendError, Cursor, DiscoveryBackend, Guard, IntoListing, RawEvent, ServiceName};
use crate::time;

/// A closure without any wait must still not take a thread for itself.
const SHORTEST: Duration = Duration::from_millis(1);

/// A backend that calls a closure for the whole list, at this interval.
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::{Endpoint, discover::{self, Discovery}};
///
/// let endpoints = discover::poll_fn(Duration::from_secs(5), || async {
///     let endpoint: Endpoint = "127.0.0.1:8080".parse()?;
///     Ok::<_, tower_gateway::endpoint::InvalidAddress>(vec![endpoint])
/// });
/// let discovery = Discovery::new(endpoints);
/// ```
pub fn poll_fn<F, Fut>(interval: Duration, call: F) -> PollFn<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoListing,
{
    PollFn {
        call: Arc::new(call),
        interval: interval.max(SHORTEST),
        timeout: Duration::from_secs(10),
    }
}

/// The backend of [`poll_fn`].
///
/// # Defaults
///
/// - `timeout`: 10 s
pub struct PollFn<F> {
    call: Arc<F>,
    interval: Duration,
    timeout: Duration,
}

impl<F> PollFn<F> {
    /// Sets how long one call may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<F, Fut> DiscoveryBackend for PollFn<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoListing,
{
    fn connect(
        &self,
        _service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let (interval, timeout) = (self.interval, self.timeout);
        let first = (Arc::clone(&self.call), None::<Instant>);
        stream::unfold(first, move |(call, due)| async move {
            if let Some(due) = due {
                time::sleep_until(due).await;
            }
            let started = time::now();
            let said = match tokio::time::timeout(timeout, call()).await {
                Ok(answer) => answer.into_listing().map(RawEvent::Reset),
                Err(elapsed) => Err(BackendError::Transient(elapsed.into())),
            };
            Some((said, (call, Some(started + interval))))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        Guard::authoritative()
    }
}

impl<F> fmt::Debug for PollFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollFn")
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        discover::{Discovery, ServiceDiscovery as _},
        endpoint::Endpoint,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoints(count: usize) -> Vec<Endpoint> {
        let address = |i| format!("10.0.0.1:{}", i + 1);
        (0..count).map(|i| address(i).parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_closure_is_called_at_its_interval() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let closure = poll_fn(SECOND, move || {
            let count = count.fetch_add(1, Ordering::Relaxed);
            async move { endpoints(count + 1) }
        });
        let mut watch = Discovery::new(closure).watch(&"users".into());
        assert_eq!(watch.ready().await.endpoints.len(), 1);
        let begin = time::now();
        assert_eq!(watch.changed().await.endpoints.len(), 2);
        assert_eq!(watch.changed().await.endpoints.len(), 3);
        assert_eq!(time::now() - begin, 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_and_a_call_that_hangs_are_outages_that_end() {
        let calls = AtomicUsize::new(0);
        let closure = poll_fn(SECOND, move || {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    1 => Err("refused"),
                    2 => std::future::pending().await,
                    _ => Ok(endpoints(2)),
                }
            }
        });
        let mut watch = Discovery::new(closure).watch(&"users".into());
        watch.ready().await;
        let mut told = Vec::new();
        for _ in 0..3 {
            let snapshot = watch.changed().await;
            assert_eq!(snapshot.endpoints.len(), 2);
            told.push((
                snapshot.state.as_str(),
                snapshot.reason.as_deref().map(str::to_owned),
            ));
        }
        let away = "the source is not available: ";
        assert_eq!(told[0], ("stale", Some(format!("{away}refused"))));
        assert_eq!(
            told[1],
            ("stale", Some(format!("{away}deadline has elapsed")))
        );
        assert_eq!(told[2], ("live", None));
    }
}
