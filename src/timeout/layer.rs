use std::time::Duration;

use tower::Layer;

use super::Timeout;

/// Bounds how long a request takes; see the [module docs](super).
///
/// # Defaults
///
/// - `idle_timeout`: 60 s
#[derive(Clone, Copy, Debug)]
pub struct TimeoutLayer {
    timeout: Duration,
    idle_timeout: Duration,
}

impl TimeoutLayer {
    /// Allows so long until the response head.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            idle_timeout: Duration::from_secs(60),
        }
    }

    /// Sets how long the bodies may stand still.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout::new(inner, self.timeout, self.idle_timeout)
    }
}
