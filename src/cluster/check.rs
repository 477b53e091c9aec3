//! How the endpoints of a cluster are checked.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;

use crate::{
    health::{Finding, Pace, Thresholds},
    member::Member,
};

/// One way to ask an endpoint how it is. The built-in ones are in [`check`](crate::check); an
/// application brings its own by this trait.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use futures_util::future::BoxFuture;
/// use tower_gateway::{check::{Check, Finding}, member::Member};
///
/// /// Believes what the operator has written into the metadata.
/// #[derive(Debug)]
/// struct Maintenance;
///
/// impl Check for Maintenance {
///     fn name(&self) -> &str {
///         "maintenance"
///     }
///
///     fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
///         let is_closed = member.endpoint().metadata.contains_key("closed");
///         Box::pin(async move {
///             if is_closed { Finding::fail("closed") } else { Finding::Pass }
///         })
///     }
/// }
/// ```
pub trait Check: fmt::Debug + Send + Sync + 'static {
    /// The name before `check` where a finding is told, such as `HTTP`.
    fn name(&self) -> &str;

    /// Asks the endpoint once.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when the endpoint has had its time, or has left the cluster.
    fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding>;
}

/// How the endpoints of a cluster are checked, and how often.
///
/// An endpoint is unknown until its first probe has ended, which decides at once: unknown endpoints
/// are used when there are no healthy ones. After that, `fall` failures in a row make a healthy one
/// unhealthy and `rise` passes in a row an unhealthy one healthy; until such a run is over, the
/// endpoint is asked at the fast interval.
///
/// Waits are jittered by 20 % either way. A probe has its time from its own start, not from when it
/// was due, and only while this process runs: one that is held up by its own machine is no
/// evidence against an endpoint. Probes above the concurrency wait, those due longest first.
///
/// # Defaults
///
/// - `interval`: 5 s from the start of a probe to the next
/// - `fast_interval`: 1 s
/// - `timeout`: 1 s
/// - `rise`: 2
/// - `fall`: 3
/// - `concurrency`: 512 probes at a time
#[derive(Clone, Debug)]
pub struct Checks {
    pub(super) check: Arc<dyn Check>,
    pub(super) pace: Pace,
    pub(super) timeout: Duration,
    pub(super) thresholds: Thresholds,
    pub(super) concurrency: usize,
}

impl Checks {
    /// Checks of this kind, with the defaults.
    #[must_use]
    pub fn new(check: impl Check) -> Self {
        let rise = NonZeroU32::MIN.saturating_add(1);
        Self {
            check: Arc::new(check),
            pace: Pace {
                interval: Duration::from_secs(5),
                fast_interval: Duration::from_secs(1),
            },
            timeout: Duration::from_secs(1),
            thresholds: Thresholds {
                rise,
                fall: rise.saturating_add(1),
            },
            concurrency: 512,
        }
    }

    /// Sets the time from one probe of an endpoint to the next.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.pace.interval = interval;
        self
    }

    /// Sets the interval while the verdict may turn; a longer one than the interval is that.
    #[must_use]
    pub fn fast_interval(mut self, interval: Duration) -> Self {
        self.pace.fast_interval = interval;
        self
    }

    /// Sets how long an endpoint may take to answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many passes in a row make an unhealthy endpoint healthy.
    #[must_use]
    pub fn rise(mut self, passes: NonZeroU32) -> Self {
        self.thresholds.rise = passes;
        self
    }

    /// Sets how many failures in a row make a healthy endpoint unhealthy.
    #[must_use]
    pub fn fall(mut self, failures: NonZeroU32) -> Self {
        self.thresholds.fall = failures;
        self
    }

    /// Sets how many probes may be under way at a time.
    #[must_use]
    pub fn concurrency(mut self, probes: NonZeroUsize) -> Self {
        self.concurrency = probes.get();
        self
    }
}
