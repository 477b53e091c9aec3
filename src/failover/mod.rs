//! Sends a request again where that is safe.
mod attempts;
mod backoff;
pub mod body;
mod budget;
mod ending;
pub mod future;
mod grpc;
mod head;
mod hedge;
mod layer;
mod plan;
mod service;
mod stats;

pub use backoff::{Backoff, InvalidBackoff};
pub use budget::{Budget, InvalidBudget};
pub use hedge::{Hedge, InvalidPercentile};
pub use layer::{FailoverLayer, Fallback, NoFallback};
pub use service::Failover;
pub use stats::Stats;

/// A request extension: the request may be carried out twice, whatever its method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Idempotent;
