//! What happened in a cluster, for logs, metrics and recovery.

use std::sync::Arc;

use crate::{discover::State, endpoint::Endpoint, health::Standing};

/// A change in a cluster. Receivers that fall behind lose the oldest events, never the state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An endpoint joined.
    Added(Arc<Endpoint>),
    /// Attributes of an endpoint changed; its live state is kept.
    Updated(Arc<Endpoint>),
    /// An endpoint left. What it has in flight is finished.
    Removed(Arc<Endpoint>),
    /// What is thought of an endpoint changed.
    Health {
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// What was thought of it.
        from: Standing,
        /// What is thought of it now.
        to: Standing,
        /// Why, in words.
        reason: Arc<str>,
    },
    /// Discovery changed its state.
    Discovery(State),
}
