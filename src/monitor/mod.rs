//! Figures of clusters, rules about them, and who is told.
//!
//! A [`Monitor`] looks at its clusters every second. Each [`Rule`] looks at a window of what they
//! counted, at their endpoints, or at the stores and registries of the node; when it finds something
//! bad it fires once, and when that is over it says so once. Whoever is told, an [`Alerter`], stands
//! behind a [`Channel`], so that a receiver that is slow or gone holds up nobody.
//!
//! | rule | fires when | |
//! |---|---|---|
//! | [`high_error_rate`](Rule::high_error_rate) | more than 5 % of the requests of a cluster failed | of at least 20 in 30 s |
//! | [`low_healthy_instances`](Rule::low_healthy_instances) | fewer than 70 % of the endpoints of a cluster are well | |
//! | [`registry_lost`](Rule::registry_lost) | the registry does not answer, or the endpoints of a cluster are an old list | for 3 s |
//! | [`store_lost`](Rule::store_lost) | a store does not answer | for 3 s |
//! | [`above`](Rule::above), [`below`](Rule::below) | a function of the application's own says so | |
//!
//! A node that ends tells nobody that an alert is over, since it does not know: a receiver that
//! wants to know of such alerts gives them a time of its own, and a node that keeps them on disk goes
//! on with them (`Monitor::keep_in`).
//!
//! Every node tells what it sees itself. Where a monitoring system scrapes `/metrics` of all nodes,
//! rules over the sum of them belong there; these rules are for who has none, and for what it would
//! notice too late.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "client")] {
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tower_gateway::{
//!     Cluster, Upstream,
//!     monitor::{Channel, LogAlerter, Monitor, Rule, Severity, Webhook},
//!     pick::RoundRobin,
//! };
//!
//! let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
//! let log = Channel::new(LogAlerter::new());
//! let pager = Webhook::new(Upstream::new(), "http://127.0.0.1:9/alert".parse()?)?;
//! let pager = Channel::new(pager.timeout(Duration::from_secs(2)));
//!
//! let monitor = Monitor::new("gateway-1");
//! monitor.set_clusters(vec![users]);
//! monitor.set_rules([
//!     Rule::high_error_rate().notify(&log),
//!     Rule::high_error_rate()
//!         .threshold(0.5)
//!         .severity(Severity::Critical)
//!         .notify(&log)
//!         .notify(&pager),
//! ]);
//! # Ok(())
//! # }
//! # main().unwrap();
//! # }
//! ```

mod alert;
mod alerter;
mod board;
mod channel;
mod collect;
mod counters;
mod desk;
mod handle;
mod history;
mod instances;
#[cfg(feature = "file")]
mod keep;
mod metrics;
mod rule;
mod template;
mod track;
mod webhook;

pub use alert::{Alert, AlertState};
pub use alerter::{Alerter, DeliveryError, LogAlerter};
pub use channel::{Channel, ChannelCounts};
pub use collect::{MetricsCollector, ResourceUse};
pub use handle::{ActiveAlert, Monitor};
pub use instances::{InstanceHealth, Instances};
pub use metrics::{ClusterMetrics, Usage};
pub use rule::{Rule, Severity};
pub use template::{InvalidTemplate, Template};
pub use webhook::{InvalidWebhook, Webhook};
