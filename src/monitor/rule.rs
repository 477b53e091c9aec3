//! What somebody is to be told of. PURE.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{Channel, ClusterMetrics};
use crate::discover::State;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Good to know.
    Info,
    /// It may become bad.
    Warning,
    /// Somebody should look.
    Error,
    /// Somebody has to look now.
    Critical,
}

impl Severity {
    /// The word in alerts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// What somebody is to be told of, how soon, how often, and by which channels.
///
/// A rule looks at each cluster by itself, or at the node. It fires once when what it measures is
/// beyond its threshold, and says once that it is over, when that was not so for 3 s.
///
/// # Defaults
///
/// - `threshold`: 0.05 for [`high_error_rate`](Self::high_error_rate), 0.7 for
///   [`low_healthy_instances`](Self::low_healthy_instances)
/// - `window`: 30 s
/// - `min_requests`: 20 for [`high_error_rate`](Self::high_error_rate), else none
/// - `lasting`: 3 s for [`registry_lost`](Self::registry_lost) and
///   [`store_lost`](Self::store_lost), else 0: at first sight
/// - `cooldown`: 5 min
/// - `severity`: error for [`high_error_rate`](Self::high_error_rate), else warning
/// - `clusters`: all
/// - `notify`: nobody
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::monitor::{Rule, Severity};
///
/// let busy = Rule::above("busy", 0.9, |cluster| Some(cluster.cpu?.most))
///     .lasting(Duration::from_secs(30))
///     .severity(Severity::Critical);
/// let slow = Rule::above("slow", 0.5, |cluster| Some(cluster.latency(0.99)?.as_secs_f64()));
/// ```
#[derive(Clone)]
pub struct Rule {
    pub(super) name: Arc<str>,
    pub(super) measure: Measure,
    pub(super) side: Side,
    pub(super) threshold: f64,
    pub(super) window: Duration,
    pub(super) min_requests: u64,
    pub(super) lasting: Duration,
    pub(super) cooldown: Duration,
    pub(super) severity: Severity,
    pub(super) clusters: Option<Vec<Arc<str>>>,
    pub(super) channels: Vec<Channel>,
}

/// On which side of the threshold it is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Above,
    Below,
}

impl Side {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

type Function = Arc<dyn Fn(&ClusterMetrics) -> Option<f64> + Send + Sync>;

#[derive(Clone)]
pub(super) enum Measure {
    ErrorRate,
    HealthyShare,
    Registry,
    Store,
    Function(Function),
}

/// What a rule found at one look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    /// It is beyond the threshold.
    Bad(f64),
    /// It is not.
    Good(f64),
    /// Nobody can tell.
    Unknown,
}

/// What a rule of the node looks at: how many registries and stores do not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) registries: usize,
    pub(super) stores: usize,
}

impl Rule {
    /// Looks at the share of failed requests of each cluster.
    #[must_use]
    pub fn high_error_rate() -> Self {
        Self::new("high_error_rate", Measure::ErrorRate, Side::Above, 0.05)
            .severity(Severity::Error)
            .min_requests(20)
    }

    /// Looks at the [share of healthy endpoints](super::Instances::healthy_share) of each cluster.
    #[must_use]
    pub fn low_healthy_instances() -> Self {
        Self::new(
            "low_healthy_instances",
            Measure::HealthyShare,
            Side::Below,
            0.7,
        )
    }

    /// Looks whether a registry of this node answers, and whether the endpoints of each cluster are
    /// a list that is known no longer.
    #[must_use]
    pub fn registry_lost() -> Self {
        Self::new("registry_lost", Measure::Registry, Side::Above, 0.0)
            .lasting(Duration::from_secs(3))
    }

    /// Looks whether the stores of this node answer.
    #[must_use]
    pub fn store_lost() -> Self {
        Self::new("store_lost", Measure::Store, Side::Above, 0.0).lasting(Duration::from_secs(3))
    }

    /// Looks whether a figure of a cluster is above a threshold. Where the function returns nothing,
    /// or panics, it cannot tell, and nothing changes. It must not ask the monitor.
    #[must_use]
    pub fn above(
        name: impl Into<Arc<str>>,
        threshold: f64,
        measure: impl Fn(&ClusterMetrics) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        let measure = Measure::Function(Arc::new(measure));
        Self::new(name, measure, Side::Above, threshold)
    }

