//! Who is told.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{Alert, AlertState, Severity};
use crate::error::BoxError;

/// Somebody who is told of alerts: [`LogAlerter`], [`Webhook`](super::Webhook), or one of the
/// application's own. A [`Channel`](super::Channel) stands between it and the rules.
///
/// # Examples
///
/// ```
/// use futures_util::future::BoxFuture;
/// use tower_gateway::monitor::{Alert, Alerter, DeliveryError};
///
/// /// Rings a bell.
/// struct Bell;
///
/// impl Alerter for Bell {
///     fn name(&self) -> &str {
///         "bell"
///     }
///
///     fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>> {
///         println!("\u{7}{}", alert.text);
///         Box::pin(async { Ok(()) })
///     }
/// }
/// ```
pub trait Alerter: Send + Sync + 'static {
    /// The name in metrics and logs.
    fn name(&self) -> &str;

    /// Tells it once.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped after 30 s, which counts as [`DeliveryError::Unreachable`].
    fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>>;
}

impl<A: Alerter + ?Sized> Alerter for Arc<A> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>> {
        (**self).tell(alert)
    }
}

/// Why somebody could not be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// The receiver does not answer, or not now: it is tried again.
    #[error("the receiver cannot be reached: {source}")]
    Unreachable {
        /// Why.
        source: BoxError,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The receiver does not take this alert: it is given up.
    #[error("the receiver refuses: {0}")]
    Refused(BoxError),
}

impl DeliveryError {
    /// The receiver does not answer.
    #[must_use]
    pub fn unreachable(source: impl Into<BoxError>) -> Self {
        Self::Unreachable {
            source: source.into(),
            retry_after: None,
        }
    }
}

/// Writes alerts to the log, at the level that their severity has: `error` for critical ones and
/// errors, `warn` for warnings, `info` for the rest and for what is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogAlerter(());

impl LogAlerter {
    /// The log.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl Alerter for LogAlerter {
    fn name(&self) -> &str {
        "log"
    }

    fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>> {
        let Alert {
            rule,
            value,
            threshold,
            text,
            ..
        } = alert;
        let cluster = alert.cluster.as_deref().unwrap_or_default();
        let (severity, state) = (alert.severity.as_str(), alert.state.as_str());
        match (alert.state, alert.severity) {
            (AlertState::Firing, Severity::Critical | Severity::Error) => {
                tracing::error!(event = "alert", %rule, cluster, value, threshold, severity, state, "{text}");
            }
            (AlertState::Firing, Severity::Warning) => {
                tracing::warn!(event = "alert", %rule, cluster, value, threshold, severity, state, "{text}");
            }
            _ => {
                tracing::info!(event = "alert", %rule, cluster, value, threshold, severity, state, "{text}");
            }
        }
        Box::pin(async { Ok(()) })
    }
}
