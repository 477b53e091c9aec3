//! What happened in a cluster, for logs, metrics and recovery.

use std::{sync::Arc, time::Duration};

use crate::{
    discover::State,
    endpoint::Endpoint,
    health::{BreakerState, Cause, Standing},
};

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
    /// The breaker lets in more or less than before.
    Breaker {
        /// The state that it was in.
        from: BreakerState,
        /// The state that it is in now.
        to: BreakerState,
    },
    /// An endpoint was ejected, for the first time or again after its request on trial failed.
    Ejected {
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// Why.
        cause: Cause,
        /// For how long; then it is tried.
        span: Duration,
        /// The number of this ejection, by which the span grows.
        times: u32,
    },
    /// An ejected endpoint gets a request on trial.
    Trial(Arc<Endpoint>),
    /// Somebody suspects an endpoint: it is probed at once.
    Suspected(Arc<Endpoint>),
    /// An ejected endpoint takes its requests again.
    Readmitted(Arc<Endpoint>),
    /// Something is done about an endpoint that stays unusable.
    Recovery {
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// The number of the attempt, from 1.
        attempt: u32,
        /// How far it is.
        step: RecoveryStep,
    },
    /// An endpoint is about to leave and takes no new requests, before discovery says so.
    Draining {
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// Why, in words.
        reason: Arc<str>,
    },
    /// An endpoint that was about to leave takes new requests again.
    Resumed(Arc<Endpoint>),
    /// Discovery changed its state.
    Discovery(State),
}

/// How far an attempt is to bring an endpoint back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryStep {
    /// The action begins.
    Started,
    /// It was done and, where there is a way to, verified.
    Done,
    /// It could not be done, or was of no use.
    Failed(Arc<str>),
    /// It was the last one: nothing is done any more until the endpoint was well once.
    GivenUp,
}