    /// Looks whether a figure of a cluster is below a threshold. Where the function returns nothing,
    /// or panics, it cannot tell, and nothing changes. It must not ask the monitor.
    #[must_use]
    pub fn below(
        name: impl Into<Arc<str>>,
        threshold: f64,
        measure: impl Fn(&ClusterMetrics) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        let measure = Measure::Function(Arc::new(measure));
        Self::new(name, measure, Side::Below, threshold)
    }

    fn new(name: impl Into<Arc<str>>, measure: Measure, side: Side, threshold: f64) -> Self {
        Self {
            name: name.into(),
            measure,
            side,
            threshold,
            window: Duration::from_secs(30),
            min_requests: 0,
            lasting: Duration::ZERO,
            cooldown: Duration::from_secs(300),
            severity: Severity::Warning,
            clusters: None,
            channels: Vec::new(),
        }
    }

    /// Sets the name, by which state is kept when the rules change.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the threshold; shares are from 0 to 1.
    #[must_use]
    pub fn threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets how far back it looks, at most 10 min.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window.min(Self::LONGEST_WINDOW);
        self
    }

    /// The longest window.
    pub const LONGEST_WINDOW: Duration = Duration::from_secs(600);

    /// Sets how many requests there must be in the window before it fires.
    #[must_use]
    pub fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    /// Sets for how long it must be bad before it fires.
    #[must_use]
    pub fn lasting(mut self, span: Duration) -> Self {
        self.lasting = span;
        self
    }

    /// Sets how long it is quiet after it fired: what is bad again within that time is told at its
    /// end, if it still is.
    #[must_use]
    pub fn cooldown(mut self, span: Duration) -> Self {
        self.cooldown = span;
        self
    }

    /// Sets how bad it is.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Looks at these clusters alone, and at the node.
    #[must_use]
    pub fn clusters(mut self, names: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        self.clusters = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Tells this channel as well.
    #[must_use]
    pub fn notify(mut self, channel: &Channel) -> Self {
        self.channels.push(channel.clone());
        self
    }

    /// Whether it looks at this cluster.
    pub(super) fn is_about(&self, cluster: &str) -> bool {
        let named = self.clusters.as_ref();
        let is_named = named.is_none_or(|names| names.iter().any(|name| **name == *cluster));
        is_named && !matches!(self.measure, Measure::Store)
    }

    /// Looks at a cluster. What keeps an alert up is less than what it takes to begin: any requests,
    /// however few.
    pub(super) fn read(&self, metrics: &ClusterMetrics, is_firing: bool) -> Reading {
        let is_enough = is_firing || metrics.requests >= self.min_requests;
        let value = match &self.measure {
            Measure::ErrorRate => match metrics.error_rate() {
                Some(rate) if is_enough => Some(rate),
                Some(_) => return Reading::Good(0.0),
                // Whether it is over shows when the window has passed.
                None if is_firing && !metrics.span.is_whole(self.window) => None,
                None => Some(0.0),
            },
            Measure::HealthyShare if metrics.discovery == State::Pending => None,
            Measure::HealthyShare => Some(metrics.instances.healthy_share()),
            Measure::Registry => {
                let is_stale = matches!(metrics.discovery, State::Stale { .. });
                Some(f64::from(u8::from(is_stale)))
            }
            Measure::Function(function) => {
                // One rule that panics must not end the others.
                let found = catch_unwind(AssertUnwindSafe(|| function(metrics)));
                let found = found.unwrap_or_default();
                found.filter(|value| value.is_finite())
            }
            Measure::Store => None,
        };
        match self.judge(value) {
            Reading::Bad(value) if !is_enough => Reading::Good(value),
            reading => reading,
        }
    }

    /// Looks at the node; `None` for a rule of clusters.
    pub(super) fn read_node(&self, lost: Lost) -> Option<Reading> {
        let count = match self.measure {
            Measure::Registry => lost.registries,
            Measure::Store => lost.stores,
            _ => return None,
        };
        Some(self.judge(Some(count as f64)))
    }

    fn judge(&self, value: Option<f64>) -> Reading {
        let Some(value) = value else {
            return Reading::Unknown;
        };
        let is_bad = match self.side {
            Side::Above => value > self.threshold,
            Side::Below => value < self.threshold,
        };
        if is_bad {
            Reading::Bad(value)
        } else {
            Reading::Good(value)
        }
    }

    /// A value in the unit of the rule, for people.
    pub(super) fn shown(&self, value: f64) -> String {
        match self.measure {
            Measure::ErrorRate | Measure::HealthyShare => {
                format!("{}%", (value * 1e4).round() / 1e2)
            }
            _ => value.to_string(),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("name", &self.name)
            .field("side", &self.side)
            .field("threshold", &self.threshold)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::monitor::{Instances, counters::Counters, history::Span};

    /// A cluster with so many good and bad requests in a window of this length.
    pub(in crate::monitor) fn metrics(good: u64, bad: u64, seconds: u64) -> ClusterMetrics {
        let window = Duration::from_secs(seconds);
        ClusterMetrics {
            cluster: "users".into(),
            instances: Instances::default(),
            discovery: State::Live,
            in_flight: 0,
            window,
            requests: good + bad,
            errors: bad,
            cancelled: 0,
            cpu: None,
            memory: None,
            span: Span {
                counted: Counters::counted(good, bad),
                covered: window,
            },
        }
    }

    #[test]
    fn an_error_rate_needs_requests_to_begin_and_any_to_go_on() {
        let rule = Rule::high_error_rate();
        for (good, bad, expected, expected_firing) in [
            (0, 20, Reading::Bad(1.0), Reading::Bad(1.0)),
            (0, 19, Reading::Good(0.0), Reading::Bad(1.0)),
            (95, 5, Reading::Good(0.05), Reading::Good(0.05)),
            (94, 6, Reading::Bad(0.06), Reading::Bad(0.06)),
            (0, 0, Reading::Good(0.0), Reading::Good(0.0)),
        ] {
            let metrics = metrics(good, bad, 30);
            assert_eq!(rule.read(&metrics, false), expected, "{good} {bad}");
            assert_eq!(rule.read(&metrics, true), expected_firing, "{good} {bad}");
        }
        let long = rule.clone().window(Duration::from_secs(3600));
        assert_eq!(long.window, Rule::LONGEST_WINDOW);
        // Nothing counted yet says nothing of an alert from before.
        assert_eq!(rule.read(&metrics(0, 0, 5), true), Reading::Unknown);
        assert_eq!(rule.read(&metrics(5, 0, 5), true), Reading::Good(0.0));
    }

    #[test]
    fn healthy_instances_need_a_list() {
        let rule = Rule::low_healthy_instances();
        let mut metrics = metrics(0, 0, 30);
        metrics.instances.total = 10;
        metrics.instances.unhealthy = 3;
        assert_eq!(rule.read(&metrics, false), Reading::Good(0.7));
        metrics.instances.unhealthy = 4;
        assert_eq!(rule.read(&metrics, false), Reading::Bad(0.6));
        let busy = rule.clone().min_requests(1);
        assert_eq!(busy.read(&metrics, false), Reading::Good(0.6));
        metrics.discovery = State::Pending;
        assert_eq!(rule.read(&metrics, true), Reading::Unknown);
    }

    #[test]
    fn what_is_lost_is_counted() {
        let lost = |registries, stores| Lost { registries, stores };
        let rule = Rule::registry_lost();
        assert_eq!(rule.read_node(lost(0, 3)), Some(Reading::Good(0.0)));
        assert_eq!(rule.read_node(lost(1, 0)), Some(Reading::Bad(1.0)));
        let mut metrics = metrics(0, 0, 30);
        assert_eq!(rule.read(&metrics, false), Reading::Good(0.0));
        metrics.discovery = State::Stale {
            since: crate::time::now(),
        };
        assert_eq!(rule.read(&metrics, false), Reading::Bad(1.0));
        let rule = Rule::store_lost();
        assert!(!rule.is_about("users"));
        assert_eq!(rule.read_node(lost(5, 2)), Some(Reading::Bad(2.0)));
        assert_eq!(Rule::high_error_rate().read_node(lost(1, 1)), None);
    }

    #[test]
    fn a_function_of_the_users_own() {
        let rule = Rule::below("calm", 2.0, |cluster| match cluster.requests {
            0 => None,
            1 => Some(f64::NAN),
            requests => Some(requests as f64 / cluster.window.as_secs_f64()),
        });
        assert_eq!(rule.read(&metrics(0, 0, 1), false), Reading::Unknown);
        assert_eq!(rule.read(&metrics(1, 0, 1), false), Reading::Unknown);
        assert_eq!(rule.read(&metrics(2, 0, 2), false), Reading::Bad(1.0));
        assert_eq!(rule.read(&metrics(9, 0, 2), false), Reading::Good(4.5));
        let faulty = Rule::above("faulty", 0.0, |_| panic!("a bug in a rule"));
        assert_eq!(faulty.read(&metrics(9, 0, 2), false), Reading::Unknown);
        let only = rule.clusters(["orders"]);
        assert!(only.is_about("orders") && !only.is_about("users"));
    }
}
